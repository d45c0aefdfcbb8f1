//! `cargo x bench collective`: all-reduce between processes of this host beside gloo, Open MPI and Intel MPI.
//!
//! Ceiling: memory. With two ranks in shared memory, each sums its half of two buffers straight into both and waits for
//! nobody: the arm called *limit*, measured in the same run.
//!
//! Every arm is a command that measures all sizes and prints a line of JSON for each; the arms of a group (ranks and
//! transport) take turns, round by round, and the order rotates. A figure is the median over the rounds, a ratio the
//! median of the rounds' own ratios. Results are checked in every arm.

use super::table::median;
use super::{keep, work_folder};
use crate::environment::Environment;
use crate::{machine, shell};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each arm has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only groups whose name contains this: `2 ranks, shared memory`, `4 ranks, shared memory`, `2 ranks, TCP`,
    /// `4 ranks, TCP`.
    #[arg(long, default_value = "")]
    group: String,
    /// Sizes, bytes.
    #[arg(long, value_delimiter = ',', default_values_t = SIZES)]
    sizes: Vec<u64>,
}

/// 4 B to 256 MiB.
const SIZES: [u64; 10] =
    [4, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20];

/// Ours, which all others are held against.
const OURS: &str = "gradus";

/// Ours, in memory that every rank reaches.
const REGISTERED: &str = "gradus, registered";

/// Which ranks and what carries their bytes.
#[derive(Debug, Clone, Copy)]
struct Group {
    ranks: usize,
    transport: &'static str,
    arms: &'static [&'static str],
}

const GROUPS: [Group; 4] = [
    Group {
        ranks: 2,
        transport: "shared memory",
        arms: &["limit", OURS, REGISTERED, "Intel MPI", "Open MPI", "gloo"],
    },
    Group { ranks: 4, transport: "shared memory", arms: &[OURS, "Intel MPI", "Open MPI", "gloo"] },
    Group { ranks: 2, transport: "TCP", arms: &[OURS, "Open MPI", "gloo"] },
    Group { ranks: 4, transport: "TCP", arms: &[OURS, "Open MPI", "gloo"] },
];

impl Group {
    fn name(&self) -> String {
        format!("{} ranks, {}", self.ranks, self.transport)
    }
}

/// Microseconds of each round, by size.
type Times = BTreeMap<u64, Vec<f64>>;

/// What an arm gave, or why it gave nothing.
struct Row {
    arm: &'static str,
    times: Times,
    /// What it had predicted by links that it measured at its start; empty for arms that predict nothing.
    predicted: Times,
    missing: Option<String>,
}

/// Measures, prints the tables, keeps the results.
///
/// # Errors
/// When an arm is missing or a result is wrong, after all else has been measured and kept.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && !options.sizes.is_empty(), "--rounds and --sizes start at one");
    let groups: Vec<Group> =
        GROUPS.into_iter().filter(|group| group.name().contains(&options.group)).collect();
    ensure!(!groups.is_empty(), "no group's name contains {:?}", options.group);
    let (facts, programs) = (machine::facts(), Programs::prepare()?);
    let measured: Vec<(Group, Vec<Row>)> =
        groups.into_iter().map(|group| (group, measure(&group, &programs, options))).collect();
    let settings = json!({ "rounds": options.rounds, "sizes": options.sizes, "group": options.group });
    keep("collective", &facts, settings, measured.iter().map(as_json).collect())?;
    for (group, rows) in &measured {
        print!("{}", render(group, rows, &options.sizes));
    }
    let missing = measured.iter().flat_map(|(_, rows)| rows).filter(|row| row.missing.is_some()).count();
    ensure!(missing == 0, "arms missing or wrong: {missing}; the tables say why");
    Ok(())
}

fn measure(group: &Group, programs: &Programs, options: &Options) -> Vec<Row> {
    let row = |arm: &&'static str| Row { arm, times: Times::new(), predicted: Times::new(), missing: None };
    let mut rows: Vec<Row> = group.arms.iter().map(row).collect();
    for round in 0..options.rounds {
        eprintln!("{}: round {} of {}", group.name(), round + 1, options.rounds);
        for place in 0..rows.len() {
            let row = &mut rows[(place + round) % group.arms.len()];
            if row.missing.is_none()
                && let Err(error) = take_turn(row, group, programs, &options.sizes)
            {
                row.missing = Some(format!("{error:#}"));
            }
        }
    }
    rows
}

