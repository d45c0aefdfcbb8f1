//! Which steps of a rank wait for which earlier ones.
//!
//! A step follows the steps it depends on element by element, so dependencies chain: where a reader follows a writer,
//! whoever follows the reader follows the writer too, and only the nearest steps need to be named.

use crate::plan::Step;
use std::collections::BTreeMap;

/// A stretch of elements with the same history.
#[derive(Clone)]
struct Piece {
    end: usize,
    writer: Option<usize>,
    /// Those who read it since it was written.
    readers: Vec<usize>,
}

/// For each step the earlier steps that it must follow where their ranges overlap.
pub fn dependencies(steps: &[Step]) -> Vec<Vec<usize>> {
    let end = steps.iter().map(|step| step.span().end()).max().unwrap_or(0);
    let mut pieces = BTreeMap::from([(0, Piece { end, writer: None, readers: Vec::new() })]);
    steps.iter().enumerate().map(|(index, step)| follow(&mut pieces, index, step)).collect()
}

fn follow(pieces: &mut BTreeMap<usize, Piece>, index: usize, step: &Step) -> Vec<usize> {
    let span = step.span();
    if span.len == 0 {
        return Vec::new();
    }
    cut(pieces, span.start);
    cut(pieces, span.end());
    let mut follows = Vec::new();
    for piece in pieces.range_mut(span.start..span.end()).map(|(_, piece)| piece) {
        if step.sends() {
            follows.extend(piece.writer);
            piece.readers.push(index);
        } else {
            let readers = std::mem::take(&mut piece.readers);
            let writer = piece.writer.replace(index).filter(|_| readers.is_empty());
            follows.extend(readers.into_iter().chain(writer));
        }
    }
    follows.sort_unstable();
    follows.dedup();
    follows
}

/// Makes a piece begin at `at`.
fn cut(pieces: &mut BTreeMap<usize, Piece>, at: usize) {
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

    /// Who must come before step `of`, by the definition and through others.
    fn closure(follows: &[Vec<usize>], of: usize, element: usize, steps: &[Step]) -> Vec<bool> {
        let mut before = vec![false; steps.len()];
        let mut open = vec![of];
        while let Some(step) = open.pop() {
            for earlier in &follows[step] {
                let span = steps[*earlier].span();
                if span.start <= element && element < span.end() && !before[*earlier] {
                    before[*earlier] = true;
                    open.push(*earlier);
                }
            }
        }
        before
    }

    proptest! {
        #[test]
        fn every_conflict_is_ordered_and_nothing_else(
            shapes in proptest::collection::vec((any::<bool>(), 0usize..12, 0usize..6), 0..14)
        ) {
            let steps: Vec<Step> = shapes.iter().map(|(sends, start, len)| step(*sends, *start, *len)).collect();
            let follows = dependencies(&steps);
            for (later, step) in steps.iter().enumerate() {
                for element in step.span().start..step.span().end() {
                    let before = closure(&follows, later, element, &steps);
                    for (earlier, other) in steps.iter().enumerate() {
                        let touches = other.span().start <= element && element < other.span().end();
                        let conflict = touches && earlier < later && !(step.sends() && other.sends());
                        prop_assert!(!conflict || before[earlier], "{later} must follow {earlier} at {element}");
                        prop_assert!(!before[earlier] || earlier < later);
                    }
                }
                prop_assert!(follows[later].iter().all(|earlier| !(step.sends() && steps[*earlier].sends())));
            }
        }
    }
}
