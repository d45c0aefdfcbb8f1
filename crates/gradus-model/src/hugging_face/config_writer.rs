//! Writing `config.json` and `generation_config.json`.
//!
//! What is written opens in transformers 4.4x and 5 to the same model: both spellings of the dtype and of the rotary
//! base, every dropout zero, and nothing left to defaults that have changed.

use super::SpecialTokens;
use crate::config::{Family, ModelConfig};
use gradus_error::{IoContext, Result};
use gradus_host::disk::write_atomically;
use serde::Serialize;
use std::path::Path;

/// Writes `folder/config.json` and `folder/generation_config.json`.
pub(super) fn write(folder: &Path, config: &ModelConfig, tokens: SpecialTokens) -> Result<()> {
    let path = folder.join("config.json");
    match (config.family, config.qkv_bias) {
        (Family::Gpt2, _) => write_json(&path, &Gpt2File::new(config, tokens))?,
        (Family::Llama, false) => write_json(&path, &LlamaFile::new(config, tokens))?,
        (Family::Llama, true) => write_json(&path, &Qwen2File::new(config, tokens))?,
    }
    let generation =
        GenerationFile { _from_model_config: true, bos_token_id: tokens.bos, eos_token_id: tokens.eos };
    write_json(&folder.join("generation_config.json"), &generation)
}

/// Writes a value as indented JSON with a final line break.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_atomically(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)
            .map_err(std::io::Error::from)
            .and_then(|()| writer.write_all(b"\n"))
            .context(|| format!("cannot write {}", path.display()))
    })
}

#[derive(Serialize)]
struct GenerationFile {
    _from_model_config: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

/// What every `config.json` says. Null ids are written: transformers' own defaults (50256, or 1 and 2) would be wrong.
#[derive(Serialize)]
struct CommonFile {
    architectures: [&'static str; 1],
    model_type: &'static str,
    vocab_size: usize,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    tie_word_embeddings: bool,
    use_cache: bool,
    torch_dtype: &'static str,
    dtype: &'static str,
}

impl CommonFile {
    fn new(
        config: &ModelConfig,
        tokens: SpecialTokens,
        architecture: &'static str,
        model_type: &'static str,
    ) -> Self {
        Self {
            architectures: [architecture],
            model_type,
            vocab_size: config.vocabulary,
            bos_token_id: tokens.bos,
            eos_token_id: tokens.eos,
            tie_word_embeddings: config.tied,
            use_cache: true,
            torch_dtype: "float32",
            dtype: "float32",
        }
    }
}

#[derive(Serialize)]
struct Gpt2File {
    #[serde(flatten)]
    common: CommonFile,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: usize,
    activation_function: &'static str,
    layer_norm_epsilon: f32,
    attn_pdrop: f32,
    embd_pdrop: f32,
    resid_pdrop: f32,
    summary_first_dropout: f32,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    reorder_and_upcast_attn: bool,
}

impl Gpt2File {
    fn new(config: &ModelConfig, tokens: SpecialTokens) -> Self {
        Self {
            common: CommonFile::new(config, tokens, "GPT2LMHeadModel", "gpt2"),
            n_positions: config.context,
            n_embd: config.width,
            n_layer: config.layers,
            n_head: config.heads,
            n_inner: config.feed_forward,
            activation_function: "gelu_new",
            layer_norm_epsilon: config.norm_epsilon,
            attn_pdrop: 0.0,
            embd_pdrop: 0.0,
            resid_pdrop: 0.0,
            summary_first_dropout: 0.0,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
        }
    }
}

/// What Llama and Qwen2 have in common.
#[derive(Serialize)]
struct RotaryFile {
    #[serde(flatten)]
    common: CommonFile,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    hidden_act: &'static str,
    rms_norm_eps: f32,
    attention_dropout: f32,
    rope_theta: f32,
    rope_parameters: RopeFile,
}

#[derive(Serialize)]
struct RopeFile {
    rope_theta: f32,
    rope_type: &'static str,
}

impl RotaryFile {
    fn new(config: &ModelConfig, common: CommonFile) -> Self {
        Self {
            common,
            hidden_size: config.width,
            num_hidden_layers: config.layers,
            num_attention_heads: config.heads,
            num_key_value_heads: config.kv_heads,
            head_dim: config.head_size,
            intermediate_size: config.feed_forward,
            max_position_embeddings: config.context,
            hidden_act: "silu",
            rms_norm_eps: config.norm_epsilon,
            attention_dropout: 0.0,
            rope_theta: config.rope_theta,
            rope_parameters: RopeFile { rope_theta: config.rope_theta, rope_type: "default" },
        }
    }
}

#[derive(Serialize)]
struct LlamaFile {
    #[serde(flatten)]
    rotary: RotaryFile,
    attention_bias: bool,
    mlp_bias: bool,
}

impl LlamaFile {
    fn new(config: &ModelConfig, tokens: SpecialTokens) -> Self {
        let common = CommonFile::new(config, tokens, "LlamaForCausalLM", "llama");
        Self { rotary: RotaryFile::new(config, common), attention_bias: false, mlp_bias: false }
    }
}

#[derive(Serialize)]
struct Qwen2File {
    #[serde(flatten)]
    rotary: RotaryFile,
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    max_window_layers: usize,
}

impl Qwen2File {
    fn new(config: &ModelConfig, tokens: SpecialTokens) -> Self {
        let common = CommonFile::new(config, tokens, "Qwen2ForCausalLM", "qwen2");
        let rotary = RotaryFile::new(config, common);
        Self { rotary, use_sliding_window: false, sliding_window: None, max_window_layers: config.layers }
    }
}
