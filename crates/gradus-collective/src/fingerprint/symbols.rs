//! What an element holds.

/// What one rank brought in one place, or the sum of two.
pub(super) trait Symbol: Clone {
    /// What `rank` of a world brought at an atom.
    fn brought(rank: usize, atom: usize, world_size: usize) -> Self;

    /// Adds another.
    fn add(&mut self, other: &Self);
}

/// The prime below which contents are counted.
const PRIME: u64 = (1 << 61) - 1;

/// Two fingerprints that are equal stand for equal bits; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fingerprint {
    content: u64,
    bracketing: u64,
}

impl Fingerprint {
    /// Of nothing.
    pub(super) const EMPTY: Self = Self { content: 0, bracketing: 0 };

    /// Whether both hold the same contributions, as often.
    pub(super) const fn has_content_of(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

impl Symbol for Fingerprint {
    fn brought(rank: usize, atom: usize, _: usize) -> Self {
        let place = (rank as u64) << 32 | atom as u64;
        let content = mixed(place ^ 0x6A09_E667_F3BC_C908) % PRIME;
        Self { content, bracketing: mixed(place ^ 0xBB67_AE85_84CA_A73B) }
    }

    fn add(&mut self, other: &Self) {
        self.content = (self.content + other.content) % PRIME;
        let (less, more) = (self.bracketing.min(other.bracketing), self.bracketing.max(other.bracketing));
        self.bracketing = mixed(mixed(less) ^ more.rotate_left(32));
    }
}

/// A bijection of words that looks like chance (the finalizer of SplitMix64: Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", OOPSLA 2014).
pub(super) const fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}

/// Ranks that an element has heard of, 64 to a word.
#[derive(Clone)]
pub(super) struct Ranks {
    words: Vec<u64>,
    world_size: usize,
}

impl Ranks {
    /// Whether nobody is missing.
    pub(super) fn is_everybody(&self) -> bool {
        self.words.iter().map(|word| word.count_ones() as usize).sum::<usize>() == self.world_size
    }
}

impl Symbol for Ranks {
    fn brought(rank: usize, _: usize, world_size: usize) -> Self {
        let mut words = vec![0; world_size.div_ceil(64)];
        words[rank / 64] = 1 << (rank % 64);
        Self { words, world_size }
    }

    fn add(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine |= theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_commute_and_remember_their_bracketing() {
        let [a, b, c] = [0, 1, 2].map(|rank| Fingerprint::brought(rank, 5, 3));
        let sum = |mut left: Fingerprint, right: Fingerprint| {
            left.add(&right);
            left
        };
        assert_eq!(sum(a, b), sum(b, a));
        let (left, right) = (sum(sum(a, b), c), sum(a, sum(b, c)));
        assert!(left.has_content_of(&right) && left != right);
        assert!(!sum(a, a).has_content_of(&sum(a, b)));
        assert!(!a.has_content_of(&Fingerprint::brought(0, 6, 3)));
    }
}