fn take_turn(row: &mut Row, group: &Group, programs: &Programs, sizes: &[u64]) -> Result<()> {
    let printed = shell::output(programs.command(row.arm, group, sizes))?;
    let answers = printed.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let answers = answers.with_context(|| format!("not JSON: {printed}"))?;
    ensure!(answers.len() == sizes.len(), "{} sizes were asked for: {printed}", sizes.len());
    for (answer, bytes) in answers.iter().zip(sizes) {
        ensure!(answer["bytes"] == *bytes && answer["wrong"] == 0, "a wrong result: {answer}");
        let us = answer["us"].as_f64().with_context(|| format!("no time in {answer}"))?;
        row.times.entry(*bytes).or_default().push(us);
        if let Some(us) = answer["predicted_us"].as_f64() {
            row.predicted.entry(*bytes).or_default().push(us);
        }
    }
    Ok(())
}

/// Every arm's program, built or installed.
struct Programs {
    ours: PathBuf,
    torch: Environment,
    open_mpi: Environment,
    intel_mpi: Environment,
    folder: PathBuf,
}

impl Programs {
    fn prepare() -> Result<Self> {
        let words = ["build", "--release", "--package", "gradus-collective", "--example", "all_reduce_speed"];
        shell::run(shell::cargo(&words))?;
        let programs = Self {
            ours: shell::target().join("release/examples/all_reduce_speed"),
            torch: Environment::ensure("golden")?,
            open_mpi: Environment::ensure("openmpi")?,
            intel_mpi: Environment::ensure("intel-mpi")?,
            folder: work_folder("collective")?,
        };
        let compile = |mut compiler: Command, program: &str| {
            compiler.args(["-O3", "-march=native", "-o"]).arg(programs.folder.join(program));
            compiler.arg(shell::root().join("benches/peers/mpi_all_reduce.c"));
            shell::run(compiler)
        };
        compile(programs.open_mpi.program("mpicc"), "open-mpi")?;
        let mut intel = programs.intel_mpi.program("mpigcc");
        intel.env("I_MPI_ROOT", programs.intel_mpi.folder());
        compile(intel, "intel-mpi")?;
        Ok(programs)
    }

    fn command(&self, arm: &str, group: &Group, sizes: &[u64]) -> Command {
        let sizes = sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let ranks = group.ranks.to_string();
        let mut command = match arm {
            "Open MPI" => self.open_mpi(group, &ranks),
            "Intel MPI" => self.intel_mpi(&ranks),
            "gloo" => {
                let mut gloo = self.torch.script("bench_collective.py");
                gloo.arg(&ranks);
                gloo
            }
            _ => {
                let transport = match (arm, group.transport) {
                    ("limit", _) => "limit",
                    (REGISTERED, _) => "registered",
                    (_, "TCP") => "tcp",
                    _ => "shared-memory",
                };
                shell::command(&self.ours, &[ranks.as_str(), transport])
            }
        };
        command.arg(sizes);
        command
    }

    /// Open MPI as its manual says for one host; without a word it would bind four ranks nowhere on two cores.
    fn open_mpi(&self, group: &Group, ranks: &str) -> Command {
        let mut command = self.open_mpi.program("mpirun");
        command.args([
            "--allow-run-as-root",
            "--map-by",
            ":OVERSUBSCRIBE",
            "--bind-to",
            "core:overload-allowed",
        ]);
        if group.transport == "TCP" {
            command.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]);
        }
        command.args(["-n", ranks]).arg(self.folder.join("open-mpi"));
        command
    }

    fn intel_mpi(&self, ranks: &str) -> Command {
        let mut command = self.intel_mpi.program("mpiexec.hydra");
        command.env("I_MPI_FABRICS", "shm").env("I_MPI_ROOT", self.intel_mpi.folder());
        command.args(["-n", ranks]).arg(self.folder.join("intel-mpi"));
        command
    }
}

