use super::*;
use gradus_error::Kind;
use proptest::prelude::*;
use std::sync::LazyLock;

static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| {
    let text = "fn main() { let it's = \"größer\"; }\n  // 你好, world: we'll see 12345\n".repeat(20);
    train(&[text], PreTokenizer::Gpt2, 320, 64).unwrap()
});

fn slow(text: &str) -> Vec<u32> {
    TRAINED.inner.encode_fast(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn the_fast_way_is_taken_and_gives_the_librarys_tokens() {
    assert!(TRAINED.fast);
    for text in ["", "fn main() {\n\n    let x = 1;\n}", "größer 你好 <|endoftext|> we'll", "\u{85}\u{a0} x"]
    {
        assert_eq!(TRAINED.encode(text).unwrap(), slow(text), "{text:?}");
    }
}

#[test]
fn a_special_tokens_text_in_a_document_is_text() {
    let text = "a<|endoftext|>b";
    let tokens = TRAINED.encode(text).unwrap();
    assert!(!tokens.contains(&TRAINED.end_of_text()));
    assert_eq!(TRAINED.decode(&tokens).unwrap(), text);
    assert!(!slow(text).contains(&TRAINED.end_of_text()));
    assert_eq!(TRAINED.decode(&[TRAINED.end_of_text()]).unwrap(), "");
}

#[test]
fn streamed_text_holds_whole_characters_only() {
    let tokens = TRAINED.encode("é😀x").unwrap();
    let mut decoder = TRAINED.stream_decoder();
    let pieces: Vec<String> = tokens.iter().map(|token| decoder.push(*token).unwrap()).collect();
    assert_eq!(pieces.concat(), "é😀x");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    let mut cut = TRAINED.stream_decoder();
    cut.push(TRAINED.byte_tokens[0xF0].unwrap()).unwrap();
    assert_eq!(cut.finish().unwrap(), "\u{fffd}");
}

#[test]
fn a_copied_tokenizer_loads_as_the_same() {
    let folder = tempfile::tempdir().unwrap();
    TRAINED.copy_into(folder.path()).unwrap();
    for path in [folder.path().to_owned(), folder.path().join(TOKENIZER)] {
        let loaded = Tokenizer::load(&path).unwrap();
        assert_eq!(loaded.digest(), TRAINED.digest());
        assert_eq!(loaded.end_of_text(), TRAINED.end_of_text());
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join(TOKENIZER_CONFIG)).unwrap()).unwrap();
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(config["eos_token"], END_OF_TEXT);
    assert_eq!(config["model_max_length"], 64);
}

/// A word-level tokenizer of three words, in the manner of SentencePiece: marked spaces, and bytes as a last resort.
fn metaspace(eos: &str) -> Vec<u8> {
    let mut vocab = json!({"<unk>": 0, eos: 1, "▁a": 2, "▁b": 3, "b": 4});
    for byte in 0..256 {
        vocab[format!("<0x{byte:02X}>")] = json!(5 + byte);
    }
    let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let decoder =
        json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, space]});
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab,
        "merges": []});
    let added = json!([{"id": 1, "content": eos, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}]);
    let whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": space, "post_processor": null, "decoder": decoder, "model": model});
    serde_json::to_vec(&whole).unwrap()
}

#[test]
fn another_kind_of_tokenizer_keeps_bytes_and_streams() {
    let tokenizer = Tokenizer::from_parts(metaspace("</s>"), None, None, "", "x").unwrap();
    assert!(!tokenizer.fast && !tokenizer.is_byte_level());
    assert_eq!(tokenizer.end_of_text(), 1);
    assert_eq!(tokenizer.encode_bytes(b"\xff").unwrap(), [5 + 255]);
    let tokens: Vec<u32> =
        [2, 3, 4].into_iter().chain("é".bytes().map(|byte| 5 + u32::from(byte))).chain([2]).collect();
    let mut decoder = tokenizer.stream_decoder();
    let mut text: String = tokens.iter().map(|token| decoder.push(*token).unwrap()).collect();
    text += &decoder.finish().unwrap();
    assert_eq!(text, tokenizer.decode(&tokens).unwrap());
    assert!(!tokenizer.encode("a</s>b").unwrap().contains(&1));
}

