//! Credentials that a machine is given: by its container's service, or by the metadata service of its instance (IMDSv2).

use super::chain::Search;
use super::credentials::Found;
use super::failure::innermost;
use super::issued;
use gradus_error::{Error, Kind, Result};
use reqwest::{RequestBuilder, StatusCode};
use std::time::Duration;

/// Where containers on ECS ask.
const CONTAINER_HOST: &str = "http://169.254.170.2";

/// Where instances ask.
const INSTANCE_HOST: &str = "http://169.254.169.254";

/// The services are a hop away: where they do not answer in this time, there are none.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// What a container is given; `None` where no variable says that there is a service.
///
/// # Errors
/// `Invalid` for an address to which keys must not go in the clear; `Denied` for an answer without keys; `Unavailable`.
pub(super) async fn of_container(search: &Search<'_>) -> Result<Option<Found>> {
    let environment = search.environment;
    let url = match (
        environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    ) {
        (Some(path), _) => format!("{CONTAINER_HOST}/{}", path.trim_start_matches('/')),
        (None, Some(url)) => {
            check_container(url)?;
            url.to_owned()
        }
        (None, None) => return Ok(None),
    };
    let direct = super::transport::direct(environment.get("AWS_CA_BUNDLE"))?;
    let mut request = direct.get(&url).timeout(PATIENCE);
    if let Some(file) = environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        let token = std::fs::read_to_string(file).map_err(|error| {
            Error::io(format!("cannot read {file} (AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE)"), error)
        })?;
        request = request.header("authorization", token.trim());
    } else if let Some(token) = environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN") {
        request = request.header("authorization", token);
    }
    let who = format!("the container's credentials from {url}");
    let answer = ask(request, &who).await?;
    issued::read(&answer, who).map(Some)
}

/// Tokens and keys go over plain HTTP only to this machine and to Amazon's link-local services.
fn check_container(url: &str) -> Result<()> {
    let bad = |why: &str| Error::invalid(format!("AWS_CONTAINER_CREDENTIALS_FULL_URI: `{url}` {why}"));
    let parsed = reqwest::Url::parse(url).map_err(|_| bad("is no URL"))?;
    let host = parsed.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let near = ["localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"].contains(&host)
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match parsed.scheme() {
        "https" => Ok(()),
        "http" if near => Ok(()),
        _ => Err(bad("would send keys in the clear: use https://, or a service of this machine")),
    }
}

/// What the role of this instance is given; `None` where there is no such service.
///
/// # Errors
/// `Denied` for a service that answers without keys.
pub(super) async fn of_instance(search: &Search<'_>) -> Result<Option<Found>> {
    let environment = search.environment;
    if environment.get("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    match environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        Some(host) => of_role(search, host, true).await,
        None => of_role(search, INSTANCE_HOST, false).await,
    }
}

/// What the service at `host` gives; where nobody `told` that there is one, there may be none.
async fn of_role(search: &Search<'_>, host: &str, told: bool) -> Result<Option<Found>> {
    let host = host.trim_end_matches('/');
    let who = format!("the credentials of this instance's role from {host}");
    let direct = super::transport::direct(search.environment.get("AWS_CA_BUNDLE"))?;
    let token = direct
        .put(format!("{host}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
        .timeout(PATIENCE);
    let answer = match answer(token, &who).await {
        Err(_) if !told => return Ok(None),
        answer => answer?,
    };
    let token = match judged(answer, &who) {
        Ok(token) => String::from_utf8_lossy(&token).into_owned(),
        // Another cloud's service knows no such token; one that is busy is asked again.
        Err(error) if !told && *error.kind() == Kind::Denied => return Ok(None),
        Err(error) => return Err(error),
    };
    let get = |path: String| {
        let request = direct.get(format!("{host}/latest/meta-data/iam/security-credentials/{path}"));
        request.header("x-aws-ec2-metadata-token", token.as_str()).timeout(PATIENCE)
    };
    let role =
        ask(get(String::new()), &who).await.map_err(|error| error.within("this instance has no role"))?;
    let role = String::from_utf8_lossy(&role).lines().next().unwrap_or_default().trim().to_owned();
    let who = format!("the credentials of this instance's role `{role}` from {host}");
    let answer = ask(get(role), &who).await?;
    issued::read(&answer, who).map(Some)
}

/// The body of a successful answer.
///
/// # Errors
/// `Unavailable` when there is none; `Denied` for another status.
pub(super) async fn ask(request: RequestBuilder, who: &str) -> Result<Vec<u8>> {
    judged(answer(request, who).await?, who)
}

/// The status and the body of an answer.
async fn answer(request: RequestBuilder, who: &str) -> Result<(StatusCode, Vec<u8>)> {
    let failed = |error: reqwest::Error| {
        Error::unavailable(format!("{who} cannot be had: {}", innermost(&error.without_url())))
    };
    let mut response = request.send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > ANSWER_BYTES {
            return Err(Error::denied(format!("{who} cannot be had: the answer is too long")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status(), body))
}

fn judged((status, body): (StatusCode, Vec<u8>), who: &str) -> Result<Vec<u8>> {
    if status.is_success() {
        return Ok(body);
    }
    let text = String::from_utf8_lossy(&body);
    let element = |name| super::transport::element(&text, name).unwrap_or_default();
    let (code, message) = (element("Code"), element("Message"));
    let text = format!("{who} cannot be had: status {} {message}", status.as_u16());
    let is_asked_too_often = status.as_u16() == 429 || code.starts_with("Throttl");
    let passing = is_asked_too_often || status.is_server_error() && status.as_u16() != 501;
    Err(if passing { Error::unavailable(text) } else { Error::denied(text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::environment::Environment;
    use crate::bucket::runtime;
    use gradus_testbed::InstanceMetadata;

    #[test]
    fn a_service_that_nobody_told_of_is_none_unless_it_is_busy() {
        let metadata = InstanceMetadata::start("A", "B", "2100-01-01T00:00:00Z").unwrap();
        let environment = Environment::default();
        let client = crate::bucket::transport::direct(None).unwrap();
        let search = Search { environment: &environment, region: "region", client: &client };
        let of = |host: &str, told| runtime::get().unwrap().block_on(of_role(&search, host, told));
        let nobody = "http://127.0.0.1:1";
        assert!(of(nobody, false).unwrap().is_none());
        assert_eq!(*of(nobody, true).unwrap_err().kind(), Kind::Unavailable);
        for (status, told, kind) in [
            (404, false, None),
            (404, true, Some(Kind::Denied)),
            (429, false, Some(Kind::Unavailable)),
            (503, false, Some(Kind::Unavailable)),
        ] {
            metadata.refuse_next(1, status, "");
            let error = of(&metadata.endpoint(), told).map(|found| assert!(found.is_none())).err();
            assert_eq!(error.map(|error| error.kind().clone()), kind, "{status} {told}");
        }
        assert_eq!(of(&metadata.endpoint(), false).unwrap().unwrap().keys.key_id, "A");
    }

    #[test]
    fn keys_do_not_go_far_in_the_clear() {
        for fine in [
            "http://127.0.0.1:1/a",
            "http://localhost/",
            "http://169.254.170.23/v1",
            "http://[::1]/",
            "https://a.b/",
        ] {
            check_container(fine).unwrap();
        }
        for bad in ["http://10.0.0.1/", "ftp://localhost/", "nonsense", "http://localhost.evil.org/"] {
            assert!(check_container(bad).is_err(), "{bad}");
        }
    }
}
