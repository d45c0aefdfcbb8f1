//! What takes files of a checkpoint, each as a function of bytes: it may refuse them, and must do nothing worse. With every target
//! come inputs that are taken, for a fuzzer to begin with. Built with the feature `fuzzing` only.

use crate::checkpoint::{self, TrainingState};
use crate::conditions::LINKS;
use crate::links;
use crate::settings::OptimizerKind;
use gradus_collective::cost::LinkProfile;
use gradus_memory::{Layout, Span};
use gradus_model::{Family, ModelConfig, Parameters};
use std::path::Path;
use std::sync::OnceLock;

/// Name, function, which says whether it takes its input, and first inputs, all of which it takes.
pub type Target = (&'static str, fn(&[u8]) -> bool, fn() -> Vec<Vec<u8>>);

/// All of this crate.
pub const TARGETS: [Target; 2] = [("train-state", state, states), ("train-moments", moments, moment_files)];

/// The state of a checkpoint, and the links in it.
fn state(data: &[u8]) -> bool {
    let folder = Path::new("step-00000001");
    let Ok(state) = checkpoint::parse_state(folder, data) else { return false };
    let _ = checkpoint::folder_of(folder, state.step);
    links::in_state(&state, folder)
        .is_ok_and(|profile| profile.is_none_or(|profile| profile.validate().is_ok()))
}

fn states() -> Vec<Vec<u8>> {
    let links = serde_json::to_string(&LinkProfile::default()).expect("profiles are JSON");
    let state = TrainingState {
        format: TrainingState::FORMAT,
        step: 1,
        updates: 1,
        total_steps: 2,
        tokens: 3,
        skipped: 0,
        conditions: vec![("world size".to_owned(), "2".to_owned()), (LINKS.to_owned(), links)],
    };
    vec![serde_json::to_vec(&state).expect("a state is JSON")]
}

/// A model's tensors, as small as they can be.
fn layout() -> &'static Layout {
    static MADE: OnceLock<Layout> = OnceLock::new();
    MADE.get_or_init(|| {
        let config = ModelConfig {
            family: Family::Llama,
            vocabulary: 11,
            context: 5,
            width: 12,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_size: 4,
            feed_forward: 7,
            tied: true,
            qkv_bias: true,
            norm_epsilon: 1e-6,
            rope_theta: 10_000.0,
        };
        Parameters::new(&config).layout
    })
}

fn moments(data: &[u8]) -> bool {
    let put = &mut |_, span: Span, values: &[f32]| assert_eq!(span.len, values.len());
    checkpoint::moments::parse(Path::new("moments"), data, layout(), OptimizerKind::AdamW, put).is_ok()
}

fn moment_files() -> Vec<Vec<u8>> {
    let zeros = |_, span: Span| vec![0.0; span.len];
    vec![
        checkpoint::moments::as_bytes(layout(), OptimizerKind::AdamW, &zeros)
            .expect("moments can be laid out"),
    ]
}
