use super::*;
use crate::sharding::Sharding;
use gradus_compute::cpu::CpuDevice;
use gradus_compute::{Precision, Reference};
use gradus_error::Kind;
use gradus_memory::LayoutBuilder;

const BOTH: [OptimizerKind; 2] = [OptimizerKind::AdamW, OptimizerKind::Muon];

/// Two units, and tensors of every kind.
fn layout() -> (Layout, Vec<Span>) {
    let mut builder = LayoutBuilder::default();
    builder.push("head", &[20, 5], true);
    builder.push("norm", &[37], false);
    let first = builder.push_matrices("gate_up", &[9, 9], 7);
    builder.push("bias", &[18], false);
    builder.push_matrices("down", &[7], 9);
    builder.push("norm", &[7], false);
    let layout = builder.finish();
    let units = vec![Span::new(0, first.start), Span::new(first.start, layout.len() - first.start)];
    (layout, units)
}

/// The whole layout, its weights and gradients as they would be allocated.
fn whole(layout: &Layout) -> Piece {
    Piece::whole(layout, Span::new(0, layout.len()), Span::new(0, layout.len()))
}

fn parts(layout: &Layout, kind: OptimizerKind) -> Vec<Part> {
    parts::of_pieces(layout, &[whole(layout)], kind).unwrap()
}

/// Spans of what AdamW updates, with decay.
fn elements(parts: &[Part]) -> Vec<(Span, bool)> {
    let spans = parts.iter().filter_map(|part| match part.work {
        Work::Elements { decay, .. } => Some((part.piece.span, decay)),
        Work::Matrix { .. } => None,
    });
    spans.collect()
}

/// Spans of what Muon updates, with rows.
fn matrices(parts: &[Part]) -> Vec<(Span, usize)> {
    let spans = parts.iter().filter_map(|part| match part.work {
        Work::Matrix { rows } => Some((part.piece.span, rows)),
        Work::Elements { .. } => None,
    });
    spans.collect()
}

#[test]
fn neighbours_with_the_same_decay_are_updated_together() {
    let mut builder = LayoutBuilder::default();
    for (name, decay) in [("a", true), ("b", true), ("c", false), ("d", true)] {
        builder.push(name, &[5], decay);
    }
    let found = parts(&builder.finish(), OptimizerKind::AdamW);
    assert!(matrices(&found).is_empty());
    assert_eq!(
        elements(&found),
        [(Span::new(0, 21), true), (Span::new(32, 5), false), (Span::new(48, 5), true)]
    );
}

#[test]
fn muon_takes_each_matrix_and_leaves_the_rest() {
    let mut builder = LayoutBuilder::default();
    builder.push("head", &[4, 5], true);
    builder.push("norm", &[5], false);
    builder.push_matrices("gate_up", &[3, 3], 5);
    builder.push("bias", &[6], false);
    let layout = builder.finish();
    let found = parts(&layout, OptimizerKind::Muon);
    assert_eq!(
        elements(&found),
        [(Span::new(0, 20), true), (Span::new(32, 5), false), (Span::new(80, 6), false)]
    );
    assert_eq!(matrices(&found), [(Span::new(48, 15), 3), (Span::new(63, 15), 3)]);
    assert_eq!(parts::second_moments(&found), 64, "none for 30 elements of matrices");
    assert_eq!(parts::second_moments(&parts(&layout, OptimizerKind::AdamW)), layout.len());
}

/// Memory of one rank, apart from that of the others.
struct Rank {
    device: Box<dyn Device>,
    pieces: Vec<Piece>,
    optimizer: Optimizer,
}

/// Numbers without a pattern, around zero.
fn noise(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729 + 17) % 2003) as f32 / 1001.5 - 1.0).collect()
}

impl Rank {
    /// Owns these ranges, whose memory it has in one row.
    fn new(device: Box<dyn Device>, layout: &Layout, owned: &[Span], kind: OptimizerKind) -> Self {
        let pieces: Vec<Piece> = owned
            .iter()
            .map(|span| {
                let [weights, gradients] = [(); 2].map(|()| device.allocate(span.len).unwrap());
                Piece { span: *span, weights: weights.into(), gradients, number: 0 }
            })
            .collect();
        let settings = OptimizerSettings { kind, ..Default::default() };
        let optimizer = Optimizer::new(device.as_ref(), layout, &pieces, settings).unwrap();
        Self { device, pieces, optimizer }
    }

    /// Three updates of what it owns of `weights`.
    fn update(&mut self, weights: &mut [f32]) {
        for piece in &self.pieces {
            self.device.write(piece.weights.span, &weights[piece.span.start..piece.span.end()]);
        }
        for step in 0..3 {
            let gradients = noise(weights.len(), step + 1);
            for piece in &self.pieces {
                self.device.write(piece.gradients, &gradients[piece.span.start..piece.span.end()]);
            }
            self.optimizer.update(self.device.as_ref(), 1e-2, 0.25);
        }
        for piece in &self.pieces {
            self.device.read(piece.weights.span, &mut weights[piece.span.start..piece.span.end()]);
        }
    }

