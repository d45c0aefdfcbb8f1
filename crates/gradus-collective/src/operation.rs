//! A collective in flight: its memory, its steps, and how far each of them is.

use crate::dependencies::dependencies;
use crate::header::{Collective, Element};
use crate::plan::Step;
use gradus_compute::reduce;
use std::sync::Arc;

/// The widest element, in bytes.
const WIDEST: usize = 8;

/// One rank's steps with their dependencies: made once for a shape, used for many collectives.
pub(crate) struct Prepared {
    pub(crate) steps: Vec<Step>,
    follows: Vec<Vec<usize>>,
}

impl Prepared {
    pub(crate) fn new(steps: Vec<Step>) -> Self {
        let follows = dependencies(&steps);
        Self { steps, follows }
    }
}

/// Memory that a collective reads and writes.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: an address; who started the collective answers for the memory behind it until the collective is over.
unsafe impl Send for Buffer {}

pub(crate) struct Flight {
    pub(crate) collective: Collective,
    buffer: Buffer,
    prepared: Arc<Prepared>,
    /// Bytes that each step has moved. Of an element that has arrived in part, they lie in a [`Carry`].
    moved: Vec<usize>,
    /// Steps that are not over.
    pub(crate) pending: usize,
}

/// The first bytes of an element whose rest has not arrived yet.
#[derive(Default)]
pub(crate) struct Carry([u8; WIDEST]);

impl Flight {
    /// # Panics
    /// If a step names elements outside the buffer: plans come from our own generators.
    pub(crate) fn new(collective: Collective, buffer: Buffer, prepared: Arc<Prepared>) -> Self {
        let end = prepared.steps.iter().map(|step| step.span().end()).max().unwrap_or(0);
        assert!(end * collective.element.bytes() <= buffer.bytes, "a plan must fit its buffer");
        let (moved, pending) = (vec![0; prepared.steps.len()], prepared.steps.len());
        Self { collective, buffer, prepared, moved, pending }
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.prepared.steps
    }

    /// Bytes that a step moves in all.
    pub(crate) fn total(&self, step: usize) -> usize {
        self.prepared.steps[step].span().len * self.collective.element.bytes()
    }

    /// Bytes that a step may move now, beyond those it has moved.
    pub(crate) fn allowed(&self, step: usize) -> usize {
        let span = self.prepared.steps[step].span();
        let mut stop = span.end();
        for earlier in &self.prepared.follows[step] {
            let other = self.prepared.steps[*earlier].span();
            let next = (other.start + self.moved[*earlier] / self.collective.element.bytes()).max(span.start);
            if next < other.end() {
                stop = stop.min(next);
            }
        }
        ((stop - span.start) * self.collective.element.bytes()).saturating_sub(self.moved[step])
    }

    pub(crate) fn is_whole(&self, step: usize) -> bool {
        self.moved[step] == self.total(step)
    }

    /// The next bytes that a step sends, `most` at most.
    pub(crate) fn outgoing(&self, step: usize, most: usize) -> &[u8] {
        let count = self.allowed(step).min(most);
        // SAFETY: inside the buffer (checked in `new`), which is initialised and which nobody writes while this borrow
        // of the flight lives: writing goes through `&mut self`, and the caller's own access is excluded by the promise
        // given when the collective was started.
        unsafe { std::slice::from_raw_parts(self.at(step), count) }
    }

    pub(crate) fn sent(&mut self, step: usize, bytes: usize) {
        self.moved[step] += bytes;
    }

    fn at(&self, step: usize) -> *mut u8 {
        let offset =
            self.prepared.steps[step].span().start * self.collective.element.bytes() + self.moved[step];
        // SAFETY: inside the buffer or at its end: checked in `new`, and a step never moves more than its span.
        unsafe { self.buffer.start.add(offset) }
    }

    /// Takes in bytes for a step.
    ///
    /// # Safety
    /// `from` is valid for reading `count` bytes, which do not lie in the buffer; the step receives, and `count` is at
    /// most [`Flight::allowed`].
    pub(crate) unsafe fn take_in(&mut self, step: usize, from: *const u8, count: usize, carry: &mut Carry) {
        match self.prepared.steps[step] {
            Step::ReceiveReduce { .. } => {
                // SAFETY: the caller's word.
                unsafe { self.reduce(step, from, count, carry) }
            }
            // SAFETY: the source by the caller's word; the destination is the rest of the step's span, inside the
            // buffer, which is ours while the collective runs.
            _ => unsafe { std::ptr::copy_nonoverlapping(from, self.at(step), count) },
        }
        self.moved[step] += count;
    }

