//! `cargo x bench generate`: tokens per second of a model that writes, beside transformers and beside memory's bound.
//!
//! Hypothesis: with one sequence each token reads every weight once, so memory sets the pace. Ceiling: bytes of weights and
//! cache that a token reads over the rate of a plain reading stream of as many threads, measured in the same run; for our
//! weights as they lie in memory, and for weights of two bytes.
//!
//! How: Qwen2.5-0.5B's sizes with random weights, made by our own initialiser and written once as a Hugging Face folder.
//! Both programs are warm and sleep until told; ours in bf16 and f32, transformers in both. In each round each arm writes on
//! from the same prompt, and the order rotates. Figures are medians, ratios medians of the rounds' own, against the faster
//! precision of transformers. Greedy texts in f32 must agree up to the first place where the two best logits lie within
//! 1e-4 of each other; after it each goes its own way.

use super::table::median;
use super::worker::Worker;
use super::{keep, work_folder};
use crate::environment::Environment;
use crate::{machine, shell};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each arm has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Tokens to write.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 32)]
    prompt: usize,
    /// Threads, one layout after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Preset whose sizes the model has.
    #[arg(long, default_value = "qwen2.5-0.5b")]
    preset: String,
}

/// Two best logits nearer than this may change places by rounding.
const NEAR_TIE: f64 = 1e-4;
/// Beyond the caches of the machines that we know.
const STREAM_BYTES: u64 = 512 << 20;

/// Whose code, in which precision.
const ARMS: [(&str, &str); 4] =
    [("gradus", "bf16"), ("gradus", "f32"), ("transformers", "bf16"), ("transformers", "f32")];

/// One arm on one number of threads.
struct Arm {
    engine: &'static str,
    precision: &'static str,
    threads: usize,
    ready: Value,
    answers: Vec<Value>,
    /// Bytes per second of a reading stream, round by round; ours only.
    streams: Vec<f64>,
    missing: Option<String>,
}

/// Measures, prints the table, keeps the results.
///
/// # Errors
/// When an arm is missing or greedy texts differ, after all else has been measured and kept.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.prompt > 0, "--rounds and --prompt start at 1");
    ensure!(options.tokens > 1, "--tokens starts at 2: the first belongs to the prompt's time");
    let facts = machine::facts();
    let programs = Programs::prepare(&options.preset)?;
    let mut arms = Vec::new();
    for threads in &options.threads {
        arms.extend(programs.measure(*threads, options)?);
    }
    let problems: Vec<String> =
        options.threads.iter().filter_map(|threads| disagree(&arms, *threads)).collect();
    let settings = json!({
        "preset": options.preset, "prompt": options.prompt, "tokens": options.tokens, "rounds": options.rounds,
        "threads": options.threads,
    });
    let measured = json!({ "wrong": problems, "arms": arms.iter().map(as_json).collect::<Vec<_>>() });
    keep("generate", &facts, settings, measured)?;
    println!("{}: {} tokens after a prompt of {}, batch 1", options.preset, options.tokens, options.prompt);
    print!("{}", render(&arms, options));
    for problem in &problems {
        println!("wrong: {problem}");
    }
    let missing = arms.iter().filter(|arm| arm.missing.is_some()).count();
    ensure!(problems.is_empty(), "greedy texts differ: {}", problems.len());
    ensure!(missing == 0, "arms missing: {missing}; the table says why");
    Ok(())
}

struct Programs {
    binary: PathBuf,
    torch: Result<Environment>,
    model: PathBuf,
    logs: PathBuf,
}

impl Programs {
    fn prepare(preset: &str) -> Result<Self> {
        let (binary, logs) = (shell::release_binary()?, work_folder("generate")?);
        let model = logs.join(preset);
        if !model.join("config.json").is_file() {
            let mut write =
                shell::command(&binary, &["bench", "generate", "--write-preset", preset, "--model"]);
            write.arg(&model);
            shell::run(write)?;
        }
        Ok(Self { binary, torch: Environment::ensure("golden"), model, logs })
    }

    fn start(&self, engine: &str, precision: &str, threads: usize) -> Result<Worker> {
        let mut command = if engine == "gradus" {
            shell::command(&self.binary, &["bench", "generate"])
        } else {
            let missing = |error: &anyhow::Error| anyhow::anyhow!("no environment: {error:#}");
            self.torch.as_ref().map_err(missing)?.script("bench_generate.py")
        };
        command.arg("--model").arg(&self.model);
        command.args(["--precision", precision, "--threads", &threads.to_string()]);
        Worker::start(command, &self.log(engine, precision, threads))
    }

    fn log(&self, engine: &str, precision: &str, threads: usize) -> PathBuf {
        self.logs.join(format!("{engine}-{precision}-{threads}.log"))
    }

