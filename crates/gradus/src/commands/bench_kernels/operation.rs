//! One operation of the device as it comes over the wire: its sizes, and how its tensors are kept.

use gradus_compute::{Attention, Format, Matrix, Rows};
use serde::Deserialize;

/// What to run, and how large; names as in [`gradus_compute`]'s legend. A tensor whose format is not named is f32.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    LinearForward {
        rows: usize,
        inputs: usize,
        outputs: usize,
        bias: bool,
        residual: bool,
        epilogue: After,
        x: Format,
        out: Format,
    },
    LinearInput {
        rows: usize,
        inputs: usize,
        outputs: usize,
        through: Before,
        d_out: Format,
        d_x: Format,
    },
    LinearWeight {
        rows: usize,
        inputs: usize,
        outputs: usize,
        bias: bool,
        d_out: Format,
        x: Format,
    },
    AttentionForward(Heads),
    AttentionBackward(Heads),
    /// Turns gradients back.
    RopeBackward(Heads),
    NormForward {
        rows: usize,
        width: usize,
        layer: bool,
        out: Format,
    },
    NormBackward {
        rows: usize,
        width: usize,
        layer: bool,
        residual: bool,
        d_out: Format,
    },
    GeluForward {
        elements: usize,
        kept: Format,
    },
    SwigluForward {
        rows: usize,
        width: usize,
        kept: Format,
    },
    CrossEntropy {
        rows: usize,
        vocabulary: usize,
    },
    /// Logits, loss and both gradients of all rows, in pieces of as many as a model makes at once.
    Head {
        rows: usize,
        width: usize,
        vocabulary: usize,
        x: Format,
    },
    EmbeddingForward {
        batch: usize,
        sequence: usize,
        vocabulary: usize,
        width: usize,
        positions: bool,
    },
    EmbeddingBackward {
        batch: usize,
        sequence: usize,
        vocabulary: usize,
        width: usize,
        positions: bool,
    },
    SumOfSquares {
        elements: usize,
    },
    Fill {
        elements: usize,
    },
    Adamw {
        elements: usize,
    },
}

/// What a linear layer's output goes on through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    None,
    Gelu,
    Swiglu,
    Rope(Heads),
}

impl After {
    /// Columns that it takes together are so far from each other; 0 where it takes each alone.
    pub fn apart(self, outputs: usize) -> usize {
        match self {
            Self::None | Self::Gelu => 0,
            Self::Swiglu => outputs / 2,
            Self::Rope(heads) => heads.head_size / 2,
        }
    }

    /// Elements that come out for a row of `width` that goes in: 0 where they leave no tensor of their own.
    pub fn activated(self, width: usize) -> usize {
        match self {
            Self::None | Self::Rope(_) => 0,
            Self::Gelu => width,
            Self::Swiglu => width / 2,
        }
    }
}

/// What made a linear layer's input, which the input's gradient goes back through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    None,
    Gelu,
    Swiglu,
}

impl Before {
    /// Elements that went in for a row of `width` that came out; 0 where nothing did.
    pub fn entered(self, width: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Gelu => width,
            Self::Swiglu => 2 * width,
        }
    }
}

/// Sizes of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    pub batch: usize,
    pub sequence: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_size: usize,
    /// Of all but sums.
    pub kept: Format,
}

impl Heads {
    pub fn rows(self) -> usize {
        self.batch * self.sequence
    }

    /// Elements of a row of queries.
    pub fn queries(self) -> usize {
        self.heads * self.head_size
    }

    /// Elements of a row of queries, keys and values side by side.
    pub fn width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    /// Heads of a row that turn.
    pub fn turned(self) -> usize {
        self.heads + self.kv_heads
    }

    pub fn shape(self) -> Attention<'static> {
        Attention {
            batch: self.batch,
            query_len: self.sequence,
            key_len: self.sequence,
            key_rows: self.sequence,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            scale: 1.0 / (self.head_size as f32).sqrt(),
            documents: None,
        }
    }

    /// Queries, keys and values as columns of `qkv`.
    pub fn split(self, qkv: Matrix) -> [Rows; 3] {
        let (queries, keys) = (self.queries(), self.kv_heads * self.head_size);
        let columns = |first, width| Rows::columns(qkv, self.rows(), self.width(), first, width);
        [columns(0, queries), columns(queries, keys), columns(queries + keys, keys)]
    }
}
