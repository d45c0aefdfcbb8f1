//! Which steps of a rank wait for which earlier ones.
//!
//! A step follows the steps it depends on element by element, so dependencies chain: where a reader follows a writer,
//! whoever follows the reader follows the writer too, and only the nearest steps need to be named.

use crate::plan::{Region, Step};
use std::collections::BTreeMap;

/// A stretch of elements with the same history.
#[derive(Clone)]
struct Piece {
    end: usize,
    writer: Option<usize>,
    /// Those who read it since it was written.
    readers: Vec<usize>,
}

/// The pieces of one region, by their first element.
type Pieces = BTreeMap<usize, Piece>;

/// For each step the earlier steps that it must follow where their parts overlap.
pub fn dependencies(steps: &[Step]) -> Vec<Vec<usize>> {
    let whole = || Piece { end: usize::MAX, writer: None, readers: Vec::new() };
    let mut regions = Region::ALL.map(|_| Pieces::from([(0, whole())]));
    steps.iter().enumerate().map(|(index, step)| follow(&mut regions, index, step)).collect()
}

fn follow(regions: &mut [Pieces; 3], index: usize, step: &Step) -> Vec<usize> {
    let mut follows = Vec::new();
    for (part, writes) in step.accesses().filter(|(part, _)| part.span.len > 0) {
        let pieces = &mut regions[part.region as usize];
        cut(pieces, part.span.start);
        cut(pieces, part.span.end());
        for piece in pieces.range_mut(part.span.start..part.span.end()).map(|(_, piece)| piece) {
            touch(piece, index, writes, &mut follows);
        }
    }
    follows.sort_unstable();
    follows.dedup();
    follows
}

fn touch(piece: &mut Piece, index: usize, writes: bool, follows: &mut Vec<usize>) {
    if writes {
        let readers = std::mem::take(&mut piece.readers);
        let writer = piece.writer.replace(index).filter(|_| readers.is_empty());
        follows.extend(readers.into_iter().chain(writer));
    } else {
        follows.extend(piece.writer);
        piece.readers.push(index);
    }
}

/// How far an earlier step lets a later one go: where both touch one part of a region, the later one stays behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// The earlier step.
    pub earlier: usize,
    /// The later step's elements that are held, counted from its own first one.
    first: usize,
    len: usize,
    /// Which of the earlier step's elements the first of them is.
    at: usize,
}

impl Hold {
    /// The element before which the later step must stop once the earlier one has moved `passed` elements; `None` when
    /// it is held no more.
    pub fn stop(&self, passed: usize) -> Option<usize> {
        let through = passed.saturating_sub(self.at);
        (through < self.len).then_some(self.first + through)
    }

    /// Whether the later step waits for this element of the earlier one.
    pub(crate) fn is_for(&self, element: usize) -> bool {
        self.at <= element && element < self.at + self.len
    }
}

/// [`dependencies`], in the numbers that whoever carries out a step needs.
pub fn holds(steps: &[Step]) -> Vec<Vec<Hold>> {
    let of = |(later, follows): (usize, Vec<usize>)| {
        follows.into_iter().flat_map(|earlier| between(steps, earlier, later)).collect()
    };
    dependencies(steps).into_iter().enumerate().map(of).collect()
}

fn between(steps: &[Step], earlier: usize, later: usize) -> Vec<Hold> {
    let mut holds = Vec::new();
    for (mine, i_write) in steps[later].accesses() {
        for (theirs, they_write) in steps[earlier].accesses() {
            if mine.overlaps(&theirs) && (i_write || they_write) {
                let start = mine.span.start.max(theirs.span.start);
                let len = mine.span.end().min(theirs.span.end()) - start;
                holds.push(Hold {
                    earlier,
                    first: start - mine.span.start,
                    len,
                    at: start - theirs.span.start,
                });
            }
        }
    }
    holds
}

