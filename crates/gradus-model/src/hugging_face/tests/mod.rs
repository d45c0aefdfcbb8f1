//! Whole folders: what the tests share.

mod configurations;
mod damage;
mod folders;

use super::*;
use crate::config::{Family, PRESETS};
use gradus_error::Kind;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

/// Two layers, a width that is not the heads', grouped keys, a vocabulary that needs padding.
fn config(family: Family, tied: bool, qkv_bias: bool) -> ModelConfig {
    let gpt2 = family == Family::Gpt2;
    ModelConfig {
        family,
        vocabulary: 11,
        context: 5,
        width: 12,
        layers: 2,
        heads: 2,
        kv_heads: if gpt2 { 2 } else { 1 },
        head_size: if gpt2 { 6 } else { 4 },
        feed_forward: 7,
        tied,
        qkv_bias,
        norm_epsilon: 1e-6,
        rope_theta: 10_000.0,
    }
}

fn configs() -> Vec<ModelConfig> {
    [(Family::Gpt2, true), (Family::Llama, false), (Family::Llama, true)]
        .into_iter()
        .flat_map(|(family, bias)| [true, false].map(|tied| config(family, tied, bias)))
        .collect()
}

/// A different number for each element that a file holds; zero for padding and gaps.
fn values(config: &ModelConfig, parameters: &Parameters) -> Vec<f32> {
    let mut values = vec![0.0; parameters.layout.len()];
    for mapped in mapping(config, parameters) {
        let range = mapped.target.start..mapped.target.end();
        let numbers = range.clone().map(|index| 1.0 + index as f32);
        values[range].iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
    }
    values
}

fn written(config: &ModelConfig, max_shard_bytes: usize) -> (TempDir, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let parameters = Parameters::new(config);
    let values = values(config, &parameters);
    let read = |span: Span| values[span.start..span.end()].to_vec();
    let tokens = SpecialTokens { bos: None, eos: Some(3) };
    write_model_folder(folder.path(), config, &parameters, &read, tokens, max_shard_bytes).unwrap();
    (folder, values)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn kind(folder: &Path) -> Kind {
    read_model(folder).unwrap_err().kind().clone()
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn load(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let owned = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, owned(view))).collect()
}

fn store(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A written folder whose `model.safetensors` has been changed.
fn altered(config: &ModelConfig, change: impl FnOnce(&mut Tensors)) -> (TempDir, Vec<f32>) {
    let (folder, values) = written(config, 0);
    let path = folder.path().join("model.safetensors");
    let mut tensors = load(&path);
    change(&mut tensors);
    store(&path, &tensors);
    (folder, values)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
