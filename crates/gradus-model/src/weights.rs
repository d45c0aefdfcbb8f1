//! Where a model's weights are, and how they are kept.
//!
//! What learns keeps f32: the masters that the optimizer changes; and, where that is asked for and its device multiplies in
//! bf16, each linear layer's weight [prepared](crate::prepared) for its products. What only runs may keep matrices as its device multiplies
//! them, in bf16: half the memory, and half of what each token written costs to read. Vectors (norms, biases) stay f32.

use crate::config::ModelConfig;
use crate::parameters::{Parameters, Unit};
use crate::prepared::Prepared;
use gradus_compute::{Device, Format, Matrix, Precision, Weight};
use gradus_error::Result;
use gradus_memory::Span;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights of one model.
#[derive(Debug)]
pub(crate) enum Weights {
    /// The layout as it is, in f32.
    Masters(Span, Prepared),
    /// Matrices in bf16, vectors in f32.
    Halves {
        /// The layout at half its size; where its vectors would be, nothing is.
        matrices: Span,
        /// Each vector's range of the layout, and its place, in the order of the layout.
        vectors: Vec<(Span, Span)>,
    },
    /// Nowhere for long: they are brought unit by unit.
    Visiting(Visiting),
}

/// Where units are, while they are here.
#[derive(Debug)]
pub(crate) struct Visiting {
    /// Each unit's range of the layout, and first element of its place; by growing range.
    units: Vec<(Span, AtomicUsize)>,
}

impl Visiting {
    /// The place of a unit that is not here.
    const AWAY: usize = usize::MAX;

    fn find(&self, tensor: Span) -> &(Span, AtomicUsize) {
        let before = self.units.partition_point(|(range, _)| range.start <= tensor.start);
        &self.units[before - 1]
    }

    /// Where a part of a unit lies; one without elements is nowhere.
    fn place(&self, tensor: Span) -> Span {
        if tensor.is_empty() {
            return tensor;
        }
        let (range, place) = self.find(tensor);
        let start = place.load(Ordering::Relaxed);
        assert_ne!(start, Self::AWAY, "a unit is here while its weights are read");
        Span::new(start, range.len).part(tensor.start - range.start, tensor.len)
    }
}

impl Weights {
    /// Room for f32.
    pub(crate) fn masters(device: &dyn Device, parameters: &Parameters) -> Result<Self> {
        Ok(Self::Masters(device.allocate(parameters.layout.len())?, Prepared::default()))
    }

    /// Adds room for what products take of masters, where that differs from them.
    pub(crate) fn prepare(
        &mut self,
        device: &dyn Device,
        config: &ModelConfig,
        parameters: &Parameters,
    ) -> Result<()> {
        if let (Self::Masters(_, prepared), Precision::Bf16) = (self, device.precision()) {
            *prepared = Prepared::new(device, config, parameters)?;
        }
        Ok(())
    }

    /// Room for matrices in bf16.
    pub(crate) fn halves(device: &dyn Device, parameters: &Parameters) -> Result<Self> {
        let matrices = device.allocate(Format::Bf16.places(parameters.layout.len()))?;
        let vectors = parameters.layout.tensors().iter().filter(|tensor| tensor.shape.len() == 1);
        let place = |span: Span| Ok((span, device.allocate(span.len)?));
        Ok(Self::Halves {
            matrices,
            vectors: vectors.map(|tensor| place(tensor.span())).collect::<Result<_>>()?,
        })
    }

    /// Room for nothing.
    pub(crate) fn visiting(parameters: &Parameters) -> Self {
        let away = |(_, range): &(Unit, Span)| (*range, AtomicUsize::new(Visiting::AWAY));
        Self::Visiting(Visiting { units: parameters.units().iter().map(away).collect() })
    }

    /// Whether units have to be brought.
    pub(crate) fn visits(&self) -> bool {
        matches!(self, Self::Visiting(_))
    }

    /// Says where a unit that was brought is, or that it is gone.
    pub(crate) fn stand(&self, range: Span, place: Option<Span>) {
        if let Self::Visiting(visiting) = self {
            let start = place.map_or(Visiting::AWAY, |place| place.start);
            visiting.find(range).1.store(start, Ordering::Relaxed);
        }
    }

    /// The f32 of the whole layout; `None` where matrices are not kept so.
    pub(crate) fn span(&self) -> Option<Span> {
        match self {
            Self::Masters(span, _) => Some(*span),
            Self::Halves { .. } | Self::Visiting(_) => None,
        }
    }

    /// Bytes of memory that they take.
    pub(crate) fn bytes(&self) -> usize {
        let places = match self {
            Self::Masters(span, _) => span.len,
            Self::Halves { matrices, vectors } => {
                matrices.len + vectors.iter().map(|(_, place)| place.len).sum::<usize>()
            }
            Self::Visiting(_) => 0,
        };
        places * size_of::<f32>()
    }

    /// A matrix of the layout, to be looked up in.
    pub(crate) fn table(&self, tensor: Span) -> Matrix {
        match self {
            Self::Masters(all, _) => all.part(tensor.start, tensor.len).into(),
            Self::Halves { matrices, .. } => Matrix { span: halved(*matrices, tensor), format: Format::Bf16 },
            Self::Visiting(visiting) => visiting.place(tensor).into(),
        }
    }

    /// A linear layer's weight, to be multiplied.
    pub(crate) fn weight(&self, tensor: Span, forward: bool) -> Weight {
        match self {
            Self::Masters(_, prepared) => prepared.find(tensor, forward),
            Self::Halves { .. } | Self::Visiting(_) => None,
        }
        .unwrap_or_else(|| self.table(tensor).into())
    }

    /// Prepares again what has changed since it was.
    pub(crate) fn refresh(&self, device: &dyn Device) {
        if let Self::Masters(all, prepared) = self {
            prepared.refresh(device, *all);
        }
    }

    /// Says that masters have changed.
    pub(crate) fn changed(&self) {
        if let Self::Masters(_, prepared) = self {
            prepared.outdate();
        }
    }

    /// A vector of the layout.
    pub(crate) fn vector(&self, tensor: Span) -> Span {
        match self {
            Self::Masters(all, _) => all.part(tensor.start, tensor.len),
            Self::Halves { vectors, .. } => {
                vector_of(vectors, tensor).expect("a norm's weight or a bias is a vector of the layout")
            }
            Self::Visiting(visiting) => visiting.place(tensor),
        }
    }

    /// Sets a range of the layout that lies in one tensor and, in a matrix, begins with an even element of it.
    pub(crate) fn put(&self, device: &dyn Device, span: Span, values: &[f32]) {
        match self {
            Self::Masters(all, prepared) => {
                device.write(all.part(span.start, span.len), values);
                prepared.outdate();
            }
            Self::Halves { matrices, vectors } => match vector_of(vectors, span) {
                Some(place) => device.write(place, values),
                None => device.write_bf16(halved(*matrices, span), values),
            },
            Self::Visiting(_) => panic!("who brings a model's weights sets them, too"),
        }
    }
}

/// The places of a range of matrices.
fn halved(matrices: Span, span: Span) -> Span {
    assert!(span.start.is_multiple_of(2), "a range of bf16 begins with an even element");
    matrices.part(span.start / 2, Format::Bf16.places(span.len))
}

/// The place of a range of a vector, if it lies in one.
fn vector_of(vectors: &[(Span, Span)], span: Span) -> Option<Span> {
    let before = vectors.partition_point(|(tensor, _)| tensor.start <= span.start);
    let (tensor, place) = vectors[..before].last()?;
    (span.end() <= tensor.end()).then(|| place.part(span.start - tensor.start, span.len))
}