    /// Moments of a tensor, with their ranges.
    fn moments(&self, tensor: &Tensor) -> [Vec<(Span, Vec<u32>)>; 2] {
        let read = |Moments { range, place }: Moments| {
            let mut values = vec![0.0; place.len];
            self.device.read(place, &mut values);
            (range, bits(&values))
        };
        self.optimizer.moments(tensor).map(|moments| moments.into_iter().map(read).collect())
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn devices() -> [Box<dyn Device>; 2] {
    [
        Box::new(Reference::new(Precision::F32, 1 << 16).unwrap()),
        Box::new(CpuDevice::new(2, Precision::Bf16, 1 << 16).unwrap()),
    ]
}

#[test]
fn shards_are_updated_as_the_whole_is() {
    let (layout, units) = layout();
    let before = noise(layout.len(), 0);
    for (kind, kind_of_device) in BOTH.into_iter().flat_map(|kind| [(kind, 0), (kind, 1)]) {
        let device = || devices().into_iter().nth(kind_of_device).unwrap();
        let mut alone = Rank::new(device(), &layout, &[Span::new(0, layout.len())], kind);
        let mut expected = before.clone();
        alone.update(&mut expected);
        for ranks in [1, 2, 3, 4] {
            let sharding = Sharding::new(&layout, &units, ranks, kind);
            let owners = (0..ranks).map(|rank| Rank::new(device(), &layout, &sharding.owned(rank), kind));
            let mut owners: Vec<Rank> = owners.collect();
            let mut found = before.clone();
            owners.iter_mut().for_each(|owner| owner.update(&mut found));
            assert!(bits(&found) == bits(&expected), "{kind:?}, {ranks} ranks, {}", device().describe());
            for tensor in layout.tensors() {
                let found = owners.iter().map(|owner| owner.moments(tensor));
                assert!(joined(found) == joined([alone.moments(tensor)]), "{}", tensor.name);
            }
        }
    }
}

/// Moments of a tensor as the ranks have them together, first and second, where theirs follow each other.
fn joined(ranks: impl IntoIterator<Item = [Vec<(Span, Vec<u32>)>; 2]>) -> [(Span, Vec<u32>); 2] {
    let mut joined = [(); 2].map(|()| (Span::default(), Vec::new()));
    for (index, (range, values)) in ranks.into_iter().flat_map(|moments| {
        let [first, second] = moments.map(Vec::into_iter);
        first.map(|moments| (0, moments)).chain(second.map(|moments| (1, moments)))
    }) {
        let (whole, all) = &mut joined[index];
        if whole.len == 0 {
            whole.start = range.start;
        }
        assert_eq!((whole.end(), range.len), (range.start, values.len()));
        whole.len += range.len;
        all.extend(values);
    }
    joined
}

#[test]
fn elements_may_be_cut_anywhere() {
    let (layout, _) = layout();
    let before = noise(layout.len(), 0);
    let [mut expected, mut found] = [before.clone(), before];
    let [_, device] = devices();
    Rank::new(device, &layout, &[Span::new(0, layout.len())], OptimizerKind::AdamW).update(&mut expected);
    let starts: Vec<usize> = (0..layout.len()).step_by(13).collect();
    let pieces: Vec<Span> =
        starts.iter().map(|start| Span::new(*start, 13.min(layout.len() - start))).collect();
    let [_, device] = devices();
    Rank::new(device, &layout, &pieces, OptimizerKind::AdamW).update(&mut found);
    assert!(bits(&found) == bits(&expected));
}

#[test]
fn a_whole_layout_takes_two_of_its_size_and_pieces_take_theirs() {
    let (layout, units) = layout();
    for kind in BOTH {
        let whole: usize = parts::second_moments(&parts(&layout, kind)) + layout.len();
        let sharding = Sharding::new(&layout, &units, 3, kind);
        let moments = (0..3).map(|rank| {
            let [device, _] = devices();
            let rank = Rank::new(device, &layout, &sharding.owned(rank), kind);
            let own: usize = rank.pieces.iter().map(|piece| 2 * piece.span.len.next_multiple_of(16)).sum();
            rank.device.allocated() - own
        });
        let together: usize = moments.sum();
        // Each cut may leave the rest of a cache line.
        assert!((whole..whole + 6 * 16).contains(&together), "{kind:?}: {together} {whole}");
    }
    let adamw = parts::second_moments(&parts(&layout, OptimizerKind::AdamW));
    assert_eq!(adamw, layout.len());
}

#[test]
fn pieces_that_cannot_be_are_bugs() {
    let (layout, units) = layout();
    let refused = |spans: &[(usize, usize)], kind| {
        let piece = |(start, len): &(usize, usize)| Piece {
            span: Span::new(*start, *len),
            weights: Span::new(0, *len).into(),
            gradients: Span::new(0, *len),
            number: 0,
        };
        let pieces: Vec<Piece> = spans.iter().map(piece).collect();
        parts::of_pieces(&layout, &pieces, kind).map(|_| ()).map_err(|error| error.kind().clone())
    };
    let start = units[1].start;
    assert_eq!(refused(&[(0, start + 63), (start + 63, 63)], OptimizerKind::Muon), Ok(()));
    assert_eq!(refused(&[(0, start + 64)], OptimizerKind::AdamW), Ok(()));
    assert_eq!(refused(&[(0, start + 64)], OptimizerKind::Muon), Err(Kind::Internal));
    assert_eq!(refused(&[(32, 16), (0, 16)], OptimizerKind::AdamW), Err(Kind::Internal));
    assert_eq!(refused(&[(0, 32), (16, 16)], OptimizerKind::AdamW), Err(Kind::Internal));
    assert_eq!(refused(&[(0, layout.len() + 1)], OptimizerKind::AdamW), Err(Kind::Internal));
}
