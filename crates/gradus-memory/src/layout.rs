//! The flat layout: which tensor lies where in the range that holds all parameters (and, at the same offsets, all
//! gradients and each moment of the optimizer).
//!
//! Tensors stand in the order in which the backward pass finishes their gradients, so that "final up to here" is one
//! number and a bucket is a range.

use crate::Span;
use serde::{Deserialize, Serialize};

/// Every tensor begins on a multiple of this many elements: a cache line of 64 bytes.
const ALIGNMENT: usize = 16;

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
}

impl Tensor {
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
    /// Appends a tensor and returns its range.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize], decay: bool) -> Span {
        let tensor = Tensor { name: name.into(), shape: shape.to_vec(), start: self.layout.len, decay };
        self.layout.len = (tensor.start + tensor.len()).next_multiple_of(ALIGNMENT);
        let span = tensor.span();
        self.layout.tensors.push(tensor);
        span
    }

    /// The finished layout.
    pub fn finish(self) -> Layout {
        self.layout
    }
}
