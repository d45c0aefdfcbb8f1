//! Each link of the chain, and what is said of the one that was used.

use super::{Home, assert_kind, home, keys, noise};
use gradus_error::{Kind, Result};
use gradus_store::ObjectInfo;
use gradus_store::bucket::{Address, Bucket, BucketSettings};
use gradus_testbed::{ACCESS_KEY, InstanceMetadata, Refusal, S3Server, SECRET_KEY};
use std::fs;
use std::process::Command;

/// When credentials expire that do not soon.
const LATER: &str = "2100-01-01T00:00:00Z";

/// Asks for an object with these variables and nothing else.
fn head(home: &Home, settings: &BucketSettings, variables: &[(&str, &str)]) -> Result<ObjectInfo> {
    home.server.put("data", "key", b"bytes").unwrap();
    // No test asks the machine that it runs on.
    let disabled = ("AWS_EC2_METADATA_DISABLED", "true");
    let lookup = |name: &str| {
        let mut all = variables.iter().chain([&disabled]);
        all.find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    Bucket::open(&Address::parse("s3://data").unwrap(), settings, &lookup)?.head("key")
}

/// The text of a refusal, which names whose credentials were used.
#[track_caller]
fn denied(home: &Home, settings: &BucketSettings, variables: &[(&str, &str)]) -> String {
    home.server.faults().set(|plan| (plan.refuse_next, plan.refusal) = (1, Refusal::AccessDenied));
    let text = assert_kind(head(home, settings, variables), &Kind::Denied);
    home.server.faults().set(|plan| plan.refuse_next = 0);
    text
}

#[test]
fn keys_of_the_environment_sign() {
    let home = home();
    let variables = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    head(&home, &home.settings(), &variables).unwrap();
    assert!(denied(&home, &home.settings(), &variables).contains("AWS_ACCESS_KEY_ID"));
    let wrong = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", "wrong")];
    assert_kind(head(&home, &home.settings(), &wrong), &Kind::Denied);
    assert_kind(head(&home, &home.settings(), &variables[..1]), &Kind::Invalid);
}

#[test]
fn a_profile_signs_and_gives_endpoint_and_region() {
    let home = home();
    let files = tempfile::tempdir().unwrap();
    let (config, credentials) = (files.path().join("config"), files.path().join("credentials"));
    let endpoint = home.server.endpoint();
    fs::write(&config, format!("[profile lab]\nregion = eu-west-1\nendpoint_url = {endpoint}\n")).unwrap();
    fs::write(
        &credentials,
        format!("[lab]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"),
    )
    .unwrap();
    let files = [
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
    ];
    let settings = BucketSettings { endpoint: String::new(), ..home.settings() };
    let named = BucketSettings { profile: "lab".to_owned(), ..settings.clone() };
    head(&home, &named, &files).unwrap();
    let by_variable = [files[0], files[1], ("AWS_PROFILE", "lab")];
    head(&home, &settings, &by_variable).unwrap();
    let text = denied(&home, &settings, &by_variable);
    assert!(text.contains("profile `lab`") && text.contains(credentials.to_str().unwrap()), "{text}");
    // A profile that the settings name is used whatever the environment holds.
    let both = [files[0], files[1], ("AWS_ACCESS_KEY_ID", "other"), ("AWS_SECRET_ACCESS_KEY", "other")];
    head(&home, &named, &both).unwrap();
    let none = BucketSettings { profile: "none".to_owned(), ..settings };
    assert_kind(head(&home, &none, &files), &Kind::Invalid);
}

#[test]
fn a_program_gives_keys() {
    let home = home();
    let files = tempfile::tempdir().unwrap();
    let config = files.path().join("config");
    let variables = [("AWS_CONFIG_FILE", config.to_str().unwrap())];
    let profile =
        |command: &str| fs::write(&config, format!("[default]\ncredential_process = {command}\n")).unwrap();
    let json = format!(
        "{{\"Version\":1,\"AccessKeyId\":\"{ACCESS_KEY}\",\"SecretAccessKey\":\"{SECRET_KEY}\",\"Expiration\":\"{LATER}\"}}"
    );
    let keys = files.path().join("keys.json");
    fs::write(&keys, json).unwrap();
    profile(&format!("cat {}", keys.display()));
    head(&home, &home.settings(), &variables).unwrap();
    for command in ["false", "true", "echo nonsense"] {
        profile(command);
        assert_kind(head(&home, &home.settings(), &variables), &Kind::Denied);
    }
}

#[test]
fn a_container_and_an_instance_give_keys() {
    let home = home();
    let metadata = InstanceMetadata::start(ACCESS_KEY, SECRET_KEY, LATER).unwrap();
    let (container, instance) = (metadata.container_uri(), metadata.endpoint());
    let container = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str())];
    head(&home, &home.settings(), &container).unwrap();
    assert!(denied(&home, &home.settings(), &container).contains("container"));
    let instance =
        [("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.as_str()), ("AWS_EC2_METADATA_DISABLED", "false")];
    head(&home, &home.settings(), &instance).unwrap();
    assert!(denied(&home, &home.settings(), &instance).contains("role `testbed-role`"));
    assert_eq!(metadata.asked(), 4);
}

#[test]
fn services_that_give_keys_are_asked_past_every_proxy() {
    let proxies = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    // A client takes the variables of its process, so the test of those services is run in one that has them.
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "bucket::credentials::a_container_and_an_instance_give_keys"]);
    again.envs(proxies.map(|name| (name, "http://127.0.0.1:1")));
    ["no_proxy", "NO_PROXY", "REQUEST_METHOD"].into_iter().for_each(|name| _ = again.env_remove(name));
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_service_that_is_asked_too_often_is_asked_again() {
    let home = home();
    let metadata = InstanceMetadata::start(ACCESS_KEY, SECRET_KEY, LATER).unwrap();
    let (endpoint, container) = (metadata.endpoint(), metadata.container_uri());
    let files = tempfile::tempdir().unwrap();
    let token = files.path().join("token");
    fs::write(&token, "token\n").unwrap();
    let container: &[_] = &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str())];
    let identity: &[_] = &[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_ENDPOINT_URL_STS", endpoint.as_str()),
    ];
    for (variables, status, code) in
        [(container, 429, ""), (identity, 429, ""), (identity, 400, "Throttling"), (identity, 503, "")]
    {
        metadata.refuse_next(2, status, code);
        head(&home, &home.settings(), variables).unwrap();
        assert_eq!(metadata.refusals_left(), 0);
    }
    metadata.refuse_next(4, 429, "");
    assert_kind(head(&home, &home.settings(), container), &Kind::Unavailable);
    assert_eq!(metadata.refusals_left(), 1, "three attempts, and no more");
    metadata.refuse_next(2, 400, "ExpiredToken");
    assert_kind(head(&home, &home.settings(), identity), &Kind::Denied);
    assert_eq!(metadata.refusals_left(), 1, "a refusal of another kind is the end");
}

