//! The loss of logits whose columns are shared out among ranks, against the loss of whole rows.

use crate::devices::{all_f32, assert_close, bits, get, put, reference, uniform, with_reference};
use gradus_compute::{CrossEntropy, CrossEntropyPart, Device, IGNORED, Precision};
use gradus_memory::Span;

/// Whole rows of logits, and how their columns are shared out.
pub struct Split<'a> {
    /// The right token for each row.
    pub targets: &'a [u32],
    /// Where each rank's tokens begin, from 0 to the vocabulary.
    pub edges: &'a [usize],
    /// Logits behind each rank's tokens that are padding.
    pub padding: usize,
    /// Whether a gradient is asked for.
    pub gradient: bool,
}

/// A rank's part.
struct Rank<'a> {
    shape: CrossEntropyPart<'a>,
    logits: Span,
    maxima: Span,
    sums: Span,
    losses: Span,
}

impl<'a> Split<'a> {
    fn vocabulary(&self) -> usize {
        self.edges[self.edges.len() - 1]
    }

    /// What the rank from `edge[0]` to `edge[1]` holds of `logits[M, V]`. What lies in padding would outweigh all else.
    fn rank(&self, device: &dyn Device, edge: &[usize], logits: &[f32]) -> Rank<'a> {
        let (first, tokens) = (edge[0], edge[1] - edge[0]);
        let (vocabulary, width) = (self.vocabulary(), tokens + self.padding);
        let row = |row: &[f32]| [&row[first..first + tokens], &vec![1e30; self.padding]].concat();
        let own: Vec<f32> = logits.chunks_exact(vocabulary).flat_map(row).collect();
        let (targets, gradient) = (self.targets, self.gradient);
        let room = |len: usize| put(device, &vec![f32::NAN; len]);
        Rank {
            shape: CrossEntropyPart { targets, vocabulary, first, tokens, width, gradient },
            logits: put(device, &own),
            maxima: room(targets.len()),
            sums: room(2 * targets.len()),
            losses: room(targets.len()),
        }
    }

    /// Losses, and what the ranks' logits became, as whole rows.
    pub fn run(&self, device: &dyn Device, logits: &[f32]) -> [Vec<f32>; 2] {
        let ranks: Vec<_> = self.edges.windows(2).map(|edge| self.rank(device, edge, logits)).collect();
        for rank in &ranks {
            device.cross_entropy_maxima(rank.shape, rank.logits, rank.maxima);
        }
        exchange(device, ranks.iter().map(|rank| rank.maxima), |a, b| if a > b { a } else { b });
        for rank in &ranks {
            device.cross_entropy_sums(rank.shape, rank.logits, rank.maxima, rank.sums);
        }
        exchange(device, ranks.iter().map(|rank| rank.sums), |a, b| a + b);
        for Rank { shape, logits, maxima, sums, losses } in &ranks {
            device.cross_entropy_losses(*shape, *maxima, *sums, *logits, *losses);
        }
        let losses = get(device, ranks[0].losses);
        let alike = |rank: &Rank| bits(&get(device, rank.losses)) == bits(&losses);
        assert!(ranks.iter().all(alike), "ranks disagree about losses");
        [losses, self.joined(device, &ranks)]
    }

    /// Whole rows of what the ranks hold; padding must be zero by now, if there is a gradient.
    fn joined(&self, device: &dyn Device, ranks: &[Rank]) -> Vec<f32> {
        let mut rows = vec![Vec::new(); self.targets.len()];
        for rank in ranks {
            let values = get(device, rank.logits);
            for (index, row) in rows.iter_mut().enumerate() {
                let (width, tokens) = (rank.shape.width, rank.shape.tokens);
                let (real, padding) = values[index * width..][..width].split_at(tokens);
                assert!(!self.gradient || padding.iter().all(|x| *x == 0.0), "padding has a gradient");
                row.extend_from_slice(real);
            }
        }
        rows.concat()
    }
}

/// Combines the ranks' numbers, in the order of ranks, and gives each what came of it.
fn exchange(device: &dyn Device, spans: impl Iterator<Item = Span> + Clone, f: impl Fn(f32, f32) -> f32) {
    let all = spans.clone().map(|span| get(device, span));
    let combined = all.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect());
    let combined = combined.expect("there is a rank");
    spans.for_each(|span| device.write(span, &combined));
}

/// The losses of whole rows, and their gradient.
fn whole(device: &dyn Device, targets: &[u32], logits: &[f32]) -> [Vec<f32>; 2] {
    let vocabulary = logits.len() / targets.len();
    let (values, losses) = (put(device, logits), device.allocate(targets.len()).unwrap());
    device.cross_entropy(CrossEntropy { targets, vocabulary, width: vocabulary }, values, losses, true);
    [losses, values].map(|span| get(device, span))
}

