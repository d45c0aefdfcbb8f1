//! From one format to another.

use super::{LINE, matrix, sized};
use crate::cpu::CpuDevice;
use crate::cpu::cells::Cells;
use crate::cpu::elementwise::{Map, Same};
use crate::cpu::memory::resolve;
use crate::device::{Format, Matrix};
use gradus_memory::Span;

impl CpuDevice {
    /// [`Device::convert`](crate::Device::convert).
    pub(super) fn run_convert(&self, from: Matrix, to: Matrix) {
        match (from.format, to.format) {
            (Format::F32, Format::Bf16) => self.convert_elements(from, to, from.span.len),
            (Format::Bf16, Format::F32) => self.convert_elements(from, to, to.span.len),
            _ => self.copy(from.span, to.span),
        }
    }

    fn convert_elements(&self, from: Matrix, to: Matrix, len: usize) {
        matrix("from", from, len);
        matrix("to", to, len);
        let ([places], [source]) = resolve(&self.arena, [to.span], [from.span]);
        let engine = &mut self.working().engine;
        if len < places.len() * to.format.each() {
            // SAFETY: the last place, which no other operation touches while the lock is held.
            unsafe { places.at(places.len() - 1).write(0.0) };
        }
        let (inputs, out) = ([Cells::new(source, from.format)], Cells::new(places, to.format));
        // Not by the instructions that round bf16: these take subnormal numbers for zero, and all kernels give the same bits.
        let family = engine.family;
        engine.split(len, 2 * LINE, 1, |range, _| family.run(Map { f: Same, inputs, out, range }));
    }

    fn copy(&self, from: Span, to: Span) {
        sized("from", from, to.len);
        let ([target], [source]) = resolve(&self.arena, [to], [from]);
        self.working().engine.split(to.len, LINE, 1, |range, _| {
            // SAFETY: ranges of different parts are apart.
            unsafe {
                let from = source.slice(range.start, range.len());
                target.slice_mut(range.start, range.len()).copy_from_slice(from);
            }
        });
    }
}
