//! Which tensors a model has, and their places in the flat layout.
//!
//! The order is that in which the backward pass finishes gradients: free head, final norm, blocks from last to first
//! (within each: feed-forward, then attention), positions, embedding. A tied head's gradient is final with the
//! embedding's, last.

use crate::config::{Family, ModelConfig};
use crate::part::{Part, Run, Slice};
use gradus_memory::{Layout, LayoutBuilder, Span};
use std::iter;
use std::ops::Range;

/// A norm's tensors, as ranges of the layout.
#[derive(Debug, Clone, Copy, Default)]
pub struct NormTensors {
    /// `[C]`.
    pub weight: Span,
    /// `[C]`; GPT-2 family only.
    pub bias: Option<Span>,
}

/// A linear layer's tensors, as ranges of the layout.
#[derive(Debug, Clone, Copy)]
pub struct LinearTensors {
    /// `[N, K]`.
    pub weight: Span,
    /// `[N]`.
    pub bias: Option<Span>,
}

/// A block's tensors, as ranges of the layout.
#[derive(Debug, Clone, Copy)]
pub struct BlockTensors {
    /// Before attention.
    pub attention_norm: NormTensors,
    /// Queries, keys and values: `[(H + 2K) D, C]`, in this order.
    pub qkv: LinearTensors,
    /// `[C, H D]`.
    pub attention_out: LinearTensors,
    /// Before the feed-forward part.
    pub feed_forward_norm: NormTensors,
    /// `[F, C]`, or gate then up: `[2F, C]`.
    pub up: LinearTensors,
    /// `[C, F]`.
    pub down: LinearTensors,
}

/// What is in use at once, and has its range of the layout: a pass visits one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Learned positions.
    Positions,
    /// The embedding's table, which a tied head uses too.
    Embedding,
    /// A block, counted from the part's first.
    Block(usize),
    /// The final norm, and a free head.
    Head,
}

/// All tensors of a model, or of a part of one.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Names, shapes and places.
    pub layout: Layout,
    /// From first block to last.
    pub blocks: Vec<BlockTensors>,
    /// After the last block; empty in a part without head.
    pub final_norm: NormTensors,
    /// `[V padded, C]`; of a tied head, the same range as `embedding`; empty in a part without head.
    pub head: Span,
    /// `[V padded, C]`; empty in a part that has no use for it.
    pub embedding: Span,
    /// `[T, C]`; GPT-2 family only, where the embedding is.
    pub positions: Option<Span>,
    /// By growing place, without gaps.
    units: Vec<(Unit, Span)>,
    /// Of each tensor of the layout, what it is of the whole one.
    slices: Vec<Slice>,
    /// Norms, each with its bias; by growing place.
    norms: Vec<Span>,
}

impl Parameters {
    /// The tensors of a model of these sizes.
    pub fn new(config: &ModelConfig) -> Self {
        Self::of(config, &Part::whole(config))
    }

    /// The tensors of a part of it: named as in the whole, of the shapes that this rank has.
    pub fn of(config: &ModelConfig, part: &Part) -> Self {
        let mut builder = Builder {
            layout: LayoutBuilder::default(),
            config,
            part,
            units: Vec::new(),
            slices: Vec::new(),
            norms: Vec::new(),
        };
        let free_head = (part.head && !config.tied).then(|| builder.table("head.weight", true));
        let final_norm = if part.head { builder.norm("final_norm") } else { NormTensors::default() };
        builder.end_unit(Unit::Head);
        let mut blocks: Vec<_> = part.layers.clone().rev().map(|layer| builder.block(layer)).collect();
        blocks.reverse();
        let positions = builder.positions();
        builder.end_unit(Unit::Positions);
        let table = part.has_table(config).then(|| builder.table("embedding.weight", false));
        builder.end_unit(Unit::Embedding);
        let embedding = table.unwrap_or_default();
        let head = free_head.unwrap_or(if part.head { embedding } else { Span::default() });
        let Builder { layout, units, slices, norms, .. } = builder;
        Self { layout: layout.finish(), blocks, final_norm, head, embedding, positions, units, slices, norms }
    }

    /// Units and their ranges, which cover the layout, by growing place: in the order in which the backward pass leaves them.
    pub fn units(&self) -> &[(Unit, Span)] {
        &self.units
    }

    /// The range of a unit; empty where the part has none such.
    pub fn unit(&self, unit: Unit) -> Span {
        self.units.iter().find(|(known, _)| *known == unit).map(|(_, span)| *span).unwrap_or_default()
    }

    /// What lies within `range`, a unit's or the whole layout's, and has gradients that are sums over a tensor rank's own rows:
    /// norms. They are final when summed over the tensor ranks, which all have these weights whole; by growing place. All
    /// other gradients come out of a pass as they are, those of weights that all ranks have with the same bits on each.
    pub fn partial_gradients(&self, range: Span) -> &[Span] {
        let from = |place: usize| self.norms.partition_point(|norm| norm.start < place);
        &self.norms[from(range.start)..from(range.end())]
    }

