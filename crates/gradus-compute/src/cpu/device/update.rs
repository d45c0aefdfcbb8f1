//! Updates of parameters. They run by the family's vectors alone: the instructions that round bf16 take subnormal numbers
//! for zero.

use super::{LINE, matrix, sized};
use crate::cpu::memory::resolve;
use crate::cpu::newton_schulz::{Iteration, Rooms, combine};
use crate::cpu::update::{Adaptive, Orthogonal, Parameters};
use crate::cpu::{CpuDevice, Working};
use crate::device::{AdamW, Matrix};
use crate::muon::{Muon, NewtonSchulz};
use gradus_memory::Span;

impl CpuDevice {
    /// [`Device::adamw`](crate::Device::adamw).
    pub(super) fn run_adamw(
        &self,
        update: AdamW,
        parameter: Matrix,
        gradient: Span,
        moment1: Span,
        moment2: Span,
    ) {
        let len = gradient.len;
        matrix("parameter", parameter, len);
        sized("moment1", moment1, len);
        sized("moment2", moment2, len);
        let ([p, moment1, moment2], [gradient]) =
            resolve(&self.arena, [parameter.span, moment1, moment2], [gradient]);
        let parameter = Parameters::new(p, parameter, update.rounding, update.update);
        let engine = &mut self.working().engine;
        let family = engine.family;
        engine.split(len, LINE, 8, |range, _| {
            family.run(Adaptive { update, parameter, gradient, moment1, moment2, range });
        });
    }

    /// [`Device::orthogonalise`](crate::Device::orthogonalise).
    pub(super) fn run_orthogonalise(&self, shape: NewtonSchulz, from: Span, to: Span) {
        sized("from", from, shape.len());
        sized("to", to, shape.len());
        let ([x], [from]) = resolve(&self.arena, [to], [from]);
        let Working { engine, shared, .. } = &mut *self.working();
        let rooms = Rooms::cut(shape, shared.at_least(Rooms::len(shape)));
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { Iteration { shape, x, rooms }.run(engine, from) };
    }

    /// [`Device::muon`](crate::Device::muon).
    pub(super) fn run_muon(&self, update: Muon, parameter: Matrix, gradient: Span, moment: Span) {
        let shape = update.shape;
        matrix("parameter", parameter, shape.len());
        sized("gradient", gradient, shape.len());
        sized("moment", moment, shape.len());
        let ([p, moment], [gradient]) = resolve(&self.arena, [parameter.span, moment], [gradient]);
        let parameter = Parameters::new(p, parameter, update.rounding, update.update);
        let Working { engine, shared, .. } = &mut *self.working();
        let rooms = Rooms::cut(shape, shared.at_least(Rooms::len(shape)));
        combine(engine, update.mixture(), [moment, gradient], moment);
        let mut from = moment;
        if update.nesterov {
            combine(engine, update.mixture(), [moment, gradient], rooms.matrix);
            from = rooms.matrix;
        }
        // SAFETY: sizes were checked, and the lock keeps other operations out.
        unsafe { Iteration { shape, x: rooms.matrix, rooms }.run(engine, from) };
        let (family, weights, matrix) = (engine.family, update.step(), rooms.matrix);
        engine.split(shape.len(), LINE, 2, |range, _| {
            family.run(Orthogonal { weights, parameter, matrix, range });
        });
    }
}
