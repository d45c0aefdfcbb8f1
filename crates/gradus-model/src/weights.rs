//! Where a model's weights are, and how they are kept.
//!
//! What learns keeps the masters that the optimizer changes: in f32, or matrices in bf16; and, where that is asked for and its device
//! multiplies in bf16, each linear layer's weight [prepared](crate::prepared) for its products. What only runs may keep matrices as its
//! device multiplies them, in bf16: half the memory, and half of what each token written costs to read. Vectors (norms, biases) stay f32.

use crate::config::ModelConfig;
use crate::parameters::{Parameters, Unit};
use crate::places::Places;
use crate::prepared::Prepared;
use gradus_compute::{Device, Format, Matrix, Precision, Weight};
use gradus_error::Result;
use gradus_memory::Span;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights of one model.
#[derive(Debug)]
pub(crate) struct Weights {
    places: Places,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    /// All of them are here, each at its place.
    Here(Span, Prepared),
    /// Nowhere for long: they are brought unit by unit.
    Visiting(Visiting),
}

/// Where units are, while they are here.
#[derive(Debug)]
struct Visiting {
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

    /// The first element of a tensor's unit, and where it lies.
    fn place(&self, tensor: Span) -> (usize, usize) {
        let (range, place) = self.find(tensor);
        let start = place.load(Ordering::Relaxed);
        assert_ne!(start, Self::AWAY, "a unit is here while its weights are read");
        (range.start, start)
    }
}

impl Weights {
    /// Room for all, matrices in a format.
    pub(crate) fn here(device: &dyn Device, parameters: &Parameters, matrices: Format) -> Result<Self> {
        let places = Places::new(&parameters.layout, matrices);
        let all = device.allocate(places.len())?;
        Ok(Self { places, memory: Memory::Here(all, Prepared::default()) })
    }

    /// Adds room for what products take of weights, where that differs from them.
    pub(crate) fn prepare(
        &mut self,
        device: &dyn Device,
        config: &ModelConfig,
        parameters: &Parameters,
    ) -> Result<()> {
        if let (Memory::Here(_, prepared), Precision::Bf16) = (&mut self.memory, device.precision()) {
            *prepared = Prepared::new(device, config, parameters)?;
        }
        Ok(())
    }

    /// Room for nothing; what is brought has its matrices in a format.
    pub(crate) fn visiting(parameters: &Parameters, matrices: Format) -> Self {
        let away = |(_, range): &(Unit, Span)| (*range, AtomicUsize::new(Visiting::AWAY));
        let units = parameters.units().iter().map(away).collect();
        let places = Places::new(&parameters.layout, matrices);
        Self { places, memory: Memory::Visiting(Visiting { units }) }
    }

    /// Whether units have to be brought.
    pub(crate) fn visits(&self) -> bool {
        matches!(self.memory, Memory::Visiting(_))
    }

    /// Says where a unit that was brought is, or that it is gone.
    pub(crate) fn stand(&self, range: Span, place: Option<Span>) {
        if let Memory::Visiting(visiting) = &self.memory {
            let start = place.map_or(Visiting::AWAY, |place| place.start);
            visiting.find(range).1.store(start, Ordering::Relaxed);
        }
    }

    /// Where each weight lies in the memory of all, or of its unit.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// The memory of all; `None` where they are brought.
    pub(crate) fn span(&self) -> Option<Span> {
        match self.memory {
            Memory::Here(all, _) => Some(all),
            Memory::Visiting(_) => None,
        }
    }

    /// Bytes of memory that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.span().map_or(0, |all| all.len) * size_of::<f32>()
    }

    /// A matrix of the layout, to be looked up in; one without elements is nowhere.
    pub(crate) fn table(&self, tensor: Span) -> Matrix {
        if tensor.is_empty() {
            return tensor.into();
        }
        let from = match &self.memory {
            Memory::Here(all, _) => (0, all.start),
            Memory::Visiting(visiting) => visiting.place(tensor),
        };
        self.places.matrix(tensor, from)
    }

    /// A linear layer's weight, to be multiplied.
    pub(crate) fn weight(&self, tensor: Span, forward: bool) -> Weight {
        match &self.memory {
            Memory::Here(_, prepared) => prepared.find(tensor, forward),
            Memory::Visiting(_) => None,
        }
        .unwrap_or_else(|| self.table(tensor).into())
    }

    /// Prepares again what has changed since it was.
    pub(crate) fn refresh(&self, device: &dyn Device) {
        if let Memory::Here(_, prepared) = &self.memory {
            prepared.refresh(device, |tensor| self.table(tensor));
        }
    }

    /// Says that weights have changed.
    pub(crate) fn changed(&self) {
        if let Memory::Here(_, prepared) = &self.memory {
            prepared.outdate();
        }
    }

    /// A vector of the layout.
    pub(crate) fn vector(&self, tensor: Span) -> Span {
        let Matrix { span, format } = self.table(tensor);
        assert_eq!(format, Format::F32, "a norm's weight or a bias is a vector of the layout");
        span
    }

    /// Sets a range of the layout that lies in one tensor and, in a matrix, begins with an even element of it.
    pub(crate) fn put(&self, device: &dyn Device, span: Span, values: &[f32]) {
        assert!(!self.visits(), "who brings a model's weights sets them, too");
        let Matrix { span: place, format } = self.table(span);
        match format {
            Format::F32 => device.write(place, values),
            Format::Bf16 => device.write_bf16(place, values),
        }
        self.changed();
    }

    /// Reads a range of the layout that begins, in a matrix, with an even element; `None` where weights are brought.
    pub(crate) fn get(&self, device: &dyn Device, span: Span) -> Option<Vec<f32>> {
        let all = Span::new(0, usize::MAX);
        let mut values = vec![0.0; span.len];
        for (range, Matrix { span: place, format }) in self.places.pieces((all, self.span()?), span) {
            let values = &mut values[range.start - span.start..][..range.len];
            match format {
                Format::F32 => device.read(place, values),
                Format::Bf16 => device.read_bf16(place, values),
            }
        }
        Some(values)
    }
}
