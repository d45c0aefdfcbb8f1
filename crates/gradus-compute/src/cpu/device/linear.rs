//! Linear layers.

use super::prepared::fold_of;
use super::{LINE, matrix, optional};
use crate::cpu::cells::Cells;
use crate::cpu::elementwise::{Function, Map, RopeTable};
use crate::cpu::gemm::{Ending, FEW_ROWS, FewRows, Mode, Operand, PairRows, Product, Then};
use crate::cpu::memory::{Elements, resolve, unless_in_place};
use crate::cpu::simd::Simd;
use crate::cpu::{CpuDevice, Working};
use crate::device::{Device, Epilogue, Format, Linear, Matrix, Rope, Rows, Through, Use, Weight};
use gradus_memory::Span;

/// Rounds elements to bf16.
#[derive(Clone, Copy)]
struct Round;

impl Function<1> for Round {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::V; 1]) -> S::V {
        s.round_bf16(x)
    }
}

/// How far apart columns are that an epilogue takes together, or 0 where it takes each alone.
fn apart(epilogue: Epilogue, shape: Linear) -> usize {
    match epilogue {
        Epilogue::None | Epilogue::Gelu { .. } => 0,
        Epilogue::Swiglu { .. } => shape.outputs / 2,
        Epilogue::Rope(Rope { head_size, .. }) => head_size / 2,
    }
}

/// `out = x * w^T`, nothing added.
pub fn forward_product<'a>(
    shape: Linear,
    (x, x_format): (Elements, Format),
    (weight, format): (Elements, Format),
    out: Elements,
) -> Product<'a> {
    let left = Operand::along(x.at(0), shape.inputs).kept(x_format);
    let right = Operand::along(weight.at(0), shape.inputs).kept(format);
    Product::of([shape.rows, shape.outputs, shape.inputs], [left, right], out.at(0))
}

/// What a forward pass takes.
#[derive(Clone, Copy)]
struct Tensors {
    x: Matrix,
    weight: Matrix,
    /// Whether the weight is packed already.
    prepared: bool,
    bias: Option<Span>,
    out: Matrix,
}

impl Tensors {
    /// The weight's panels, or null.
    fn panels(&self, weight: Elements) -> *const f32 {
        if self.prepared { weight.at(0) } else { std::ptr::null() }
    }
}

impl CpuDevice {
    /// A few rows against all weights.
    fn few_rows(&self, shape: Linear, format: Format, [x, weight, bias, residual, out]: [Elements; 5]) {
        let Working { engine, shared, .. } = &mut *self.working();
        let (rows, depth, width) = (shape.rows, shape.inputs, shape.outputs);
        let round = engine.rounds();
        let mut x = x;
        if round {
            // Pairs of a row of an odd length end with half a pair.
            let len = rows * depth.next_multiple_of(2);
            let rounded = Elements::of_mut(&mut shared.at_least(len)[..len]);
            match format {
                Format::F32 => {
                    engine.family.run(Map {
                        f: Round,
                        inputs: [x.into()],
                        out: rounded.into(),
                        range: 0..x.len(),
                    });
                }
                Format::Bf16 => engine.family.run(PairRows { rows, depth, x, out: rounded }),
            }
            x = rounded;
        }
        engine.each(width, LINE, rows * depth, |columns| FewRows {
            rows,
            depth,
            width,
            columns,
            mode: Mode::of(format, round),
            x,
            weight,
            bias,
            residual,
            out,
        });
    }

