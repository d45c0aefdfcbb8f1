//! The samples of a run, by position in its order.

use crate::dataset::{Dataset, TokenFiles};
use crate::feed::{Asker, Cause, Feed, FeedCounters, Stalls};
use crate::order::Order;
use crate::sample_form::SampleForm;
use gradus_error::Result;
use gradus_host::{Clock, RealClock};
use std::ops::Range;
use std::sync::Arc;

/// Tokens to learn from or to evaluate on, wherever they lie.
///
/// Positions count on through all epochs. A reader asks for its own positions in rising order, each once; another is read
/// too, but may take longer.
pub trait Tokens: Send {
    /// Says at which position the run begins, before anything is read: what comes from afar begins to come.
    ///
    /// # Errors
    /// When nothing can be read at all.
    fn begin(&mut self, position: u64) -> Result<()>;

    /// Says which positions are read next, in this order; whoever fetches them may do so at once.
    ///
    /// # Errors
    /// As of [`Tokens::read`].
    fn expect(&mut self, positions: Range<u64>) -> Result<()> {
        let _ = positions;
        Ok(())
    }

    /// Reads the sample at `position` into `out[T + 1]`: inputs are all but its last token, targets all but its first.
    /// Blocks while it is on its way.
    ///
    /// # Errors
    /// `Invalid` when `out` has another length; `Corrupt` when the data were altered, or a token is beyond the vocabulary;
    /// what the disk, the bucket or a peer says once they were asked again as often as the settings allow.
    fn read(&mut self, position: u64, out: &mut [u32]) -> Result<()>;

    /// What this reader waited for, since it was made: its own waits only, whoever else reads by way of it.
    fn waits(&self) -> Stalls {
        Stalls::default()
    }

    /// What was read so far, by all ranks that read by way of this process; nothing where data are local files, and for
    /// ranks that ask another.
    fn counters(&self) -> Option<FeedCounters> {
        None
    }
}

/// Tokens in the shards of a folder.
pub struct FileTokens {
    files: TokenFiles,
    order: Arc<dyn Order>,
}

impl FileTokens {
    /// The samples of `files` in an order of as many.
    pub fn new(files: TokenFiles, order: Arc<dyn Order>) -> Self {
        Self { files, order }
    }
}

impl Tokens for FileTokens {
    fn begin(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, position: u64, out: &mut [u32]) -> Result<()> {
        self.files.read(self.order.sample_at(position), out)
    }
}

/// Tokens that a feed hands out: this process' own, or that of the rank which reads for all of its node.
pub struct FeedTokens {
    way: Way,
    form: SampleForm,
    bytes: Vec<u8>,
    waits: Stalls,
    clock: RealClock,
}

enum Way {
    Own(Arc<Feed>),
    Far(Asker),
}

impl FeedTokens {
    /// Samples of `dataset` out of this process' own feed.
    pub fn own(feed: Arc<Feed>, dataset: &Dataset) -> Self {
        Self::by(Way::Own(feed), dataset)
    }

    /// Samples of `dataset` by way of the rank that reads for this node.
    pub fn far(asker: Asker, dataset: &Dataset) -> Self {
        Self::by(Way::Far(asker), dataset)
    }

    fn by(way: Way, dataset: &Dataset) -> Self {
        Self {
            way,
            form: SampleForm::of(dataset.manifest()),
            bytes: Vec::new(),
            waits: Stalls::default(),
            clock: RealClock::new(),
        }
    }
}

impl Tokens for FeedTokens {
    fn begin(&mut self, position: u64) -> Result<()> {
        if let Way::Own(feed) = &self.way {
            feed.begin(position);
        }
        Ok(())
    }

    fn expect(&mut self, positions: Range<u64>) -> Result<()> {
        match &mut self.way {
            Way::Own(_) => Ok(()),
            Way::Far(asker) => asker.ask(positions),
        }
    }

    fn read(&mut self, position: u64, out: &mut [u32]) -> Result<()> {
        let Self { way, form, bytes, waits, clock } = self;
        let decoded = match way {
            Way::Own(feed) => form.decode(feed.sample_waited(position, waits)?.parts(), out),
            Way::Far(asker) => {
                let begin = clock.now();
                asker.read(position, bytes)?;
                waits.add(Cause::Keeper, clock.now().saturating_sub(begin));
                form.decode([&bytes[..]], out)
            }
        };
        decoded.map_err(|error| error.within(format!("the sample at position {position}")))
    }

    fn waits(&self) -> Stalls {
        self.waits
    }

    fn counters(&self) -> Option<FeedCounters> {
        match &self.way {
            Way::Own(feed) => Some(feed.counters()),
            Way::Far(_) => None,
        }
    }
}