fn as_json((group, rows): &(Group, Vec<Row>)) -> Value {
    let row = |row: &Row| {
        json!({ "arm": row.arm, "missing": row.missing, "us_by_bytes": row.times,
                               "predicted_us_by_bytes": row.predicted })
    };
    json!({ "group": group.name(), "arms": rows.iter().map(row).collect::<Vec<_>>() })
}

/// Microseconds, and in brackets how many times as long as ours an arm takes; after each arm that predicts, what it had
/// predicted, and how many times its measured time that is.
fn render(group: &Group, rows: &[Row], sizes: &[u64]) -> String {
    let mut text = format!("\n{}: microseconds (times ours)\n{:>12}", group.name(), "bytes");
    for row in rows {
        let _ = write!(text, "{:>22}", row.arm);
        if !row.predicted.is_empty() {
            let _ = write!(text, "{:>22}", "predicted");
        }
    }
    text.push('\n');
    let ours = rows.iter().find(|row| row.arm == OURS);
    for bytes in sizes {
        let _ = write!(text, "{bytes:>12}");
        for row in rows {
            let _ = write!(text, "{:>22}", cell(row, ours, *bytes));
            if !row.predicted.is_empty() {
                let _ = write!(text, "{:>22}", prediction(row, *bytes));
            }
        }
        text.push('\n');
    }
    for row in rows {
        if let Some(reason) = &row.missing {
            let _ = writeln!(text, "{}: missing: {reason}", row.arm);
        }
    }
    text
}

fn cell(row: &Row, ours: Option<&Row>, bytes: u64) -> String {
    let (None, Some(times)) = (&row.missing, row.times.get(&bytes)) else { return "-".to_owned() };
    let own = ours.filter(|ours| ours.arm != row.arm).and_then(|ours| ours.times.get(&bytes));
    figure(times, own)
}

fn prediction(row: &Row, bytes: u64) -> String {
    let (None, Some(predicted)) = (&row.missing, row.predicted.get(&bytes)) else { return "-".to_owned() };
    figure(predicted, row.times.get(&bytes))
}

/// A median, and that of its ratios to what it is held against, round by round.
fn figure(times: &[f64], against: Option<&Vec<f64>>) -> String {
    let over = against.map(|own| median(times.iter().zip(own).map(|(time, own)| time / own).collect()));
    let over = over.map(|over| format!(" ({over:.2})")).unwrap_or_default();
    format!("{:.2}{over}", median(times.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(arm: &'static str, times: &[f64]) -> Row {
        Row { arm, times: BTreeMap::from([(4, times.to_vec())]), predicted: Times::new(), missing: None }
    }

    #[test]
    fn ratios_are_medians_of_the_rounds_own() {
        let ours = row(OURS, &[1.0, 2.0, 4.0]);
        assert_eq!(cell(&row("gloo", &[3.0, 4.0, 4.0]), Some(&ours), 4), "4.00 (2.00)");
        assert_eq!(cell(&ours, Some(&ours), 4), "2.00");
        assert_eq!(cell(&ours, Some(&ours), 8), "-");
    }

    #[test]
    fn a_missing_arm_keeps_its_column_and_says_why() {
        let mut gloo = row("gloo", &[]);
        gloo.missing = Some("no torch".to_owned());
        let text = render(&GROUPS[2], &[row(OURS, &[1.5]), gloo], &[4]);
        assert!(text.contains("1.50") && text.contains("gloo: missing: no torch"), "{text}");
    }

    #[test]
    fn what_was_predicted_stands_beside_what_was_measured() {
        let mut ours = row(OURS, &[1.0, 2.0, 4.0]);
        ours.predicted = BTreeMap::from([(4, vec![1.0, 3.0, 4.0])]);
        let text = render(&GROUPS[2], &[ours], &[4]);
        assert!(text.contains("predicted") && text.contains("3.00 (1.00)"), "{text}");
    }

    #[test]
    fn every_group_measures_ours() {
        assert!(GROUPS.iter().all(|group| group.arms.contains(&OURS)));
    }
}
