//! `config.json`: published ones, changed ones, noise.

use super::*;
use proptest::prelude::*;

#[test]
fn presets_survive_their_config_file() {
    for (name, preset) in PRESETS {
        let folder = tempfile::tempdir().unwrap();
        config_writer::write(folder.path(), preset, SpecialTokens::default()).unwrap();
        assert_eq!(read_config(folder.path()).unwrap(), *preset, "{name}");
    }
}

#[test]
fn special_tokens_are_written_even_where_there_is_none() {
    for config in configs() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = SpecialTokens { bos: None, eos: Some(3) };
        config_writer::write(folder.path(), &config, tokens).unwrap();
        for file in ["config.json", "generation_config.json"] {
            let value: Value = serde_json::from_slice(&fs::read(folder.path().join(file)).unwrap()).unwrap();
            assert_eq!(value.get("bos_token_id"), Some(&Value::Null), "{file}");
            assert_eq!(value["eos_token_id"], 3, "{file}");
        }
    }
}

/// The `config.json` of a published model of each type, cut to what matters.
fn published() -> [Value; 3] {
    [
        json!({
            "model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "n_inner": null, "layer_norm_epsilon": 1e-5, "vocab_size": 50257,
            "resid_pdrop": 0.1, "task_specific_params": {"text-generation": {"do_sample": true}},
        }),
        json!({
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "vocab_size": 49152,
            "rms_norm_eps": 1e-5, "rope_theta": 100_000, "rope_scaling": null, "rope_interleaved": false,
            "attention_bias": false, "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16",
        }),
        json!({
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "vocab_size": 151936,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768, "max_window_layers": 24,
            "use_sliding_window": false, "tie_word_embeddings": true, "hidden_act": "silu", "attention_dropout": 0.0,
        }),
    ]
}

fn read_json(value: &Value) -> Result<ModelConfig> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), value.to_string()).unwrap();
    read_config(folder.path())
}

/// One published file with `changes` over it.
fn changed(which: usize, changes: &Value) -> Value {
    let mut value = published()[which].clone();
    for (key, change) in changes.as_object().unwrap() {
        value[key] = change.clone();
    }
    value
}

#[test]
fn published_configurations_are_the_presets() {
    for (value, (name, preset)) in published().iter().zip(PRESETS) {
        assert_eq!(read_json(value).unwrap(), *preset, "{name}");
    }
}

#[test]
fn fields_are_honoured() {
    let read = |which, changes| read_json(&changed(which, &changes)).unwrap();
    assert_eq!(read(0, json!({"n_inner": 100})).feed_forward, 100);
    assert!(!read(0, json!({"tie_word_embeddings": false})).tied);
    assert_eq!(read(0, json!({"activation_function": "gelu_pytorch_tanh"})).feed_forward, 3072);
    assert_eq!(read(0, json!({"hidden_size": 768, "num_hidden_layers": 12})).width, 768);
    assert_eq!(read(1, json!({"num_key_value_heads": null})).kv_heads, 9);
    assert_eq!(read(1, json!({"head_dim": 32})).head_size, 32);
    assert_eq!(read(1, json!({"head_dim": null})).head_size, 64);
    assert_eq!(read(1, json!({"rope_parameters": {"rope_type": "default"}})).rope_theta, 1e5);
    let newer = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
    assert_eq!(read(1, newer).rope_theta, 5e5);
    assert_eq!(
        read(2, json!({"layer_types": ["full_attention"], "rope_scaling": {"type": "default"}})).layers,
        24
    );
    for (which, tied) in [(0, true), (1, false), (2, false)] {
        let mut value = published()[which].clone();
        value.as_object_mut().unwrap().remove("tie_word_embeddings");
        assert_eq!(read_json(&value).unwrap().tied, tied);
    }
}

