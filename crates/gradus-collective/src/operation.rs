//! A collective in flight: its memory, its steps, and how far each of them is.

use crate::dependencies::{Hold, holds};
use crate::element;
use crate::flight::PeerState;
use crate::header::Identity;
use crate::memory::{Regions, Scratch};
use crate::plan::{Part, Region, Step, extent};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The widest element, in bytes.
const WIDEST: usize = 8;

/// Says whether what a collective works on may be touched yet: true once and for all. It is asked often.
pub type Ready = Box<dyn FnMut() -> bool + Send>;

/// One rank's steps with their dependencies: made once for a shape, used for many collectives.
pub(crate) struct Prepared {
    pub(crate) steps: Vec<Step>,
    holds: Vec<Vec<Hold>>,
}

impl Prepared {
    pub(crate) fn new(steps: Vec<Step>) -> Self {
        let holds = holds(&steps);
        Self { steps, holds }
    }

    /// Bytes of scratch that the steps need.
    pub(crate) fn scratch_bytes(&self, element_bytes: usize) -> usize {
        extent(&self.steps, Region::Scratch) * element_bytes
    }
}

pub(crate) struct Flight {
    pub(crate) identity: Identity,
    regions: Regions,
    prepared: Arc<Prepared>,
    /// Bytes that each step has moved. Of an element that has arrived in part, they lie in a [`Carry`].
    moved: Vec<usize>,
    /// Steps that are not over.
    pub(crate) pending: usize,
    /// Those of them that no peer has a part in.
    local: Vec<usize>,
    /// Asked until it says yes.
    ready: Option<Ready>,
}

/// The first bytes of an element whose rest has not arrived yet.
#[derive(Default)]
pub(crate) struct Carry([u8; WIDEST]);

impl Flight {
    /// # Panics
    /// If a step names elements outside the memory: plans come from our own generators.
    pub(crate) fn new(
        identity: Identity,
        regions: Regions,
        prepared: Arc<Prepared>,
        ready: Option<Ready>,
    ) -> Self {
        for region in Region::ALL {
            let bytes = extent(&prepared.steps, region) * identity.element.bytes();
            assert!(bytes <= regions.bytes(region), "a plan must fit its memory");
        }
        let pending = prepared.steps.len();
        let local = (0..pending).filter(|step| prepared.steps[*step].is_local()).collect();
        Self { identity, regions, moved: vec![0; pending], prepared, pending, local, ready }
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.prepared.steps
    }

    pub(crate) fn into_scratch(self) -> Scratch {
        self.regions.into_scratch()
    }

    /// Whether its memory may not be touched yet.
    pub(crate) fn awaits_memory(&self) -> bool {
        self.ready.is_some()
    }

    /// Asks whether its memory is ready; whether that was news.
    pub(crate) fn ask(&mut self) -> bool {
        let news = self.ready.as_mut().is_some_and(|ready| ready());
        if news {
            self.ready = None;
        }
        news
    }

    /// Bytes that a step moves in all.
    pub(crate) fn total(&self, step: usize) -> usize {
        self.prepared.steps[step].span().len * self.identity.element.bytes()
    }

    /// Bytes that a step may move now, beyond those it has moved.
    pub(crate) fn allowed(&self, step: usize) -> usize {
        if self.awaits_memory() {
            return 0;
        }
        let width = self.identity.element.bytes();
        let stops =
            self.prepared.holds[step].iter().filter_map(|hold| hold.stop(self.moved[hold.earlier] / width));
        let stop = stops.min().unwrap_or(self.prepared.steps[step].span().len);
        (stop * width).saturating_sub(self.moved[step])
    }

    pub(crate) fn is_whole(&self, step: usize) -> bool {
        self.moved[step] == self.total(step)
    }

