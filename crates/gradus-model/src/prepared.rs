//! Weights of linear layers as their products take them: rounded and packed once for each change, not once for each use.
//!
//! A weight is multiplied in every microbatch forward and backward, the head's in every piece of rows. Its two copies take
//! as much memory as a master in f32 where the device multiplies pairs, else twice as much. They are made when a pass begins, if
//! anything has changed since.

use crate::config::{Family, ModelConfig};
use crate::parameters::{LinearTensors, Parameters};
use crate::part::Part;
use gradus_compute::{Device, Linear, Matrix, Use, Weight};
use gradus_error::Result;
use gradus_memory::{Layout, Span};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One weight for one use.
#[derive(Debug, Clone, Copy)]
struct Copy {
    /// Its range of the layout.
    tensor: Span,
    shape: Linear,
    usage: Use,
    place: Span,
}

/// All of them; by default none.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// By their start in the layout, forward before backward.
    copies: Vec<Copy>,
    /// Held while they are made, so that whoever else begins a pass waits for them.
    outdated: Mutex<bool>,
}

impl Prepared {
    /// Room for all linear layers of a model.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub(crate) fn new(device: &dyn Device, config: &ModelConfig, parameters: &Parameters) -> Result<Self> {
        let mut copies = Vec::new();
        // A part may have no head.
        for (tensor, inputs, apart) in
            layers(config, parameters).into_iter().filter(|(tensor, ..)| !tensor.is_empty())
        {
            // Rows do not matter to how a weight is laid out.
            let shape = Linear { rows: 0, inputs, outputs: tensor.len / inputs };
            for usage in [Use::Forward { apart }, Use::Backward] {
                let place = device.allocate(device.prepared_len(shape, usage))?;
                copies.push(Copy { tensor, shape, usage, place });
            }
        }
        copies.sort_by_key(|copy| (copy.tensor.start, copy.usage == Use::Backward));
        Ok(Self { copies, outdated: Mutex::new(true) })
    }

    /// The weight of a layer for its forward pass, or backward.
    pub(crate) fn find(&self, tensor: Span, forward: bool) -> Option<Weight> {
        let first = self.copies.partition_point(|copy| copy.tensor.start < tensor.start);
        let copy = self.copies.get(first + usize::from(!forward))?;
        (copy.tensor == tensor).then_some(Weight::Prepared(copy.place))
    }

    /// Says that what they are made of has changed.
    pub(crate) fn outdate(&self) {
        *self.outdated() = true;
    }

    fn outdated(&self) -> MutexGuard<'_, bool> {
        // Whoever panicked while making them left the flag as it was.
        self.outdated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes them anew of the weights, if those have changed; each is found by its range.
    pub(crate) fn refresh(&self, device: &dyn Device, weight: impl Fn(Span) -> Matrix) {
        let mut outdated = self.outdated();
        if *outdated {
            for Copy { tensor, shape, usage, place } in &self.copies {
                device.prepare(*shape, *usage, weight(*tensor), *place);
            }
            *outdated = false;
        }
    }
}

/// Elements that the prepared weights of a part of a model take, on a device that multiplies in bf16 and takes `len` for one
/// weight ([`Device::prepared_len`]).
pub fn size_of_prepared(config: &ModelConfig, part: &Part, len: &dyn Fn(Linear, Use) -> usize) -> usize {
    let weight = |(tensor, inputs, apart): (Span, usize, usize)| {
        let shape = Linear { rows: 0, inputs, outputs: tensor.len / inputs };
        let uses = [Use::Forward { apart }, Use::Backward];
        uses.map(|usage| len(shape, usage).next_multiple_of(Layout::ALIGNMENT)).iter().sum::<usize>()
    };
    let weights = layers(&part.local(config), &Parameters::of(config, part));
    weights.into_iter().filter(|(tensor, ..)| !tensor.is_empty()).map(weight).sum()
}

/// Every linear layer's weight: its range, its inputs, and how far apart columns are that its epilogue takes together.
fn layers(config: &ModelConfig, parameters: &Parameters) -> Vec<(Span, usize, usize)> {
    let (turns, gates) = match config.family {
        Family::Gpt2 => (0, 0),
        Family::Llama => (config.head_size / 2, config.feed_forward),
    };
    let layer = |layer: &LinearTensors, inputs, apart| (layer.weight, inputs, apart);
    // A part without a head has an empty one, where its first layer begins.
    let head = (!parameters.head.is_empty()).then_some((parameters.head, config.width, 0));
    let mut layers: Vec<_> = head.into_iter().collect();
    for block in &parameters.blocks {
        layers.extend([
            layer(&block.qkv, config.width, turns),
            layer(&block.attention_out, config.query_width(), 0),
            layer(&block.up, config.width, gates),
            layer(&block.down, config.feed_forward, 0),
        ]);
    }
    layers
}