/// Makes a piece begin at `at`.
fn cut(pieces: &mut Pieces, at: usize) {
    let Some((start, piece)) = pieces.range_mut(..at).next_back() else { return };
    if *start < at && at < piece.end {
        let rest = piece.clone();
        piece.end = at;
        pieces.insert(at, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Part;
    use gradus_memory::Span;
    use proptest::prelude::*;

    fn step(sends: bool, start: usize, len: usize) -> Step {
        let span = Span::new(start, len);
        if sends { Step::send(0, span) } else { Step::receive(0, span) }
    }

    #[test]
    fn readers_share_and_writers_wait() {
        let steps =
            [step(false, 0, 4), step(true, 0, 2), step(true, 1, 3), step(false, 0, 4), step(true, 4, 2)];
        assert_eq!(dependencies(&steps), vec![vec![], vec![0], vec![0], vec![1, 2], vec![]]);
    }

    #[test]
    fn regions_are_apart_and_copies_join_them() {
        let span = Span::new(0, 4);
        let steps = [
            Step::receive_to(0, Part::scratch(span)),
            Step::receive(0, span),
            Step::copy(Part::scratch(Span::new(2, 2)), Part::output(Span::new(0, 2))),
            Step::send(1, span),
        ];
        assert_eq!(dependencies(&steps), vec![vec![], vec![], vec![0, 1], vec![1, 2]]);
        let holds = holds(&steps);
        let stop = |hold: usize, passed| holds[2][hold].stop(passed);
        assert_eq!([0, 2, 3, 4].map(|passed| stop(0, passed)), [Some(0), Some(0), Some(1), None]);
        assert_eq!([0, 1, 2].map(|passed| stop(1, passed)), [Some(0), Some(1), None]);
    }

    /// Steps from shapes: what it is, which regions, where, how long.
    type Shape = (u8, usize, usize, usize, usize, usize);

    fn any_step((kind, from, to, a, b, len): Shape) -> Step {
        let part = |region: usize, start| Part { region: Region::ALL[region], span: Span::new(start, len) };
        match kind {
            0 => Step::send_from(0, part(from, a)),
            1 => Step::receive_reduce_to(0, part(to, b)),
            _ => Step::copy(part(from, a), part(to, b)),
        }
    }

    /// By the definition: element `i` of a step and element `j` of an earlier one touch the same, and one writes it.
    fn in_conflict(later: &Step, i: usize, earlier: &Step, j: usize) -> bool {
        later.accesses().any(|(mine, i_write)| {
            earlier.accesses().any(|(theirs, they_write)| {
                mine.region == theirs.region
                    && mine.span.start + i == theirs.span.start + j
                    && (i_write || they_write)
            })
        })
    }

    proptest! {
        /// Steps move in any order that the holds allow: no two elements in conflict ever change places.
        #[test]
        fn what_holds_allow_keeps_the_order_of_all_conflicts(
            shapes in proptest::collection::vec((0u8..3, 0usize..3, 1usize..3, 0usize..8, 0usize..8, 0usize..5), 0..10),
            choices in proptest::collection::vec(any::<usize>(), 60)
        ) {
            let apart = |step: &Step| !matches!(step, Step::Copy { from, to } if from.overlaps(to));
            let steps: Vec<Step> = shapes.into_iter().map(any_step).filter(apart).collect();
            let holds = holds(&steps);
            let mut passed = vec![0; steps.len()];
            let mut done: Vec<(usize, usize)> = Vec::new();
            for choice in choices {
                let free = |step: &usize| passed[*step] < steps[*step].span().len
                    && holds[*step].iter().all(|hold| {
                        hold.stop(passed[hold.earlier]).is_none_or(|stop| passed[*step] < stop)
                    });
                let open: Vec<usize> = (0..steps.len()).filter(free).collect();
                // The earliest unfinished step is never held, so something always moves.
                let finished = (0..steps.len()).all(|step| passed[step] == steps[step].span().len);
                prop_assert_eq!(open.is_empty(), finished);
                if finished { break }
                let step = open[choice % open.len()];
                for (later, j) in &done {
                    prop_assert!(*later <= step || !in_conflict(&steps[*later], *j, &steps[step], passed[step]));
                }
                done.push((step, passed[step]));
                passed[step] += 1;
            }
            prop_assert!(holds.iter().enumerate().all(|(later, held)| held.iter().all(|hold| hold.earlier < later)));
        }
    }
}