    /// Whether anything has moved.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.iter().any(|moved| *moved > 0)
    }

    /// Bytes sent and received so far, headers not counted.
    pub(crate) fn exchanged(&self) -> (u64, u64) {
        let remote = self.steps().iter().zip(&self.moved).filter(|(step, _)| !step.is_local());
        remote.fold((0, 0), |(sent, received), (step, moved)| {
            let moved = *moved as u64;
            if step.sends() { (sent + moved, received) } else { (sent, received + moved) }
        })
    }

    /// How far it is with each peer with which it is not over; peers by their number in the transport.
    pub(crate) fn peers(&self, ranks: &[usize]) -> Vec<PeerState> {
        let mut peers: BTreeMap<usize, PeerState> = BTreeMap::new();
        for (index, step) in self.steps().iter().enumerate().filter(|(_, step)| !step.is_local()) {
            let rank = ranks[step.peer()];
            let peer = peers.entry(rank).or_insert_with(|| PeerState::new(rank));
            peer.add(step.sends(), self.moved[index] as u64, self.total(index) as u64);
        }
        peers.into_values().filter(PeerState::is_open).collect()
    }

    /// The next bytes that a step sends, `most` at most.
    pub(crate) fn outgoing(&self, step: usize, most: usize) -> &[u8] {
        let count = self.allowed(step).min(most);
        // SAFETY: inside the step's region (checked in `new`), which is initialised and which nobody writes while this
        // borrow of the flight lives: writing goes through `&mut self`, and the caller's own access is excluded by the
        // promise given when the collective was started.
        unsafe { std::slice::from_raw_parts(self.at(self.prepared.steps[step].part(), step), count) }
    }

    pub(crate) fn sent(&mut self, step: usize, bytes: usize) {
        self.moved[step] += bytes;
    }

    /// Where the next bytes of a step go that does nothing but store them, `most` at most; nowhere for other steps.
    pub(crate) fn place(&mut self, step: usize, most: usize) -> &mut [u8] {
        let Step::Receive { to, .. } = self.prepared.steps[step] else { return &mut [] };
        let count = self.allowed(step).min(most);
        // SAFETY: inside the step's region (checked in `new`), which is initialised, and which nobody else touches while
        // this borrow of the flight lives, by the promise given when the collective was started.
        unsafe { std::slice::from_raw_parts_mut(self.at(to, step), count) }
    }

    /// Counts bytes that were stored where [`Flight::place`] has said.
    pub(crate) fn stored(&mut self, step: usize, bytes: usize) {
        self.moved[step] += bytes;
    }

    /// Where in a part a step goes on.
    fn at(&self, part: Part, step: usize) -> *mut u8 {
        let offset = part.span.start * self.identity.element.bytes() + self.moved[step];
        // SAFETY: inside the region or at its end: checked in `new`, and a step never moves more than its span.
        unsafe { self.regions.start(part.region).add(offset) }
    }

    /// Carries out local steps for a turn; whether anything moved.
    pub(crate) fn advance_local(&mut self, turn: usize) -> bool {
        let mut moved = false;
        for index in (0..self.local.len()).rev() {
            let step = self.local[index];
            let count = self.allowed(step).min(turn);
            self.carry_out(step, count);
            moved |= count > 0;
            if self.is_whole(step) {
                self.local.swap_remove(index);
                self.pending -= 1;
            }
        }
        moved
    }

    /// Carries out `count` bytes of a local step, whole elements.
    fn carry_out(&mut self, step: usize, count: usize) {
        match self.prepared.steps[step] {
            // SAFETY: inside both regions, which are ours while the collective runs; parts of a copy are apart, which
            // the checker holds for all generators.
            Step::Copy { from, to } => unsafe {
                std::ptr::copy_nonoverlapping(self.at(from, step), self.at(to, step), count);
            },
            Step::Divide { part, by } => {
                let element = self.identity.element;
                // SAFETY: as above; regions are aligned for their elements, and steps move whole ones.
                unsafe { element::divide(element, self.at(part, step), count / element.bytes(), by) }
            }
            _ => unreachable!("only local steps are carried out alone"),
        }
        self.moved[step] += count;
    }

    /// Takes in bytes for a step.
    ///
    /// # Safety
    /// `from` is valid for reading `count` bytes, which do not lie in the collective's memory; the step receives, and
    /// `count` is at most [`Flight::allowed`].
    pub(crate) unsafe fn take_in(&mut self, step: usize, from: *const u8, count: usize, carry: &mut Carry) {
        match self.prepared.steps[step] {
            Step::ReceiveReduce { to, .. } => {
                // SAFETY: the caller's word.
                unsafe { self.reduce(self.at(to, step), (step, from, count), carry) }
            }
            // SAFETY: the source by the caller's word; the destination is the rest of the step's span, inside its
            // region, which is ours while the collective runs.
            what => unsafe { std::ptr::copy_nonoverlapping(from, self.at(what.part(), step), count) },
        }
        self.moved[step] += count;
    }

    /// Combines arrived bytes, of which the first may complete an element and the last begin one.
    ///
    /// # Safety
    /// As for [`Flight::take_in`]; `at` is where the step goes on.
    unsafe fn reduce(&self, at: *mut u8, (step, from, count): (usize, *const u8, usize), carry: &mut Carry) {
        let Identity { element, reduction, .. } = self.identity;
        // A barrier's token says nothing, only its coming does.
        let reduction = reduction.unwrap_or(element::Reduction::Sum);
        let width = element.bytes();
        let begun = self.moved[step] % width;
        let first = if begun == 0 { 0 } else { count.min(width - begun) };
        // SAFETY: `first` bytes are readable, and begun + first <= width <= WIDEST.
        unsafe { std::ptr::copy_nonoverlapping(from, carry.0.as_mut_ptr().add(begun), first) };
        // SAFETY: begun bytes of this element were counted as moved: its start is inside the region.
        let mut to = unsafe { at.sub(begun) };
        if begun > 0 && begun + first == width {
            // SAFETY: one whole element on both sides.
            unsafe { element::combine(element, reduction, to, carry.0.as_ptr(), 1) };
            // SAFETY: that element lies inside the step's span.
            to = unsafe { to.add(width) };
        }
        let whole = (count - first) / width;
        let rest = (count - first) % width;
        // SAFETY: `whole` elements are readable from there and fit the step's span; both sides are apart by the
        // caller's word. What is left of `from` begins the next element.
        unsafe {
            element::combine(element, reduction, to, from.add(first), whole);
            std::ptr::copy_nonoverlapping(from.add(count - rest), carry.0.as_mut_ptr(), rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{Element, Reduction};
    use crate::header::Operation;
    use crate::memory::{Buffer, Memory};
    use gradus_memory::Span;

    fn identity(len: usize) -> Identity {
        Identity {
            group: 0,
            sequence: 0,
            operation: Operation::AllReduce,
            element: Element::F64,
            reduction: Some(Reduction::Sum),
            root: 0,
            len: len as u64,
            counts: 0,
            registered: false,
            level: 0,
        }
    }

    fn flight(values: &mut [f64], steps: Vec<Step>) -> Flight {
        let prepared = Arc::new(Prepared::new(steps));
        let scratch = vec![0; prepared.scratch_bytes(8) / 8];
        let regions = Regions::new(Memory::InPlace(Buffer::of(values)), scratch);
        Flight::new(identity(values.len()), regions, prepared, None)
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

    #[test]
    fn local_steps_follow_what_arrives_and_others_follow_them() {
        let mut values = [1.0, 2.0, 3.0, 4.0];
        let half = |region, start| Part { region, span: Span::new(start, 2) };
        let steps = vec![
            Step::copy(half(Region::Output, 2), half(Region::Scratch, 0)),
            Step::receive(1, Span::new(2, 2)),
            Step::Divide { part: half(Region::Scratch, 0), by: 2 },
            Step::copy(half(Region::Scratch, 0), half(Region::Output, 0)),
        ];
        let mut flight = flight(&mut values, steps);
        assert_eq!([1, 2, 3].map(|step| flight.allowed(step)), [0, 0, 0]);
        while flight.advance_local(8) {}
        assert_eq!((flight.pending, flight.allowed(1)), (1, 16));
        drop(flight);
        assert_eq!(values, [1.5, 2.0, 3.0, 4.0]); // half of what lay behind before anything arrived
    }

    #[test]
    fn nothing_is_touched_before_it_is_ready() {
        let mut values = [0.0; 2];
        let prepared = Arc::new(Prepared::new(vec![Step::send(1, Span::new(0, 2))]));
        let regions = Regions::new(Memory::InPlace(Buffer::of(&mut values)), Vec::new());
        let mut asked = 0;
        let ready: Ready = Box::new(move || {
            asked += 1;
            asked == 2
        });
        let mut flight = Flight::new(identity(2), regions, prepared, Some(ready));
        assert_eq!((flight.allowed(0), flight.ask(), flight.ask()), (0, false, true));
        assert_eq!((flight.allowed(0), flight.ask()), (16, false));
    }
}
