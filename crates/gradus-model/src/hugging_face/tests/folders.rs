//! Folders written and read again, made by hand, and made by transformers.

use super::*;
use half::{bf16, f16};

#[test]
fn what_is_written_is_read_again() {
    for config in configs() {
        for limit in [0, 1000, 1] {
            let (folder, values) = written(&config, limit);
            let model = read_model(folder.path()).unwrap();
            assert_eq!(model.config, config);
            assert_eq!(model.values, values, "{} in shards of {limit}", config.summary());
        }
    }
}

#[test]
fn files_have_the_customary_names() {
    let config = config(Family::Gpt2, true, true);
    let (folder, _) = written(&config, 0);
    assert_eq!(names(folder.path()), ["config.json", "generation_config.json", "model.safetensors"]);
    let (folder, _) = written(&config, 2000);
    let names = names(folder.path());
    let count = names.len() - 3;
    assert!(count > 1 && names[2] == format!("model-00001-of-{count:05}.safetensors"), "{names:?}");
    assert_eq!(names.last().unwrap(), "model.safetensors.index.json");
    let index: Value =
        serde_json::from_slice(&fs::read(folder.path().join(names.last().unwrap())).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * config.parameter_count());
    assert_eq!(index["weight_map"]["transformer.wte.weight"], names[2]);
}

#[test]
fn a_file_holds_the_true_vocabulary_and_says_its_framework() {
    let (folder, _) = written(&config(Family::Llama, false, false), 0);
    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert_eq!(metadata.info(name).unwrap().shape, [11, 12]);
    }
}

#[test]
fn gpt2_matrices_are_turned_and_others_are_not() {
    let config = config(Family::Gpt2, true, true);
    let (_, queries) = (config.query_width(), config.qkv_width());
    // In the file: element [input, output] is 100 * input + output.
    let weight: Vec<f32> = (0..12 * queries).map(|at| (100 * (at / queries) + at % queries) as f32).collect();
    let (folder, _) = altered(&config, |tensors| {
        tensors.get_mut("transformer.h.1.attn.c_attn.weight").unwrap().2 = floats(&weight);
        tensors.get_mut("transformer.wpe.weight").unwrap().2 = floats(&weight[..60]);
    });
    let model = read_model(folder.path()).unwrap();
    let qkv = model.parameters.blocks[1].qkv.weight;
    for (at, value) in model.values[qkv.start..qkv.end()].iter().enumerate() {
        let (output, input) = (at / 12, at % 12);
        assert_eq!(*value, (100 * input + output) as f32);
    }
    let positions = model.parameters.positions.unwrap();
    assert_eq!(model.values[positions.start..positions.end()], weight[..60]);
}

#[test]
fn llama_rows_join_in_order() {
    let config = config(Family::Llama, true, true);
    let (folder, _) = altered(&config, |tensors| {
        for (name, value) in [("q_proj", 1.0), ("k_proj", 2.0), ("v_proj", 3.0)] {
            for part in ["weight", "bias"] {
                let tensor = tensors.get_mut(&format!("model.layers.0.self_attn.{name}.{part}")).unwrap();
                tensor.2 = floats(&vec![value; tensor.2.len() / 4]);
            }
        }
        for (name, value) in [("gate_proj", 4.0), ("up_proj", 5.0)] {
            let tensor = tensors.get_mut(&format!("model.layers.0.mlp.{name}.weight")).unwrap();
            tensor.2 = floats(&vec![value; tensor.2.len() / 4]);
        }
    });
    let model = read_model(folder.path()).unwrap();
    let block = model.parameters.blocks[0];
    let part = |span: Span| model.values[span.start..span.end()].to_vec();
    let rows = |counts: &[(usize, f32)]| -> Vec<f32> {
        counts.iter().flat_map(|(count, value)| vec![*value; *count]).collect()
    };
    assert_eq!(part(block.qkv.weight), rows(&[(8 * 12, 1.0), (4 * 12, 2.0), (4 * 12, 3.0)]));
    assert_eq!(part(block.qkv.bias.unwrap()), rows(&[(8, 1.0), (4, 2.0), (4, 3.0)]));
    assert_eq!(part(block.up.weight), rows(&[(7 * 12, 4.0), (7 * 12, 5.0)]));
}

#[test]
fn sixteen_bit_weights_are_widened() {
    let config = config(Family::Llama, true, false);
    for dtype in [Dtype::F16, Dtype::BF16] {
        let round = |value: f32| match dtype {
            Dtype::F16 => f16::from_f32(value).to_f32(),
            _ => bf16::from_f32(value).to_f32(),
        };
        let (folder, values) = altered(&config, |tensors| {
            for (kind, _, data) in tensors.values_mut() {
                *kind = dtype;
                let narrow = |value: f32| match dtype {
                    Dtype::F16 => f16::from_f32(value).to_le_bytes(),
                    _ => bf16::from_f32(value).to_le_bytes(),
                };
                let wide = data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                *data = wide.flat_map(narrow).collect();
            }
        });
        let rounded: Vec<_> = values.into_iter().map(round).collect();
        assert_eq!(read_model(folder.path()).unwrap().values, rounded);
    }
}

#[test]
fn names_without_prefix_and_old_constants_are_accepted() {
    for config in configs() {
        let prefix = if config.family == Family::Gpt2 { "transformer." } else { "model." };
        let (folder, values) = altered(&config, |tensors| {
            let bare = std::mem::take(tensors).into_iter();
            *tensors = bare
                .map(|(name, tensor)| (name.strip_prefix(prefix).unwrap_or(&name).to_owned(), tensor))
                .collect();
            for name in ["h.0.attn.bias", "h.1.attn.masked_bias", "layers.0.self_attn.rotary_emb.inv_freq"] {
                if name.starts_with('h') == (config.family == Family::Gpt2) {
                    tensors.insert(name.to_owned(), (Dtype::U8, vec![1], vec![1]));
                }
            }
            if config.tied {
                tensors.insert("lm_head.weight".to_owned(), (Dtype::F32, vec![1], vec![1; 4]));
            }
        });
        assert_eq!(read_model(folder.path()).unwrap().values, values, "{}", config.summary());
    }
}

#[test]
fn folders_of_transformers_are_read_exactly() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut read = 0;
    for name in names(&golden).iter().filter(|name| golden.join(name).join("model.safetensors").exists()) {
        let folder = golden.join(name);
        let model = read_model(&folder).unwrap();
        let tensors = load(&folder.join("model.safetensors"));
        for mapped in mapping(&model.config, &model.parameters) {
            let (_, shape, data) = &tensors[&mapped.name];
            let found = &model.values[mapped.target.start..mapped.target.end()];
            for (at, bytes) in data.as_chunks::<4>().0.iter().enumerate() {
                let place = if mapped.transposed { (at % shape[1]) * shape[0] + at / shape[1] } else { at };
                assert_eq!(
                    found[place].to_bits(),
                    u32::from_le_bytes(*bytes),
                    "{name}: {} {at}",
                    mapped.name
                );
            }
        }
        assert_eq!(name.starts_with("gpt2"), model.config.family == Family::Gpt2);
        assert_eq!(name.contains("tied"), model.config.tied);
        assert_eq!(name.starts_with("llama"), !model.config.qkv_bias);
        read += 1;
    }
    assert!(read >= 4, "the golden folders are missing from {}", golden.display());
}
