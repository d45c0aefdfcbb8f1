//! A plan, for people and for programs.

use super::PlanTrainArguments;
use crate::wording::{brief, bytes, counted, grouped, percent, quantity, rate};
use gradus_train::ParallelSettings;
use gradus_train::plan::{
    Choice, Holding, LinkRate, Machine, Memory, Sizes, Split, StepTime, TrafficRow, prepared_in_pairs,
    traffic_rows,
};
use serde::Serialize;
use std::ops::Range;

/// What `--json` prints.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    parameters: u64,
    sequence_length: usize,
    tokens_per_step: usize,
    world_size: usize,
    machine: &'a Machine,
    memory_bytes: u64,
    /// The best first; the only one where settings name it.
    choices: Vec<Row<'a>>,
    /// Of the first.
    holdings: Vec<Holding>,
    traffic: Vec<TrafficRow>,
    #[serde(skip)]
    choice: &'a Choice<'a>,
}

#[derive(Serialize)]
struct Row<'a> {
    parallel: &'a ParallelSettings,
    microbatch: usize,
    microbatches: usize,
    memory_bytes: u64,
    step: StepTime,
    tokens_per_s: f64,
}

impl<'a> Report<'a> {
    pub(super) fn new(choices: &'a [Choice<'a>], machine: &'a Machine, memory: u64) -> Self {
        let choice = &choices[0];
        let (split, work) = (&choice.split, choice.split.work);
        let row = |choice: &'a Choice<'a>| Row {
            parallel: &choice.split.parallel,
            microbatch: choice.split.sequences,
            microbatches: choice.split.microbatches,
            memory_bytes: choice.memory,
            step: choice.step,
            tokens_per_s: work.tokens() as f64 / choice.step.total,
        };
        Self {
            parameters: work.model.parameter_count() as u64,
            sequence_length: work.train.sequence_length,
            tokens_per_step: work.tokens(),
            world_size: split.mesh.world_size(),
            machine,
            memory_bytes: memory,
            choices: choices.iter().map(row).collect(),
            holdings: Sizes::new(work, &prepared_in_pairs).holdings(split),
            traffic: traffic_rows(split, machine),
            choice,
        }
    }
}

/// The lines for a person.
pub(super) fn lines(report: &Report<'_>, arguments: &PlanTrainArguments) -> Vec<String> {
    let mut lines = heading(report);
    if report.choices.len() > 1 {
        lines.extend(comparison(report));
    }
    lines.push(String::new());
    lines.push(format!("split: {}", named(&report.choice.split)));
    lines.extend(holdings(report));
    lines.extend(traffic(&report.traffic));
    lines.extend(step(report));
    lines.extend(assumptions(arguments));
    lines
}

fn heading(report: &Report<'_>) -> Vec<String> {
    let train = &report.choice.split.work.train;
    let Machine { peak_flops, efficiency, ranks_per_node, inside, across } = report.machine;
    let link = |link: &LinkRate| format!("{} after {} us", rate(link.bytes_per_s), link.latency_us);
    vec![
        format!(
            "{} parameters, sequences of {} tokens; a step of {} has {} tokens",
            quantity(report.parameters as f64),
            grouped(report.sequence_length as u64),
            counted(train.global_batch as u64, "sequence"),
            quantity(report.tokens_per_step as f64)
        ),
        format!(
            "{} on {} of {ranks_per_node}, each with {} and {}FLOP/s at best, {} of that while it computes",
            counted(report.world_size as u64, "rank"),
            counted(report.world_size.div_ceil(*ranks_per_node) as u64, "node"),
            bytes(report.memory_bytes),
            quantity(*peak_flops),
            percent(*efficiency)
        ),
        format!("links: inside nodes {}, across {}", link(inside), link(across)),
    ]
}

/// The split, as settings have it.
fn named(split: &Split<'_>) -> String {
    let ParallelSettings { dp, fsdp, pp, tp, zero, schedule, stages_per_rank, .. } = &split.parallel;
    let zero = if *fsdp > 1 { format!(", zero {zero}") } else { String::new() };
    let schedule = match (*pp, *stages_per_rank) {
        (1, _) => String::new(),
        (_, 1) => format!(", {}", schedule.name()),
        (_, chunks) => format!(", {} with {chunks} stages per rank", schedule.name()),
    };
    let each = counted(split.sequences as u64, "sequence");
    format!(
        "pp {pp} x dp {dp} x fsdp {fsdp} x tp {tp}{zero}{schedule}; {} of {each} for each data rank",
        counted(split.microbatches as u64, "microbatch").replace("hs", "hes")
    )
}

