//! `gradus bench kernels`: operations of the CPU device, run when told on stdin, so that another program can take turns
//! on one machine. `cargo x bench kernels` speaks this protocol with us and with PyTorch (python/bench_kernels.py).
//!
//! Each line is one JSON object, and each is answered by one:
//!
//! - `{"do": "ceiling", "unit": U}`: operations per second on registers; `null` where the processor lacks the unit;
//! - `{"do": "stream", "stream": S, "bytes": N}`: bytes per second of a plain stream over so much memory;
//! - `{"do": "logits_rows", "vocabulary": V, "rows": M}`: rows whose logits a model makes at once;
//! - `{"do": "prepare", "op": {...}}`: a device for the operation and inputs that follow from their places ([`inputs`]);
//! - `{"do": "outputs", "folder": F}`: runs once on fresh inputs and writes a sample of each output to `F/NAME.f32`;
//! - `{"do": "run", "seconds": S}`: runs again and again for at least so long; the median of the times.

mod inputs;
mod operations;

use super::open_device;
use crate::logging;
use anyhow::{Context, Result, bail};
use gradus_compute::cpu::ceilings::{Ceilings, Stream, Unit};
use gradus_compute::{CpuDevice, Device, Precision};
use gradus_host::{Clock, RealClock};
use gradus_model::logits_rows;
use operations::{Operation, Prepared};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Beyond this streams are no slower, and take long.
const MOST_STREAM_BYTES: usize = 512 << 20;
/// An operation that takes so many times the least is run once.
const LONG: f64 = 5.0;
/// Of longer outputs every so many-th element is written, so that a sample fits this.
const SAMPLE: usize = 1 << 22;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct BenchKernelsArguments {
    /// Arithmetic of matrix products: f32 or bf16.
    #[arg(long, default_value = "bf16", value_parser = super::parse_precision)]
    pub precision: Precision,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    Ceiling { unit: String },
    Stream { stream: String, bytes: usize },
    LogitsRows { vocabulary: usize, rows: usize },
    Prepare { op: Operation },
    Outputs { folder: PathBuf },
    Run { seconds: f64 },
}

/// Answers orders until the end of stdin.
///
/// # Errors
/// When the device cannot be opened, or stdin or stdout fails; a wrong order is answered with its error.
pub fn run(arguments: &BenchKernelsArguments) -> Result<()> {
    let device = open_device(arguments.threads, 1, arguments.precision)?.describe();
    let mut bench = Bench {
        precision: arguments.precision,
        threads: arguments.threads,
        ceilings: Ceilings::new(arguments.threads, MOST_STREAM_BYTES)?,
        prepared: None,
    };
    logging::print(format_args!("ready {}", json!({ "device": device, "threads": arguments.threads })))?;
    for line in std::io::stdin().lines() {
        let line = line.context("cannot read stdin")?;
        let answer = serde_json::from_str(&line).context("no order").and_then(|order| bench.obey(order));
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{line}: {error:#}") }));
        logging::print(format_args!("{answer}"))?;
    }
    Ok(())
}

struct Bench {
    precision: Precision,
    threads: usize,
    ceilings: Ceilings,
    /// Its device goes with it, since a device takes no memory back.
    prepared: Option<(Operation, CpuDevice, Prepared)>,
}

impl Bench {
    fn obey(&mut self, order: Order) -> Result<Value> {
        Ok(match order {
            Order::Ceiling { unit } => json!({ "rate": self.ceilings.registers(unit_named(&unit)?) }),
            Order::Stream { stream, bytes } => {
                let stream = Stream::named(&stream).with_context(|| format!("no stream {stream:?}"))?;
                json!({ "rate": self.ceilings.stream(stream, bytes.min(MOST_STREAM_BYTES)) })
            }
            Order::LogitsRows { vocabulary, rows } => json!({ "rows": logits_rows(vocabulary, rows) }),
            Order::Prepare { op } => self.prepare(op)?,
            Order::Outputs { folder } => self.outputs(&folder)?,
            Order::Run { seconds } => self.time(seconds)?,
        })
    }

    fn prepare(&mut self, operation: Operation) -> Result<Value> {
        self.prepared = None;
        let device = open_device(self.threads, 1, self.precision)?;
        let prepared = operation.prepare(&device)?;
        self.prepared = Some((operation, device, prepared));
        Ok(json!({ "bytes": self.current()?.1.allocated() * 4 }))
    }

    fn current(&self) -> Result<&(Operation, CpuDevice, Prepared)> {
        self.prepared.as_ref().context("nothing is prepared")
    }

    fn outputs(&self, folder: &Path) -> Result<Value> {
        let (operation, device, prepared) = self.current()?;
        operation.reset(device, prepared);
        operation.run(device, prepared, 1);
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (name, span) in operation.outputs(prepared) {
            let mut values = vec![0.0; span.len];
            device.read(span, &mut values);
            // An odd step, so that a matrix' columns all have their turn.
            let sample = values.iter().step_by((span.len / SAMPLE) | 1);
            let bytes: Vec<u8> = sample.flat_map(|value| value.to_le_bytes()).collect();
            let path = folder.join(format!("{name}.f32"));
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(json!({}))
    }

    fn time(&mut self, least_s: f64) -> Result<Value> {
        let (operation, device, prepared) = self.current()?;
        let (clock, mut times, mut total) = (RealClock::new(), Vec::new(), 0.0);
        // A short operation's first run finds the caches as the other program left them; a long one's is no different.
        while total < least_s || times.len() < 2 && total < LONG * least_s {
            let start = clock.now();
            operation.run(device, prepared, 10 + times.len() as u64);
            let seconds = (clock.now() - start).as_secs_f64();
            times.push(seconds);
            total += seconds;
        }
        times.sort_by(f64::total_cmp);
        Ok(json!({ "seconds": times[times.len() / 2], "repetitions": times.len() }))
    }
}

fn unit_named(name: &str) -> Result<Unit> {
    Ok(match name {
        "f32" => Unit::F32,
        "bf16_dot" => Unit::Bf16Dot,
        "bf16_tile" => Unit::Bf16Tile,
        other => bail!("no unit {other:?}"),
    })
}
