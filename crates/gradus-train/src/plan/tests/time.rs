//! Bytes and seconds against hand-computed ones.

use super::*;
use crate::mesh::Axis;
use crate::settings::Accumulate;
use std::collections::BTreeMap;

/// Bytes that a rank at a place of the pipeline sends, by axis, operation and what.
fn sent(split: &Split<'_>, pp: usize) -> BTreeMap<(&'static str, &'static str, &'static str), u64> {
    let (stages, mut sent) = (traffic(split), BTreeMap::new());
    for flow in split.stages_of(pp).flat_map(|stage| &stages[stage].flows) {
        let key = (flow.axis.name(), flow.operation.name(), flow.what);
        *sent.entry(key).or_default() += flow.sent() * flow.times(split.microbatches) as u64;
    }
    sent
}

fn split<'a>(work: &'a Work, sizes: [usize; 4], zero: u8) -> Split<'a> {
    Split::new(work, &parallel(sizes, zero, Kind::default()), sizes.iter().product()).unwrap()
}

/// Elements of a block, and of a table.
const BLOCK: u64 = 32 * (96 + 32 + 192 + 96) + 2 * 32;
const TABLE: u64 = 256 * 32;

#[test]
fn shards_and_replicas_send_what_the_formulas_say() {
    let mut work = work(tiny(Family::Llama, false, 2), 24);
    work.train.microbatch = 1;
    let all = 4 * (2 * BLOCK + 2 * TABLE + 32);
    // Replicas alone: 2 (n - 1) / n.
    let found = sent(&split(&work, [1, 4, 1, 1], 3), 0);
    assert_eq!(found, BTreeMap::from([(("dp", "all-reduce", "gradients"), 2 * all * 3 / 4)]));
    // Six microbatches for each of four data ranks.
    for (zero, accumulate, gathers, scatters) in [
        (1, Accumulate::Scatter, 1, 1),
        (2, Accumulate::Full, 1, 1),
        (2, Accumulate::Scatter, 1, 6),
        (3, Accumulate::Scatter, 6, 6),
    ] {
        let settings = ParallelSettings { accumulate, ..parallel([1, 2, 2, 1], zero, Kind::default()) };
        let split = Split::new(&work, &settings, 4).unwrap();
        assert_eq!(split.microbatches, 6);
        // With ZeRO-3 forward needs no head, backward no embedding, and both need the blocks.
        let once = if zero == 3 { all + 4 * 2 * BLOCK } else { all };
        let expected = BTreeMap::from([
            (("fsdp", "all-gather", "weights"), gathers * once / 2),
            (("fsdp", "reduce-scatter", "gradients"), scatters * all / 2),
            (("dp", "all-reduce", "gradients"), all / 2),
        ]);
        assert_eq!(sent(&split, 0), expected, "zero {zero}, {accumulate:?}");
        let halves = ParallelSettings { gradients: GradientFormat::Bf16, ..settings };
        let halved = sent(&Split::new(&work, &halves, 4).unwrap(), 0);
        assert_eq!(halved[&("dp", "all-reduce", "gradients")], all / 4);
        assert_eq!(halved[&("fsdp", "reduce-scatter", "gradients")], scatters * all / 4);
    }
}

#[test]
fn tensor_ranks_and_stages_send_rows() {
    let mut work = work(tiny(Family::Llama, true, 4), 6);
    (work.train.microbatch, work.train.precision) = (1, Precision::Bf16);
    let split = split(&work, [2, 1, 1, 2], 3);
    let rows = 16 * 32;
    // Per microbatch: rows of bf16 into two products of a block, forward and again for the gradients of weights; f32 else.
    let blocks = if split.parts(0)[0].layers.len() == 2 { 2 } else { panic!("halves") };
    let first = BTreeMap::from([
        (("pp", "send", "activations"), 6 * 4 * rows / 2),
        (("pp", "all-reduce", "gradients of the tied table"), 4 * TABLE / 2),
        // Two norms of each block, once.
        (("tp", "all-reduce", "gradients of norms"), 4 * 32 * 2 * blocks),
        (("tp", "all-gather", "rows into layers"), 6 * 2 * rows * 4 * blocks / 2),
        (("tp", "all-gather", "gradients of rows"), 6 * 4 * rows * (2 * blocks + 1) / 2),
        (("tp", "reduce-scatter", "sums of rows"), 6 * 4 * rows * (4 * blocks + 1) / 2),
    ]);
    assert_eq!(sent(&split, 0), first);
    let last = BTreeMap::from([
        (("pp", "send", "gradients of activations"), 6 * 4 * rows / 2),
        (("pp", "all-reduce", "gradients of the tied table"), 4 * TABLE / 2),
        (("tp", "all-reduce", "gradients of norms"), 4 * 32 * (2 * blocks + 1)),
        (("tp", "all-gather", "rows into layers"), 6 * 2 * rows * (4 * blocks + 1) / 2),
        (("tp", "all-gather", "gradients of rows"), 6 * 4 * rows * 2 * blocks / 2),
        (("tp", "reduce-scatter", "sums of rows"), 6 * 4 * rows * (4 * blocks + 1) / 2),
        // A maximum and two sums of each of 16 rows.
        (("tp", "all-reduce", "numbers of rows"), 6 * 4 * 3 * 16),
    ]);
    assert_eq!(sent(&split, 1), last);
}

