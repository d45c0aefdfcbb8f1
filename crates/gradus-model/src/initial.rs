//! Weights before the first step.
//!
//! Matrices and tables are normal with deviation 0.02, those that write into the residual stream divided by
//! `sqrt(2 L)` (Radford et al. 2019, section 2.3); norms are one, biases zero. Each tensor draws from a stream named by
//! the seed and its own name, so that a tensor keeps its numbers when another is added.

use crate::config::ModelConfig;
use crate::parameters::Parameters;
use gradus_host::random::Stream;
use gradus_memory::{Span, Tensor};

/// Deviation of a fresh matrix.
const DEVIATION: f64 = 0.02;

/// Gives every tensor its first values, `put(range of the layout, values)`; padding rows of the vocabulary are zero.
pub(crate) fn initial(
    config: &ModelConfig,
    parameters: &Parameters,
    seed: u64,
    put: &mut dyn FnMut(Span, &[f32]),
) {
    for tensor in parameters.layout.tensors() {
        put(tensor.span(), &values(config, tensor, seed));
    }
}

fn values(config: &ModelConfig, tensor: &Tensor, seed: u64) -> Vec<f32> {
    if tensor.shape.len() == 1 {
        let value = if tensor.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        return vec![value; tensor.len()];
    }
    let writes_residual =
        tensor.name.ends_with("attention.out.weight") || tensor.name.ends_with("down.weight");
    let deviation = if writes_residual { DEVIATION / (2.0 * config.layers as f64).sqrt() } else { DEVIATION };
    let is_table = tensor.name == "embedding.weight" || tensor.name == "head.weight";
    let filled = if is_table { config.vocabulary * config.width } else { tensor.len() };
    let mut stream = Stream::new(seed, name_number(&tensor.name));
    let mut values: Vec<f32> = (0..filled).map(|_| (deviation * stream.next_normal()) as f32).collect();
    values.resize(tensor.len(), 0.0);
    values
}

/// FNV-1a of a name (Fowler, Noll and Vo), 64 bits.
fn name_number(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
