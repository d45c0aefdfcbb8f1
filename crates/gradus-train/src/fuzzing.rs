//! What takes files of a checkpoint, each as a function of bytes: it may refuse them, and must do nothing worse. With every target
//! come inputs that are taken, for a fuzzer to begin with. Built with the feature `fuzzing` only.

use crate::checkpoint::{self, TrainingState};
use crate::conditions::LINKS;
use crate::links;
use crate::optimizer::{Optimizer, Piece};
use crate::settings::OptimizerSettings;
use gradus_collective::cost::LinkProfile;
use gradus_compute::{Precision, Reference};
use gradus_model::{Family, ModelConfig, Transformer};
use std::path::Path;
use std::sync::{Arc, OnceLock};

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

/// A model and its optimizer, as small as they can be.
fn learner() -> &'static (Transformer, Optimizer) {
    static MADE: OnceLock<(Transformer, Optimizer)> = OnceLock::new();
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
        let device = Reference::new(Precision::F32, 1 << 20).expect("a megabyte can be reserved");
        let model = Transformer::new(config, Arc::new(device)).expect("so small a model fits");
        let layout = &model.parameters().layout;
        // Nothing is updated: any gradients do.
        let whole = Piece::whole(layout, model.weights(), model.weights());
        let optimizer = Optimizer::new(&**model.device(), layout, &[whole], OptimizerSettings::default());
        let optimizer = optimizer.expect("its moments fit as well");
        (model, optimizer)
    })
}

fn moments(data: &[u8]) -> bool {
    let (model, optimizer) = learner();
    checkpoint::put_moments(Path::new("moments"), data, model, optimizer).is_ok()
}

fn moment_files() -> Vec<Vec<u8>> {
    let (model, optimizer) = learner();
    vec![checkpoint::moments_as_bytes(model, optimizer).expect("moments can be laid out")]
}