    /// Whether tensor ranks have columns of the tensor at this range, and not rows.
    pub fn is_cut_by_columns(&self, range: Span) -> bool {
        let tensors = self.layout.tensors().iter().zip(&self.slices);
        let of = tensors.filter(|(tensor, _)| tensor.span().overlaps(&range));
        of.take(1).any(|(_, slice)| slice.columns.len() < slice.whole_columns)
    }

    /// Ranges of tensors that every tensor rank has whole, by growing place.
    pub fn whole_on_all_ranks(&self) -> Vec<Span> {
        let tensors = self.layout.tensors().iter().zip(&self.slices);
        tensors.filter(|(_, slice)| !slice.cut).map(|(tensor, _)| tensor.span()).collect()
    }

    /// What of `whole`, the layout of the whole model, is where in this one; by growing place here.
    ///
    /// # Panics
    /// If `whole` is of another model.
    pub fn runs(&self, whole: &Layout) -> Vec<Run> {
        let tensors = self.layout.tensors().iter().zip(&self.slices);
        let runs = tensors.flat_map(|(tensor, slice)| {
            let of = whole.find(&tensor.name).expect("a part's tensors are the whole's");
            slice.runs(tensor.start, of.start)
        });
        runs.collect()
    }
}

/// A single range of rows.
fn one(rows: Range<usize>) -> Vec<Range<usize>> {
    iter::once(rows).collect()
}

struct Builder<'a> {
    layout: LayoutBuilder,
    /// The whole model.
    config: &'a ModelConfig,
    part: &'a Part,
    units: Vec<(Unit, Span)>,
    slices: Vec<Slice>,
    norms: Vec<Span>,
}

