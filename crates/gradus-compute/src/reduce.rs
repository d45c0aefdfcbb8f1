//! Sums that collectives ask for, on memory that another process may hand over: raw addresses, never slices.

/// `to[i] += from[i]` for `len` elements.
///
/// # Safety
/// `to` is valid for reads and writes of `len` aligned elements, `from` for reads of `len` elements at any alignment;
/// they do not overlap, and nobody writes either meanwhile.
pub unsafe fn add_assign(to: *mut f32, from: *const f32, len: usize) {
    for i in 0..len {
        // SAFETY: i < len, and both are valid for len elements by the caller's word.
        unsafe { *to.add(i) += from.add(i).read_unaligned() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_elementwise_from_any_alignment() {
        let mut to = [1.0f32, 2.0, 3.0];
        let mut bytes = [0u8; 13];
        for (i, x) in [10.0f32, 20.0, 30.0].iter().enumerate() {
            bytes[1 + 4 * i..5 + 4 * i].copy_from_slice(&x.to_le_bytes());
        }
        // SAFETY: both hold three elements; bytes starts one byte off.
        unsafe { add_assign(to.as_mut_ptr(), bytes.as_ptr().add(1).cast(), 3) };
        assert_eq!(to, [11.0, 22.0, 33.0]);
    }
}
