//! `cargo x bench dataset`: samples per second out of local files and out of S3, beside the data loaders of the field.
//!
//! Hypothesis: an order that is a function lets a loader read ahead exactly and keep what comes next, so its first epoch out of
//! S3 goes at the pace of the server, and every later one, out of its caches, at that of memory; a cache of half the
//! set saves half the requests, whatever the shuffle. Ceiling of later epochs: plain reads of the same bytes out of the page cache.
//!
//! How: the same samples in each loader's own form, made once by its own writer. Every arm is a process that hands out batches
//! in shuffled order and sums every byte where they arrive; counts and sums are held against the set's, and an arm with others
//! is wrong. Arms take turns, and the order rotates. A turn is a fresh process with an empty cache: its first epoch holds
//! opening the set and starting workers (libraries are imported before), later ones what the cache has kept. Source files lie in
//! the page cache, as reading has put them there: each arm's are read once before its turn. So much memory as an arm may take
//! is used once before, too. How many workers suit an arm is found by a turn with each number, and a second with those near the
//! fastest, at the smallest set of a scenario, by the time of all its epochs. What an arm holds in memory comes from a turn of
//! its own, since looking costs it time.

mod arms;
mod demand;
mod described;
mod memory;
mod process;
mod server;
mod sets;
mod table;

use super::{in_turns, keep_in, result_file, work_folder};
use crate::environment::Environment;
use crate::{machine, shell};
use anyhow::{Context, Result, ensure};
use arms::{ARMS, Arm, Programs, Scenario};
use process::{Failure, Turn, Watch};
use serde_json::{Value, json};
use server::Server;
use sets::Set;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use table::{Case, Row};

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each arm has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Sizes of the sets; slow S3 is read with the smallest alone.
    #[arg(long, value_delimiter = ',', default_values_t = [2_000, 20_000])]
    samples: Vec<u64>,
    /// Where samples come from; all when none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Only arms whose name contains one of these; see the table for names.
    #[arg(long, num_args = 1..)]
    arms: Vec<String>,
    /// So many workers or threads for all, instead of what suits each.
    #[arg(long)]
    workers: Option<usize>,
    /// Which form of the set Gradus reads: `mds`, `tars`.
    #[arg(long, default_value = "mds")]
    form: String,
    /// Gradus reads it out of S3 without its description, and describes it itself each time.
    #[arg(long)]
    undescribed: bool,
    /// An arm that takes longer for an epoch is given up.
    #[arg(long, default_value_t = 60)]
    patience_s: u64,
    /// Measure this binary; without it, this tree's release build.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Serve with this program; without it, this tree's `gradus-testbed`.
    #[arg(long)]
    server: Option<PathBuf>,
}

/// Workers that suit an arm in a scenario.
type Suited = BTreeMap<(Scenario, &'static str), usize>;

/// Measures, prints the tables, keeps the results.
///
/// # Errors
/// When an arm is missing or has read what is not the set, after all else has been measured and kept.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds starts at 1");
    ensure!(options.samples.iter().all(|samples| *samples >= 100), "--samples starts at 100");
    let facts = machine::facts();
    let bench = Bench::prepare(options)?;
    let path = result_file("dataset")?;
    let mut suited = Suited::new();
    let mut found = Found::default();
    for (scenario, set) in bench.cases()? {
        if scenario == Scenario::Demand {
            let server = bench.server.as_deref().context("a demand is measured against a server")?;
            let log = bench.folder.join("server.log");
            found.readings = demand::measure(&bench.programs, server, &set, options.rounds, &log)?;
        } else {
            found.cases.push(bench.measure(scenario, set, &mut suited)?);
        }
        // All of it takes an hour: what stops it then leaves what was measured before.
        keep_in(&path, "dataset", &facts, options.as_json(), found.as_json())?;
    }
    found.conclude()
}

impl Options {
    fn as_json(&self) -> Value {
        json!({
            "rounds": self.rounds,
            "samples": self.samples,
            "batch": arms::BATCH,
            "form": self.form,
            "undescribed": self.undescribed,
            "workers": self.workers,
            "arms": self.arms,
            "patience_s": self.patience_s,
            "other_binary": self.binary.is_some(),
            "page_cache": "source files warm, local caches empty at the start of each turn",
        })
    }
}

/// What all cases share.
struct Bench<'a> {
    options: &'a Options,
    programs: Programs,
    server: Option<PathBuf>,
    folder: PathBuf,
}

