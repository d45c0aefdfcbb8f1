//! Which tensor of a Hugging Face file is which part of the layout: as data, so that reading, writing and checking are
//! one loop each and a family is one function.
//!
//! Two differences are all there is. GPT-2 keeps its linear weights as `[inputs, outputs]` (its `Conv1D`), so they are
//! transposed on the way. Llama keeps queries, keys and values, and gate and up, as tensors of their own; here they are
//! row ranges of one tensor, one after another. Of the vocabulary's tables a file holds the tokens that exist, never
//! the padding.
//!
//! Names as in transformers' `modeling_gpt2.py`, `modeling_llama.py` and `modeling_qwen2.py`.

use crate::config::{Family, ModelConfig};
use crate::parameters::{BlockTensors, LinearTensors, NormTensors, Parameters};
use gradus_memory::Span;

/// A tensor of a Hugging Face file and its place in the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Its name in the file, such as `transformer.h.3.attn.c_attn.weight`.
    pub name: String,
    /// Its shape in the file, row-major.
    pub shape: Vec<usize>,
    /// The rows that it fills.
    pub target: Span,
    /// Whether the file's rows are the layout's columns; only matrices are ever transposed.
    pub transposed: bool,
}

/// All tensors that a file of this model holds, in the file's order: embedding first, head last.
///
/// The ranges are disjoint and cover every element of the layout but padding.
pub fn mapping(config: &ModelConfig, parameters: &Parameters) -> Vec<Mapped> {
    let mut list = List::default();
    match config.family {
        Family::Gpt2 => gpt2(&mut list, config, parameters),
        Family::Llama => llama(&mut list, config, parameters),
    }
    if !config.tied {
        list.table("lm_head.weight", config, parameters.head);
    }
    list.entries
}

/// The prefix that names of the model without its head carry in a file of the model with it; files of the bare model
/// lack it.
pub(super) fn base_prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        Family::Llama => "model.",
    }
}

/// The name by which a tensor is looked up: without the base model's prefix.
pub(super) fn bare_name(family: Family, name: &str) -> &str {
    name.strip_prefix(base_prefix(family)).unwrap_or(name)
}

/// Whether a file may hold this tensor although the model has no use for it: constants that older versions of
/// transformers saved (GPT-2's causal masks, Llama's rotary frequencies), and the head of a tied model, which is the
/// embedding whatever the file says there.
pub(super) fn is_ignored(config: &ModelConfig, bare_name: &str) -> bool {
    match config.family {
        _ if config.tied && bare_name == "lm_head.weight" => true,
        Family::Gpt2 => [".attn.bias", ".attn.masked_bias"].iter().any(|end| bare_name.ends_with(end)),
        Family::Llama => bare_name.ends_with(".self_attn.rotary_emb.inv_freq"),
    }
}

fn gpt2(list: &mut List, config: &ModelConfig, parameters: &Parameters) {
    list.table("transformer.wte.weight", config, parameters.embedding);
    let positions = parameters.positions.expect("a GPT-2 model has learned positions");
    list.push("transformer.wpe.weight", &[config.context, config.width], positions);
    for (layer, block) in parameters.blocks.iter().enumerate() {
        gpt2_block(list, config, block, &format!("transformer.h.{layer}"));
    }
    list.norm("transformer.ln_f", parameters.final_norm);
}

fn gpt2_block(list: &mut List, config: &ModelConfig, block: &BlockTensors, name: &str) {
    list.norm(&format!("{name}.ln_1"), block.attention_norm);
    list.transposed(&format!("{name}.attn.c_attn"), block.qkv, config.width);
    list.transposed(&format!("{name}.attn.c_proj"), block.attention_out, config.query_width());
    list.norm(&format!("{name}.ln_2"), block.feed_forward_norm);
    list.transposed(&format!("{name}.mlp.c_fc"), block.up, config.width);
    list.transposed(&format!("{name}.mlp.c_proj"), block.down, config.feed_forward);
}

fn llama(list: &mut List, config: &ModelConfig, parameters: &Parameters) {
    list.table("model.embed_tokens.weight", config, parameters.embedding);
    for (layer, block) in parameters.blocks.iter().enumerate() {
        llama_block(list, config, block, &format!("model.layers.{layer}"));
    }
    list.norm("model.norm", parameters.final_norm);
}

fn llama_block(list: &mut List, config: &ModelConfig, block: &BlockTensors, name: &str) {
    let (width, queries, keys) = (config.width, config.query_width(), config.kv_width());
    list.norm(&format!("{name}.input_layernorm"), block.attention_norm);
    list.rows(&format!("{name}.self_attn.q_proj"), block.qkv, width, 0, queries);
    list.rows(&format!("{name}.self_attn.k_proj"), block.qkv, width, queries, keys);
    list.rows(&format!("{name}.self_attn.v_proj"), block.qkv, width, queries + keys, keys);
    list.rows(&format!("{name}.self_attn.o_proj"), block.attention_out, queries, 0, width);
    list.norm(&format!("{name}.post_attention_layernorm"), block.feed_forward_norm);
    list.rows(&format!("{name}.mlp.gate_proj"), block.up, width, 0, config.feed_forward);
    list.rows(&format!("{name}.mlp.up_proj"), block.up, width, config.feed_forward, config.feed_forward);
    list.rows(&format!("{name}.mlp.down_proj"), block.down, config.feed_forward, 0, width);
}

