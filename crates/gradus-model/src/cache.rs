//! Keys and values of what a sequence has been so far, so that the next token costs one row.

use crate::config::ModelConfig;
use gradus_compute::{Device, Format, Rows};
use gradus_error::{Error, Result};
use gradus_memory::Span;

/// Keys and values of one sequence, for every layer.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    layers: Vec<(Span, Span)>,
    capacity: usize,
    len: usize,
    width: usize,
}

impl KeyValueCache {
    /// Room for `capacity` tokens, but never more than the model's context.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn new(device: &dyn Device, config: &ModelConfig, capacity: usize) -> Result<Self> {
        let (width, capacity) = (config.kv_width(), capacity.min(config.context));
        let matrix = || device.allocate(capacity * width);
        let layers = (0..config.layers).map(|_| Ok((matrix()?, matrix()?))).collect::<Result<_>>()?;
        Ok(Self { layers, capacity, len: 0, width })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `rows` more.
    pub(crate) fn advance(&mut self, rows: usize) -> Result<()> {
        if self.len + rows > self.capacity {
            return Err(Error::invalid(format!(
                "{} tokens do not fit the context of {}: shorten the prompt or ask for fewer tokens",
                self.len + rows,
                self.capacity
            )));
        }
        self.len += rows;
        Ok(())
    }

    /// Keys and values of a layer: all rows, in use or not.
    pub(crate) fn layer(&self, layer: usize) -> (Rows, Rows) {
        let rows = |span| Rows { span, stride: self.width, format: Format::F32 };
        let (keys, values) = self.layers[layer];
        (rows(keys), rows(values))
    }

    /// Where the rows from `first` on of a layer are written.
    pub(crate) fn tail(&self, layer: usize, first: usize, rows: usize) -> (Rows, Rows) {
        let part = |span: Span| Rows {
            span: span.part(first * self.width, rows * self.width),
            stride: self.width,
            format: Format::F32,
        };
        let (keys, values) = self.layers[layer];
        (part(keys), part(values))
    }
}