    /// [`Device::linear_forward`].
    #[allow(clippy::too_many_arguments, reason = "the operation's own")]
    pub(super) fn run_linear_forward(
        &self,
        shape: Linear,
        x: Matrix,
        weight: Weight,
        bias: Option<Span>,
        residual: Option<Span>,
        epilogue: Epilogue,
        out: Matrix,
    ) {
        matrix("x", x, shape.rows * shape.inputs);
        matrix("out", out, shape.rows * shape.outputs);
        if let Epilogue::Rope(Rope { head_size, .. }) = epilogue {
            assert!(head_size.is_multiple_of(2), "rotary positions need an even head size, not {head_size}");
        }
        let (alone, apart) = (matches!(epilogue, Epilogue::None), apart(epilogue, shape));
        let (weight, prepared) = self.place_of(shape, Use::Forward { apart }, weight);
        let single = out.format == Format::F32;
        assert!(residual.is_none() || alone && single, "a residual is added in f32, and nothing else done");
        let few = single && x.format == Format::F32 && !prepared && (1..=FEW_ROWS).contains(&shape.rows);
        let fold = fold_of(apart, shape.outputs, self.working().engine.family.lanes_together());
        let fused = !few && !alone && (apart == 0 || fold > 0);
        let tensors = Tensors { x, weight, prepared, bias, out };
        if fused {
            return self.forward_into(shape, tensors, epilogue, fold);
        }
        if single {
            self.forward_plain(shape, tensors, residual, few);
        } else {
            self.forward_into(shape, tensors, Epilogue::None, 0);
        }
        self.epilogue_apart(shape, epilogue, out);
    }

    /// Into f32, with nothing but a bias and a residual.
    fn forward_plain(&self, shape: Linear, tensors: Tensors, residual: Option<Span>, few: bool) {
        let Tensors { x, weight, out, .. } = tensors;
        let bias = optional("bias", tensors.bias, shape.outputs);
        let residual = optional("residual", residual, out.span.len);
        let apart = unless_in_place(residual, out.span);
        let ([to], [x_at, weight_at, bias, apart]) =
            resolve(&self.arena, [out.span], [x.span, weight.span, bias, apart]);
        let residual = if residual == out.span { to } else { apart };
        if few {
            return self.few_rows(shape, weight.format, [x_at, weight_at, bias, residual, to]);
        }
        let product = Product {
            bias: bias.or_null(),
            residual: residual.or_null(),
            panels: tensors.panels(weight_at),
            ..forward_product(shape, (x_at, x.format), (weight_at, weight.format), to)
        };
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { self.working().engine.product(product) };
    }

    /// Through an epilogue, or into bf16.
    fn forward_into(&self, shape: Linear, tensors: Tensors, epilogue: Epilogue, fold: usize) {
        let Tensors { x, weight, out, .. } = tensors;
        let bias = optional("bias", tensors.bias, shape.outputs);
        let activated = match epilogue {
            Epilogue::Gelu { activated } => Some((activated, shape.rows * shape.outputs)),
            Epilogue::Swiglu { activated } => Some((activated, shape.rows * shape.outputs / 2)),
            Epilogue::None | Epilogue::Rope(_) => None,
        };
        if let Some((activated, len)) = activated {
            matrix("activated", activated, len);
        }
        let activated = activated.map_or(Span::default().into(), |(activated, _)| activated);
        let ([to, activated_at], [x_at, weight_at, bias]) =
            resolve(&self.arena, [out.span, activated.span], [x.span, weight.span, bias]);
        let Working { engine, rope, .. } = &mut *self.working();
        let activated = Cells::new(activated_at, activated.format);
        let then = match epilogue {
            Epilogue::None => Then::Store,
            Epilogue::Gelu { .. } => Then::Gelu { activated },
            Epilogue::Swiglu { .. } => Then::Swiglu { activated },
            Epilogue::Rope(turn) => turning(shape, turn, rope),
        };
        let mut product = forward_product(shape, (x_at, x.format), (weight_at, weight.format), to);
        (product.right.fold, product.panels) = (fold, tensors.panels(weight_at));
        let (out, stride) = (Cells::new(to, out.format), shape.outputs);
        product.ending = Some(Ending { out, stride, bias: bias.or_null(), fold, then });
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { engine.product(product) };
    }

    /// An epilogue as an operation of its own.
    fn epilogue_apart(&self, shape: Linear, epilogue: Epilogue, out: Matrix) {
        match epilogue {
            Epilogue::None => {}
            Epilogue::Gelu { activated } => self.gelu_forward(shape.rows * shape.outputs, out, activated),
            Epilogue::Swiglu { activated } => {
                self.swiglu_forward(shape.rows, shape.outputs / 2, out, activated);
            }
            Epilogue::Rope(turn) => {
                let width = turn.heads * turn.head_size;
                self.rope(turn, Rows::columns(out, shape.rows, shape.outputs, 0, width));
            }
        }
    }

