//! Folders that lack something, do not fit, or are damaged.

use super::*;
use proptest::prelude::*;

#[test]
fn weights_that_do_not_fit_are_invalid_and_put_nothing() {
    let config = config(Family::Gpt2, false, true);
    let norm = "transformer.ln_f.weight";
    let changes: [fn(&mut Tensors); 7] = [
        |tensors| drop(tensors.remove("transformer.ln_f.weight")),
        |tensors| drop(tensors.remove("lm_head.weight")),
        |tensors| tensors.clear(),
        |tensors| {
            drop(tensors.insert("transformer.h.2.ln_1.weight".into(), (Dtype::F32, vec![1], vec![0; 4])))
        },
        |tensors| tensors.get_mut("transformer.ln_f.weight").unwrap().1 = vec![12, 1],
        |tensors| tensors.get_mut("transformer.h.0.mlp.c_fc.weight").unwrap().1 = vec![7, 12],
        |tensors| tensors.get_mut("transformer.ln_f.weight").unwrap().0 = Dtype::I32,
    ];
    for change in changes {
        let (folder, _) = altered(&config, change);
        let mut puts = 0;
        let error = read_weights(folder.path(), &config, &Parameters::new(&config), &mut |_, _| puts += 1)
            .unwrap_err();
        assert_eq!((error.kind(), puts), (&Kind::Invalid, 0), "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
    let (folder, _) = altered(&config, |tensors| {
        let tensor = tensors[norm].clone();
        tensors.insert("ln_f.weight".into(), tensor);
    });
    assert_eq!(kind(folder.path()), Kind::Corrupt);
}

#[test]
fn a_folder_without_what_it_needs_is_invalid() {
    let (folder, _) = written(&config(Family::Gpt2, true, true), 0);
    let path = folder.path();
    assert_eq!(kind(&path.join("config.json")), Kind::Invalid);
    assert_eq!(kind(&path.join("nowhere")), Kind::Invalid);
    fs::remove_file(path.join("model.safetensors")).unwrap();
    assert_eq!(kind(path), Kind::Invalid);
    fs::write(path.join("pytorch_model.bin"), b"pickle").unwrap();
    let error = read_model(path).unwrap_err();
    assert!(*error.kind() == Kind::Invalid && error.to_string().contains("pytorch_model.bin"), "{error}");
    fs::create_dir(path.join("model.safetensors")).unwrap();
    assert_eq!(kind(path), Kind::Invalid);
    fs::remove_file(path.join("config.json")).unwrap();
    assert_eq!(kind(path), Kind::Invalid);
}

#[test]
fn a_cut_file_is_corrupt() {
    let (folder, _) = written(&config(Family::Llama, true, true), 0);
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(kind(folder.path()), Kind::Corrupt, "{length}");
    }
}

#[test]
fn an_index_that_contradicts_its_shards_is_refused() {
    let (folder, _) = written(&config(Family::Llama, true, true), 2000);
    let path = folder.path().join("model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let map = |name: &str, file: Value| {
        let mut index = index.clone();
        index["weight_map"][name] = file;
        index
    };
    let shard = index["weight_map"]["model.norm.weight"].clone();
    let corrupt = [
        json!([]),
        json!({}),
        json!({"weight_map": []}),
        json!({"weight_map": {}}),
        map("model.norm.weight", json!(3)),
        map("model.norm.weight", json!("")),
        map("model.norm.weight", json!("..")),
        map("model.norm.weight", json!("/etc/passwd")),
        map("model.norm.weight", json!("../model.safetensors")),
        map("model.norm.weight", json!("a/../model.safetensors")),
        map("model.norm.weight", json!("./model.safetensors")),
        map("model.norm.weight", json!("model\0.safetensors")),
        map("model.unknown.weight", shard),
    ];
    for index in corrupt {
        fs::write(&path, index.to_string()).unwrap();
        assert_eq!(kind(folder.path()), Kind::Corrupt, "{index}");
    }
    fs::write(&path, map("model.norm.weight", json!("model-00009-of-00009.safetensors")).to_string())
        .unwrap();
    assert_eq!(kind(folder.path()), Kind::Invalid);
}

#[test]
fn old_weights_of_another_kind_are_not_left_in_the_way() {
    let config = config(Family::Llama, true, true);
    for (before, after) in [(0, 2000), (2000, 0)] {
        let (folder, values) = written(&config, before);
        let read = |span: Span| values[span.start..span.end()].to_vec();
        let parameters = Parameters::new(&config);
        let write = |limit| write_weights(folder.path(), &config, &parameters, &read, limit);
        assert_eq!(*write(after).unwrap_err().kind(), Kind::Invalid);
        write(before).unwrap();
        assert_eq!(read_model(folder.path()).unwrap().values, values);
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let config = config(Family::Llama, true, true);
    let folder = tempfile::tempdir().unwrap();
    let parameters = Parameters::new(&config);
    let write = |read: &dyn Fn(Span) -> Vec<f32>, eos| {
        let tokens = SpecialTokens { bos: None, eos: Some(eos) };
        write_model_folder(folder.path(), &config, &parameters, read, tokens, 0)
    };
    assert_eq!(*write(&|span| vec![0.0; span.len], 11).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(*write(&|_| vec![0.0; 3], 10).unwrap_err().kind(), Kind::Internal);
    assert!(names(folder.path()).is_empty());
}

proptest! {
    #[test]
    fn damaged_weights_never_panic(at in any::<proptest::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
        let (folder, _) = written(&config(Family::Gpt2, false, true), 0);
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        // Within the header: what stands behind it is just numbers.
        let at = at.index(3000);
        bytes[at] = to;
        bytes.truncate(if cut { at } else { bytes.len() });
        fs::write(&path, bytes).unwrap();
        if let Ok(model) = read_model(folder.path()) {
            prop_assert_eq!(model.values.len(), model.parameters.layout.len());
        }
    }
}