#[test]
fn fields_that_would_change_the_arithmetic_are_refused_by_name() {
    let refused = [
        (0, json!({"model_type": "gpt_neox"})),
        (0, json!({"model_type": null})),
        (0, json!({"model_type": 3})),
        (0, json!({"activation_function": "gelu"})),
        (0, json!({"activation_function": "relu"})),
        (0, json!({"scale_attn_weights": false})),
        (0, json!({"scale_attn_by_inverse_layer_idx": true})),
        (0, json!({"reorder_and_upcast_attn": true})),
        (0, json!({"add_cross_attention": true})),
        (0, json!({"layer_norm_epsilon": -1e-5})),
        (0, json!({"tie_word_embeddings": null})),
        (0, json!({"hidden_size": 512})),
        (0, json!({"n_embd": 769})),
        (0, json!({"n_head": 0})),
        (0, json!({"vocab_size": 1.5})),
        (0, json!({"vocab_size": null})),
        (1, json!({"hidden_act": "gelu"})),
        (1, json!({"attention_bias": true})),
        (1, json!({"mlp_bias": true})),
        (1, json!({"rope_scaling": {"type": "linear", "factor": 2.0}})),
        (1, json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})),
        (1, json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e5}})),
        (1, json!({"rope_parameters": {"rope_theta": 2e5}})),
        (1, json!({"rope_parameters": {"full_attention": {"rope_theta": 1e5}}})),
        (1, json!({"rope_parameters": 3})),
        (1, json!({"partial_rotary_factor": 0.5})),
        (1, json!({"rope_theta": 0})),
        (1, json!({"quantization_config": {"bits": 4}})),
        (1, json!({"head_dim": 63})),
        (1, json!({"num_attention_heads": 7, "num_key_value_heads": 7})),
        (1, json!({"num_key_value_heads": 2})),
        (1, json!({"num_hidden_layers": 16_777_216})),
        (1, json!({"vocab_size": 16_777_216, "hidden_size": 16_777_216, "head_dim": 64})),
        (1, json!({"intermediate_size": u64::MAX})),
        (2, json!({"use_sliding_window": true})),
        (2, json!({"layer_types": ["full_attention", "sliding_attention"]})),
    ];
    for (which, changes) in refused {
        let error = read_json(&changed(which, &changes)).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid, "{changes}: {error}");
        assert!(error.to_string().contains("config.json"), "{changes}: {error}");
    }
    for (which, key) in [(0, "n_embd"), (1, "hidden_size"), (2, "num_key_value_heads")] {
        let mut value = published()[which].clone();
        value.as_object_mut().unwrap().remove(key);
        let error = read_json(&value).unwrap_err();
        assert!(*error.kind() == Kind::Invalid && error.to_string().contains(key), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_epsilon_and_base_survives(epsilon in 1e-30f32..1.0, theta in 1.0f32..1e9) {
        let folder = tempfile::tempdir().unwrap();
        let config = ModelConfig { norm_epsilon: epsilon, rope_theta: theta, ..config(Family::Llama, true, false) };
        config_writer::write(folder.path(), &config, SpecialTokens::default()).unwrap();
        prop_assert_eq!(read_config(folder.path()).unwrap(), config);
    }

    #[test]
    fn foreign_configurations_and_indexes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        which in 0usize..3,
        size in any::<u64>(),
        at in any::<proptest::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, &bytes).unwrap();
        prop_assert!(read_config(folder.path()).is_err());
        // One field of a published file becomes a number of any size, or a stretch of it noise.
        let mut value = published()[which].clone();
        let keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        value[&keys[at.index(keys.len())]] = (size >> (size % 64)).into();
        fs::write(&path, value.to_string()).unwrap();
        let _ = read_config(folder.path());
        let mut text = published()[which].to_string().into_bytes();
        let from = at.index(text.len());
        let end = text.len().min(from + bytes.len() % 8);
        text[from..end].copy_from_slice(&bytes[..end - from]);
        fs::write(&path, text).unwrap();
        let _ = read_config(folder.path());
        fs::write(folder.path().join("model.safetensors.index.json"), &bytes).unwrap();
        prop_assert!(Weights::open(folder.path(), &config(Family::Llama, true, true)).is_err());
    }
}
