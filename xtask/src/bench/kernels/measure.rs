//! Both programs, told what to do, operation after operation.

use super::Options;
use super::catalog::{Bound, Item, items};
use crate::bench::shape::Shape;
use crate::bench::table::median;
use crate::bench::work_folder;
use crate::bench::worker::Worker;
use crate::environment::Environment;
use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Ours, built, and the peer's environment, or why there is none.
pub struct Programs {
    /// `gradus`.
    pub binary: PathBuf,
    torch: Result<Environment>,
}

impl Programs {
    /// Builds the one and finds or makes the other.
    ///
    /// # Errors
    /// When ours does not build.
    pub fn prepare() -> Result<Self> {
        Ok(Self { binary: shell::release_binary()?, torch: Environment::ensure("golden") })
    }

    fn start(&self, precision: &str, threads: usize) -> Result<(Worker, Result<Worker>)> {
        let logs = work_folder("kernels")?;
        let words = ["--precision", precision, "--threads", &threads.to_string()];
        let mut ours = shell::command(&self.binary, &["bench", "kernels"]);
        ours.args(words);
        let ours = Worker::start(ours, &logs.join(format!("gradus-{precision}.log")))?;
        let torch = match &self.torch {
            Ok(environment) => {
                let mut torch = environment.script("bench_kernels.py");
                torch.args(words);
                Worker::start(torch, &logs.join(format!("torch-{precision}.log")))
            }
            Err(error) => bail_missing(error),
        };
        Ok((ours, torch))
    }
}

fn bail_missing(error: &anyhow::Error) -> Result<Worker> {
    bail!("no environment: {error:#}")
}

/// What one round gave.
#[derive(Debug, Clone, Copy, Default)]
pub struct Round {
    /// Operations or bytes per second that could be.
    pub ceiling: f64,
    /// Seconds of ours.
    pub ours: f64,
    /// Seconds of PyTorch's; not a number where it is missing.
    pub torch: f64,
}

/// What an operation gave.
#[derive(Debug)]
pub struct Row {
    /// Which.
    pub item: Item,
    /// Times, round by round.
    pub rounds: Vec<Round>,
    /// Which way PyTorch's was fastest, where there are several.
    pub way: Option<String>,
    /// How far each output lies from PyTorch's: norm of the difference over the norm.
    pub apart: BTreeMap<String, f64>,
    /// Why PyTorch's is missing, or what is wrong.
    pub problem: Option<String>,
}

impl Row {
    /// Median over the rounds of something of a round.
    pub fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of).collect())
    }

    /// Operations or bytes.
    pub fn work(&self) -> f64 {
        match self.item.bound {
            Bound::Products(flops) => flops,
            Bound::Stream(bytes, _) => bytes,
        }
    }

    /// Part of the ceiling that is reached.
    pub fn of_ceiling(&self) -> f64 {
        self.median(|round| self.work() / round.ours / round.ceiling)
    }

    /// PyTorch's time over ours.
    pub fn over_torch(&self) -> f64 {
        self.median(|round| round.torch / round.ours)
    }

    /// The farthest output.
    pub fn farthest(&self) -> f64 {
        self.apart.values().copied().fold(f64::NAN, f64::max)
    }
}

/// All operations of a model in one precision.
#[derive(Debug)]
pub struct Table {
    /// Which model.
    pub shape: Shape,
    /// `f32` or `bf16`.
    pub precision: String,
    /// Threads of each program.
    pub threads: usize,
    /// The unit that products are held against.
    pub unit: &'static str,
    /// Our device, in words.
    pub device: String,
    /// PyTorch's version, or why it is missing.
    pub torch: String,
    /// One for each operation.
    pub rows: Vec<Row>,
}

impl Table {
    /// What is wrong or missing, row by row.
    pub fn problems(&self) -> Vec<String> {
        let problem = |row: &Row| {
            let problem = row.problem.as_ref()?;
            Some(format!("{}, {}, {}: {problem}", self.shape.name(), self.precision, row.item.name))
        };
        self.rows.iter().filter_map(problem).collect()
    }
}