#[test]
fn keys_that_expire_soon_are_renewed_and_others_are_kept() {
    let home = home();
    for (expires, asked) in [(LATER, 1), ("1971-01-01T00:00:00Z", 3)] {
        let metadata = InstanceMetadata::start(ACCESS_KEY, SECRET_KEY, expires).unwrap();
        let lookup = |name: &str| match name {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT" => Some(metadata.endpoint()),
            _ => None,
        };
        home.server.put("data", "key", b"bytes").unwrap();
        let bucket = Bucket::open(&Address::parse("s3://data").unwrap(), &home.settings(), &lookup).unwrap();
        (0..3).for_each(|_| drop(bucket.head("key").unwrap()));
        assert_eq!(metadata.asked(), asked);
    }
}

#[test]
fn keys_that_are_to_be_renewed_are_used_while_they_hold() {
    let home = home();
    let soon =
        Command::new("date").args(["-u", "-d", "+200 seconds", "+%Y-%m-%dT%H:%M:%SZ"]).output().unwrap();
    let soon = String::from_utf8(soon.stdout).unwrap();
    let metadata = InstanceMetadata::start(ACCESS_KEY, SECRET_KEY, soon.trim()).unwrap();
    let endpoint = metadata.endpoint();
    let lookup = |name: &str| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| endpoint.clone());
    home.server.put("data", "key", b"bytes").unwrap();
    let bucket = Bucket::open(&Address::parse("s3://data").unwrap(), &home.settings(), &lookup).unwrap();
    (0..2).for_each(|_| drop(bucket.head("key").unwrap()));
    assert_eq!(metadata.asked(), 1, "not for every request");
    drop(metadata);
    bucket.head("key").unwrap();
}

