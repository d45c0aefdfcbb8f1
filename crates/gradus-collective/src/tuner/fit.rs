//! From times of exchanges to figures of links.
//!
//! In an *exchange* every rank sends to another one and takes in from one, all at once: that is a hop of most algorithms, and it
//! loads what ranks share (a bus, a network card, too few processors) as they do. The model says that one of `hops` hops with a message of `s` bytes each takes
//! `start + hops (alpha + 2 overhead + s (2 beta + gamma))`, the last term where it adds; of several messages in a hop only the
//! first waits for alpha ([`SmallTimes::overhead`]).

use super::exchange::blocks_of;
use crate::cost::{Link, LinkFigures, LinkProfile, Rates};
use gradus_error::{Error, Result};

/// Hops, and messages of a hop, of the exchanges that tell these apart.
pub(super) const HOPS: usize = 5;
pub(super) const MESSAGES: usize = 8;

/// Below so many seconds a byte nobody moves it: an exchange that seems faster was measured badly.
const LEAST_SECONDS_PER_BYTE: f64 = 1e-12;

/// Seconds of exchanges of next to nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SmallTimes {
    /// One message.
    pub(super) one: f64,
    /// [`HOPS`] hops of one message, one after another.
    pub(super) hops: f64,
    /// One hop of [`MESSAGES`] messages.
    pub(super) messages: f64,
}

/// Seconds of an exchange of a whole buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BufferTimes {
    pub(super) bytes: u64,
    /// How often it was exchanged.
    pub(super) rounds: usize,
    pub(super) copied: f64,
    pub(super) added: f64,
}

/// All that was timed on links of one level, by growing buffer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Times {
    pub(super) small: SmallTimes,
    pub(super) buffers: Vec<BufferTimes>,
}

/// The links' profile. A level that was not measured is taken to be like the other one; where neither was, the profile is
/// the default.
///
/// # Errors
/// `Invalid` for times that no links have.
pub(super) fn fit(inside: Option<&Times>, across: Option<&Times>) -> Result<LinkProfile> {
    let Some((near, far)) = inside.or(across).zip(across.or(inside)) else {
        return Ok(LinkProfile::default());
    };
    near.check()?;
    far.check()?;
    let rates = near.buffers.iter().map(|buffer| {
        let inside = near.small.rates(buffer);
        // The other level may have stopped at a smaller size.
        let other = far.buffers.iter().rev().find(|other| other.bytes <= buffer.bytes);
        Rates {
            across_bytes_per_s: other.map_or(inside, |other| far.small.rates(other)).inside_bytes_per_s,
            ..inside
        }
    });
    let rates: Vec<Rates> = rates.collect();
    let (first, start_us) = (rates.first().copied(), near.small.start() * 1e6);
    let first = first.ok_or_else(|| Error::internal("at least one buffer is measured"))?;
    let figures = LinkFigures {
        inside: near.small.link(first.inside_bytes_per_s),
        across: far.small.link(first.across_bytes_per_s),
        reduction_bytes_per_s: first.reduction_bytes_per_s,
        // What ranks share was shared while they were measured.
        nic_bytes_per_s: None,
        bus_bytes_per_s: None,
        start_us: rounded(start_us),
        one_at_a_time: true,
        ..LinkFigures::default()
    };
    let profile = LinkProfile { figures, rates, neighbours: None };
    profile.validate()?;
    Ok(profile)
}

/// To as many digits as mean anything: so few survive being written and read to the bit, again and again.
pub(super) fn rounded(figure: f64) -> f64 {
    format!("{figure:.5e}").parse().expect("a number that was just written can be read")
}

impl Times {
    fn check(&self) -> Result<()> {
        let SmallTimes { one, hops, messages } = self.small;
        let buffers = self.buffers.iter().flat_map(|buffer| [buffer.copied, buffer.added]);
        match buffers.chain([one, hops, messages]).find(|time| !(*time > 0.0 && time.is_finite())) {
            None => Ok(()),
            Some(time) => Err(Error::invalid(format!("an exchange took {time} s, which is no time"))),
        }
    }
}

impl SmallTimes {
    /// Seconds of a hop.
    fn hop(&self) -> f64 {
        ((self.hops - self.one) / (HOPS - 1) as f64).clamp(0.0, self.one)
    }

    /// Seconds of a collective as such.
    fn start(&self) -> f64 {
        self.one - self.hop()
    }

    /// Seconds of a message for either end. A rank that exchanges many at once sends all and takes in all, and waits for the
    /// latency only where sending takes less: `messages - one` is `2 (MESSAGES - 1) overhead - alpha`, or, where alpha is
    /// longer than all sends but the first, `(MESSAGES - 1) overhead`.
    fn overhead(&self) -> f64 {
        let (more, hop, messages) = (self.messages - self.one, self.hop(), MESSAGES as f64);
        let hidden = (more + hop) / (2.0 * messages);
        let overhead = if hop <= hidden * (messages + 1.0) { hidden } else { more / (messages - 1.0) };
        overhead.clamp(0.0, hop / 2.0)
    }

    fn link(&self, bandwidth_bytes_per_s: f64) -> Link {
        Link {
            latency_us: rounded((self.hop() - 2.0 * self.overhead()) * 1e6),
            bandwidth_bytes_per_s,
            message_overhead_us: rounded(self.overhead() * 1e6),
        }
    }

