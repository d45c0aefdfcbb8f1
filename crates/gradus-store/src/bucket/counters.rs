//! What was asked of a bucket, and what it cost.

use super::BucketSettings;
use super::gate::Gate;
use std::sync::atomic::{AtomicU64, Ordering};

/// A moment's figures of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BucketCounters {
    /// GET requests that were sent, those sent again included.
    pub gets: u64,
    /// HEAD requests.
    pub heads: u64,
    /// PUT and POST requests.
    pub puts: u64,
    /// Listings, a page each.
    pub lists: u64,
    /// DELETE requests.
    pub deletes: u64,
    /// Bytes that arrived, those thrown away after a failure included.
    pub bytes_read: u64,
    /// Bytes that were stored.
    pub bytes_written: u64,
    /// Requests that were sent again after a failure.
    pub retries: u64,
    /// Refusals because of too many requests.
    pub throttled: u64,
    /// Requests under way.
    pub under_way: u64,
    /// Requests that may be under way now.
    pub allowed: u64,
    /// The lowest number that the store's refusals led to; the most that may ever be where it refused none.
    pub lowest_allowed: u64,
    /// What the requests and bytes cost, at the prices that are set.
    pub cost: f64,
}

impl std::iter::Sum for BucketCounters {
    /// Of several buckets together.
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |one, other| Self {
            gets: one.gets + other.gets,
            heads: one.heads + other.heads,
            puts: one.puts + other.puts,
            lists: one.lists + other.lists,
            deletes: one.deletes + other.deletes,
            bytes_read: one.bytes_read + other.bytes_read,
            bytes_written: one.bytes_written + other.bytes_written,
            retries: one.retries + other.retries,
            throttled: one.throttled + other.throttled,
            under_way: one.under_way + other.under_way,
            allowed: one.allowed + other.allowed,
            lowest_allowed: one.lowest_allowed + other.lowest_allowed,
            cost: one.cost + other.cost,
        })
    }
}

/// Which price a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    Get,
    Head,
    Put,
    List,
    Delete,
}

/// Counts as it goes.
#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: [AtomicU64; 5],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    retries: AtomicU64,
    throttled: AtomicU64,
}

impl Tally {
    pub(super) fn request(&self, kind: RequestKind) {
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn was_throttled(&self) {
        self.throttled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn figures(&self, gate: Option<&Gate>, settings: &BucketSettings) -> BucketCounters {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let of = |kind: RequestKind| load(&self.requests[kind as usize]);
        let (under_way, allowed, lowest) = gate.map(Gate::figures).unwrap_or_default();
        let figures = BucketCounters {
            gets: of(RequestKind::Get),
            heads: of(RequestKind::Head),
            puts: of(RequestKind::Put),
            lists: of(RequestKind::List),
            deletes: of(RequestKind::Delete),
            bytes_read: load(&self.bytes_read),
            bytes_written: load(&self.bytes_written),
            retries: load(&self.retries),
            throttled: load(&self.throttled),
            under_way: under_way as u64,
            allowed: allowed as u64,
            lowest_allowed: lowest as u64,
            cost: 0.0,
        };
        BucketCounters { cost: cost(&figures, settings), ..figures }
    }
}

/// Amazon's way: DELETE is free, HEAD costs what GET does.
fn cost(figures: &BucketCounters, settings: &BucketSettings) -> f64 {
    let thousands = |count: u64| count as f64 / 1000.0;
    thousands(figures.gets + figures.heads) * settings.price_per_1000_get
        + thousands(figures.puts) * settings.price_per_1000_put
        + thousands(figures.lists) * settings.price_per_1000_list
        + figures.bytes_read as f64 / 1e9 * settings.price_per_gb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_that_of_requests_and_bytes() {
        let settings = BucketSettings {
            price_per_1000_get: 4.0,
            price_per_1000_put: 50.0,
            price_per_1000_list: 100.0,
            price_per_gb: 2.0,
            ..BucketSettings::default()
        };
        let tally = Tally::default();
        for kind in
            [RequestKind::Get, RequestKind::Head, RequestKind::Put, RequestKind::List, RequestKind::Delete]
        {
            tally.request(kind);
        }
        tally.read(500_000_000);
        let cost = tally.figures(None, &settings).cost;
        assert!((cost - (0.008 + 0.05 + 0.1 + 1.0)).abs() < 1e-12, "{cost}");
    }
}
