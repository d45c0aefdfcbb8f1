//! Memory for all gradients: where the other ranks reach it, if all of them can have it so.

use gradus_collective::{Collective, Communicator, Reduction};
use gradus_compute::Device;
use gradus_error::Result;
use gradus_memory::{HeapRange, Span};

/// Memory for gradients.
pub(crate) struct Kept {
    span: Span,
    /// Keeps it where the other ranks reach it.
    shared: Option<HeapRange>,
}

impl Kept {
    /// Takes memory for `len` elements that all ranks reach: sums copy less then. Where one rank cannot have it, none has,
    /// for a sum is carried out alike on all.
    ///
    /// # Errors
    /// `Exhausted` where memory does not suffice; those of the communicator.
    pub(crate) fn new(device: &dyn Device, len: usize, communicator: &mut Communicator) -> Result<Self> {
        let Some(heap) = communicator.heap() else { return Self::private(device, len) };
        let shared = device.allocate_shared(len, &heap);
        if let Err(error) = &shared {
            tracing::warn!("gradients stay private on all ranks, and sums copy more: {error}");
        }
        let mut all = [u8::from(shared.is_ok())];
        communicator.run_in_place(&Collective::all_reduce(Reduction::Min), &mut all)?;
        match shared {
            Ok((span, range)) if all == [1] => Ok(Self { span, shared: Some(range) }),
            _ => Self::private(device, len),
        }
    }

    /// Takes memory that nobody else reaches.
    ///
    /// # Errors
    /// `Exhausted` where memory does not suffice.
    pub(crate) fn private(device: &dyn Device, len: usize) -> Result<Self> {
        Ok(Self { span: device.allocate(len)?, shared: None })
    }

    pub(crate) const fn span(&self) -> Span {
        self.span
    }

    /// Whether the other ranks reach them where they lie.
    pub(crate) const fn are_shared(&self) -> bool {
        self.shared.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_collective::run_as_threads;
    use gradus_compute::{CpuDevice, Precision};
    use std::time::Duration;

    const LEN: usize = 5000;

    /// Whether the gradients of each rank are shared, on devices of so many elements.
    fn shared(capacities: [usize; 2]) -> Vec<bool> {
        let rank = |mut communicator: Communicator| {
            let device = CpuDevice::new(1, Precision::F32, capacities[communicator.rank()]).unwrap();
            let gradients = Kept::new(&device, LEN, &mut communicator).unwrap();
            assert_eq!(gradients.span().len, LEN);
            gradients.are_shared()
        };
        run_as_threads(2, Duration::from_secs(60), rank).unwrap()
    }

    #[test]
    fn all_ranks_share_or_none_does() {
        assert_eq!(shared([4 * LEN, 4 * LEN]), [true, true]);
        // Room for the elements, and none for the whole pages that sharing takes.
        assert_eq!(shared([4 * LEN, LEN + 16]), [false, false]);
    }

    #[test]
    fn alone_there_is_nobody_to_share_with() {
        let device = CpuDevice::new(1, Precision::F32, 4 * LEN).unwrap();
        assert!(!Kept::new(&device, LEN, &mut Communicator::alone()).unwrap().are_shared());
    }
}