    /// Rates on a buffer: those of the link stand as the inner ones.
    fn rates(&self, buffer: &BufferTimes) -> Rates {
        let bytes = buffer.bytes as f64;
        // Behind a block that takes longer to send the latency of the next one is not seen.
        let (rounds, blocks) = (buffer.rounds as f64, blocks_of(buffer.bytes).max(1) as f64);
        let fixed = self.one + (rounds - 1.0) * self.hop() + rounds * (blocks - 1.0) * 2.0 * self.overhead();
        let twice_beta = ((buffer.copied - fixed) / bytes / rounds).max(LEAST_SECONDS_PER_BYTE);
        let gamma = ((buffer.added - buffer.copied) / bytes / rounds).max(LEAST_SECONDS_PER_BYTE);
        let bytes_per_s = rounded(2.0 / twice_beta);
        Rates {
            buffer_bytes: buffer.bytes,
            inside_bytes_per_s: bytes_per_s,
            across_bytes_per_s: bytes_per_s,
            reduction_bytes_per_s: rounded(1.0 / gamma),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::exchange::{Level, Neighbours};
    use super::*;
    use crate::algorithm::Nodes;
    use crate::cost::price_of_plan;
    use crate::plan::{Plan, Step};
    use gradus_error::Kind;
    use proptest::prelude::*;

    /// What the exchanges of a level take on links of these figures.
    fn times(figures: &LinkFigures, level: Level, nodes: &Nodes, buffers: &[u64]) -> Times {
        let seconds = |steps: &dyn Fn(&Neighbours) -> Vec<Step>| {
            let of_rank = |rank: usize| steps(&level.neighbours(nodes, rank).unwrap());
            let plan = Plan::of_world(nodes.world_size(), 0, of_rank);
            price_of_plan(&plan, nodes, 4, figures).unwrap().seconds
        };
        let whole = |bytes: u64, adds: bool| seconds(&|circle| circle.buffer(bytes as usize / 4, adds));
        Times {
            small: SmallTimes {
                one: seconds(&|circle| circle.hops(1)),
                hops: seconds(&|circle| circle.hops(HOPS)),
                messages: seconds(&|circle| circle.messages(MESSAGES)),
            },
            buffers: buffers
                .iter()
                .map(|bytes| BufferTimes {
                    bytes: *bytes,
                    rounds: level.rounds(nodes),
                    copied: whole(*bytes, false),
                    added: whole(*bytes, true),
                })
                .collect(),
        }
    }

    fn is_near(got: f64, want: f64) -> bool {
        (got / want - 1.0).abs() < 0.05
    }

    proptest! {
        /// The model is found again from what it says of the exchanges.
        #[test]
        fn links_of_the_model_are_found_from_its_own_times(
            world_size in 2usize..6, latency_us in 5.0f64..50.0, overhead_us in 1.0f64..9.0,
            start_us in 0.1f64..9.0, inside in 4e9f64..2e10, across in 4e9f64..2e10, adding in 4e9f64..3e10
        ) {
            let link = |bandwidth_bytes_per_s| {
                Link { latency_us, bandwidth_bytes_per_s, message_overhead_us: overhead_us }
            };
            let figures = LinkFigures {
                inside: link(inside), across: link(across), reduction_bytes_per_s: adding, start_us,
                nic_bytes_per_s: None, bus_bytes_per_s: None, ..LinkFigures::default()
            };
            let buffers = [1 << 20, 1 << 24];
            let near = times(&figures, Level::Inside, &Nodes::even(world_size, world_size), &buffers);
            let far = times(&figures, Level::Across, &Nodes::even(world_size, 1), &buffers);
            let found = fit(Some(&near), Some(&far)).unwrap();
            for (got, want) in [
                (found.figures.start_us, start_us),
                (found.figures.inside.latency_us, latency_us),
                (found.figures.across.message_overhead_us, overhead_us),
                (found.at(1 << 24).inside.bandwidth_bytes_per_s, inside),
                (found.at(1 << 24).across.bandwidth_bytes_per_s, across),
                (found.at(1 << 24).reduction_bytes_per_s, adding),
            ] {
                prop_assert!(is_near(got, want), "{} is not {}: {:?}", got, want, found);
            }
        }

        #[test]
        fn no_times_panic(times in proptest::collection::vec(any::<f64>(), 5)) {
            let small = SmallTimes { one: times[0], hops: times[1], messages: times[2] };
            let buffers = vec![BufferTimes { bytes: 1 << 20, rounds: 1, copied: times[3], added: times[4] }];
            if let Ok(profile) = fit(Some(&Times { small, buffers }), None) {
                prop_assert!(profile.validate().is_ok());
            }
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(times in proptest::collection::vec(1e-9f64..1.0, 5)) {
            let small = SmallTimes { one: times[0], hops: times[1], messages: times[2] };
            let buffers = vec![BufferTimes { bytes: 1 << 20, rounds: 1, copied: times[3], added: times[4] }];
            let profile = fit(Some(&Times { small, buffers }), None).unwrap();
            let record = serde_json::to_string(&profile).unwrap();
            prop_assert_eq!(serde_json::from_str::<LinkProfile>(&record).unwrap(), profile);
        }
    }

    #[test]
    fn what_was_not_measured_is_like_the_other_level_or_the_default() {
        assert_eq!(fit(None, None).unwrap(), LinkProfile::default());
        let near = times(&LinkFigures::default(), Level::Inside, &Nodes::even(2, 2), &[4096, 8192]);
        let profile = fit(Some(&near), None).unwrap();
        assert_eq!(profile.figures.inside, profile.figures.across);
        assert_eq!(profile, fit(None, Some(&near)).unwrap());
    }

    #[test]
    fn times_that_are_none_are_refused() {
        let mut near = times(&LinkFigures::default(), Level::Inside, &Nodes::even(2, 2), &[4096]);
        near.small.hops = f64::NAN;
        assert_eq!(*fit(Some(&near), None).unwrap_err().kind(), Kind::Invalid);
    }
}
