//! What the program itself takes: its settings, and what its ranks say last. The program is no library, so its files are read from
//! where they stand.

use crate::Target;
use crate::run_settings::Settings;
use crate::settings::{render, resolve};
use last_word::{Ear, LastWords};
use std::io::Write;
use std::path::Path;

#[allow(dead_code, reason = "the program has more uses for it")]
#[path = "../../crates/gradus/src/launcher/last_word.rs"]
mod last_word;

/// All of them.
pub const TARGETS: [Target; 3] = [
    ("program-settings-file", settings_file, settings_files),
    ("program-settings-words", settings_words, setting_words),
    ("program-last-word", last_words, || {
        vec![b"own\nit is over".to_vec(), b"told\nrank 1: it is over".to_vec()]
    }),
];

/// Bytes beyond these fit no pipe at once.
const MOST_AT_ONCE: usize = 32 << 10;

/// A descriptor that a variable of the environment names: nobody leaves one here.
fn descriptor_variable(_: &str) -> Option<i32> {
    None
}

// Settings.

fn settings_file(data: &[u8]) -> bool {
    crate::files::with_new_file("run.toml", data, |file| takes(Some(file), &[]))
}

/// Lines `KEY VALUE`, as the command line gives them.
fn settings_words(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let words = text.lines().filter_map(|line| line.split_once(' '));
    let overrides: Vec<_> = words.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    takes(None, &overrides)
}

/// Whether settings are some with which a run could begin.
fn takes(file: Option<&Path>, overrides: &[(String, String)]) -> bool {
    let Ok(resolved) = resolve::<Settings>(file, overrides) else { return false };
    let _ = render(&resolved);
    let settings = &resolved.settings;
    // A folder of this host is none of a fuzzer's business.
    settings.model.from.is_empty() && settings.check(2).is_ok() && settings.data_settings().is_ok()
}

fn settings_files() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../examples/quickstart.toml").to_vec()]
}

fn setting_words() -> Vec<Vec<u8>> {
    vec![b"train.steps 10\nmodel.layers 2\ndata.input a.txt\ndata.input b.txt\nrun.dir x".to_vec()]
}

// The pipe between a rank and its launcher.

fn last_words(data: &[u8]) -> bool {
    let (mut ear, mut mouth) = Ear::open().expect("a pipe can be made");
    mouth.write_all(&data[..data.len().min(MOST_AT_ONCE)]).expect("a pipe holds that much");
    let (word, mut out) = (ear.hear(), Vec::new());
    let taken = word.is_some();
    let mut all = LastWords::default();
    all.take(1, word, &mut out);
    all.finish(&mut out);
    taken
}
