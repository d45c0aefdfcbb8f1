//! What elements are, and how those of several ranks become one.

use gradus_compute::reduce::{self, Combinable, Combine, Divisible};
use gradus_error::{Error, Result};
use half::{bf16, f16};
use std::fmt;

/// The type of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Element {
    /// IEEE 754 binary32.
    F32 = 1,
    /// IEEE 754 binary64.
    F64 = 2,
    /// A byte: an unsigned integer of 8 bits.
    U8 = 3,
    /// IEEE 754 binary16.
    F16 = 4,
    /// The upper half of a binary32.
    Bf16 = 5,
    /// A signed integer of 32 bits.
    I32 = 6,
    /// A signed integer of 64 bits.
    I64 = 7,
}

impl Element {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::F32, Self::F64, Self::U8, Self::F16, Self::Bf16, Self::I32, Self::I64];

    /// Bytes of one; its alignment too.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    const fn is_integer(self) -> bool {
        matches!(self, Self::U8 | Self::I32 | Self::I64)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::U8 => "bytes",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
            Self::I64 => "i64",
        })
    }
}

/// A number that collectives move: any bits are one, and its size is its alignment.
///
/// # Safety
/// Implemented for exactly the types of [`Element`].
pub unsafe trait Number: Copy + Send + 'static {
    /// Its type.
    const ELEMENT: Element;
}

macro_rules! numbers {
    ($($number:ident $element:ident;)*) => { $(
        // SAFETY: one of the types of `Element`, and that one.
        unsafe impl Number for $number {
            const ELEMENT: Element = Element::$element;
        }
    )* };
}

numbers! { f32 F32; f64 F64; u8 U8; f16 F16; bf16 Bf16; i32 I32; i64 I64; }

/// How the contributions of ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reduction {
    /// Their sum; that of integers wraps around.
    Sum = 1,
    /// Their sum, divided by their number and rounded once more; not for integers.
    Mean = 2,
    /// The least; NaN if one is.
    Min = 3,
    /// The greatest; NaN if one is.
    Max = 4,
    /// Their product; that of integers wraps around.
    Product = 5,
}

impl Reduction {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Sum, Self::Mean, Self::Min, Self::Max, Self::Product];

    const fn combine(self) -> Combine {
        match self {
            Self::Sum | Self::Mean => Combine::Add,
            Self::Min => Combine::Minimum,
            Self::Max => Combine::Maximum,
            Self::Product => Combine::Multiply,
        }
    }

    /// Refuses a mean of integers.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn check(self, element: Element) -> Result<()> {
        if self == Self::Mean && element.is_integer() {
            return Err(Error::invalid(format!(
                "the mean of {element} is no integer: ask for the sum and divide it as you need, or use floats"
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Min => "min",
            Self::Max => "max",
            Self::Product => "product",
        })
    }
}

/// Combines `len` elements into `to`.
///
/// # Safety
/// `to` is aligned and valid for reads and writes of `len` elements, `from` valid for reads of as many; they are apart,
/// and nobody else touches either.
pub(crate) unsafe fn combine(
    element: Element,
    reduction: Reduction,
    to: *mut u8,
    from: *const u8,
    len: usize,
) {
    /// # Safety
    /// As for the function around it, with `T` as the elements' type.
    unsafe fn as_type<T: Combinable>(how: Combine, to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: the caller's word.
        unsafe { reduce::combine::<T>(how, to.cast(), from.cast(), len) }
    }
    let function = match element {
        Element::F32 => as_type::<f32>,
        Element::F64 => as_type::<f64>,
        Element::U8 => as_type::<u8>,
        Element::F16 => as_type::<f16>,
        Element::Bf16 => as_type::<bf16>,
        Element::I32 => as_type::<i32>,
        Element::I64 => as_type::<i64>,
    };
    // SAFETY: the caller's word; the type is the element's.
    unsafe { function(reduction.combine(), to, from, len) }
}

/// Divides `len` elements.
///
/// # Safety
/// `to` is aligned and valid for reads and writes of `len` elements, and nobody else touches them.
///
/// # Panics
/// For integers, whose mean [`Reduction::check`] refuses.
pub(crate) unsafe fn divide(element: Element, to: *mut u8, len: usize, by: usize) {
    /// # Safety
    /// As for the function around it, with `T` as the elements' type.
    unsafe fn as_type<T: Divisible>(to: *mut u8, len: usize, by: usize) {
        // SAFETY: the caller's word.
        unsafe { reduce::divide::<T>(to.cast(), len, by) }
    }
    let function = match element {
        Element::F32 => as_type::<f32>,
        Element::F64 => as_type::<f64>,
        Element::F16 => as_type::<f16>,
        Element::Bf16 => as_type::<bf16>,
        Element::U8 | Element::I32 | Element::I64 => unreachable!("the mean of integers is refused"),
    };
    // SAFETY: the caller's word; the type is the element's.
    unsafe { function(to, len, by) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn only_floats_have_a_mean() {
        for element in Element::ALL {
            let mean = Reduction::Mean.check(element);
            let integer = matches!(element, Element::U8 | Element::I32 | Element::I64);
            assert_eq!(mean.err().map(|error| error.kind().clone()), integer.then_some(Kind::Invalid));
            assert!(Reduction::Sum.check(element).is_ok());
        }
    }

    #[test]
    fn sizes_are_those_of_the_types() {
        fn size<T: Number>() -> (usize, usize, usize) {
            (T::ELEMENT.bytes(), size_of::<T>(), align_of::<T>())
        }
        let sizes =
            [size::<f32>(), size::<f64>(), size::<u8>(), size::<f16>(), size::<bf16>(), size::<i64>()];
        assert!(sizes.into_iter().all(|(named, size, align)| named == size && size == align), "{sizes:?}");
    }
}
