//! Objects in several places: each is read where it lies.

use super::buffers::Buffer;
use super::stalls::Cause;
use super::unit::Origin;
use crate::blocks::BlockMap;
use crate::bucket::BucketCounters;
use crate::cache::Fill;
use gradus_error::Result;
use std::ops::Range;
use std::sync::Arc;

/// The places, in the order of their objects.
pub(super) struct Several {
    origins: Vec<Arc<dyn Origin>>,
    /// Of each object, which place it is in.
    place: Vec<usize>,
    map: Arc<BlockMap>,
}

impl Several {
    /// So many objects of `map` in each, none left over. A place without objects is none.
    pub fn new(parts: impl Iterator<Item = (usize, Arc<dyn Origin>)>, map: Arc<BlockMap>) -> Self {
        let (counts, origins): (Vec<usize>, Vec<_>) = parts.unzip();
        let of_one = |(place, objects): (usize, &usize)| std::iter::repeat_n(place, *objects);
        let place = counts.iter().enumerate().flat_map(of_one).collect();
        Self { origins, place, map }
    }

    fn of(&self, object: u32) -> &dyn Origin {
        self.origins[self.place[object as usize]].as_ref()
    }
}

impl Origin for Several {
    fn begin(&self, fills: Vec<Fill>) {
        // They are of one object.
        let Some(first) = fills.first().map(Fill::block) else { return };
        self.of(self.map.object_of(first) as u32).begin(fills);
    }

    fn read(&self, object: u32, range: Range<u64>) -> Result<Buffer> {
        self.of(object).read(object, range)
    }

    fn expect(&self, object: u32, range: Range<u64>) {
        self.of(object).expect(object, range);
    }

    fn cause(&self, object: u32) -> Cause {
        self.of(object).cause(object)
    }

    fn is_near(&self, object: u32) -> bool {
        self.of(object).is_near(object)
    }

    fn counters(&self) -> BucketCounters {
        self.origins.iter().map(|origin| origin.counters()).sum()
    }
}