impl Builder<'_> {
    /// A tensor that is whole on every rank.
    fn whole(&mut self, name: String, shape: &[usize], decay: bool) -> Span {
        let columns = shape.get(1).copied().unwrap_or(1);
        self.slices.push(Slice {
            rows: one(0..shape[0]),
            columns: 0..columns,
            whole_columns: columns,
            cut: false,
        });
        self.layout.push(name, shape, decay)
    }

    /// All tensors since the unit before.
    fn end_unit(&mut self, unit: Unit) {
        let (start, end) = (self.units.last().map_or(0, |(_, span)| span.end()), self.layout.len());
        if end > start {
            self.units.push((unit, Span::new(start, end - start)));
        }
    }

    /// A row for each token of this rank's.
    fn table(&mut self, name: &str, decay: bool) -> Span {
        let (rows, width) = (self.part.vocabulary(self.config), self.config.width);
        let shape = [rows.len(), width];
        self.slices.push(Slice {
            rows: one(rows),
            columns: 0..width,
            whole_columns: width,
            cut: self.part.tensor_ranks > 1,
        });
        self.layout.push(name, &shape, decay)
    }

    fn positions(&mut self) -> Option<Span> {
        let learned = self.config.family == Family::Gpt2 && self.part.embedding;
        let shape = [self.config.context, self.config.width];
        learned.then(|| self.whole("positions.weight".to_owned(), &shape, false))
    }

    fn norm(&mut self, name: &str) -> NormTensors {
        let width = self.config.width;
        let weight = self.whole(format!("{name}.weight"), &[width], false);
        let biased = self.config.family == Family::Gpt2;
        let bias = biased.then(|| self.whole(format!("{name}.bias"), &[width], false));
        self.norms.push(Span::new(weight.start, bias.unwrap_or(weight).end() - weight.start));
        NormTensors { weight, bias }
    }

    /// Layers that share their inputs, of so many outputs each, which are cut: this rank has its rows of each.
    fn cut_outputs(&mut self, name: &str, outputs: &[usize], bias: bool) -> LinearTensors {
        let (width, mut first) = (self.config.width, 0);
        let mut rows = Vec::new();
        for count in outputs {
            let own = self.part.share().of(*count);
            rows.push(first + own.start..first + own.end);
            first += count;
        }
        let weight = self.linear(&format!("{name}.weight"), rows.clone(), (0..width, width));
        LinearTensors { weight, bias: bias.then(|| self.vector(format!("{name}.bias"), rows)) }
    }

    /// A layer whose inputs are cut: this rank has its columns, and all of the bias.
    fn cut_inputs(&mut self, name: &str, inputs: usize, bias: bool) -> LinearTensors {
        let (width, columns) = (self.config.width, self.part.share().of(inputs));
        let all = 0..width;
        let weight = self.linear(&format!("{name}.weight"), one(all), (columns, inputs));
        LinearTensors { weight, bias: bias.then(|| self.whole(format!("{name}.bias"), &[width], false)) }
    }

    fn linear(
        &mut self,
        name: &str,
        rows: Vec<Range<usize>>,
        (columns, whole_columns): (Range<usize>, usize),
    ) -> Span {
        let (outputs, inputs): (Vec<usize>, _) =
            (rows.iter().map(ExactSizeIterator::len).collect(), columns.len());
        self.slices.push(Slice { rows, columns, whole_columns, cut: self.part.tensor_ranks > 1 });
        self.layout.push_matrices(name, &outputs, inputs)
    }

    fn vector(&mut self, name: String, rows: Vec<Range<usize>>) -> Span {
        let slice = Slice { rows, columns: 0..1, whole_columns: 1, cut: self.part.tensor_ranks > 1 };
        let span = self.layout.push(name, &[slice.row_count()], false);
        self.slices.push(slice);
        span
    }

    fn block(&mut self, layer: usize) -> BlockTensors {
        let config = self.config;
        let biased = config.family == Family::Gpt2;
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let up_name = if biased { "feed_forward.up" } else { "feed_forward.gate_up" };
        let gate_and_up = [config.feed_forward; 2];
        let up = if biased { &gate_and_up[..1] } else { &gate_and_up };
        let qkv = [config.query_width(), config.kv_width(), config.kv_width()];
        let down = self.cut_inputs(&name("feed_forward.down"), config.feed_forward, biased);
        let up = self.cut_outputs(&name(up_name), up, biased);
        let feed_forward_norm = self.norm(&name("feed_forward.norm"));
        let attention_out = self.cut_inputs(&name("attention.out"), config.query_width(), biased);
        let qkv = self.cut_outputs(&name("attention.qkv"), &qkv, biased || config.qkv_bias);
        let attention_norm = self.norm(&name("attention.norm"));
        self.end_unit(Unit::Block(layer - self.part.layers.start));
        BlockTensors { attention_norm, qkv, attention_out, feed_forward_norm, up, down }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PRESETS;

    /// Every way to cut a model into stages and shares.
    fn parts(config: &ModelConfig, stages: usize, tensor_ranks: usize) -> Vec<Part> {
        let of = |stage: usize, tensor_rank: usize| Part {
            layers: config.layers * stage / stages..config.layers * (stage + 1) / stages,
            embedding: stage == 0,
            head: stage + 1 == stages,
            tensor_rank,
            tensor_ranks,
        };
        (0..stages).flat_map(|stage| (0..tensor_ranks).map(move |rank| of(stage, rank))).collect()
    }

    #[test]
    fn parts_together_have_every_element_and_only_what_is_whole_or_tied_twice() {
        for (_, config) in PRESETS {
            for tied in [true, false] {
                let config = ModelConfig { tied, ..config.clone() };
                let whole = Parameters::new(&config);
                for (stages, tensor_ranks) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
                    if !config.kv_heads.is_multiple_of(tensor_ranks)
                        || !config.heads.is_multiple_of(tensor_ranks)
                    {
                        continue;
                    }
                    let mut seen = vec![0; whole.layout.len()];
                    for part in parts(&config, stages, tensor_ranks) {
                        let local = Parameters::of(&config, &part);
                        for run in local.runs(&whole.layout) {
                            assert!(run.local + run.whole.len <= local.layout.len());
                            seen[run.whole.start..run.whole.end()].iter_mut().for_each(|count| *count += 1);
                        }
                    }
                    for tensor in whole.layout.tensors() {
                        let own = &seen[tensor.span().start..tensor.span().end()];
                        let most = if tensor.shape.len() == 1 || tensor.name.starts_with("pos") {
                            tensor_ranks
                        } else {
                            1
                        };
                        let twice = tensor.name == "embedding.weight" && tied && stages > 1;
                        assert!(
                            own.iter().all(|count| (1..=most).contains(count) || (twice && *count == 2)),
                            "{}",
                            tensor.name
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn units_cover_the_layout_and_hold_whole_tensors() {
        for (_, config) in PRESETS {
            for part in parts(config, 2, 1).into_iter().chain([Part::whole(config)]) {
                let parameters = Parameters::of(config, &part);
                let end = parameters.units().iter().fold(0, |end, (_, span)| {
                    assert_eq!(span.start, end);
                    span.end()
                });
                assert_eq!(end, parameters.layout.len());
                assert_eq!(parameters.unit(Unit::Head).is_empty(), !part.head);
                for tensor in parameters.layout.tensors() {
                    let holds = |span: &Span| tensor.start >= span.start && tensor.span().end() <= span.end();
                    assert_eq!(parameters.units().iter().filter(|(_, span)| holds(span)).count(), 1);
                }
            }
        }
    }
}