    fn measure(&self, threads: usize, options: &Options) -> Result<Vec<Arm>> {
        let start = |(engine, precision): &(&'static str, &'static str)| {
            eprintln!("starting {engine} {precision}, {}", threads_in_words(threads));
            let (worker, missing) = match self.start(engine, precision, threads) {
                Ok(worker) => (Some(worker), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            let ready = worker.as_ref().map_or(Value::Null, |worker| worker.ready().clone());
            let (engine, precision) = (*engine, *precision);
            let (answers, streams) = (Vec::new(), Vec::new());
            (worker, Arm { engine, precision, threads, ready, answers, streams, missing })
        };
        let mut arms: Vec<(Option<Worker>, Arm)> = ARMS.iter().map(start).collect();
        let order = json!({ "prompt": prompt(options.prompt), "tokens": options.tokens });
        // Warm: two tokens touch all that a text needs.
        let warm = json!({ "prompt": prompt(options.prompt), "tokens": 2 });
        arms.iter_mut().for_each(|arm| take_turn(arm, &warm));
        arms.iter_mut().for_each(|(_, arm)| arm.answers.clear());
        for round in 0..options.rounds {
            eprintln!("{}: round {} of {}", threads_in_words(threads), round + 1, options.rounds);
            for place in 0..arms.len() {
                let place = (place + round) % ARMS.len();
                take_turn(&mut arms[place], &order);
                stream(&mut arms[place])?;
            }
        }
        Ok(arms.into_iter().map(|(_, arm)| arm).collect())
    }
}

fn threads_in_words(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

/// Any fixed tokens below every vocabulary.
fn prompt(tokens: usize) -> Vec<usize> {
    (0..tokens).map(|i| 100 + i * 97 % 1000).collect()
}

/// An arm that fails is missing from then on.
fn take_turn((worker, arm): &mut (Option<Worker>, Arm), order: &Value) {
    let Some(running) = worker else { return };
    match running.ask(order) {
        Ok(answer) => arm.answers.push(answer),
        Err(error) => {
            arm.missing = Some(format!("{error:#}"));
            *worker = None;
        }
    }
}

fn stream((worker, arm): &mut (Option<Worker>, Arm)) -> Result<()> {
    let Some(running) = worker.as_mut().filter(|_| arm.engine == "gradus") else { return Ok(()) };
    let answer = running.ask(json!({ "stream_bytes": STREAM_BYTES }))?;
    arm.streams.push(answer["bytes_per_s"].as_f64().context("no rate")?);
    Ok(())
}

impl Arm {
    fn name(&self) -> String {
        format!("{} {}, {}", self.engine, self.precision, threads_in_words(self.threads))
    }

    /// Tokens per second after the first, round by round.
    fn speeds(&self) -> Vec<f64> {
        let speed = |answer: &Value| {
            let tokens = answer["tokens"].as_array().map_or(0, Vec::len) as f64;
            (tokens - 1.0) / answer["rest_s"].as_f64().unwrap_or(f64::NAN)
        };
        self.answers.iter().map(speed).collect()
    }

    fn prompt_ms(&self) -> f64 {
        median(self.answers.iter().filter_map(|answer| answer["prompt_s"].as_f64()).collect()) * 1e3
    }
}

/// Tokens per second that memory allows, for weights of `bytes` each: they and the cache, half full on average, are read
/// once for a token.
fn bound(arms: &[Arm], threads: usize, bytes: f64, options: &Options) -> f64 {
    let ours = || arms.iter().filter(|arm| arm.threads == threads && arm.engine == "gradus");
    let rate = median(ours().flat_map(|arm| arm.streams.clone()).collect());
    let ready = ours().next().map_or(&Value::Null, |arm| &arm.ready);
    let number = |key: &str| ready[key].as_f64().unwrap_or(f64::NAN);
    let context = options.prompt as f64 + options.tokens as f64 / 2.0;
    rate / (number("parameters") * bytes + number("cache_bytes_per_token") * context * bytes / 4.0)
}

fn render(arms: &[Arm], options: &Options) -> String {
    let mut text = format!(
        "{:<36} {:>9} {:>17} {:>11}  {}\n",
        "arm",
        "tokens/s",
        "slowest-fastest",
        "prompt, ms",
        "ratio to the faster transformers; part of the bound"
    );
    for threads in &options.threads {
        for arm in arms.iter().filter(|arm| arm.threads == *threads) {
            text.push_str(&line(arm, arms, options));
        }
        for (bytes, precision) in [(4.0, "f32"), (2.0, "bf16")] {
            let bound = bound(arms, *threads, bytes, options);
            let name = format!("bound: weights in {precision}, {}", threads_in_words(*threads));
            let _ = writeln!(text, "{name:<36} {bound:>9.2}");
        }
    }
    text
}

fn line(arm: &Arm, arms: &[Arm], options: &Options) -> String {
    let name = arm.name();
    if let Some(reason) = &arm.missing {
        return format!("{name:<36} missing: {reason}\n");
    }
    let speeds = arm.speeds();
    let (slowest, fastest) = speeds
        .iter()
        .fold((f64::INFINITY, 0.0_f64), |(low, high), speed| (low.min(*speed), high.max(*speed)));
    let peers = || arms.iter().filter(|other| other.threads == arm.threads && other.engine == "transformers");
    let faster = peers().max_by(|a, b| median(a.speeds()).total_cmp(&median(b.speeds())));
    let ratio = faster.filter(|_| arm.engine == "gradus").map_or(String::new(), |peer| {
        let pairs = speeds.iter().zip(peer.speeds()).map(|(ours, theirs)| ours / theirs);
        format!("{:.2} of transformers {}; ", median(pairs.collect()), peer.precision)
    });
    let bytes = if arm.precision == "bf16" { 2.0 } else { 4.0 };
    let part = median(speeds.clone()) / bound(arms, arm.threads, bytes, options);
    let range = format!("{slowest:.2}-{fastest:.2}");
    format!(
        "{name:<36} {:>9.2} {range:>17} {:>11.0}  {ratio}{part:.2} of the bound of {bytes:.0}-byte weights\n",
        median(speeds),
        arm.prompt_ms()
    )
}

/// Holds our greedy f32 text against transformers'; `None` when they agree as far as they can.
fn disagree(arms: &[Arm], threads: usize) -> Option<String> {
    let first = |engine: &str| {
        let arm = arms.iter().find(|arm| {
            arm.engine == engine && arm.precision == "f32" && arm.threads == threads && arm.missing.is_none()
        })?;
        arm.answers.first()
    };
    let (Some(ours), Some(theirs)) = (first("gradus"), first("transformers")) else {
        return Some(format!("{}: greedy texts in f32 were held against nothing", threads_in_words(threads)));
    };
    let list = |answer: &Value, key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let (a, b, leads) = (list(ours, "tokens"), list(theirs, "tokens"), list(theirs, "leads"));
    let apart = a.iter().zip(&b).position(|(a, b)| a != b)?;
    let lead = leads.get(apart).and_then(Value::as_f64).unwrap_or(f64::INFINITY);
    (lead > NEAR_TIE).then(|| {
        format!(
            "{}: token {apart} is {}, transformers' {}, though its best logit leads by {lead:.1e}",
            threads_in_words(threads),
            a[apart],
            b[apart]
        )
    })
}

fn as_json(arm: &Arm) -> Value {
    json!({
        "arm": arm.name(),
        "missing": arm.missing,
        "ready": arm.ready,
        "median_tokens_per_s": median(arm.speeds()),
        "median_prompt_ms": arm.prompt_ms(),
        "stream_bytes_per_s": arm.streams,
        "rounds": arm.answers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(engine: &'static str, tokens: &[u32], leads: &[f64]) -> Arm {
        let answer = json!({ "tokens": tokens, "leads": leads, "prompt_s": 0.1, "rest_s": 0.5 });
        let ready = json!({ "parameters": 1e6, "cache_bytes_per_token": 0.0 });
        let (answers, streams) = (vec![answer], vec![8e6]);
        Arm { engine, precision: "f32", threads: 1, ready, answers, streams, missing: None }
    }

    fn options() -> Options {
        Options { rounds: 1, tokens: 3, prompt: 1, threads: vec![1], preset: "p".to_owned() }
    }

    #[test]
    fn texts_may_part_at_a_near_tie_only() {
        let theirs = arm("transformers", &[1, 2, 3], &[1.0, 1e-5, 1.0]);
        let texts = |ours: &[u32], theirs: Arm| disagree(&[arm("gradus", ours, &[]), theirs], 1);
        assert_eq!(texts(&[1, 9, 9], theirs), None);
        let theirs = || arm("transformers", &[1, 2, 3], &[1.0, 1e-3, 1.0]);
        assert!(texts(&[1, 9, 9], theirs()).is_some_and(|problem| problem.contains("token 1 is 9")));
        assert_eq!(texts(&[1, 2, 3], theirs()), None);
        assert!(disagree(&[theirs()], 1).is_some());
    }

    #[test]
    fn the_bound_is_the_stream_over_the_bytes_of_a_token() {
        let arms = [arm("gradus", &[1, 2, 3], &[]), arm("transformers", &[1, 2, 3], &[])];
        assert_eq!(bound(&arms, 1, 4.0, &options()), 2.0);
        assert_eq!(bound(&arms, 1, 2.0, &options()), 4.0);
        let text = render(&arms, &options());
        assert!(text.contains("1.00 of transformers f32; 2.00 of the bound of 4-byte weights"), "{text}");
    }
}
