//! What a bucket is opened with: settings before the environment before the profile.

use super::counters::Tally;
use super::credentials::Credentials;
use super::environment::Environment;
use super::gate::Gate;
use super::profile::Profile;
use super::remote::Remote;
use super::retry::Budget;
use super::settings::{BucketSettings, check_endpoint};
use super::transport::{self, Transport};
use gradus_error::{Error, Result};
use gradus_host::clock::RealClock;
use gradus_host::random::{Stream, seed_from_system};
use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where Amazon's buckets are, unless told otherwise.
const DEFAULT_REGION: &str = "us-east-1";

pub(super) fn remote(
    bucket: &str,
    settings: &BucketSettings,
    lookup: &dyn Fn(&str) -> Option<String>,
    tally: Arc<Tally>,
) -> Result<Remote> {
    let environment = Environment::read(lookup);
    // One that is named must be there, whoever's credentials are used in the end.
    let profile = Profile::read(&settings.profile, &environment)?.unwrap_or_default();
    let region = region(settings, &environment, &profile)?;
    let set = endpoint(settings, &environment, &profile)?;
    let client = transport::client(settings, &set, environment.get("AWS_CA_BUNDLE"))?;
    let (clock, signer) = (RealClock::new(), client.clone());
    let credentials = Arc::new(Credentials::new(settings, environment, region.clone(), signer, clock));
    let by_path =
        if settings.addressing.is_empty() { !set.is_empty() } else { settings.addressing == "path" };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&region)
        .with_allow_http(true)
        .with_virtual_hosted_style_request(!by_path)
        .with_skip_signature(settings.anonymous)
        .with_credentials(Arc::clone(&credentials) as _)
        .with_disable_bulk_delete(true)
        // Requests are sent again here, where it is counted and bounded for a whole operation.
        .with_retry(RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() })
        .with_http_connector(Transport::new(client, Arc::clone(&tally)));
    if !set.is_empty() {
        builder = builder.with_endpoint(if by_path { set.clone() } else { virtual_host(&set, bucket)? });
    }
    let store = builder.build().map_err(|error| {
        Error::invalid(format!("the bucket s3://{bucket} cannot be opened")).with_source(error)
    })?;
    let endpoint = if set.is_empty() { format!("https://s3.{region}.amazonaws.com") } else { set };
    let budget = Budget {
        attempts: settings.retry_attempts,
        total: Duration::from_millis(settings.retry_total_ms),
        pause: Duration::from_millis(settings.retry_pause_ms),
    };
    Ok(Remote {
        store,
        bucket: bucket.to_owned(),
        endpoint,
        credentials,
        gate: Gate::new(settings.connections),
        budget,
        tally,
        clock,
        draws: Mutex::new(Stream::new(seed_from_system(), 0)),
        trouble: Mutex::default(),
    })
}

fn region(settings: &BucketSettings, environment: &Environment, profile: &Profile) -> Result<String> {
    let set = (!settings.region.is_empty()).then_some(settings.region.as_str());
    let set = set.or_else(|| environment.get("AWS_REGION")).or_else(|| environment.get("AWS_DEFAULT_REGION"));
    let region = set.or_else(|| profile.get("region")).unwrap_or(DEFAULT_REGION);
    if region.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
        return Ok(region.to_owned());
    }
    Err(Error::invalid(format!("`{}` is no region (bucket.region, AWS_REGION)", region.escape_debug())))
}

/// The endpoint that is set; empty is Amazon's.
fn endpoint(settings: &BucketSettings, environment: &Environment, profile: &Profile) -> Result<String> {
    if !settings.endpoint.is_empty() {
        return Ok(settings.endpoint.trim_end_matches('/').to_owned());
    }
    if environment
        .get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    {
        return Ok(String::new());
    }
    let of_environment =
        ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].map(|name| (name, environment.get(name)));
    let of_profile =
        ["services.s3.endpoint_url", "s3.endpoint_url", "endpoint_url"].map(|key| (key, profile.get(key)));
    for (name, value) in of_environment.into_iter().chain(of_profile) {
        if let Some(endpoint) = value {
            check_endpoint(endpoint, name)?;
            return Ok(endpoint.trim_end_matches('/').to_owned());
        }
    }
    Ok(String::new())
}

/// The endpoint with the bucket before its host.
fn virtual_host(endpoint: &str, bucket: &str) -> Result<String> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let host = rest.split(['/', ':']).next().unwrap_or_default();
    if host.parse::<std::net::IpAddr>().is_ok() || rest.starts_with('[') {
        return Err(Error::invalid(format!(
            "bucket.addressing is `virtual`, and {endpoint} is a number, before which no bucket can stand: use `path`"
        )));
    }
    Ok(format!("{scheme}://{bucket}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_a_word() {
        let of = |region: &str| {
            let settings = BucketSettings { region: region.to_owned(), ..BucketSettings::default() };
            region_of(&settings)
        };
        assert_eq!(of("eu-west-1").unwrap(), "eu-west-1");
        for odd in ["us\n", "us east", "r\u{e9}gion"] {
            assert!(of(odd).unwrap_err().to_string().contains("bucket.region"), "{odd:?}");
        }
    }

    fn region_of(settings: &BucketSettings) -> Result<String> {
        region(settings, &Environment::default(), &Profile::default())
    }
}