#[derive(Default)]
struct List {
    entries: Vec<Mapped>,
}

impl List {
    fn push(&mut self, name: impl Into<String>, shape: &[usize], target: Span) {
        debug_assert_eq!(shape.iter().product::<usize>(), target.len);
        self.entries.push(Mapped { name: name.into(), shape: shape.to_vec(), target, transposed: false });
    }

    /// A table with a row for each token: `[V, C]` of `[V padded, C]`.
    fn table(&mut self, name: &str, config: &ModelConfig, padded: Span) {
        let tokens = padded.part(0, config.vocabulary * config.width);
        self.push(name, &[config.vocabulary, config.width], tokens);
    }

    fn norm(&mut self, name: &str, norm: NormTensors) {
        self.push(format!("{name}.weight"), &[norm.weight.len], norm.weight);
        if let Some(bias) = norm.bias {
            self.push(format!("{name}.bias"), &[bias.len], bias);
        }
    }

    /// Rows `first..first + rows` of a linear layer with `inputs` columns, and of its bias.
    fn rows(&mut self, name: &str, linear: LinearTensors, inputs: usize, first: usize, rows: usize) {
        let weight = linear.weight.part(first * inputs, rows * inputs);
        self.push(format!("{name}.weight"), &[rows, inputs], weight);
        if let Some(bias) = linear.bias {
            self.push(format!("{name}.bias"), &[rows], bias.part(first, rows));
        }
    }

    /// A linear layer whose weight the file holds as `[inputs, outputs]`.
    fn transposed(&mut self, name: &str, linear: LinearTensors, inputs: usize) {
        let shape = vec![inputs, linear.weight.len / inputs];
        let name_of_weight = format!("{name}.weight");
        self.entries.push(Mapped { name: name_of_weight, shape, target: linear.weight, transposed: true });
        if let Some(bias) = linear.bias {
            self.push(format!("{name}.bias"), &[bias.len], bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PRESETS;

    fn configs() -> impl Iterator<Item = ModelConfig> {
        let presets = PRESETS.iter().map(|(_, config)| config.clone());
        let free = PRESETS.iter().map(|(_, config)| ModelConfig { tied: false, ..config.clone() });
        presets.chain(free)
    }

    #[test]
    fn every_element_but_padding_is_mapped_exactly_once() {
        for config in configs() {
            let mut mapped: Vec<_> =
                mapping(&config, &Parameters::new(&config)).iter().map(|m| m.target).collect();
            mapped.sort_by_key(|span| span.start);
            assert!(mapped.windows(2).all(|pair| !pair[0].overlaps(&pair[1])), "{}", config.summary());
            let elements: usize = mapped.iter().map(|span| span.len).sum();
            assert_eq!(elements, config.parameter_count(), "{}", config.summary());
        }
    }

    #[test]
    fn matrices_of_the_layout_are_those_that_llama_keeps_as_tensors_of_their_own() {
        for config in configs().filter(|config| config.family == Family::Llama) {
            let parameters = Parameters::new(&config);
            let mapped = mapping(&config, &parameters).into_iter();
            let linear = mapped.filter(|mapped| mapped.name.ends_with("_proj.weight"));
            let mut theirs: Vec<_> = linear.map(|mapped| (mapped.target, mapped.shape[0])).collect();
            theirs.sort_by_key(|(span, _)| span.start);
            let tensors = parameters.layout.tensors().iter();
            let ours: Vec<_> = tensors.flat_map(gradus_memory::Tensor::each_matrix).collect();
            assert_eq!(ours, theirs, "{}", config.summary());
        }
    }

    #[test]
    fn names_are_unique_with_and_without_the_prefix() {
        for config in configs() {
            let mapping = mapping(&config, &Parameters::new(&config));
            let mut names: Vec<_> = mapping.iter().map(|m| bare_name(config.family, &m.name)).collect();
            assert!(names.iter().all(|name| !is_ignored(&config, name)));
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), mapping.len());
        }
    }

    #[test]
    fn exactly_the_matrices_of_gpt2_blocks_are_transposed() {
        for config in configs() {
            for mapped in mapping(&config, &Parameters::new(&config)) {
                let convolution = mapped.name.contains(".c_") && mapped.name.ends_with(".weight");
                assert_eq!(mapped.transposed, convolution, "{}", mapped.name);
            }
        }
    }

    #[test]
    fn heads_and_masks_are_ignored_only_where_they_say_nothing() {
        let tied = PRESETS[0].1.clone();
        let free = ModelConfig { tied: false, ..tied.clone() };
        assert!(is_ignored(&tied, "lm_head.weight") && !is_ignored(&free, "lm_head.weight"));
        assert!(is_ignored(&tied, "h.0.attn.bias") && is_ignored(&tied, "h.0.attn.masked_bias"));
        assert!(!is_ignored(&tied, "h.0.attn.c_attn.bias"));
    }
}
