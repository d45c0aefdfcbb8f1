//! What links are like, by how many bytes a collective works on.
//!
//! A byte costs more when the buffer that it lies in has fallen out of a cache: out of the second level at a megabyte or
//! so, out of the third at tens of them. So rates are known for buffers of several sizes, and taken to change evenly with
//! the size's logarithm in between.

use super::figures::LinkFigures;
use super::neighbours::NeighbourFigures;
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Most sizes of buffers that rates are known for.
const MOST_RATES: usize = 64;

/// Rates at which a rank works on a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Bytes of the buffer.
    pub buffer_bytes: u64,
    /// Bytes per second between ranks of one node: [`Link::bandwidth_bytes_per_s`](super::Link).
    pub inside_bytes_per_s: f64,
    /// The same between nodes.
    pub across_bytes_per_s: f64,
    /// Bytes that a rank adds to its own per second.
    pub reduction_bytes_per_s: f64,
}

impl Rates {
    fn put_into(&self, figures: &LinkFigures) -> LinkFigures {
        let mut figures = *figures;
        figures.inside.bandwidth_bytes_per_s = self.inside_bytes_per_s;
        figures.across.bandwidth_bytes_per_s = self.across_bytes_per_s;
        figures.reduction_bytes_per_s = self.reduction_bytes_per_s;
        figures
    }

    /// Between two sizes, seconds per byte change evenly with the logarithm.
    fn between(&self, larger: &Self, buffer_bytes: u64) -> Self {
        let log = |bytes: u64| (bytes.max(1) as f64).log2();
        let part = (log(buffer_bytes) - log(self.buffer_bytes))
            / (log(larger.buffer_bytes) - log(self.buffer_bytes));
        let mix = |one: f64, other: f64| 1.0 / ((1.0 - part) / one + part / other);
        Self {
            buffer_bytes,
            inside_bytes_per_s: mix(self.inside_bytes_per_s, larger.inside_bytes_per_s),
            across_bytes_per_s: mix(self.across_bytes_per_s, larger.across_bytes_per_s),
            reduction_bytes_per_s: mix(self.reduction_bytes_per_s, larger.reduction_bytes_per_s),
        }
    }
}

/// Figures whose rates depend on the size of the buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkProfile {
    /// All that does not depend on it; its rates count where none are listed.
    pub figures: LinkFigures,
    /// By growing size; beyond the first and the last, these two count.
    pub rates: Vec<Rates>,
    /// What programs among neighbours are priced by, where all ranks are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<NeighbourFigures>,
}

impl Default for LinkProfile {
    /// [`LinkFigures::default`], whatever the size.
    fn default() -> Self {
        Self::uniform(LinkFigures::default())
    }
}

impl LinkProfile {
    /// The same figures for all sizes.
    pub const fn uniform(figures: LinkFigures) -> Self {
        Self { figures, rates: Vec::new(), neighbours: None }
    }

    /// The figures for a collective on a buffer of so many bytes.
    pub fn at(&self, buffer_bytes: u64) -> LinkFigures {
        let larger = self.rates.partition_point(|rates| rates.buffer_bytes < buffer_bytes);
        let rates = match (larger.checked_sub(1).map(|below| &self.rates[below]), self.rates.get(larger)) {
            (None, None) => return self.figures,
            (Some(only), None) | (None, Some(only)) => *only,
            (Some(smaller), Some(larger)) => smaller.between(larger, buffer_bytes),
        };
        rates.put_into(&self.figures)
    }

    /// Refuses what no links are like.
    ///
    /// # Errors
    /// `Invalid`, naming the figure, or the size whose rates it belongs to.
    pub fn validate(&self) -> Result<()> {
        self.figures.validate()?;
        self.neighbours.as_ref().map_or(Ok(()), NeighbourFigures::validate)?;
        if self.rates.len() > MOST_RATES {
            return Err(Error::invalid(format!(
                "rates for {} sizes: give {MOST_RATES} at most",
                self.rates.len()
            )));
        }
        if !self.rates.is_sorted_by(|one, next| one.buffer_bytes < next.buffer_bytes) {
            return Err(Error::invalid("rates must be listed by growing buffer_bytes, each size once"));
        }
        self.rates.iter().try_for_each(|rates| {
            let named = |error: Error| error.within(format!("rates for {} bytes", rates.buffer_bytes));
            rates.put_into(&self.figures).validate().map_err(named)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    fn rates(buffer_bytes: u64, bytes_per_s: f64) -> Rates {
        let figures = LinkFigures::default();
        Rates {
            buffer_bytes,
            inside_bytes_per_s: bytes_per_s,
            across_bytes_per_s: figures.across.bandwidth_bytes_per_s,
            reduction_bytes_per_s: bytes_per_s * 2.0,
        }
    }

    #[test]
    fn rates_change_evenly_between_sizes_and_stay_beyond_them() {
        let profile =
            LinkProfile { rates: vec![rates(1 << 10, 1e9), rates(1 << 20, 5e8)], ..LinkProfile::default() };
        profile.validate().unwrap();
        let beta = |bytes: u64| 1e9 / profile.at(bytes).inside.bandwidth_bytes_per_s;
        for (bytes, want) in
            [(0, 1.0), (1 << 10, 1.0), (1 << 15, 1.5), (1 << 20, 2.0), (u64::MAX, 2.0), (1 << 12, 1.2)]
        {
            assert!((beta(bytes) - want).abs() < 1e-9, "{bytes}: {}", beta(bytes));
        }
        assert_eq!(LinkProfile::default().at(77), LinkFigures::default());
    }

    #[test]
    fn impossible_rates_are_refused_by_their_size() {
        let of = |rates| LinkProfile { rates, ..LinkProfile::default() }.validate().unwrap_err();
        let error = of(vec![rates(1, 1e9), rates(4096, 0.0)]);
        assert!(*error.kind() == Kind::Invalid && error.to_string().contains("4096 bytes"), "{error}");
        assert_eq!(*of(vec![rates(8, 1e9), rates(8, 1e9)]).kind(), Kind::Invalid);
        assert_eq!(*of((0..65).map(|bytes| rates(bytes, 1e9)).collect()).kind(), Kind::Invalid);
    }
}
