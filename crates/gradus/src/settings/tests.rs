use super::*;
use gradus_error::Kind;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    seed: u64,
    output: String,
    model: Model,
    optimizer: Optimizer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Model {
    layers: usize,
    width: usize,
    precision: Precision,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Precision {
    F32,
    Bf16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Optimizer {
    learning_rate: f32,
    betas: [f64; 2],
    fused: bool,
    frozen: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { seed: 1, output: "runs/a".into(), model: Model::default(), optimizer: Optimizer::default() }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self { layers: 6, width: 384, precision: Precision::Bf16 }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { learning_rate: 1e-3, betas: [0.9, 0.95], fused: true, frozen: Vec::new() }
    }
}

fn in_file<R>(text: &str, work: impl FnOnce(&Path) -> R) -> R {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    work(&path)
}

fn from(text: &str, overrides: &[(&str, &str)]) -> Result<Resolved<Settings>> {
    let overrides: Vec<_> = overrides.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    in_file(text, |path| resolve(Some(path), &overrides))
}

fn refusal(text: &str, overrides: &[(&str, &str)]) -> String {
    let error = from(text, overrides).unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid);
    error.to_string()
}

#[test]
fn the_command_line_wins_over_the_file_and_the_file_over_the_default() {
    let text = "seed = 2\n\n[model]\nlayers = 3\nwidth = 128\n";
    let resolved = from(text, &[("model.width", "64"), ("optimizer.betas", "0.8,1")]).unwrap();
    assert_eq!(resolved.settings.model, Model { layers: 3, width: 64, precision: Precision::Bf16 });
    assert_eq!(resolved.settings.optimizer.betas, [0.8, 1.0]);
    assert_eq!(resolved.origins["model.width"], Origin::CommandLine);
    assert!(matches!(&resolved.origins["model.layers"], Origin::File { line: 4, .. }));
    assert!(matches!(&resolved.origins["seed"], Origin::File { line: 1, .. }));
    assert_eq!(resolved.origins["model.precision"], Origin::Default);
    assert_eq!(resolved.origins.len(), 9);
}

#[test]
fn a_list_given_again_grows_and_replaces_the_files() {
    let text = "[optimizer]\nfrozen = [\"x\"]\n";
    let given = [("optimizer.frozen", "a,b"), ("seed", "3"), ("optimizer.frozen", "c"), ("seed", "4")];
    let settings = from(text, &given).unwrap().settings;
    assert_eq!((settings.optimizer.frozen.join(" ").as_str(), settings.seed), ("a b c", 4));
}

