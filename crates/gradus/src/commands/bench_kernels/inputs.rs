//! Inputs that two programs make alike: each number follows from its tensor's number and its place.
//!
//! Invariant: `python/bench_kernels.py` holds the same functions.

/// Longer tensors repeat themselves after so many elements: making numbers costs the peer seconds.
const PERIOD: usize = 1 << 22;

/// 32 bits of a place in a tensor: MurmurHash3's final mix (Appleby 2011).
fn hash(index: usize, tensor: u32) -> u32 {
    let mut h = (index % PERIOD) as u32 ^ tensor.wrapping_mul(0x9e37_79b9);
    h = (h ^ h >> 16).wrapping_mul(0x85eb_ca6b);
    h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

/// Elements spread evenly over `[-scale, scale)`; with `round`, each a bf16. 24 bits of the hash, so that every number
/// is exact in f32 before it is scaled.
pub fn values(len: usize, tensor: u32, scale: f32, round: bool) -> Vec<f32> {
    let value = |index: usize| {
        let unit = (hash(index, tensor) >> 8) as f32 / 8_388_608.0 - 1.0;
        let value = unit * scale;
        if round { bf16(value) } else { value }
    };
    let mut values: Vec<f32> = (0..len.min(PERIOD)).map(value).collect();
    while values.len() < len {
        values.extend_from_within(..PERIOD.min(len - values.len()));
    }
    values
}

/// To the nearest bf16, ties to even; of a finite number.
fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Tokens below `vocabulary`.
pub fn tokens(len: usize, tensor: u32, vocabulary: usize) -> Vec<u32> {
    (0..len).map(|index| hash(index, tensor) % vocabulary as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_the_peer_makes() {
        // As python/bench_kernels.py prints them for `values(3, 1, 0.5, ...)` and `tokens(3, 2, 4096)`.
        assert_eq!(values(3, 1, 0.5, false), [0.073_397_58, -0.285_664_26, 0.204_133_69]);
        assert_eq!(tokens(3, 2, 4096), [1011, 912, 1700]);
        assert!(values(1000, 1, 0.5, true).iter().all(|value| value.to_bits() & 0xffff == 0));
    }

    #[test]
    fn long_tensors_repeat() {
        let long = values(PERIOD + 5, 3, 1.0, false);
        assert_eq!(long[..5], long[PERIOD..]);
    }
}
