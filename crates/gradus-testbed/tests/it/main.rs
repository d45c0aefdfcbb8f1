//! The server as a client sees it, over plain sockets and without signatures.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not know for tests")]

use gradus_testbed::{InstanceMetadata, Refusal, S3Server};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

/// A server that asks for no signature, with the bucket `data` and ten thousand bytes in `key`.
fn server() -> (S3Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = S3Server::start_at(folder.path(), address, None, 2).unwrap();
    server.make_bucket("data").unwrap();
    server.put("data", "key", &bytes()).unwrap();
    (server, folder)
}

fn bytes() -> Vec<u8> {
    (0..10_000).map(|at| (at / 7) as u8).collect()
}

/// Status, lines of the head, and as much of the body as came.
fn request(endpoint: &str, method: &str, target: &str, headers: &str) -> (u16, String, Vec<u8>) {
    let host = endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    // A connection that is cut may end in an error.
    let _ = stream.read_to_end(&mut answer);
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return (0, String::new(), answer);
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end + 4..].to_vec())
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap()
}

#[test]
fn a_range_is_answered_and_counted() {
    let (server, _folder) = server();
    let (status, head, body) = request(&server.endpoint(), "GET", "/data/key", "range: bytes=100-299\r\n");
    assert_eq!((status, header(&head, "content-range")), (206, "bytes 100-299/10000"));
    assert_eq!(body, bytes()[100..300]);
    assert_eq!(request(&server.endpoint(), "GET", "/data/k%65y", "").2, bytes());
    assert_eq!(request(&server.endpoint(), "HEAD", "/data/key", "").0, 200);
    assert_eq!(request(&server.endpoint(), "GET", "/data/none", "").0, 404);
    assert_eq!(request(&server.endpoint(), "GET", "/none/key", "").0, 404);
    let counts = server.faults().counts();
    assert_eq!((counts.requests, counts.of("GET"), counts.of_target("GET", "data/key")), (5, 4, 2));
    assert_eq!((counts.bytes_by_target["data/key"], counts.most_in_flight), (10_200, 1));
}

#[test]
fn an_object_that_is_written_anew_has_another_etag() {
    let (server, _folder) = server();
    let etag = |condition: &str| request(&server.endpoint(), "GET", "/data/key", condition);
    let (_, head, _) = etag("");
    let old = header(&head, "etag").to_owned();
    let condition = format!("if-match: {old}\r\n");
    assert_eq!(etag(&condition).0, 200);
    server.put("data", "key", &bytes()).unwrap();
    assert_eq!(etag(&condition).0, 412);
}

#[test]
fn requests_are_refused_as_planned() {
    let (server, _folder) = server();
    for (refusal, status, code) in [
        (Refusal::SlowDown, 503, "SlowDown"),
        (Refusal::InternalError, 500, "InternalError"),
        (Refusal::AccessDenied, 403, "AccessDenied"),
        (Refusal::ExpiredToken, 400, "ExpiredToken"),
    ] {
        server.faults().set(|plan| (plan.refusal, plan.refuse_next) = (refusal, 1));
        let (given, _, body) = request(&server.endpoint(), "GET", "/data/key", "");
        assert_eq!(given, status);
        assert!(String::from_utf8(body).unwrap().contains(&format!("<Code>{code}</Code>")));
        assert_eq!(request(&server.endpoint(), "GET", "/data/key", "").0, 200, "one was to be refused");
    }
    assert_eq!(server.faults().counts().refused, 4);
}

#[test]
fn bodies_are_cut_and_shortened() {
    let (server, _folder) = server();
    server.faults().set(|plan| plan.cut = 1.0);
    let (_, head, body) = request(&server.endpoint(), "GET", "/data/key", "");
    assert_eq!(header(&head, "content-length"), "10000");
    assert!(body.len() < 10_000 && bytes().starts_with(&body));
    server.faults().set(|plan| (plan.cut, plan.truncated) = (0.0, 1.0));
    let (_, head, body) = request(&server.endpoint(), "GET", "/data/key", "range: bytes=0-9999\r\n");
    assert_eq!(header(&head, "content-length"), body.len().to_string());
    assert!(body.len() < 10_000 && bytes().starts_with(&body));
    assert_eq!(header(&head, "content-range"), "bytes 0-9999/10000");
    assert_eq!(server.faults().counts().broken, 2);
}

#[test]
fn requests_are_held_until_they_are_released() {
    let (server, _folder) = server();
    server.faults().hold_after(1);
    assert_eq!(request(&server.endpoint(), "GET", "/data/key", "").0, 200);
    let endpoint = server.endpoint();
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let endpoint = endpoint.clone();
            std::thread::spawn(move || request(&endpoint, "GET", "/data/key", "").0)
        })
        .collect();
    server.faults().wait_for_in_flight(3);
    assert!(clients.iter().all(|client| !client.is_finished()));
    server.faults().release();
    assert!(clients.into_iter().all(|client| client.join().unwrap() == 200));
    assert_eq!(server.faults().counts().most_in_flight, 3);
}

#[test]
fn a_bandwidth_changes_when_bytes_pass_and_not_which() {
    let (server, _folder) = server();
    server.faults().set(|plan| plan.bandwidth = Some(10_000_000));
    assert_eq!(request(&server.endpoint(), "GET", "/data/key", "").2, bytes());
}

#[test]
fn an_instance_tells_its_keys_to_who_has_a_token() {
    let metadata = InstanceMetadata::start("A", "B", "2030-01-01T00:00:00Z").unwrap();
    let get = |headers: &str, path: &str| request(&metadata.endpoint(), "GET", path, headers);
    let role = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(get("", role).0, 401);
    let lives = "x-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let (_, _, token) = request(&metadata.endpoint(), "PUT", "/latest/api/token", lives);
    let token = format!("x-aws-ec2-metadata-token: {}\r\n", String::from_utf8(token).unwrap());
    let name = String::from_utf8(get(&token, role).2).unwrap();
    let keys = String::from_utf8(get(&token, &format!("{role}{name}")).2).unwrap();
    assert!(keys.contains("\"AccessKeyId\":\"A\"") && metadata.asked() == 1);
}

#[test]
fn a_web_identity_is_traded_for_keys_and_refused_as_planned() {
    let metadata = InstanceMetadata::start("A", "B", "2030-01-01T00:00:00Z").unwrap();
    metadata.refuse_next(1, 400, "Throttling");
    let trade = || request(&metadata.endpoint(), "POST", "/?Action=AssumeRoleWithWebIdentity", "");
    let (status, _, text) = trade();
    assert!(status == 400 && String::from_utf8(text).unwrap().contains("<Code>Throttling</Code>"));
    assert_eq!((metadata.asked(), metadata.refusals_left()), (0, 0));
    let (status, _, text) = trade();
    assert!(status == 200 && String::from_utf8(text).unwrap().contains("<AccessKeyId>A</AccessKeyId>"));
    assert_eq!(metadata.asked(), 1);
}

#[test]
fn the_program_serves_until_its_input_ends() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/key"), bytes()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_gradus-testbed"))
        .args(["serve", "--anonymous", "--root"])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut endpoint = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
    assert_eq!(request(endpoint.trim(), "GET", "/data/key", "").2, bytes());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let bad = Command::new(env!("CARGO_BIN_EXE_gradus-testbed")).arg("--help").stderr(Stdio::null()).status();
    assert_eq!(bad.unwrap().code(), Some(2));
}