#[test]
fn a_token_that_the_store_calls_expired_is_renewed_once() {
    let home = home();
    let metadata = InstanceMetadata::start(ACCESS_KEY, SECRET_KEY, LATER).unwrap();
    let lookup = |name: &str| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| metadata.endpoint());
    home.server.put("data", "key", b"bytes").unwrap();
    let bucket = Bucket::open(&Address::parse("s3://data").unwrap(), &home.settings(), &lookup).unwrap();
    let object = bucket.head("key").unwrap();
    let expired = |count| {
        home.server.faults().set(|plan| (plan.refuse_next, plan.refusal) = (count, Refusal::ExpiredToken))
    };
    expired(1);
    bucket.read_at(&object, 0, &mut [0; 5]).unwrap();
    assert_eq!(metadata.asked(), 2);
    expired(2);
    let text = assert_kind(bucket.read_at(&object, 0, &mut [0; 5]), &Kind::Denied);
    assert!(text.contains("role `testbed-role`") && text.contains("expired"), "{text}");
}

#[test]
fn a_web_identity_is_traded_at_sts() {
    let home = home();
    let files = tempfile::tempdir().unwrap();
    let token = files.path().join("token");
    let variables = |sts: &str| {
        [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap().to_owned()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r".to_owned()),
            ("AWS_ENDPOINT_URL_STS", sts.to_owned()),
        ]
    };
    let ask = |variables: &[(&str, String)]| {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        head(&home, &home.settings(), &variables)
    };
    assert_kind(ask(&variables("http://127.0.0.1:1")), &Kind::Invalid);
    fs::write(&token, "token\n").unwrap();
    assert_kind(ask(&variables("http://127.0.0.1:1")), &Kind::Unavailable);
    // A server that is no STS refuses.
    let folder = tempfile::tempdir().unwrap();
    let other = S3Server::start(folder.path()).unwrap();
    assert_kind(ask(&variables(&other.endpoint())), &Kind::Denied);
    let counts = other.faults().counts();
    assert_eq!((counts.requests, counts.of("POST")), (1, 1));
}

#[test]
fn without_credentials_nothing_is_asked() {
    let home = home();
    let text = assert_kind(head(&home, &home.settings(), &[]), &Kind::Denied);
    assert!(text.contains("bucket.anonymous"), "{text}");
    assert_eq!(home.server.faults().counts().requests, 0);
}

#[test]
fn an_open_bucket_is_read_without_a_signature() {
    let home = home();
    let open = tempfile::tempdir().unwrap();
    let server = S3Server::start_at(open.path(), ([127, 0, 0, 1], 0).into(), None, 1).unwrap();
    server.put("data", "key", &noise(100)).unwrap();
    let settings = BucketSettings { anonymous: true, endpoint: server.endpoint(), ..home.settings() };
    assert_eq!(head(&home, &settings, &[]).unwrap().bytes, 100);
    let closed = BucketSettings { anonymous: true, ..home.settings() };
    let text = assert_kind(head(&home, &closed, &[]), &Kind::Denied);
    assert!(text.contains("anonymous"), "{text}");
}

#[test]
fn endpoints_of_the_environment_count_in_their_order() {
    let home = home();
    let endpoint = home.server.endpoint();
    let settings = BucketSettings { endpoint: String::new(), ..home.settings() };
    let signed = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let with = |more: &[(&'static str, &str)]| {
        let all: Vec<(&str, &str)> = signed.iter().chain(more).copied().collect();
        head(&home, &settings, &all)
    };
    with(&[("AWS_ENDPOINT_URL", &endpoint)]).unwrap();
    with(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("AWS_ENDPOINT_URL_S3", &endpoint)]).unwrap();
    assert_kind(with(&[("AWS_ENDPOINT_URL", "nonsense")]), &Kind::Invalid);
    let set = Bucket::open(&Address::parse("s3://data").unwrap(), &home.settings(), &|name| match name {
        "AWS_ENDPOINT_URL_S3" => Some("http://127.0.0.1:1".to_owned()),
        _ => keys(name),
    });
    set.unwrap().head("key").unwrap();
}