/// A table: its head and rows, columns as wide as they must be, all but the first `left` aligned right.
fn table(head: &[&str], rows: &[Vec<String>], left: usize) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let width = width(column);
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("  {}", padded.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [line(head.to_vec())].into_iter().chain(rows).collect()
}

/// The best meshes beside each other, and why the first is first.
fn comparison(report: &Report<'_>) -> Vec<String> {
    let head = [
        "pp",
        "dp",
        "fsdp",
        "tp",
        "zero",
        "schedule",
        "microbatch",
        "memory",
        "step",
        "computes",
        "tp waits",
        "fsdp waits",
        "dp waits",
        "pp waits",
        "mfu",
    ];
    let rows: Vec<_> = report.choices.iter().map(cells).collect();
    let title =
        "the best meshes that fit, each with the best zero, schedule and microbatches for it".to_owned();
    let mut lines = vec![String::new(), title, String::new()];
    lines.extend(table(&head, &rows, 0));
    lines.extend([String::new(), format!("chosen: the first; {}", why(&report.choices))]);
    lines
}

/// One of the best meshes, as a row.
fn cells(row: &Row<'_>) -> Vec<String> {
    let ParallelSettings { dp, fsdp, pp, tp, zero, schedule, stages_per_rank, .. } = row.parallel;
    let schedule = match (*pp, *stages_per_rank) {
        (1, _) => "-".to_owned(),
        (_, 1) => schedule.name().to_owned(),
        (_, chunks) => format!("{} {chunks}", schedule.name()),
    };
    let zero = if *fsdp > 1 { zero.to_string() } else { "-".to_owned() };
    let sizes = [pp, dp, fsdp, tp].map(usize::to_string);
    let share = |seconds: f64| percent(seconds / row.step.total);
    let StepTime { compute, tp, fsdp, dp, pp, total, mfu } = row.step;
    let rest = [
        zero,
        schedule,
        format!("{} x {}", row.microbatches, row.microbatch),
        bytes(row.memory_bytes),
        brief(total),
        share(compute),
        share(tp),
        share(fsdp),
        share(dp),
        share(pp),
        percent(mfu),
    ];
    sizes.into_iter().chain(rest).collect::<Vec<_>>()
}

