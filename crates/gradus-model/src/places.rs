//! Where a layout's weights lie in memory: all in f32 as the layout has them, or matrices in bf16 and vectors (norms, biases) in f32.
//!
//! In either case tensors lie in the order of the layout, so that a range of it is one range of memory, and travels as one.

use gradus_compute::{Format, Matrix};
use gradus_memory::{Layout, Span};

/// Elements from one on that are kept in one format.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    first: usize,
    place: usize,
    format: Format,
}

/// Where each element of a layout lies, from the beginning of the memory that has them all.
#[derive(Debug, Clone)]
pub struct Places {
    stretches: Vec<Stretch>,
    /// Elements of the layout.
    elements: usize,
    len: usize,
}

impl Places {
    /// Those of a layout whose matrices, tables included, are kept in a format.
    pub fn new(layout: &Layout, matrices: Format) -> Self {
        let all = Stretch { first: 0, place: 0, format: Format::F32 };
        let elements = layout.len();
        if matrices == Format::F32 {
            return Self { stretches: vec![all], elements, len: elements };
        }
        let (mut stretches, mut len) = (Vec::new(), 0);
        let ends = layout.tensors().iter().skip(1).map(|tensor| tensor.start).chain([elements]);
        for (tensor, end) in layout.tensors().iter().zip(ends) {
            let format = if tensor.shape.len() == 1 { Format::F32 } else { matrices };
            stretches.push(Stretch { first: tensor.start, place: len, format });
            len += format.places(end - tensor.start).next_multiple_of(Layout::ALIGNMENT);
        }
        Self { stretches, elements, len }
    }

    /// Elements of f32 in whose place all weights lie.
    #[allow(clippy::len_without_is_empty, reason = "a model without weights is none")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether each element has the place that it has in the layout.
    pub fn are_plain(&self) -> bool {
        self.stretches.iter().all(|stretch| stretch.format == Format::F32)
    }

    fn find(&self, element: usize) -> usize {
        self.stretches.partition_point(|stretch| stretch.first <= element) - 1
    }

    /// Where an element lies; in a matrix in bf16 an even one. That of the layout's end is the end.
    pub fn of(&self, element: usize) -> usize {
        if element >= self.elements {
            return self.len;
        }
        let Stretch { first, place, format } = self.stretches[self.find(element)];
        place + format.places(element - first)
    }

    /// Where a range of the layout lies.
    pub fn range(&self, span: Span) -> Span {
        let start = self.of(span.start);
        Span::new(start, self.of(span.end()) - start)
    }

    /// A range of one tensor in memory that has what begins with element `first` from `place` on.
    pub(crate) fn matrix(&self, span: Span, (first, place): (usize, usize)) -> Matrix {
        let stretch = self.stretches[self.find(span.start)];
        let each = stretch.format.each();
        assert!(
            (span.start - stretch.first).is_multiple_of(each),
            "a range of bf16 begins with an even element"
        );
        let start = place + self.of(span.start) - self.of(first);
        Matrix { span: Span::new(start, stretch.format.places(span.len)), format: stretch.format }
    }

    /// A range of the layout in the memory of a range that has it, cut where the format changes.
    pub fn pieces(
        &self,
        (held, memory): (Span, Span),
        span: Span,
    ) -> impl Iterator<Item = (Span, Matrix)> + '_ {
        let ends = self.stretches.iter().skip(1).map(|stretch| stretch.first).chain([self.elements]);
        let stretches = self.stretches.iter().zip(ends);
        let inside =
            stretches.map(move |(stretch, end)| Span::new(stretch.first, end - stretch.first).common(&span));
        let piece = move |inside: Span| (inside, self.matrix(inside, (held.start, memory.start)));
        inside.filter(|inside| !inside.is_empty()).map(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_memory::LayoutBuilder;

    fn layout() -> Layout {
        let mut builder = LayoutBuilder::default();
        builder.push("table", &[5, 6], true);
        builder.push("norm", &[20], false);
        builder.push_matrices("up", &[10], 10);
        builder.finish()
    }

    #[test]
    fn in_f32_places_are_the_layouts() {
        let places = Places::new(&layout(), Format::F32);
        assert!(places.are_plain());
        assert_eq!([places.len(), places.of(7), places.of(176)], [176, 7, 176]);
        let span = Span::new(10, 100);
        let found: Vec<_> = places.pieces((Span::new(0, 176), Span::new(1000, 176)), span).collect();
        assert_eq!(found, [(span, Span::new(1010, 100).into())]);
    }

    #[test]
    fn matrices_in_halves_take_half_the_place_and_vectors_all_of_it() {
        let places = Places::new(&layout(), Format::Bf16);
        assert!(!places.are_plain());
        assert_eq!(
            [0, 16, 32, 48, 64, 80, 176].map(|element| places.of(element)),
            [0, 8, 16, 32, 48, 56, 112]
        );
        assert_eq!(places.range(Span::new(16, 48)), Span::new(8, 40));
        // What a rank has from element 16 on, at place 500.
        let held = (Span::new(16, 112), Span::new(500, 64));
        let found: Vec<_> = places.pieces(held, Span::new(16, 64)).collect();
        let half = |start, len| Matrix { span: Span::new(start, len), format: Format::Bf16 };
        let expected = [
            (Span::new(16, 16), half(500, 8)),
            (Span::new(32, 32), Span::new(508, 32).into()),
            (Span::new(64, 16), half(540, 8)),
        ];
        assert_eq!(found, expected);
    }
}