/// Measures every operation of `shape`.
///
/// # Errors
/// When our own program fails; the peer's failures are the rows'.
pub fn measure(shape: Shape, precision: &str, programs: &Programs, options: &Options) -> Result<Table> {
    let (ours, torch) = programs.start(precision, options.threads)?;
    let mut pair = Pair { ours, torch, precision: precision.to_owned(), folder: work_folder("kernels")? };
    let unit = pair.unit()?;
    let said = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let (device, version) = (said(pair.ours.ready(), "device"), pair.torch_version());
    let rows = pair.logits_rows(shape)?;
    let is_chosen =
        |item: &Item| options.only.is_empty() || options.only.iter().any(|part| item.name.contains(part));
    let mut table = Table {
        shape,
        precision: precision.to_owned(),
        threads: options.threads,
        unit,
        device,
        torch: version,
        rows: Vec::new(),
    };
    for item in items(shape, precision, rows).into_iter().filter(is_chosen) {
        eprintln!("{}, {precision}: {}", shape.name(), item.name);
        table.rows.push(pair.row(item, unit, options)?);
    }
    Ok(table)
}

/// Both programs.
struct Pair {
    ours: Worker,
    torch: Result<Worker>,
    precision: String,
    folder: PathBuf,
}

impl Pair {
    /// The fastest unit for this precision that the processor has.
    fn unit(&mut self) -> Result<&'static str> {
        let units: &[&'static str] =
            if self.precision == "bf16" { &["bf16_tile", "bf16_dot", "f32"] } else { &["f32"] };
        for unit in units {
            if self.ours.ask(json!({ "do": "ceiling", "unit": unit }))?["rate"].is_f64() {
                return Ok(unit);
            }
        }
        bail!("this processor has no unit whose ceiling is known")
    }

    fn torch_version(&self) -> String {
        match &self.torch {
            Ok(worker) => format!("PyTorch {}", worker.ready()["torch"].as_str().unwrap_or("of no version")),
            Err(error) => format!("PyTorch is missing: {error:#}"),
        }
    }

    fn logits_rows(&mut self, shape: Shape) -> Result<usize> {
        let sizes = shape.sizes();
        let order = json!({ "do": "logits_rows", "vocabulary": sizes.vocabulary, "rows": sizes.rows() });
        let rows = self.ours.ask(order)?["rows"].as_u64().context("no rows")?;
        Ok(usize::try_from(rows)?)
    }

    fn row(&mut self, item: Item, unit: &str, options: &Options) -> Result<Row> {
        self.ours.ask(json!({ "do": "prepare", "op": item.op }))?;
        let mut row = Row { item, rounds: Vec::new(), way: None, apart: BTreeMap::new(), problem: None };
        match self.check(&row.item) {
            Ok((way, apart)) => (row.way, row.apart) = (way, apart),
            Err(error) => row.problem = Some(format!("{error:#}")),
        }
        if row.problem.is_none() {
            row.problem = wrong(&row.apart, &self.precision);
        }
        for round in 0..options.rounds {
            row.rounds.push(self.round(&row.item, unit, round, options.seconds)?);
        }
        Ok(row)
    }

