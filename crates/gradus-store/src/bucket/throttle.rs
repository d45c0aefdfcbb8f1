//! How many requests may be under way: a pure machine.
//!
//! Slow start, additive increase, multiplicative decrease, as TCP does it (Jacobson, "Congestion Avoidance and Control",
//! 1988; RFC 5681, 3.1): requests that all begin together share what there is of network and processor, and all end late, the
//! first that is needed like the last. So the limit begins at some and grows with the answers, until the store first
//! asks for fewer requests. That halves it; from then on a limit's worth of answers in good order raises it by one.
//! Requests that were sent before the limit was halved say nothing about the new limit: their refusals do not halve it
//! again, or one moment of too much would leave a single request. Invariant: 1 <= limit <= most, and no more than the
//! limit begin.

/// Requests that may be under way at first, of as many as may ever be: those that 500 MB/s in samples of 100 KiB need at 50 ms.
const FIRST: usize = 256;

/// Answers that raise the limit by one before the first refusal. Slower than TCP's one or two, for the first requests have to be served
/// before more of them are of use: at 50 ms, of 2, 8 and 64 readers under a demand waited least with 8.
/// A first epoch at full speed is 1 to 11% faster with 2.
const ANSWERS_OF_SLOW_START: usize = 8;

/// The limit, and what is under way.
#[derive(Debug, Clone)]
pub(super) struct Throttle {
    most: usize,
    limit: usize,
    lowest: usize,
    under_way: usize,
    /// Counts the halvings.
    era: u64,
    /// Answers in good order since the limit last changed.
    good: usize,
}

/// A request under way. It must be given back.
#[derive(Debug)]
pub(super) struct Pass {
    era: u64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With an answer in good order.
    Good,
    /// The store asked for fewer requests.
    Throttled,
    /// Otherwise: it says nothing about how many may be sent.
    Neither,
}

impl Throttle {
    /// At most `most` requests, and at least one.
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, limit: most.min(FIRST), lowest: most, under_way: 0, era: 0, good: 0 }
    }

    /// Begins a request, if there is room.
    pub(super) fn begin(&mut self) -> Option<Pass> {
        (self.under_way < self.limit).then(|| {
            self.under_way += 1;
            Pass { era: self.era }
        })
    }

    /// Ends a request.
    #[allow(clippy::needless_pass_by_value, reason = "a pass is good for one request")]
    pub(super) fn end(&mut self, pass: Pass, how: Ended) {
        self.under_way -= 1;
        match how {
            Ended::Throttled if pass.era == self.era => {
                self.limit = (self.limit / 2).max(1);
                self.lowest = self.lowest.min(self.limit);
                self.era += 1;
                self.good = 0;
            }
            Ended::Good if self.limit < self.most => {
                self.good += 1;
                if self.good >= self.answers_for_one_more() {
                    self.limit += 1;
                    self.good = 0;
                }
            }
            _ => {}
        }
    }

    fn answers_for_one_more(&self) -> usize {
        if self.era == 0 { ANSWERS_OF_SLOW_START } else { self.limit }
    }

    /// Requests under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Requests that may be under way now.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The lowest limit that the store asked for so far; the most where it never did.
    pub(super) fn lowest(&self) -> usize {
        self.lowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_of_refusals_halves_once() {
        let mut throttle = Throttle::new(64);
        let passes: Vec<Pass> = std::iter::from_fn(|| throttle.begin()).collect();
        assert_eq!(passes.len(), 64);
        passes.into_iter().for_each(|pass| throttle.end(pass, Ended::Throttled));
        assert_eq!((throttle.limit(), throttle.lowest()), (32, 32));
        let pass = throttle.begin().unwrap();
        throttle.end(pass, Ended::Throttled);
        assert_eq!(throttle.limit(), 16, "a request of the new limit was refused");
    }

    #[test]
    fn it_grows_with_the_first_answers_until_one_is_a_refusal() {
        let mut throttle = Throttle::new(2 * FIRST);
        let mut answer = |how| {
            let pass = throttle.begin().unwrap();
            throttle.end(pass, how);
            throttle.limit()
        };
        let first = [Ended::Good; ANSWERS_OF_SLOW_START].map(&mut answer);
        assert_eq!((first[0], first[ANSWERS_OF_SLOW_START - 1]), (FIRST, FIRST + 1));
        assert_eq!(answer(Ended::Neither), FIRST + 1);
        let grown = (1..FIRST).map(|_| [Ended::Good; ANSWERS_OF_SLOW_START].map(&mut answer)).last();
        assert_eq!(grown.unwrap()[ANSWERS_OF_SLOW_START - 2..], [2 * FIRST - 1, 2 * FIRST]);
        assert_eq!([Ended::Good, Ended::Throttled].map(&mut answer), [2 * FIRST, FIRST]);
        assert_eq!([(); 8].map(|()| answer(Ended::Good)), [FIRST; 8]);
        assert_eq!(throttle.lowest(), FIRST);
    }

    #[test]
    fn good_answers_raise_it_to_the_most_again() {
        let mut throttle = Throttle::new(8);
        for _ in 0..3 {
            let pass = throttle.begin().unwrap();
            throttle.end(pass, Ended::Throttled);
        }
        assert_eq!(throttle.limit(), 1);
        // 1 + 2 + ... + 7 answers lead from 1 to 8.
        for _ in 0..28 {
            let pass = throttle.begin().unwrap();
            throttle.end(pass, Ended::Good);
        }
        assert_eq!((throttle.limit(), throttle.lowest()), (8, 1));
    }

    proptest! {
        #[test]
        fn no_more_than_the_limit_begin(most in 1usize..20, steps in prop::collection::vec(0u8..6, 0..300)) {
            let mut throttle = Throttle::new(most);
            let mut passes = Vec::new();
            for step in steps {
                let how = [Ended::Good, Ended::Throttled, Ended::Neither];
                match how.get(usize::from(step)) {
                    Some(how) => if let Some(pass) = passes.pop() { throttle.end(pass, *how) },
                    None => {
                        let room = passes.len() < throttle.limit();
                        let pass = throttle.begin();
                        prop_assert_eq!(pass.is_some(), room);
                        passes.extend(pass);
                    }
                }
                prop_assert!((1..=most).contains(&throttle.limit()));
                prop_assert_eq!(throttle.under_way(), passes.len());
            }
        }
    }
}
