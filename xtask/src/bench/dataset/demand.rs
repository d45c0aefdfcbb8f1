//! Whether a reader that uses samples up at a steady rate ever waits: the S3 server on a core of its own, each request 50 ms
//! later, next to nothing kept between epochs; the reader on the other core takes batches at a set rate and says what it waited for.

use super::arms::{Programs, Scenario};
use super::memory;
use super::server::Server;
use super::sets::{self, Set};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes a second that are used up.
pub const DEMAND_BYTES_PER_S: u64 = 500_000_000;

/// How much later the server answers.
pub const LATENCY_MS: u64 = 50;

/// The cores of reader and server.
const CORES: (&str, &str) = ("0", "1");

/// How often the set is read: next to nothing of it is kept.
const EPOCHS: &str = "3";

/// What the reader may hold in memory, and how many times as large the set is at least.
const MEMORY_BYTES: u64 = 256 << 20;
const LEAST_TIMES: u64 = 4;

/// How many times as much is there for reader and server together, connections included.
const PRESENT_TIMES: u64 = 8;

/// One reading of the set.
#[derive(Debug, Clone)]
pub struct Reading {
    /// How the set was shuffled.
    pub order: &'static str,
    /// From the first batch to the last byte.
    pub seconds: f64,
    /// Attributed waits after the first batch, whatever for, as a part of that time.
    pub stalled: f64,
    /// From the beginning of reading to the first batch.
    pub first_batch_s: f64,
    /// Finding out where samples are, before that.
    pub opening_s: f64,
    /// Bytes a second that came.
    pub bytes_per_s: f64,
    /// What the program printed.
    pub epochs: Vec<Value>,
}

/// Reads `set` in each order, `rounds` times.
///
/// # Errors
/// When server or reader fail, or something else than the set was read.
pub fn measure(
    programs: &Programs,
    server: &Path,
    set: &Set,
    rounds: usize,
    log: &Path,
) -> Result<Vec<Reading>> {
    ensure!(
        set.bytes > LEAST_TIMES * MEMORY_BYTES,
        "--scenario demand wants a set of which memory holds little: --samples 20000"
    );
    let mut readings = Vec::new();
    for round in 0..rounds {
        eprintln!("demand, round {} of {rounds}", round + 1);
        for order in ["whole", "blocks"] {
            sets::warm(&set.folder.join(programs.folder(Scenario::Demand)))?;
            memory::make_present(&programs.make_present, PRESENT_TIMES * MEMORY_BYTES)?;
            let server = Server::start(server, &sets::root()?, LATENCY_MS, Some(CORES.1), log)?;
            readings.push(read(programs, &server, set, order)?);
        }
    }
    Ok(readings)
}

fn read(programs: &Programs, server: &Server, set: &Set, order: &'static str) -> Result<Reading> {
    let mut command = Command::new("taskset");
    command.args(["-c", CORES.0]).arg(&programs.gradus);
    command.args(["bench", "dataset", "--epochs", EPOCHS, "--batch", super::arms::BATCH]);
    command.args(["--source", &format!("s3://{}/{}", set.bucket(), programs.folder(Scenario::Demand))]);
    command.args(["--demand", &DEMAND_BYTES_PER_S.to_string(), "--order.shuffle", order]);
    command.args(["--order.block_samples", "64", "--order.window_blocks", "8"]);
    command.args(["--cache.memory_bytes", &MEMORY_BYTES.to_string()]);
    server.introduce(&mut command);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start the reader (taskset)")?;
    ensure!(output.status.success(), "the reader ended with {}", output.status);
    let text = String::from_utf8(output.stdout).context("the reader's output is no text")?;
    let epochs: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let number = |epoch: &Value, key: &str| epoch[key].as_f64().unwrap_or(f64::NAN);
    let total = |key: &str| epochs.iter().map(|epoch| number(epoch, key)).sum::<f64>();
    let first = epochs.first().context("the reader said nothing")?;
    ensure!(epochs.iter().all(|epoch| epoch["sum"] == json!(set.sum)), "{order}: another sum than the set's");
    let first_batch_s = number(first, "first_batch_s");
    let waits = epochs.iter().filter_map(|epoch| epoch["stall_s"].as_object());
    let stalled: f64 = waits.flat_map(|causes| causes.values().filter_map(Value::as_f64)).sum();
    let seconds = total("reading_s") - first_batch_s;
    Ok(Reading {
        order,
        seconds,
        stalled: (stalled - number(first, "first_batch_stall_s")).max(0.0) / seconds,
        first_batch_s,
        opening_s: number(first, "opening_s"),
        bytes_per_s: total("bytes") / seconds,
        epochs,
    })
}

/// The table.
pub fn render(readings: &[Reading]) -> String {
    let mut text = format!(
        "\nS3, {LATENCY_MS} ms, {} MB/s used up, reader and server on a core each\n\
         {:<8} {:>10} {:>12} {:>14} {:>10}\n",
        DEMAND_BYTES_PER_S / 1_000_000,
        "order",
        "stalled",
        "first batch",
        "opened after",
        "MB/s"
    );
    for reading in readings {
        text += &format!(
            "{:<8} {:>9.2}% {:>9.0} ms {:>11.0} ms {:>10.0}\n",
            reading.order,
            100.0 * reading.stalled,
            1e3 * reading.first_batch_s,
            1e3 * reading.opening_s,
            reading.bytes_per_s / 1e6
        );
    }
    text
}

/// All of it.
pub fn as_json(readings: &[Reading]) -> Value {
    let one = |reading: &Reading| {
        json!({
            "order": reading.order,
            "seconds": reading.seconds,
            "stalled": reading.stalled,
            "first_batch_s": reading.first_batch_s,
            "opening_s": reading.opening_s,
            "bytes_per_s": reading.bytes_per_s,
            "epochs": reading.epochs,
        })
    };
    json!({
        "demand_bytes_per_s": DEMAND_BYTES_PER_S,
        "latency_ms": LATENCY_MS,
        "cores": { "reader": CORES.0, "server": CORES.1 },
        "readings": readings.iter().map(one).collect::<Vec<_>>(),
    })
}
