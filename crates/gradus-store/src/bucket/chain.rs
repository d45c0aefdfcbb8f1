//! The chain in which credentials are looked for, in the order of Amazon's tools.
//!
//! The environment's keys, a web identity, the profile, a container's service, the instance's role. The first link that is
//! set up is used, and if it fails, that is the failure: falling through to the next one would sign as somebody else. A
//! profile that the settings name is the only link. Reference: AWS SDKs and Tools Reference Guide, "Standardized
//! credential providers".

use super::credentials::Found;
use super::environment::Environment;
use super::profile::Profile;
use super::{metadata, process, web_identity};
use gradus_error::{Error, Result};
use object_store::aws::AwsCredential;
use std::sync::Arc;

/// What links look with.
pub(super) struct Search<'a> {
    pub(super) environment: &'a Environment,
    pub(super) region: &'a str,
    pub(super) client: &'a reqwest::Client,
}

/// Looks along the chain; `profile` is the one that the settings name.
///
/// # Errors
/// That of the link which is set up and fails; `Denied` when no link is set up.
pub(super) async fn find(profile: &str, search: &Search<'_>) -> Result<Found> {
    let environment = search.environment;
    if profile.is_empty() {
        if let Some(found) = of_environment(environment)? {
            return Ok(found);
        }
        if let (Some(file), Some(role)) =
            (environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"), environment.get("AWS_ROLE_ARN"))
        {
            return web_identity::find(search, file, role).await;
        }
    }
    if let Some(profile) = Profile::read(profile, environment)?
        && let Some(found) = of_profile(&profile, search).await?
    {
        return Ok(found);
    }
    if !profile.is_empty() {
        return Err(Error::invalid(format!(
            "the profile `{profile}` has no credentials: set aws_access_key_id and aws_secret_access_key, or credential_process"
        )));
    }
    if let Some(found) = metadata::of_container(search).await? {
        return Ok(found);
    }
    if let Some(found) = metadata::of_instance(search).await? {
        return Ok(found);
    }
    Err(Error::denied(
        "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or bucket.profile, or \
         bucket.anonymous for a bucket that is open to all",
    ))
}

/// Keys that do not expire by themselves.
fn lasting(key_id: &str, secret_key: &str, token: Option<&str>, who: String) -> Found {
    let keys = AwsCredential {
        key_id: key_id.to_owned(),
        secret_key: secret_key.to_owned(),
        token: token.map(str::to_owned),
    };
    Found { keys: Arc::new(keys), who, expires: None }
}

fn of_environment(environment: &Environment) -> Result<Option<Found>> {
    match (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")) {
        (None, None) => Ok(None),
        (Some(key_id), Some(secret_key)) => {
            let who = "the credentials of the environment (AWS_ACCESS_KEY_ID)".to_owned();
            Ok(Some(lasting(key_id, secret_key, environment.get("AWS_SESSION_TOKEN"), who)))
        }
        _ => Err(Error::invalid(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together: one of them is not set",
        )),
    }
}

async fn of_profile(profile: &Profile, search: &Search<'_>) -> Result<Option<Found>> {
    let (name, file) = (&profile.name, &profile.file);
    match (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")) {
        (Some(key_id), Some(secret_key)) if profile.get("role_arn").is_none() => {
            return Ok(Some(lasting(key_id, secret_key, profile.get("aws_session_token"), profile.who())));
        }
        (Some(_), None) | (None, Some(_)) => {
            return Err(Error::invalid(format!(
                "the profile `{name}` in {file} has one of aws_access_key_id and aws_secret_access_key: they go together"
            )));
        }
        _ => {}
    }
    if let (Some(file), Some(role)) = (profile.get("web_identity_token_file"), profile.get("role_arn")) {
        return web_identity::find(search, file, role).await.map(Some);
    }
    if let Some(command) = profile.get("credential_process") {
        return process::find(command, profile).await.map(Some);
    }
    for key in ["role_arn", "sso_session", "sso_start_url"] {
        if profile.get(key).is_some() {
            return Err(Error::invalid(format!(
                "the profile `{name}` in {file} has {key}, which is not read here: let `aws configure \
                 export-credentials --profile {name} --format process` give the keys, as credential_process of another profile"
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::read(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn keys_of_the_environment_go_together() {
        let both = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "B")];
        let found = of_environment(&environment(&both)).unwrap().unwrap();
        assert_eq!((found.keys.key_id.as_str(), found.keys.secret_key.as_str()), ("A", "B"));
        assert_eq!(of_environment(&environment(&both[..1])).unwrap_err().kind(), &Kind::Invalid);
        assert!(of_environment(&environment(&[])).unwrap().is_none());
        assert!(of_environment(&environment(&[("AWS_ACCESS_KEY_ID", " ")])).unwrap().is_none());
    }
}
