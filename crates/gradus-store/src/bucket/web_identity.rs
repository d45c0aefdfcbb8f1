//! Credentials for a token that somebody else vouches for: `AssumeRoleWithWebIdentity` of Amazon's STS.

use super::chain::Search;
use super::credentials::Found;
use super::issued::since_1970;
use super::metadata::ask;
use super::settings::check_endpoint;
use super::transport::element;
use gradus_error::{Error, IoContext, Result};
use object_store::aws::AwsCredential;
use std::sync::Arc;

/// Trades the token in `file` for the credentials of `role`.
///
/// # Errors
/// The system's failure to read the token; `Denied` when STS refuses it; `Unavailable`.
pub(super) async fn find(search: &Search<'_>, file: &str, role: &str) -> Result<Found> {
    let environment = search.environment;
    // It is read each time: who vouches writes it anew before it expires.
    let token = std::fs::read_to_string(file).context(|| format!("cannot read the web identity {file}"))?;
    let set = environment.get("AWS_ENDPOINT_URL_STS").or_else(|| environment.get("AWS_ENDPOINT_URL"));
    if let Some(endpoint) = set {
        check_endpoint(endpoint, "AWS_ENDPOINT_URL_STS")?;
    }
    let endpoint = set.map_or_else(|| format!("https://sts.{}.amazonaws.com", search.region), str::to_owned);
    let session = environment.get("AWS_ROLE_SESSION_NAME").unwrap_or("gradus");
    let who = format!("the credentials of the role {role} for the web identity in {file}");
    let mut url = reqwest::Url::parse(&endpoint)
        .map_err(|error| Error::invalid(format!("`{endpoint}` is no endpoint of STS")).with_source(error))?;
    url.query_pairs_mut()
        .append_pair("Action", "AssumeRoleWithWebIdentity")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", role)
        .append_pair("RoleSessionName", session)
        .append_pair("WebIdentityToken", token.trim());
    let answer = ask(search.client.post(url), &who).await?;
    read(&String::from_utf8_lossy(&answer), who)
}

/// Reads what STS gave.
///
/// # Errors
/// `Denied` for what holds no keys.
pub(super) fn read(answer: &str, who: String) -> Result<Found> {
    let part =
        |name: &str| element(answer, name).ok_or_else(|| Error::denied(format!("{who} came without {name}")));
    let keys = AwsCredential {
        key_id: part("AccessKeyId")?,
        secret_key: part("SecretAccessKey")?,
        token: Some(part("SessionToken")?),
    };
    let expires = since_1970(&part("Expiration")?)
        .ok_or_else(|| Error::denied(format!("{who} came with a time that is none")))?;
    Ok(Found { keys: Arc::new(keys), who, expires: Some(expires) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn keys_are_found_in_the_answer() {
        let answer = "<R><Credentials><SessionToken>T&amp;</SessionToken><SecretAccessKey>S</SecretAccessKey>\
                      <Expiration>2030-01-01T00:00:00Z</Expiration><AccessKeyId>A</AccessKeyId></Credentials></R>";
        let found = read(answer, "those".to_owned()).unwrap();
        assert_eq!((found.keys.key_id.as_str(), found.keys.token.as_deref()), ("A", Some("T&")));
        assert!(found.expires.is_some());
        for cut in [0, 30, 100, 130] {
            assert_eq!(read(&answer[..cut], "those".to_owned()).unwrap_err().kind(), &Kind::Denied);
        }
    }
}