#[test]
fn the_token_that_ends_a_text_is_found_or_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(TOKENIZER), metaspace("<stop>")).unwrap();
    assert_eq!(*Tokenizer::load(folder.path()).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(Tokenizer::load_with(folder.path(), "<stop>").unwrap().end_of_text(), 1);
    assert_eq!(Tokenizer::load_with(folder.path(), "4").unwrap().end_of_text(), 4);
    assert_eq!(*Tokenizer::load_with(folder.path(), "<none>").unwrap_err().kind(), Kind::Invalid);
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [1, 2]}"#).unwrap();
    assert_eq!(Tokenizer::load(folder.path()).unwrap().end_of_text(), 1);
    let config = r#"{"eos_token": {"content": "b"}}"#;
    std::fs::write(folder.path().join(TOKENIZER_CONFIG), config).unwrap();
    assert_eq!(Tokenizer::load(folder.path()).unwrap().end_of_text(), 4);
}

#[test]
fn what_is_no_tokenizer_is_invalid() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(*Tokenizer::load(folder.path()).unwrap_err().kind(), Kind::Invalid);
    std::fs::write(folder.path().join(TOKENIZER), "{}").unwrap();
    assert_eq!(*Tokenizer::load(folder.path()).unwrap_err().kind(), Kind::Invalid);
    let whole = metaspace("<stop>");
    let text = String::from_utf8(whole.clone()).unwrap();
    let no_character = text.replacen(r#""decoder":{"#, r#""decoder":{"\ud800":1,"#, 1);
    assert_ne!(text, no_character);
    std::fs::write(folder.path().join(TOKENIZER), no_character).unwrap();
    assert_eq!(*Tokenizer::load(folder.path()).unwrap_err().kind(), Kind::Invalid);
    for normalizer in [
        r#"{"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":"!"}]}"#,
        r#"{"type":"Precompiled","precompiled_charsmap":"AAAAAA=="}"#,
        r#"{"type":{"Precompiled":null},"precompiled_charsmap":"/////w=="}"#,
        r#"{"type":{"Precompiled":null}}"#,
        r#"{"precompiled_charsmap":"AAAAAA=="}"#,
        r#"["AAAAAA=="]"#,
    ] {
        let damaged_table = text.replace(r#""normalizer":null"#, &format!(r#""normalizer":{normalizer}"#));
        assert_ne!(text, damaged_table);
        std::fs::write(folder.path().join(TOKENIZER), damaged_table).unwrap();
        assert_eq!(*Tokenizer::load(folder.path()).unwrap_err().kind(), Kind::Invalid, "{normalizer}");
    }
    for end in 0..whole.len() {
        std::fs::write(folder.path().join(TOKENIZER), &whole[..end]).unwrap();
        assert_eq!(*Tokenizer::load(folder.path()).unwrap_err().kind(), Kind::Invalid, "cut at {end}");
    }
}

proptest! {
    #[test]
    fn bytes_come_back_as_they_were(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let tokens = TRAINED.encode_bytes(&bytes).unwrap();
        prop_assert_eq!(&TRAINED.decode_bytes(&tokens).unwrap(), &bytes);
        let mut decoder = TRAINED.stream_decoder();
        let mut text: String = tokens.iter().map(|token| decoder.push(*token).unwrap()).collect();
        text += &decoder.finish().unwrap();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
    }

    #[test]
    fn text_gives_the_librarys_tokens(text in "(\\PC|[ \n'a-z0-9]){0,60}") {
        prop_assert_eq!(TRAINED.encode(&text).unwrap(), slow(&text));
    }
}