impl<'a> Bench<'a> {
    /// Builds, installs, compiles.
    fn prepare(options: &'a Options) -> Result<Self> {
        let folder = work_folder("dataset")?;
        let is_remote = scenarios(options).into_iter().any(Scenario::is_remote);
        let server = match &options.server {
            Some(given) => Some(std::path::absolute(given)?),
            None => is_remote.then(server::build).transpose()?,
        };
        let is_ours = ARMS.iter().any(|arm| arm.is_ours() && is_named(arm, &options.arms));
        let gradus = match &options.binary {
            Some(given) => std::path::absolute(given)?,
            None if is_ours => shell::release_binary()?,
            None => PathBuf::new(),
        };
        let peers = Environment::ensure("dataset")?;
        let page_cache = compiled(&folder, "page_cache")?;
        let make_present = compiled(&folder, "make_present")?;
        let (form, is_described) = (options.form.clone(), !options.undescribed);
        let programs = Programs { peers, page_cache, make_present, gradus, form, is_described };
        Ok(Self { options, programs, server, folder })
    }

    /// Scenarios by sets, the smallest set of a scenario first.
    fn cases(&self) -> Result<Vec<(Scenario, Set)>> {
        let mut samples = self.options.samples.clone();
        samples.sort_unstable();
        samples.dedup();
        let ensure = |samples: u64| Set::ensure(samples, &self.programs.peers);
        let sets = samples.into_iter().map(ensure).collect::<Result<Vec<_>>>()?;
        self.describe(&sets)?;
        sets.iter().try_for_each(|set| sets::cool(&set.folder))?;
        let sets_of = |scenario: Scenario| match scenario {
            Scenario::Local | Scenario::S3 => &sets[..],
            Scenario::Slow => &sets[..1],
            Scenario::Demand => &sets[sets.len() - 1..],
        };
        let of = |scenario: Scenario| sets_of(scenario).iter().map(move |set| (scenario, set.clone()));
        Ok(scenarios(self.options).into_iter().flat_map(of).collect())
    }

    /// Writes the descriptions that ours find in the bucket.
    fn describe(&self, sets: &[Set]) -> Result<()> {
        let Programs { gradus, form, is_described, .. } = &self.programs;
        let Some(server) = self.server.as_deref().filter(|_| *is_described && gradus.exists()) else {
            return Ok(());
        };
        let server = Server::start(server, &sets::root()?, 0, None, &self.folder.join("server.log"))?;
        sets.iter().try_for_each(|set| described::make(set, form, gradus, &server))
    }

    fn measure(&self, scenario: Scenario, set: Set, suited: &mut Suited) -> Result<Case> {
        eprintln!("{}, {} samples", scenario.name(), set.samples);
        let server = self.start_server(scenario)?;
        let is_chosen = |arm: &&Arm| arm.is_measured(scenario) && is_named(arm, &self.options.arms);
        let mut place = Place { bench: self, scenario, set: &set, server: &server };
        let mut rows: Vec<Row> = Vec::new();
        for arm in ARMS.iter().filter(is_chosen) {
            rows.push(place.find_workers(arm, suited)?);
        }
        let mut outcome = Ok(());
        in_turns(self.options.rounds, rows.len(), |number| {
            if outcome.is_ok() {
                outcome = place.take_turn(&mut rows[number], false);
            }
        });
        outcome?;
        for row in &mut rows {
            place.take_turn(row, true)?;
        }
        Ok(Case { scenario, set, rows })
    }

    fn start_server(&self, scenario: Scenario) -> Result<Option<Server>> {
        let program = self.server.as_deref().filter(|_| scenario.is_remote());
        let log = self.folder.join("server.log");
        let start = |program| Server::start(program, &sets::root()?, scenario.latency_ms(), None, &log);
        program.map(start).transpose()
    }
}

/// A number of workers, and how many seconds all epochs took with it.
type Tried = (usize, f64);

/// So many times the fastest number's seconds still get a second turn.
const NEAR: f64 = 1.4;

/// The number of workers that took least time, and its seconds.
fn fastest(tried: &[Tried]) -> Option<Tried> {
    tried.iter().copied().min_by(|(_, a), (_, b)| a.total_cmp(b))
}

/// Where turns are taken: one set from one source.
struct Place<'a> {
    bench: &'a Bench<'a>,
    scenario: Scenario,
    set: &'a Set,
    server: &'a Option<Server>,
}

