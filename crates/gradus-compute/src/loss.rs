//! What a loss asks of a device where ranks share out the vocabulary.

use crate::device::IGNORED;

/// The loss of logits of which each of several ranks holds some columns (Shoeybi et al. 2019, "Megatron-LM", section 3): no
/// rank sees a whole row. In three passes, with two exchanges of a few numbers for each row between them:
///
/// 1. [`Device::cross_entropy_maxima`](crate::Device::cross_entropy_maxima); the ranks take the largest of `maxima[M]`;
/// 2. [`Device::cross_entropy_sums`](crate::Device::cross_entropy_sums); the ranks add up `sums[2, M]`;
/// 3. [`Device::cross_entropy_losses`](crate::Device::cross_entropy_losses).
///
/// A rank that holds all columns comes to the bits of [`Device::cross_entropy`](crate::Device::cross_entropy).
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropyPart<'a> {
    /// The right token for each row, whoever holds its logit, or [`IGNORED`].
    pub targets: &'a [u32],
    /// `V`: tokens of the whole vocabulary.
    pub vocabulary: usize,
    /// The token whose logits are the first column here.
    pub first: usize,
    /// Tokens whose logits are here, from there on; none where a rank holds padding only.
    pub tokens: usize,
    /// Logits per row here: those behind the tokens' are padding and take no part.
    pub width: usize,
    /// Whether logits become their gradient. Without, their content is as it was.
    pub gradient: bool,
}

impl CrossEntropyPart<'_> {
    /// The column of a target, if it is here.
    #[inline(always)]
    pub(crate) fn column(&self, target: u32) -> Option<usize> {
        (target as usize).checked_sub(self.first).filter(|column| *column < self.tokens)
    }

    /// # Panics
    /// If the part is not one of its vocabulary, or a target is outside of that: bugs of the caller.
    #[track_caller]
    pub(crate) fn check(&self) {
        assert!(self.tokens <= self.width, "there are more tokens than logits in a row");
        let inside = self.tokens == 0 || self.first + self.tokens <= self.vocabulary;
        assert!(inside, "tokens from {} on are outside a vocabulary of {}", self.first, self.vocabulary);
        check_targets(self.targets, self.vocabulary);
    }
}

/// # Panics
/// If a target that counts is no token of the vocabulary.
#[track_caller]
pub(crate) fn check_targets(targets: &[u32], vocabulary: usize) {
    let outside = targets.iter().find(|target| **target != IGNORED && **target as usize >= vocabulary);
    assert!(outside.is_none(), "target {outside:?} is outside a vocabulary of {vocabulary}");
}