#[test]
fn without_a_file_all_is_default() {
    let resolved: Resolved<Settings> = resolve(None, &[]).unwrap();
    assert_eq!(resolved.settings, Settings::default());
    assert!(resolved.origins.values().all(|origin| *origin == Origin::Default));
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest() {
    let message = refusal("seed = 2\n[model]\nlayer = 3\n", &[]);
    assert!(message.contains("run.toml:3: ") && message.contains("did you mean `model.layers`"), "{message}");
    let message = refusal("", &[("model.widht", "3")]);
    assert!(message.starts_with("--model.widht: ") && message.contains("`model.width`"), "{message}");
    let message = refusal("learning_rate = 3\n", &[]);
    assert!(message.contains("`optimizer.learning_rate`"), "{message}");
    let message = refusal("[modle]\nlayers = 1\n", &[]);
    assert!(message.contains("run.toml:1: "), "{message}");
    assert!(refusal("zzz = 3\n", &[]).contains("gradus config"));
}

#[test]
fn a_quoted_key_with_dots_is_not_a_path() {
    assert!(refusal("\"model.layers\" = 3\n", &[]).contains("run.toml:1: there is no setting"));
}

#[test]
fn a_wrong_type_names_its_place() {
    assert!(
        refusal("[model]\n\nlayers = 'six'\n", &[])
            .contains("run.toml:3: `model.layers`: expected an integer")
    );
    assert!(refusal("model = 3\n", &[]).contains("`model` is a section"));
    assert!(refusal("[seed]\na = 1\n", &[]).contains("expected an integer, found a section"));
    assert!(refusal("", &[("model", "3")]).contains("--model: `model` is a section"));
    assert!(refusal("", &[("seed", "1.5")]).starts_with("--seed: expected an integer"));
    assert!(refusal("seed = 99999999999999999999\n", &[]).contains("does not fit"));
}

#[test]
fn an_impossible_value_names_its_place_even_among_others() {
    let text = "seed = 2\n[model]\nlayers = 3\nprecision = 'bf17'\nwidth = 5\n";
    let message = refusal(text, &[("optimizer.fused", "false")]);
    assert!(message.contains("run.toml:4: `model.precision`") && message.contains("bf16"), "{message}");
    assert!(refusal("", &[("model.layers", "-1")]).starts_with("--model.layers: "));
    assert!(refusal("", &[("optimizer.betas", "1,2,3")]).starts_with("--optimizer.betas: "));
}

#[test]
fn a_bad_value_of_the_file_can_be_mended_on_the_command_line() {
    let resolved = from("[model]\nprecision = 'bf17'\n", &[("model.precision", "f32")]).unwrap();
    assert_eq!(resolved.settings.model.precision, Precision::F32);
}

#[test]
fn a_syntax_error_shows_line_column_and_text() {
    let message = refusal("seed = 1\n[model]\nlayers = = 3\n", &[]);
    assert!(message.contains("run.toml:3:10: "), "{message}");
    assert!(message.contains("\n3 | layers = = 3\n") && message.ends_with("\n  |          ^"), "{message}");
}

#[test]
fn a_missing_file_and_one_that_is_no_text_are_bad_input() {
    let error = resolve::<Settings>(Some(Path::new("/nowhere/run.toml")), &[]).unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(*resolve::<Settings>(Some(&path), &[]).unwrap_err().kind(), Kind::Invalid);
    std::fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
    assert_eq!(*resolve::<Settings>(Some(&path), &[]).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn rendered_settings_are_aligned_and_say_where_from() {
    let text = in_file("[model]\nlayers = 3\n", |path| {
        let resolved: Resolved<Settings> = resolve(Some(path), &[("seed".into(), "7".into())]).unwrap();
        render(&resolved).unwrap().replace(&path.display().to_string(), "run.toml")
    });
    assert!(text.contains("seed = 7           # from command line\n"), "{text}");
    assert!(text.contains("output = \"runs/a\"  # from default\n"), "{text}");
    assert!(
        text.contains("\n[model]\n") && text.contains("layers = 3          # from run.toml:2\n"),
        "{text}"
    );
    assert!(text.contains("learning_rate = 0.001"), "an f32 is written as one: {text}");
}

fn settings() -> impl Strategy<Value = Settings> {
    (any::<u32>(), "\\PC{0,12}|[\\x00-\\x7f]{0,12}", any::<f32>(), any::<[f64; 2]>(), any::<bool>()).prop_map(
        |(seed, output, learning_rate, betas, fused)| Settings {
            seed: seed.into(),
            output: output.clone(),
            model: Model::default(),
            optimizer: Optimizer { learning_rate, betas, fused, frozen: vec![output] },
        },
    )
}

proptest! {
    #[test]
    fn what_is_rendered_reads_back_the_same(settings in settings()) {
        let resolved = Resolved { settings: settings.clone(), origins: BTreeMap::new() };
        let again = from(&render(&resolved).unwrap(), &[]).unwrap();
        prop_assert_eq!(again.settings, settings);
    }

    #[test]
    fn no_text_panics(text in "(\\PC|\n){0,60}") {
        let _ = from(&text, &[]);
    }

    #[test]
    fn no_toml_panics(
        text in proptest::collection::vec(
            prop_oneof![
                Just("[model]\n"), Just("model"), Just("layers"), Just("."), Just(" = "), Just("3"), Just("\n"),
                Just("\""), Just("[["), Just("]]"), Just("{"), Just("}"), Just("é"), Just("1e400"), Just("'x'"),
                Just(","), Just("seed"), Just("2020-01-01"), Just("\r\n"), Just("\t"), Just("optimizer.betas"),
            ],
            0..24,
        )
    ) {
        let _ = from(&text.concat(), &[]);
    }

    #[test]
    fn no_override_panics(key in "\\PC{0,12}|(model|optimizer|\\.|layers|betas|seed){0,5}", value in "\\PC{0,12}") {
        let _ = resolve::<Settings>(None, &[(key, value)]);
    }
}
