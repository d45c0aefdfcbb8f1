//! A small corpus, a small model, and the program trained on them.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Steps of a test run.
pub const STEPS: u64 = 20;

/// A folder with a corpus and the settings of a tiny model.
pub struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// Documents made of few words, so that there is something to learn.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let words = ["let", "mut", "fn", "main", "(", ")", "{", "}", "=", "1", ";", "for", "in", "0..9"];
        let mut state = 7u64;
        let mut line = || {
            let mut word = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                words[(state >> 33) as usize % words.len()]
            };
            (0..12).map(|_| word()).collect::<Vec<_>>().join(" ")
        };
        let corpus = directory.path().join("corpus");
        fs::create_dir(&corpus).unwrap();
        for document in 0..12 {
            let text: Vec<String> = (0..40).map(|_| line()).collect();
            fs::write(corpus.join(format!("{document:02}.txt")), text.join("\n")).unwrap();
        }
        let settings = format!(
            "[run]\ndir = \"runs/a\"\n[data]\ninput = [\"corpus\"]\nvocabulary = 300\n\
             [model]\nwidth = 32\nlayers = 2\nheads = 2\ncontext = 32\n\
             [train]\nsteps = {STEPS}\nglobal_batch = 8\nmicrobatch = 2\nprecision = \"f32\"\nthreads = 1\n\
             bucket_bytes = 16384\n\
             [optimizer]\nlearning_rate = 3e-4\nclip_norm = 0.0\nwarmup_steps = 5\n\
             [sample]\ntokens = 0\n"
        );
        fs::write(directory.path().join("run.toml"), settings).unwrap();
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The program, in this place, away from whatever launcher runs the tests.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.foreign_command(env!("CARGO_BIN_EXE_gradus"));
        command.args(arguments);
        command
    }

    /// Another program, in this place, away from whatever launcher runs the tests.
    pub fn foreign_command(&self, program: &str) -> Command {
        // Tests may run where signals are ignored (nohup, a background job), which children inherit.
        let mut command = Command::new("env");
        command.args(["--default-signal", program]).current_dir(self.path()).stdin(Stdio::null());
        for name in ["RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"] {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Trains; the run must end well.
    pub fn train(&self, arguments: &[&str]) {
        let output = self.run(&[&["train", "run.toml"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts training and does not wait; stderr can be read.
    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command([&["train", "run.toml"], arguments].concat()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Loss of every step of a run.
    pub fn losses(&self, run: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path().join("runs").join(run).join("metrics.jsonl")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["event"] == "step").map(|event| event["loss"].as_f64().unwrap()).collect()
    }

    pub fn checkpoint(&self, run: &str, step: u64) -> PathBuf {
        self.path().join(format!("runs/{run}/checkpoints/step-{step:08}"))
    }

    /// Weights and moments after the last step, as bytes.
    pub fn final_bytes(&self, run: &str) -> (Vec<u8>, Vec<u8>) {
        let folder = self.checkpoint(run, STEPS);
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        (read("model.safetensors"), read("training_state.safetensors"))
    }
}