    /// Adds arrived bytes, of which the first may complete an element and the last begin one.
    ///
    /// # Safety
    /// As for [`Flight::take_in`].
    unsafe fn reduce(&self, step: usize, from: *const u8, count: usize, carry: &mut Carry) {
        let width = self.collective.element.bytes();
        let begun = self.moved[step] % width;
        let first = if begun == 0 { 0 } else { count.min(width - begun) };
        // SAFETY: `first` bytes are readable, and begun + first <= width <= WIDEST.
        unsafe { std::ptr::copy_nonoverlapping(from, carry.0.as_mut_ptr().add(begun), first) };
        // SAFETY: begun bytes of this element were counted as moved: its start is inside the buffer.
        let mut to = unsafe { self.at(step).sub(begun) };
        if begun > 0 && begun + first == width {
            // SAFETY: one whole element on both sides.
            unsafe { add(self.collective.element, to, carry.0.as_ptr(), 1) };
            // SAFETY: that element lies inside the step's span.
            to = unsafe { to.add(width) };
        }
        let whole = (count - first) / width;
        let rest = (count - first) % width;
        // SAFETY: `whole` elements are readable from there and fit the step's span; both sides are apart by the
        // caller's word. What is left of `from` begins the next element.
        unsafe {
            add(self.collective.element, to, from.add(first), whole);
            std::ptr::copy_nonoverlapping(from.add(count - rest), carry.0.as_mut_ptr(), rest);
        }
    }
}

/// Adds `len` elements.
///
/// # Safety
/// `to` is aligned and valid for reads and writes of `len` elements, `from` valid for reads of as many; they are apart,
/// and nobody else touches either.
unsafe fn add(element: Element, to: *mut u8, from: *const u8, len: usize) {
    match element {
        // SAFETY: the caller's word.
        Element::F32 => unsafe { reduce::add_assign(to.cast(), from.cast(), len) },
        Element::F64 => {
            let (to, from) = (to.cast::<f64>(), from.cast::<f64>());
            for i in 0..len {
                // SAFETY: i < len, and both are valid for len elements by the caller's word.
                unsafe { *to.add(i) += from.add(i).read_unaligned() };
            }
        }
        Element::Byte => unreachable!("bytes are never summed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::Operation;
    use gradus_memory::Span;

    fn flight(values: &mut [f64], steps: Vec<Step>) -> Flight {
        let (operation, element) = (Operation::AllReduce, Element::F64);
        let collective = Collective { sequence: 0, operation, element, root: 0, len: values.len() as u64 };
        let buffer = Buffer { start: values.as_mut_ptr().cast(), bytes: size_of_val(values) };
        Flight::new(collective, buffer, Arc::new(Prepared::new(steps)))
    }

    #[test]
    fn elements_are_added_however_their_bytes_arrive() {
        let arriving: Vec<u8> = (0..10).flat_map(|i| f64::from(i * 100).to_le_bytes()).collect();
        for piece in 1..=arriving.len() {
            let mut values: Vec<f64> = (0..10).map(f64::from).collect();
            let mut flight = flight(&mut values, vec![Step::receive_reduce(1, Span::new(0, 10))]);
            let mut carry = Carry::default();
            for bytes in arriving.chunks(piece) {
                // SAFETY: the bytes are apart from the buffer and no more than the step wants.
                unsafe { flight.take_in(0, bytes.as_ptr(), bytes.len(), &mut carry) };
            }
            assert!(flight.is_whole(0));
            assert_eq!(values, (0..10).map(|i| f64::from(i * 101)).collect::<Vec<_>>(), "{piece}");
        }
    }

    #[test]
    fn a_step_follows_its_predecessor_element_by_element() {
        let mut values = [0.0; 4];
        let (all, tail) = (Span::new(0, 4), Span::new(2, 2));
        let steps = vec![Step::receive(1, all), Step::send(1, tail)];
        let mut flight = flight(&mut values, steps);
        let bytes = [0u8; 32];
        let mut carry = Carry::default();
        let mut seen = Vec::new();
        for count in [16, 7, 1, 8] {
            seen.push(flight.allowed(1));
            // SAFETY: the bytes are apart from the buffer and no more than the step wants.
            unsafe { flight.take_in(0, bytes.as_ptr(), count, &mut carry) };
        }
        assert_eq!(seen, [0, 0, 0, 8]);
        assert_eq!((flight.allowed(0), flight.allowed(1)), (0, 16));
    }
}