    /// [`Device::linear_backward_input`].
    pub(super) fn run_linear_backward_input(
        &self,
        shape: Linear,
        d_out: Matrix,
        weight: Weight,
        through: Through,
        d_x: Matrix,
    ) {
        let inputs = shape.rows * shape.inputs;
        let (before, times) = match through {
            Through::None => (Span::default().into(), 1),
            Through::Gelu { x } => (x, 1),
            Through::Swiglu { gate_up } => (gate_up, 2),
        };
        let (weight, prepared) = self.place_of(shape, Use::Backward, weight);
        matrix("d_out", d_out, shape.rows * shape.outputs);
        matrix("d_x", d_x, times * inputs);
        if !matches!(through, Through::None) {
            matrix("the function's input", before, times * inputs);
        }
        let ([to], [d_out_at, weight_at, before_at]) =
            resolve(&self.arena, [d_x.span], [d_out.span, weight.span, before.span]);
        let before = Cells::new(before_at, before.format);
        let then = match through {
            Through::None => Then::Store,
            Through::Gelu { .. } => Then::GeluGradient { x: before },
            Through::Swiglu { .. } => Then::SwigluGradient { gate_up: before, width: shape.inputs },
        };
        let (out, stride) = (Cells::new(to, d_x.format), times * shape.inputs);
        let ending = Ending { out, stride, bias: std::ptr::null(), fold: 0, then };
        let is_plain = matches!(through, Through::None) && d_x.format == Format::F32;
        let left = Operand::along(d_out_at.at(0), shape.outputs).kept(d_out.format);
        let right = Operand::across(weight_at.at(0), shape.inputs).kept(weight.format);
        let product = Product {
            panels: if prepared { weight_at.at(0) } else { std::ptr::null() },
            ending: (!is_plain).then_some(ending),
            ..Product::of([shape.rows, shape.inputs, shape.outputs], [left, right], to.at(0))
        };
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { self.working().engine.product(product) };
    }

    /// [`Device::linear_backward_weight`].
    pub(super) fn run_linear_backward_weight(
        &self,
        shape: Linear,
        d_out: Matrix,
        x: Matrix,
        d_weight: Span,
        d_bias: Option<Span>,
    ) {
        matrix("d_out", d_out, shape.rows * shape.outputs);
        matrix("x", x, shape.rows * shape.inputs);
        matrix("d_weight", d_weight.into(), shape.outputs * shape.inputs);
        let d_bias = optional("d_bias", d_bias, shape.outputs);
        let ([d_weight, d_bias], [d_out_at, x_at]) =
            resolve(&self.arena, [d_weight, d_bias], [d_out.span, x.span]);
        let left = Operand::across(d_out_at.at(0), shape.outputs).kept(d_out.format);
        let right = Operand::across(x_at.at(0), shape.inputs).kept(x.format);
        let product = Product {
            accumulate: true,
            left_sums: d_bias.or_null(),
            ..Product::of([shape.outputs, shape.inputs, shape.rows], [left, right], d_weight.at(0))
        };
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { self.working().engine.product(product) };
    }
}

/// Heads that turn, with a table that holds their positions.
fn turning<'a>(shape: Linear, turn: Rope<'a>, table: &'a mut RopeTable) -> Then<'a> {
    let Rope { positions, heads, head_size, theta, inverse } = turn;
    assert!(!inverse, "a layer's output turns forth");
    assert_eq!(positions.len(), shape.rows, "a position for each row is required");
    assert!(heads * head_size <= shape.outputs, "{heads} heads of {head_size} are more than a row");
    table.extend(theta, head_size / 2, positions.iter().max().map_or(0, |most| *most as usize + 1));
    Then::Turn { positions, table, columns: heads * head_size }
}
