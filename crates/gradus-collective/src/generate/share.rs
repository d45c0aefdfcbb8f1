//! The part of a range that one rank answers for.

use gradus_memory::Span;

/// Shares begin on multiples of this many elements: no two ranks write one cache line of f32.
const ALIGNMENT: usize = 16;

/// Part `index` of `parts` of a range: as even as alignment allows, in order, covering all of it. Ranges shorter than
/// `parts` cache lines leave some parts empty.
pub(crate) fn share(whole: Span, parts: usize, index: usize) -> Span {
    let even = |index: usize| match whole.len.checked_mul(index) {
        Some(product) => product / parts,
        None => (whole.len as u128 * index as u128 / parts as u128) as usize,
    };
    let edge = |index: usize| even(index).next_multiple_of(ALIGNMENT).min(whole.len);
    let end = if index + 1 == parts { whole.len } else { edge(index + 1) };
    whole.part(edge(index), end - edge(index))
}
