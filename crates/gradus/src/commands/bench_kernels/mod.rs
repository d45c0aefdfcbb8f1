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

mod calls;
mod inputs;
mod operation;
mod tensors;

use super::open_device;
use crate::logging;
use anyhow::{Context, Result, bail};
use gradus_compute::cpu::ceilings::{Ceilings, Stream, Unit};
use gradus_compute::{CpuDevice, Device, Precision};
use gradus_host::{Clock, RealClock};
use gradus_model::logits_rows;
use operation::Operation;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tensors::Prepared;

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
        for (name, tensor) in operation.outputs() {
            let values = prepared.read(device, *tensor);
            // An odd step, so that a matrix' columns all have their turn.
            let sample = values.iter().step_by((values.len() / SAMPLE) | 1);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(op: Value) -> Operation {
        serde_json::from_value(op).unwrap()
    }

    fn linear(kind: &str) -> Value {
        json!({ "kind": kind, "rows": 5, "inputs": 8, "outputs": 12 })
    }

    fn with(mut op: Value, more: Value) -> Operation {
        op.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        operation(op)
    }

    /// Operations whose tensors have formats, kept as `kept` where a step keeps what products read.
    fn of_a_block(kept: &str) -> Vec<Operation> {
        let heads =
            json!({ "batch": 1, "sequence": 5, "heads": 2, "kv_heads": 1, "head_size": 2, "kept": kept });
        let forward = |epilogue: Value, out: &str| {
            let residual = epilogue == "none";
            let more =
                json!({ "bias": true, "residual": residual, "epilogue": epilogue, "x": kept, "out": out });
            with(linear("linear_forward"), more)
        };
        let back = |through: &str| {
            with(linear("linear_input"), json!({ "through": through, "d_out": "f32", "d_x": kept }))
        };
        let of_heads = |kind: &str| with(heads.clone(), json!({ "kind": kind }));
        let of_rows = |kind: &str, more| with(json!({ "kind": kind, "rows": 5, "width": 8 }), more);
        vec![
            forward(json!("none"), "f32"),
            forward(json!("gelu"), kept),
            forward(json!("swiglu"), kept),
            with(
                linear("linear_forward"),
                json!({ "bias": false, "residual": false, "x": kept, "out": kept, "outputs": 8,
                        "epilogue": { "rope": heads.clone() } }),
            ),
            back("none"),
            back("gelu"),
            back("swiglu"),
            with(linear("linear_weight"), json!({ "bias": true, "d_out": "f32", "x": kept })),
            of_heads("attention_forward"),
            of_heads("attention_backward"),
            of_heads("rope_backward"),
            of_rows("norm_forward", json!({ "layer": true, "out": kept })),
            of_rows("norm_backward", json!({ "layer": true, "residual": true, "d_out": kept })),
            of_rows("swiglu_forward", json!({ "kept": kept })),
            operation(json!({ "kind": "gelu_forward", "elements": 40, "kept": kept })),
        ]
    }

    /// Every output of `operation`, after it ran once.
    fn outputs(operation: &Operation, precision: Precision) -> Vec<Vec<f32>> {
        let device = open_device(1, 1, precision).unwrap();
        let prepared = operation.prepare(&device).unwrap();
        operation.run(&device, &prepared, 1);
        operation.outputs().iter().map(|(_, tensor)| prepared.read(&device, *tensor)).collect()
    }

    /// Rounding keeps 9 bits of what is kept and of what is multiplied; sums of terms of either sign keep fewer.
    #[test]
    fn formats_change_no_more_than_rounding_does() {
        for (wide, narrow) in of_a_block("f32").iter().zip(&of_a_block("bf16")) {
            let (exact, rounded) = (outputs(wide, Precision::F32), outputs(narrow, Precision::Bf16));
            assert_eq!(exact.len(), rounded.len());
            for (exact, rounded) in exact.iter().zip(&rounded) {
                let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
                let apart = norm(&mut exact.iter().zip(rounded).map(|(a, b)| a - b));
                let size = norm(&mut exact.iter().copied());
                assert_eq!(exact.len(), rounded.len(), "{wide:?}");
                assert!(size > 0.0 && apart < 0.02 * size, "{wide:?}: {apart} of {size}");
            }
        }
    }

    #[test]
    fn an_order_without_a_format_is_refused() {
        let order = json!({ "kind": "gelu_forward", "elements": 40 });
        assert!(serde_json::from_value::<Operation>(order).is_err());
    }
}
