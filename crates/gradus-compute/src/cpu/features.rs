//! Which kernels this processor can run, and which were asked for.

use super::amx;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Plain, Simd};
use gradus_error::{Error, Result};

/// Environment variable that forces a family of kernels.
pub const VARIABLE: &str = "GRADUS_CPU";

/// A family of kernels, by the name that [`VARIABLE`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Plain Rust, any processor.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512, and AVX512-BF16 where the processor has it.
    Avx512,
    /// AMX tiles for bf16 products, AVX-512 for the rest.
    Amx,
}

impl Kernels {
    /// All of them, slowest first.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Avx2, Self::Avx512, Self::Amx];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// Whether this processor can run them.
    pub fn supported(self) -> bool {
        match self {
            Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::<false>::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Avx512::<false>::detect().is_some() && amx::detect(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The fastest that this processor can run.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|kernels| kernels.supported()).unwrap_or(Self::Plain)
    }

    /// What [`VARIABLE`] asks for, else the fastest.
    ///
    /// # Errors
    /// `Invalid` when the variable names no family.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name),
            _ => Ok(Self::best()),
        }
    }

    fn named(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kernels| kernels.name() == name)
            .ok_or_else(|| Error::invalid(format!("{VARIABLE}={name}: choose one of {}", names(|_| true))))
    }

    /// Itself, if this processor can run it.
    ///
    /// # Errors
    /// `Invalid`, naming what it can run, otherwise.
    pub fn require(self) -> Result<Self> {
        if self.supported() {
            return Ok(self);
        }
        Err(Error::invalid(format!(
            "this processor cannot run the {} kernels: choose one of {} ({VARIABLE})",
            self.name(),
            names(Self::supported)
        )))
    }
}

fn names(keep: impl Fn(Kernels) -> bool) -> String {
    let kept: Vec<_> = Kernels::ALL.into_iter().filter(|kernels| keep(*kernels)).map(Kernels::name).collect();
    kept.join(", ")
}

/// The vectors of a family.
#[derive(Debug, Clone, Copy)]
pub enum Family {
    /// Plain Rust.
    Plain(Plain),
    /// Eight lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// Sixteen lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
}

/// Work of many operations, which is not compiled for a family as a whole.
pub trait Handed {
    /// Does it.
    fn take<S: super::simd::Simd>(self, s: S);
}

impl Family {
    /// The vectors that `kernels` use beside matrix products.
    ///
    /// # Errors
    /// `Invalid` where the processor has them not.
    pub fn of(kernels: Kernels) -> Result<Self> {
        kernels.require()?;
        #[cfg(target_arch = "x86_64")]
        let found = match kernels {
            Kernels::Plain => None,
            Kernels::Avx2 => Avx2::detect().map(Self::Avx2),
            Kernels::Avx512 | Kernels::Amx => Avx512::detect().map(Self::Avx512),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let found = None;
        Ok(found.unwrap_or(Self::Plain(Plain)))
    }

    /// The widest vectors of this processor: some nanoseconds. For what gives the same bits with all of them.
    pub fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = Avx512::detect().map(Self::Avx512).or_else(|| Avx2::detect().map(Self::Avx2)) {
            return vectors;
        }
        Self::Plain(Plain)
    }

    /// Hands the vectors to work that enters their instructions by itself, wherever it needs them.
    pub fn hand<H: Handed>(self, work: H) {
        match self {
            Self::Plain(s) => work.take(s),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => work.take(s),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(s) => work.take(s),
        }
    }

    /// Elements of a vector, where a tile of a product is two vectors wide, so that an ending can take two columns together.
    pub fn lanes_together(self) -> Option<usize> {
        fn of<S: Simd>(_: S) -> Option<usize> {
            (S::TILE_VECTORS == 2).then_some(S::LANES)
        }
        match self {
            Self::Plain(s) => of(s),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => of(s),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(s) => of(s),
        }
    }

    /// Runs an operation compiled for the family.
    pub fn run<O: super::simd::Operation>(self, operation: O) -> O::Output {
        use super::simd::Simd;
        match self {
            Self::Plain(s) => s.vectorize(operation),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => s.vectorize(operation),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(s) => s.vectorize(operation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn names_lead_back_and_unknown_ones_are_invalid() {
        for kernels in Kernels::ALL {
            assert_eq!(Kernels::named(kernels.name()).unwrap(), kernels);
        }
        assert_eq!(*Kernels::named("mmx").unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn what_is_not_supported_is_invalid() {
        assert!(Kernels::best().require().is_ok());
        for kernels in Kernels::ALL.into_iter().filter(|kernels| !kernels.supported()) {
            assert_eq!(*kernels.require().unwrap_err().kind(), Kind::Invalid);
        }
    }
}