/// Every row's target, one in five ignored.
fn targets(rows: usize, vocabulary: usize) -> Vec<u32> {
    (0..rows).map(|i| if i % 5 == 3 { IGNORED } else { (i * 31 % vocabulary) as u32 }).collect()
}

/// Vocabularies, cut into one to four parts, even or not; the last ones give a rank nothing.
const CUTS: [&[usize]; 10] = [
    &[0, 1],
    &[0, 61],
    &[0, 1000],
    &[0, 30, 61],
    &[0, 500, 1000],
    &[0, 7, 40, 61],
    &[0, 334, 668, 1000],
    &[0, 16, 32, 48, 61],
    &[0, 997, 998, 1000, 1000],
    &[0, 0, 5],
];

/// Holds losses and gradients of all cuts, on every device, against the reference's of whole rows.
fn check(factor: f32, padding: usize, of_losses: f32) {
    let (oracle, devices) = (reference(Precision::F32), all_f32());
    for edges in CUTS {
        let (rows, vocabulary) = (70, edges[edges.len() - 1]);
        let targets = targets(rows, vocabulary);
        let logits: Vec<f32> = uniform(1, rows * vocabulary).iter().map(|x| factor * x).collect();
        let right = whole(&oracle, &targets, &logits);
        for device in with_reference(&devices, &oracle) {
            let what = format!("{edges:?}, padding {padding}, {}", device.describe());
            let split = Split { targets: &targets, edges, padding, gradient: true };
            let got = split.run(device, &logits);
            assert_close(&what, &got[0], &right[0], of_losses, 2e-6);
            assert_close(&what, &got[1], &right[1], 4e-6, 2e-6);
            let without = Split { gradient: false, ..split }.run(device, &logits);
            assert_eq!(bits(&without[0]), bits(&got[0]), "{what}: losses without a gradient");
            assert_eq!(without[1], logits, "{what}: logits stay without a gradient");
        }
    }
}

#[test]
fn parts_make_the_loss_of_whole_rows() {
    // As for whole rows: exponentials right to two units in the last place, sums of a thousand, a logarithm of size 10.
    check(10.0, 3, 4e-6);
    check(0.1, 1, 4e-6);
    // A rank without tokens has no logits at all.
    check(10.0, 0, 4e-6);
}

#[test]
fn logits_far_apart_make_no_overflow() {
    // One unit in the last place of 10^4 is 10^-3.
    check(1e4, 3, 2e-3);
}

#[test]
fn a_part_that_is_all_comes_to_the_bits_of_the_whole() {
    for device in all_f32() {
        for (vocabulary, padding) in [(1, 0), (61, 0), (61, 3), (1000, 24)] {
            let targets = targets(70, vocabulary);
            let logits: Vec<f32> = uniform(1, 70 * vocabulary).iter().map(|x| 10.0 * x).collect();
            let split = Split { targets: &targets, edges: &[0, vocabulary], padding, gradient: true };
            let (got, right) = (split.run(&device, &logits), whole(&device, &targets, &logits));
            assert!(
                [0, 1].map(|i| bits(&got[i])) == [0, 1].map(|i| bits(&right[i])),
                "{}",
                device.describe()
            );
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (targets, edges) = (targets(300, 1000), [0, 334, 668, 1000]);
    let logits = uniform(1, 300 * 1000);
    let split = Split { targets: &targets, edges: &edges, padding: 2, gradient: true };
    for pair in all_f32().chunks(2) {
        let [one, two] = [0, 1].map(|i| split.run(&pair[i], &logits).map(|values| bits(&values)));
        assert!(one == two, "{}", pair[1].describe());
    }
}

#[test]
fn what_is_not_finite_shows_in_the_loss_of_its_row_alone() {
    for device in all_f32() {
        for poison in [f32::NAN, f32::INFINITY] {
            for column in [0, 29, 30, 60] {
                let targets = targets(3, 61);
                let mut logits = uniform(1, 3 * 61);
                logits[61 + column] = poison;
                let split = Split { targets: &targets, edges: &[0, 30, 61], padding: 1, gradient: true };
                let [losses, _] = split.run(&device, &logits);
                let finite = losses.iter().map(|loss| loss.is_finite()).collect::<Vec<_>>();
                assert_eq!(finite, [true, false, true], "{poison} {column}, {}", device.describe());
            }
        }
    }
}

#[test]
#[should_panic(expected = "outside a vocabulary of 61")]
fn a_target_that_no_rank_holds_is_a_bug() {
    let split = Split { targets: &[3, 61], edges: &[0, 30, 61], padding: 0, gradient: true };
    split.run(&all_f32()[0], &uniform(1, 2 * 61));
}