/// What tells the first from the second.
fn why(choices: &[Row<'_>]) -> String {
    let (first, second) = (&choices[0].step, &choices[1].step);
    let waits = |step: &StepTime| {
        [
            ("tensor ranks", step.tp),
            ("shards", step.fsdp),
            ("sums over replicas", step.dp),
            ("other stages", step.pp),
        ]
    };
    let gains = waits(first).into_iter().zip(waits(second)).map(|((name, a), (_, b))| (name, b - a));
    let (name, gain) = gains.fold(("", 0.0), |most, next| if next.1 > most.1 { next } else { most });
    if second.total - first.total < 5e-4 * second.total {
        let spared = choices[1].memory_bytes.saturating_sub(choices[0].memory_bytes);
        return format!("it is predicted to be as fast as the second, and needs {} less", bytes(spared));
    }
    let part = percent(first.total / second.total);
    format!(
        "it is predicted to take {part} of the time of the second, and waits {} less for {name}",
        brief(gain)
    )
}

fn holdings(report: &Report<'_>) -> Vec<String> {
    let title =
        "what a rank holds, by its place in the pipeline (of the ranks there, the one that needs most)";
    let head = [
        "pp",
        "layers",
        "parameters",
        "in flight",
        "weights",
        "gathered",
        "copies",
        "gradients",
        "on their way",
        "moments",
        "activations",
        "scratch",
        "total",
    ];
    let row = |holding: &Holding| {
        let Memory { weights, gathered, copies, gradients, scattered, moments, activations, scratch } =
            holding.memory;
        let slots: Vec<String> = holding.slots.iter().map(usize::to_string).collect();
        let first =
            [holding.pp.to_string(), layers(holding), quantity(holding.parameters as f64), slots.join("+")];
        let kinds = [weights, gathered, copies, gradients, scattered, moments, activations, scratch];
        first.into_iter().chain(kinds.map(bytes)).chain([bytes(holding.memory.total())]).collect::<Vec<_>>()
    };
    let rows: Vec<_> = report.holdings.iter().map(row).collect();
    let mut lines = vec![String::new(), title.to_owned(), String::new()];
    lines.extend(table(&head, &rows, 2));
    lines
}

/// Its layers and what else it has: `0-3, 16-19, embedding`.
fn layers(holding: &Holding) -> String {
    let run = |layers: &Range<usize>| match layers.len() {
        1 => layers.start.to_string(),
        _ => format!("{}-{}", layers.start, layers.end - 1),
    };
    let ends = [(holding.embedding, "embedding"), (holding.head, "head")];
    let ends = ends.into_iter().filter(|(has, _)| *has).map(|(_, name)| name.to_owned());
    holding.layers.iter().map(run).chain(ends).collect::<Vec<_>>().join(", ")
}

fn traffic(rows: &[TrafficRow]) -> Vec<String> {
    if rows.is_empty() {
        return vec![String::new(), "nothing is sent".to_owned()];
    }
    let head = ["axis", "links", "what", "operation", "when", "ranks", "place", "times", "sends", "takes"];
    let row = |row: &TrafficRow| {
        [
            row.axis.name().to_owned(),
            if row.inside { "inside" } else { "across" }.to_owned(),
            row.what.to_owned(),
            row.operation.name().to_owned(),
            row.when.words().to_owned(),
            row.ranks.to_string(),
            row.pp.to_string(),
            grouped(row.collectives as u64),
            bytes(row.bytes),
            brief(row.seconds),
        ]
        .to_vec()
    };
    let title = "what a rank sends in a step, along each axis (at the place of the pipeline that sends most)";
    let mut lines = vec![String::new(), title.to_owned(), String::new()];
    lines.extend(table(&head, &rows.iter().map(row).collect::<Vec<_>>(), 5));
    lines
}

fn step(report: &Report<'_>) -> Vec<String> {
    let StepTime { compute, tp, fsdp, dp, pp, total, mfu } = report.choice.step;
    let part = |name: &str, seconds: f64| {
        format!("  {name:<34} {:>8}  {:>6}", brief(seconds), percent(seconds / total))
    };
    vec![
        String::new(),
        "a step, on the rank that is busiest".to_owned(),
        String::new(),
        part("computes", compute),
        part("waits for tensor ranks (tp)", tp),
        part("waits for shards (fsdp)", fsdp),
        part("waits for sums over replicas (dp)", dp),
        part("waits for other stages (pp)", pp),
        part("in all", total),
        String::new(),
        format!(
            "{} tokens per second, {} of the ranks' peak (mfu)",
            quantity(report.tokens_per_step as f64 / total),
            percent(mfu)
        ),
    ]
}

/// What the figures rest on.
fn assumptions(arguments: &PlanTrainArguments) -> Vec<String> {
    let mut assumed: Vec<&str> = Vec::new();
    let given = [
        (arguments.peak_flops.is_some(), "a peak of 1 TFLOP/s (--peak-flops)"),
        (arguments.memory_gb.is_some(), "this host's memory over the ranks of a node (--memory-gb)"),
        (arguments.ranks_per_node.is_some(), "all ranks on one node (--ranks-per-node)"),
        (
            arguments.link_gb_per_s.is_some() && arguments.link_latency_us.is_some(),
            "links of shared memory inside nodes (--link-gb-per-s, --link-latency-us)",
        ),
        (
            arguments.ranks_per_node.is_none()
                || (arguments.node_gb_per_s.is_some() && arguments.node_latency_us.is_some()),
            "links of a 100 Gb/s network across them (--node-gb-per-s, --node-latency-us)",
        ),
    ];
    assumed.extend(given.into_iter().filter(|(given, _)| !given).map(|(_, what)| what));
    let mut lines = vec![String::new()];
    if !assumed.is_empty() {
        lines.push(format!("assumed, for nobody said: {}", assumed.join("; ")));
    }
    lines.extend(
        [
            "memory is what the trainer allocates on its device; program, data and transports come on top. Copies are of a device that",
            "multiplies pairs of bf16. Time: computing at peak times efficiency; collectives by latency and bandwidth of their slowest link;",
            "gradients, and weights gathered in passing, hide behind the computing of their passes, what tp sends does not, pp as its",
            "schedule lets it. Optimizer, votes and data take no time here. docs/plan-train.md says more.",
        ]
        .map(str::to_owned),
    );
    lines
}