    /// Runs both once on the same inputs and compares what comes out.
    fn check(&mut self, item: &Item) -> Result<(Option<String>, BTreeMap<String, f64>)> {
        let torch = self.torch.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let way = torch.ask(json!({ "do": "prepare", "op": item.op }))?;
        let folder = |name: &str| self.folder.join(format!("outputs-{name}"));
        let (ours, theirs) = (folder("gradus"), folder("torch"));
        for folder in [&ours, &theirs] {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        self.ours.ask(json!({ "do": "outputs", "folder": ours }))?;
        torch.ask(json!({ "do": "outputs", "folder": theirs }))?;
        Ok((way["way"].as_str().map(str::to_owned), compare(&ours, &theirs)?))
    }

    fn round(&mut self, item: &Item, unit: &str, round: usize, seconds: f64) -> Result<Round> {
        let mut result = Round { torch: f64::NAN, ..Default::default() };
        let order = json!({ "do": "run", "seconds": seconds });
        for place in 0..3 {
            match (place + round) % 3 {
                0 => result.ceiling = number(&self.ours.ask(ceiling(item, unit))?, "rate")?,
                1 => result.ours = number(&self.ours.ask(&order)?, "seconds")?,
                _ => {
                    // A peer that failed has its problem in the row already.
                    if let Ok(torch) = &mut self.torch
                        && let Ok(answer) = torch.ask(&order)
                    {
                        result.torch = number(&answer, "seconds")?;
                    }
                }
            }
        }
        Ok(result)
    }
}

fn ceiling(item: &Item, unit: &str) -> Value {
    match item.bound {
        Bound::Products(_) => json!({ "do": "ceiling", "unit": unit }),
        Bound::Stream(_, stream) => json!({ "do": "stream", "stream": stream, "bytes": item.touched as u64 }),
    }
}

fn number(answer: &Value, key: &str) -> Result<f64> {
    answer[key].as_f64().with_context(|| format!("no number `{key}` in {answer}"))
}

/// Relative distance of each output; both folders must hold the same ones.
fn compare(ours: &Path, theirs: &Path) -> Result<BTreeMap<String, f64>> {
    let (ours, theirs) = (read_all(ours)?, read_all(theirs)?);
    if !ours.keys().eq(theirs.keys()) {
        bail!("outputs are {:?}, the peer's {:?}", ours.keys(), theirs.keys());
    }
    let pairs = ours.into_iter().zip(theirs.into_values());
    pairs.map(|((name, ours), theirs)| Ok((name, distance(&ours, &theirs)?))).collect()
}

fn read_all(folder: &Path) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut outputs = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let value = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        outputs.insert(name, bytes.chunks_exact(4).map(value).collect());
    }
    Ok(outputs)
}

/// Norm of the difference over the norm of `theirs`; over 1 where that is zero.
fn distance(ours: &[f32], theirs: &[f32]) -> Result<f64> {
    if ours.len() != theirs.len() {
        bail!("{} elements, the peer has {}", ours.len(), theirs.len());
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let norm = squares(&mut theirs.iter().map(|value| f64::from(*value)));
    Ok((difference / if norm > 0.0 { norm } else { 1.0 }).sqrt())
}

/// How far an output may lie from the peer's, as norms. f32: sums of thousands of terms in another order keep six
/// digits. bf16: PyTorch also rounds what comes out, and in between where an operation has several steps, each by up to
/// 2^-9; the losses of logits near 10 by 2^-6 of one part in ten.
fn allowed(precision: &str) -> f64 {
    if precision == "f32" { 2e-5 } else { 1.5e-2 }
}

fn wrong(apart: &BTreeMap<String, f64>, precision: &str) -> Option<String> {
    let allowed = allowed(precision);
    let far = apart.iter().find(|(_, apart)| apart.is_nan() || **apart > allowed)?;
    Some(format!("{} lies {:.1e} from PyTorch's, allowed {allowed:.1e}", far.0, far.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_apart_of_another_length_or_not_finite_are_found() {
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 2.0]).unwrap(), 0.0);
        assert!((distance(&[0.0, 3.0], &[4.0, 3.0]).unwrap() - 0.8).abs() < 1e-12);
        assert_eq!(distance(&[0.0; 3], &[0.0; 3]).unwrap(), 0.0);
        assert!(distance(&[1.0], &[1.0, 2.0]).is_err());
        let apart = |value: f64| BTreeMap::from([("out".to_owned(), value)]);
        assert!(wrong(&apart(1e-6), "f32").is_none());
        assert!(wrong(&apart(1e-3), "f32").is_some());
        assert!(wrong(&apart(1e-3), "bf16").is_none());
        assert!(wrong(&apart(f64::NAN), "bf16").is_some());
    }
}
