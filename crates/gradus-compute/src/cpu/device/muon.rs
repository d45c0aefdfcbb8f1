//! Orthogonal updates.

use super::sized;
use crate::cpu::memory::resolve;
use crate::cpu::newton_schulz::{Iteration, Rooms, combine};
use crate::cpu::{CpuDevice, Working};
use crate::muon::{Muon, NewtonSchulz};
use gradus_memory::Span;

impl CpuDevice {
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
    pub(super) fn run_muon(&self, update: Muon, parameter: Span, gradient: Span, moment: Span) {
        let shape = update.shape;
        for (name, span) in [("parameter", parameter), ("gradient", gradient), ("moment", moment)] {
            sized(name, span, shape.len());
        }
        let ([parameter, moment], [gradient]) = resolve(&self.arena, [parameter, moment], [gradient]);
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
        combine(engine, update.step(), [parameter, rooms.matrix], parameter);
    }
}