#[test]
fn axes_cross_nodes_from_the_outermost() {
    let work = work(tiny(Family::Llama, false, 4), 64);
    let split = split(&work, [2, 2, 2, 2], 3);
    let inside = |ranks_per_node| {
        let machine = Machine { ranks_per_node, ..h100() };
        Axis::ALL.map(|axis| machine.is_inside(&split, axis))
    };
    assert_eq!(inside(16), [true; 4]);
    assert_eq!(inside(8), [false, true, true, true]);
    assert_eq!(inside(4), [false, false, true, true]);
    assert_eq!(inside(2), [false, false, false, true]);
    // A pair of every third node lies on two.
    assert_eq!(inside(3), [false; 4]);
}

#[test]
fn one_rank_computes_and_nothing_else() {
    let mut work = work(tiny(Family::Llama, false, 4), 8);
    let machine = Machine { peak_flops: 1e9, efficiency: 0.25, ..h100() };
    let flops = work.model.flops_per_token(16) * (8 * 16) as f64;
    let step = |work: &Work| {
        let split = split(work, [1, 1, 1, 1], 3);
        predict(&split, &machine, &mut Sizes::new(work, &prepared_in_pairs))
    };
    let plain = step(&work);
    assert!((plain.total - flops / 0.25e9).abs() < 1e-9 * plain.total && plain.total == plain.compute);
    assert!((plain.mfu - 0.25).abs() < 1e-12);
    work.train.recompute = true;
    let head =
        work.model.flops_per_token(16) - ModelConfig { layers: 0, ..work.model.clone() }.flops_per_token(16);
    let again = (flops + head * (8 * 16) as f64 / 3.0) / 0.25e9;
    let recomputed = step(&work);
    assert!((recomputed.total - again).abs() < 1e-9 * again, "a third more of the blocks: {recomputed:?}");
}

#[test]
fn what_is_sent_hides_behind_computing_and_no_further() {
    let mut work = work(tiny(Family::Llama, false, 4), 8);
    work.train.microbatch = 1;
    let (split, link) = (split(&work, [1, 8, 1, 1], 3), LinkRate { latency_us: 0.0, bytes_per_s: 1e6 });
    let at = |peak_flops| {
        let machine = Machine { peak_flops, efficiency: 1.0, ranks_per_node: 8, inside: link, across: link };
        predict(&split, &machine, &mut Sizes::new(&work, &prepared_in_pairs))
    };
    let sent = sent(&split, 0)[&("dp", "all-reduce", "gradients")] as f64 / 1e6;
    let flops = work.model.flops_per_token(16) * 16.0;
    let fast = at(1e15);
    assert!((fast.dp - (sent - fast.compute * 2.0 / 3.0)).abs() < 0.2 * fast.compute, "{fast:?}");
    // Slow enough for backward to be as long as what is sent.
    let slow = at(flops * 0.6 / sent);
    assert!(slow.dp == 0.0 && slow.total == slow.compute, "{slow:?}");
}

#[test]
fn pipelines_wait_as_their_papers_say() {
    use Kind::{GPipe, Interleaved, OneForwardOneBackward, ZeroBubble};
    // A head that costs next to nothing leaves stages alike.
    let mut work = work(tiny(Family::Llama, false, 8), 8);
    (work.model.vocabulary, work.train.microbatch) = (1, 1);
    let none = LinkRate { latency_us: 0.0, bytes_per_s: 1e300 };
    let machine = Machine { ranks_per_node: 4, inside: none, across: none, ..h100() };
    for (schedule, bubble) in [
        (GPipe, 3.0 / 11.0),
        (OneForwardOneBackward, 3.0 / 11.0),
        (Interleaved, 3.0 / 19.0),
        (ZeroBubble, 3.0 / 27.0),
    ] {
        let split = Split::new(&work, &parallel([4, 1, 1, 1], 3, schedule), 4).unwrap();
        let step = predict(&split, &machine, &mut Sizes::new(&work, &prepared_in_pairs));
        assert!((step.pp / step.total - bubble).abs() < 0.01, "{schedule:?}: {step:?}");
    }
}
