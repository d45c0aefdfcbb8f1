//! The flat layout: which tensor lies where in the range that holds all parameters (and, at the same offsets, all
//! gradients and each moment of the optimizer).
//!
//! Tensors stand in the order in which the backward pass finishes their gradients, so that "final up to here" is one
//! number and a bucket is a range.

use crate::Span;
use serde::{Deserialize, Serialize};

/// A named tensor and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name in this project, such as `blocks.3.attention.qkv.weight`.
    pub name: String,
    /// Sizes of its dims, row-major, the padding of the vocabulary included.
    pub shape: Vec<usize>,
    /// First element in the layout.
    pub start: usize,
    /// Whether weight decay applies (matrices of linear layers; not norms, biases, embeddings).
    pub decay: bool,
    /// Rows of each matrix that it is made of, from the top down, where it is the weight of a block's linear layers: an
    /// optimizer such as Muon needs whole matrices, and layers that share their input share a tensor. Else empty.
    pub matrices: Vec<usize>,
}

impl Tensor {
    /// Its matrices: the range of each in the layout, and its rows.
    pub fn each_matrix(&self) -> impl Iterator<Item = (Span, usize)> {
        let columns = self.shape.last().copied().unwrap_or(0);
        self.matrices.iter().scan(self.start, move |start, rows| {
            let span = Span::new(*start, rows * columns);
            *start = span.end();
            Some((span, *rows))
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its range in the layout.
    pub fn span(&self) -> Span {
        Span::new(self.start, self.len())
    }

    /// Its range within `whole`, a range that holds the entire layout.
    pub fn within(&self, whole: Span) -> Span {
        whole.part(self.start, self.len())
    }
}

/// All tensors of a model, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    tensors: Vec<Tensor>,
    len: usize,
}

impl Layout {
    /// Every tensor begins on a multiple of this many elements: a cache line of 64 bytes.
    pub const ALIGNMENT: usize = 16;

    /// The tensors, by growing start.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Elements of the whole, gaps for alignment included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Builds a [`Layout`], tensor after tensor.
#[derive(Debug, Default)]
pub struct LayoutBuilder {
    layout: Layout,
}

impl LayoutBuilder {
    /// Elements so far: where the next tensor will begin.
    pub fn len(&self) -> usize {
        self.layout.len
    }

    /// Whether there is no tensor yet.
    pub fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// Appends a tensor and returns its range.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize], decay: bool) -> Span {
        self.append(name.into(), shape, decay, &[])
    }

    /// Appends the weight of linear layers that share their `inputs`, one above the other, and returns its range.
    pub fn push_matrices(&mut self, name: impl Into<String>, outputs: &[usize], inputs: usize) -> Span {
        self.append(name.into(), &[outputs.iter().sum(), inputs], true, outputs)
    }

    fn append(&mut self, name: String, shape: &[usize], decay: bool, matrices: &[usize]) -> Span {
        let (shape, matrices) = (shape.to_vec(), matrices.to_vec());
        let tensor = Tensor { name, shape, start: self.layout.len, decay, matrices };
        self.layout.len = (tensor.start + tensor.len()).next_multiple_of(Layout::ALIGNMENT);
        let span = tensor.span();
        self.layout.tensors.push(tensor);
        span
    }

    /// The finished layout.
    pub fn finish(self) -> Layout {
        self.layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_one_tensor_follow_each_other() {
        let mut builder = LayoutBuilder::default();
        builder.push("norm", &[3], false);
        builder.push_matrices("qkv", &[4, 2, 2], 3);
        let layout = builder.finish();
        let [norm, qkv] = layout.tensors() else { panic!("two tensors") };
        assert_eq!(norm.each_matrix().count(), 0);
        assert_eq!((qkv.shape.as_slice(), qkv.start, qkv.decay), (&[8, 3][..], 16, true));
        let found: Vec<_> = qkv.each_matrix().collect();
        assert_eq!(found, [(Span::new(16, 12), 4), (Span::new(28, 6), 2), (Span::new(34, 6), 2)]);
    }
}
