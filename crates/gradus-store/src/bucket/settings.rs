//! The settings of object stores.

use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Smallest part of an upload that S3 takes, and the largest that is sensible.
const PART_BYTES: std::ops::RangeInclusive<u64> = 5 << 20..=1 << 30;

/// How buckets are reached: the section `[bucket]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketSettings {
    /// Where the store listens, `https://HOST` or `http://HOST:PORT`; empty: `AWS_ENDPOINT_URL_S3`, then
    /// `AWS_ENDPOINT_URL`, then the profile's `endpoint_url`, then Amazon's own.
    pub endpoint: String,
    /// The region; empty: `AWS_REGION`, then `AWS_DEFAULT_REGION`, then the profile's, then `us-east-1`.
    pub region: String,
    /// Whose credentials are used, of `~/.aws/config` and `~/.aws/credentials`; empty: found as Amazon's tools do.
    pub profile: String,
    /// How a bucket is named in a request: `path` (`HOST/BUCKET`) or `virtual` (`BUCKET.HOST`); empty: `path` where an
    /// endpoint is set, `virtual` at Amazon's.
    pub addressing: String,
    /// Whether requests are sent without a signature, for buckets that are open to all.
    pub anonymous: bool,
    /// Most requests at a time. Fewer are sent after the store has asked for fewer.
    pub connections: usize,
    /// Most times that a request is sent.
    pub retry_attempts: u32,
    /// Longest time from the first sending of a request to the last.
    pub retry_total_ms: u64,
    /// The pause after the first failure; it doubles with each one more.
    pub retry_pause_ms: u64,
    /// Longest time without a byte of an answer.
    pub request_timeout_ms: u64,
    /// Longest time to connect.
    pub connect_timeout_ms: u64,
    /// Bytes of a part of an upload, and of a request of a stream that is read ahead.
    pub part_bytes: u64,
    /// Price of a thousand GET and HEAD requests.
    pub price_per_1000_get: f64,
    /// Price of a thousand PUT and POST requests.
    pub price_per_1000_put: f64,
    /// Price of a thousand listings.
    pub price_per_1000_list: f64,
    /// Price of a gigabyte (10^9 bytes) that is read.
    pub price_per_gb: f64,
}

impl Default for BucketSettings {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: String::new(),
            profile: String::new(),
            addressing: String::new(),
            anonymous: false,
            connections: 512,
            retry_attempts: 10,
            retry_total_ms: 180_000,
            retry_pause_ms: 100,
            request_timeout_ms: 30_000,
            connect_timeout_ms: 5_000,
            part_bytes: 8 << 20,
            price_per_1000_get: 0.0,
            price_per_1000_put: 0.0,
            price_per_1000_list: 0.0,
            price_per_gb: 0.0,
        }
    }
}

impl BucketSettings {
    /// Checks each setting by itself.
    ///
    /// # Errors
    /// `Invalid`, naming the setting and what it may be.
    pub fn validate(&self) -> Result<()> {
        let check = |fine: bool, what: &str| if fine { Ok(()) } else { Err(Error::invalid(what)) };
        check_endpoint(&self.endpoint, "bucket.endpoint")?;
        check(
            ["", "path", "virtual"].contains(&self.addressing.as_str()),
            "bucket.addressing is `path`, `virtual` or empty",
        )?;
        check((1..=4096).contains(&self.connections), "bucket.connections is 1 to 4096")?;
        check((1..=1000).contains(&self.retry_attempts), "bucket.retry_attempts is 1 to 1000")?;
        check(self.retry_pause_ms <= 60_000, "bucket.retry_pause_ms is at most 60000")?;
        check(self.retry_total_ms <= 86_400_000, "bucket.retry_total_ms is at most a day: 86400000")?;
        let timeout = 1..=3_600_000;
        check(timeout.contains(&self.request_timeout_ms), "bucket.request_timeout_ms is 1 to 3600000")?;
        check(timeout.contains(&self.connect_timeout_ms), "bucket.connect_timeout_ms is 1 to 3600000")?;
        check(PART_BYTES.contains(&self.part_bytes), "bucket.part_bytes is 5 MiB (5242880) to 1 GiB")?;
        let prices =
            [self.price_per_1000_get, self.price_per_1000_put, self.price_per_1000_list, self.price_per_gb];
        let fine = |price: &f64| price.is_finite() && *price >= 0.0;
        check(prices.iter().all(fine), "bucket.price_per_... is a price: zero or more")
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }
}

/// Whether an endpoint can be one; empty is none.
///
/// # Errors
/// `Invalid`, naming where it was set.
pub(super) fn check_endpoint(endpoint: &str, set_in: &str) -> Result<()> {
    let bad = |why: &str| Error::invalid(format!("{set_in}: `{endpoint}` {why}"));
    if endpoint.is_empty() {
        return Ok(());
    }
    let url = reqwest::Url::parse(endpoint)
        .map_err(|_| bad("is no URL: write https://HOST or http://HOST:PORT"))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(bad("is neither http:// nor https://"));
    }
    if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("is no endpoint: write https://HOST or http://HOST:PORT"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Not shown: messages name the endpoint, and would name the password.
        return Err(Error::invalid(format!(
            "{set_in} has a user or a password in it: credentials are looked for elsewhere (AWS_ACCESS_KEY_ID, bucket.profile)"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn the_defaults_are_fine() {
        BucketSettings::default().validate().unwrap();
    }

    #[test]
    fn impossible_settings_are_refused() {
        let default = BucketSettings::default;
        for settings in [
            BucketSettings { endpoint: "localhost:9000".to_owned(), ..default() },
            BucketSettings { endpoint: "ftp://host".to_owned(), ..default() },
            BucketSettings { endpoint: "http://host/?a".to_owned(), ..default() },
            BucketSettings { addressing: "vhost".to_owned(), ..default() },
            BucketSettings { connections: 0, ..default() },
            BucketSettings { retry_attempts: 0, ..default() },
            BucketSettings { request_timeout_ms: 0, ..default() },
            BucketSettings { part_bytes: 1 << 20, ..default() },
            BucketSettings { price_per_gb: f64::NAN, ..default() },
            BucketSettings { price_per_1000_get: -1.0, ..default() },
        ] {
            assert_eq!(settings.validate().unwrap_err().kind(), &Kind::Invalid, "{settings:?}");
        }
    }

    #[test]
    fn a_password_in_an_endpoint_is_refused_and_not_shown() {
        let endpoint = "http://somebody:secret@host".to_owned();
        let error = BucketSettings { endpoint, ..BucketSettings::default() }.validate().unwrap_err();
        assert_eq!(error.kind(), &Kind::Invalid);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
