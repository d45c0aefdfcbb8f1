//! Reading `config.json`.
//!
//! Strict about arithmetic and deaf to everything else: a field that changes what a model computes is honoured or
//! refused by name, a field that does not (dropout, initialisers, dtypes, caches, names of versions) is passed over.
//! Defaults are transformers' own, but for sizes: a file that leaves one out is refused.
//!
//! Fields and defaults as in transformers' `configuration_gpt2.py`, `configuration_llama.py`, `configuration_qwen2.py`.

use super::fields::{Fields, read_bounded};
use crate::config::{Family, ModelConfig};
use gradus_error::Result;
use serde_json::Value;
use std::path::Path;

/// A published `config.json` has a few KiB; one with names for a thousand labels some 100.
const LONGEST_FILE_BYTES: u64 = 4 << 20;

/// Reads `folder/config.json`.
pub(super) fn read(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join("config.json");
    let fields = Fields::parse(&read_bounded(&path, LONGEST_FILE_BYTES)?, path.display().to_string())?;
    let config = match fields.text("model_type", "")? {
        "gpt2" => gpt2(&fields)?,
        "llama" => llama(&fields)?,
        "qwen2" => qwen2(&fields)?,
        other => return Err(fields.wrong("model_type", &other.into(), "\"gpt2\", \"llama\" or \"qwen2\"")),
    };
    config.check().map_err(|error| error.within(path.display()))?;
    Ok(config)
}

fn gpt2(fields: &Fields) -> Result<ModelConfig> {
    fields.only_text("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
    fields.only_flag("scale_attn_weights", true)?;
    for key in ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"] {
        fields.only_flag(key, false)?;
    }
    refuse_quantization(fields)?;
    let width = aliased_size(fields, "n_embd", "hidden_size")?;
    let heads = aliased_size(fields, "n_head", "num_attention_heads")?;
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocabulary: fields.needed_size("vocab_size")?,
        context: aliased_size(fields, "n_positions", "max_position_embeddings")?,
        width,
        layers: aliased_size(fields, "n_layer", "num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_size: width.checked_div(heads).unwrap_or(0),
        feed_forward: fields.size("n_inner")?.unwrap_or(width.saturating_mul(4)),
        tied: fields.flag("tie_word_embeddings", true)?,
        qkv_bias: true,
        norm_epsilon: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        rope_theta: 10_000.0,
    })
}

/// A size that transformers knows by two names.
fn aliased_size(fields: &Fields, key: &str, alias: &str) -> Result<usize> {
    match (fields.size(key)?, fields.size(alias)?) {
        (Some(size), None) | (None, Some(size)) => Ok(size),
        (Some(size), Some(same)) if size == same => Ok(size),
        (Some(size), Some(other)) => Err(fields.wrong(alias, &other.into(), &format!("{size}, as {key} is"))),
        (None, None) => fields.needed_size(key),
    }
}

fn llama(fields: &Fields) -> Result<ModelConfig> {
    fields.only_flag("attention_bias", false)?;
    fields.only_flag("mlp_bias", false)?;
    rotary_family(fields, false)
}

fn qwen2(fields: &Fields) -> Result<ModelConfig> {
    // transformers takes 32 for a file that is silent, whatever its other sizes: better to ask.
    if !fields.names("num_key_value_heads") {
        fields.needed_size("num_key_value_heads")?;
    }
    fields.only_flag("use_sliding_window", false)?;
    rotary_family(fields, true)
}

fn rotary_family(fields: &Fields, qkv_bias: bool) -> Result<ModelConfig> {
    fields.only_text("hidden_act", &["silu", "swish"])?;
    refuse_quantization(fields)?;
    refuse_layer_types(fields)?;
    let width = fields.needed_size("hidden_size")?;
    let heads = fields.needed_size("num_attention_heads")?;
    Ok(ModelConfig {
        family: Family::Llama,
        vocabulary: fields.needed_size("vocab_size")?,
        context: fields.needed_size("max_position_embeddings")?,
        width,
        layers: fields.needed_size("num_hidden_layers")?,
        heads,
        kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        head_size: head_size(fields, width, heads)?,
        feed_forward: fields.needed_size("intermediate_size")?,
        tied: fields.flag("tie_word_embeddings", false)?,
        qkv_bias,
        norm_epsilon: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: rope_theta(fields)?,
    })
}

fn head_size(fields: &Fields, width: usize, heads: usize) -> Result<usize> {
    match fields.size("head_dim")? {
        Some(size) => Ok(size),
        None if heads > 0 && width.is_multiple_of(heads) => Ok(width / heads),
        None => Err(fields.wrong(
            "hidden_size",
            &width.into(),
            "a multiple of num_attention_heads without head_dim",
        )),
    }
}

/// The base of the rotary frequencies: `rope_theta`, or since transformers 5 `rope_parameters.rope_theta`. Whatever
/// bends the frequencies is refused.
fn rope_theta(fields: &Fields) -> Result<f32> {
    refuse_partial(fields)?;
    let mut theta = fields.positive("rope_theta")?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(inner) = fields.object(key)? else { continue };
        inner.only_text("rope_type", &["default"])?;
        inner.only_text("type", &["default"])?;
        inner.only_keys(&["rope_type", "type", "rope_theta", "partial_rotary_factor"])?;
        refuse_partial(&inner)?;
        theta = agreed(&inner, theta)?;
    }
    Ok(theta.unwrap_or(10_000.0))
}

/// The base that `inner` gives, or `known`; both where they agree.
fn agreed(inner: &Fields, known: Option<f32>) -> Result<Option<f32>> {
    match (inner.positive("rope_theta")?, known) {
        (Some(found), Some(known)) if found != known => {
            Err(inner.wrong("rope_theta", &found.into(), &format!("{known}, as it is elsewhere in the file")))
        }
        (found, known) => Ok(found.or(known)),
    }
}

fn refuse_partial(fields: &Fields) -> Result<()> {
    match fields.given("partial_rotary_factor") {
        Some(factor) if factor.as_f64() != Some(1.0) => {
            Err(fields.wrong("partial_rotary_factor", factor, "1, which is all that is supported"))
        }
        _ => Ok(()),
    }
}

fn refuse_layer_types(fields: &Fields) -> Result<()> {
    let Some(types) = fields.given("layer_types") else { return Ok(()) };
    let full = |kind: &Value| kind.as_str() == Some("full_attention");
    if types.as_array().is_some_and(|types| types.iter().all(full)) {
        return Ok(());
    }
    Err(fields.wrong("layer_types", types, "a list of \"full_attention\", which is all that is supported"))
}

fn refuse_quantization(fields: &Fields) -> Result<()> {
    match fields.given("quantization_config") {
        Some(found) => {
            Err(fields.wrong("quantization_config", found, "absent: quantised weights are not supported"))
        }
        None => Ok(()),
    }
}