impl Place<'_> {
    /// A row with the number of workers that suits `arm`; without one, if it runs with none.
    fn find_workers(&mut self, arm: &Arm, suited: &mut Suited) -> Result<Row> {
        let row = |workers, tried, missing| Row {
            arm: *arm,
            workers,
            tried,
            turns: Vec::new(),
            watched: None,
            missing,
            wrong: None,
        };
        let known = self.bench.options.workers.filter(|_| arm.tries.len() > 1);
        let known = known.or(suited.get(&(self.scenario, arm.name)).copied());
        let only = arm.tries.first().copied().filter(|_| arm.tries.len() == 1);
        if let Some(workers) = known.or(only) {
            return Ok(row(workers, Vec::new(), None));
        }
        let (tried, missing) = self.try_workers(arm)?;
        let Some((workers, _)) = fastest(&tried) else { return Ok(row(arm.tries[0], tried, missing)) };
        suited.insert((self.scenario, arm.name), workers);
        Ok(row(workers, tried, None))
    }

    /// Seconds of all epochs with each number of workers, and why one gave none. Numbers near the fastest have a second turn,
    /// and the better of both counts: one slow turn on a shared machine is not a reason to measure an arm with fewer.
    fn try_workers(&mut self, arm: &Arm) -> Result<(Vec<Tried>, Option<Failure>)> {
        let (mut tried, mut missing) = (Vec::new(), None);
        for workers in arm.tries {
            match self.read(arm, *workers, false)? {
                Ok(turn) => tried.push((*workers, turn.seconds())),
                Err(reason) => missing = Some(reason),
            }
        }
        let near = fastest(&tried).map_or(0.0, |(_, seconds)| NEAR * seconds);
        for (workers, seconds) in tried.iter_mut().filter(|(_, seconds)| *seconds <= near) {
            if let Ok(turn) = self.read(arm, *workers, false)? {
                *seconds = seconds.min(turn.seconds());
            }
        }
        Ok((tried, missing))
    }

    /// An arm that fails on its way is missing from then on; one that has read something else is wrong.
    fn take_turn(&mut self, row: &mut Row, memory: bool) -> Result<()> {
        if row.missing.is_some() || row.wrong.is_some() {
            return Ok(());
        }
        match self.read(&row.arm, row.workers, memory)? {
            Err(reason) => row.missing = Some(reason),
            Ok(turn) => {
                row.wrong = table::wrong(&turn, self.set);
                if memory {
                    row.watched = Some(turn);
                } else {
                    row.turns.push(turn);
                }
            }
        }
        Ok(())
    }

    /// One turn in an empty cache over warm files; inside, why the arm gave none.
    fn read(&mut self, arm: &Arm, workers: usize, memory: bool) -> Result<Result<Turn, Failure>> {
        let cache = Cache::empty(self.bench.folder.join("cache"))?;
        let programs = &self.bench.programs;
        let source = programs.reads(arm, self.scenario, self.set);
        if !source.exists() {
            return Ok(Err(Failure::Broken(format!("there is no {}", shell::relative(&source)))));
        }
        sets::warm(&source)?;
        // Of all arms, ours holds most: half as much again as the set.
        memory::make_present(&programs.make_present, 2 * self.set.bytes)?;
        let place = (self.scenario, self.server.as_ref());
        let command: Command = programs.command(arm, workers, place, self.set, &cache.folder);
        let log = self.bench.folder.join(format!("{}.log", arm.name.replace([' ', ','], "-")));
        let mut watch = Watch {
            log: &log,
            epochs: self.scenario.epochs(),
            patience: Duration::from_secs(self.bench.options.patience_s),
            memory,
            sent_bytes: &mut || self.server.as_ref().map(Server::sent_bytes).transpose(),
        };
        Ok(process::run(command, &mut watch))
    }
}

/// A local cache's folder; it goes when this is dropped.
struct Cache {
    folder: PathBuf,
}

impl Cache {
    fn empty(folder: PathBuf) -> Result<Self> {
        remove(&folder)?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder })
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = remove(&self.folder);
    }
}

/// A program of `benches/peers`, compiled into `folder`.
fn compiled(folder: &Path, name: &str) -> Result<PathBuf> {
    let program = folder.join(name);
    let mut compile = shell::command("cc", &["-O3", "-march=native", "-pthread", "-o"]);
    compile.arg(&program).arg(shell::root().join(format!("benches/peers/{name}.c")));
    shell::run(compile)?;
    Ok(program)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn scenarios(options: &Options) -> Vec<Scenario> {
    let all = [Scenario::Local, Scenario::S3, Scenario::Slow, Scenario::Demand];
    let is_chosen = |scenario: &Scenario| options.scenario.is_empty() || options.scenario.contains(scenario);
    all.into_iter().filter(is_chosen).collect()
}

fn is_named(arm: &Arm, names: &[String]) -> bool {
    names.is_empty() || names.iter().any(|part| arm.name.contains(part.as_str()))
}

/// What was measured so far.
#[derive(Default)]
struct Found {
    cases: Vec<Case>,
    readings: Vec<demand::Reading>,
}

impl Found {
    fn as_json(&self) -> Value {
        json!({
            "cases": self.cases.iter().map(Case::as_json).collect::<Value>(),
            "demand": demand::as_json(&self.readings),
        })
    }

    /// Prints the tables; then an error, if an arm has failed. One that is too slow has not.
    fn conclude(&self) -> Result<()> {
        for case in &self.cases {
            print!("{}", case.render());
        }
        if !self.readings.is_empty() {
            print!("{}", demand::render(&self.readings));
        }
        let rows = || self.cases.iter().flat_map(|case| &case.rows);
        let wrong = rows().filter(|row| row.wrong.is_some()).count();
        let missing = rows().filter(|row| matches!(row.missing, Some(Failure::Broken(_)))).count();
        ensure!(wrong == 0, "arms that read what is not the set: {wrong}");
        ensure!(missing == 0, "arms missing: {missing}; the tables say why");
        Ok(())
    }
}
