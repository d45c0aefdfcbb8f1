//! What comes back from somebody who is no etcd, or will not do as asked. The real one is met in the tests of processes.

use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

/// Longer than any answer takes here.
const LIMIT: Duration = Duration::from_secs(60);

/// Answers as many requests as there are answers, each over a connection of its own; the paths and tokens that were asked with.
fn serve(answers: Vec<String>) -> (EtcdAddress, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("etcd://me:hunter2@{}/p", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        answers.into_iter().map(|answer| serve_one(listener.accept().unwrap().0, &answer)).collect()
    });
    (EtcdAddress::parse(&address, &|_| None).unwrap(), serving)
}

fn serve_one(socket: TcpStream, answer: &str) -> String {
    let mut reader = BufReader::new(socket);
    let (mut asked, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let (name, rest) = line.trim().split_once([':', ' ']).unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "post" => asked.push_str(rest.split(' ').next().unwrap()),
            "authorization" => asked.push_str(&format!(" as{rest}")),
            "content-length" => length = rest.trim().parse().unwrap(),
            "" => break,
            _ => {}
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    // Who is told too much hangs up.
    let _ = reader.get_mut().write_all(answer.as_bytes());
    asked
}

fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn fails(answer: String) -> Kind {
    let token = response("200 OK", r#"{"token":"t"}"#);
    let (address, serving) = serve(vec![token, answer]);
    let error = Etcd::open(&address, LIMIT).unwrap().get(b"k").unwrap_err();
    serving.join().unwrap();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    error.kind().clone()
}

#[test]
fn what_no_etcd_would_answer_is_corrupt() {
    for body in ["", "{", "[]", "{}", "<html>", r#"{"header":{},"kvs":[{"value":"?"}]}"#] {
        assert_eq!(fails(response("200 OK", body)), Kind::Corrupt, "{body}");
    }
    assert_eq!(fails(response("404 Not Found", "404 page not found")), Kind::Corrupt);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", LARGEST_ANSWER + 1);
    assert_eq!(fails(format!("{head}x")), Kind::Unavailable, "it ends before its length");
    assert_eq!(fails(head + &"x".repeat(LARGEST_ANSWER as usize + 1)), Kind::Corrupt, "it has no end");
}

#[test]
fn refusals_say_what_can_be_done() {
    let failure = |code: i64, message: &str| {
        response("400 Bad Request", &format!(r#"{{"code":{code},"message":"{message}"}}"#))
    };
    assert_eq!(fails(failure(UNAVAILABLE, "no leader")), Kind::Unavailable);
    assert_eq!(fails(failure(RESOURCE_EXHAUSTED, "etcdserver: too many requests")), Kind::Unavailable);
    assert_eq!(fails(failure(UNKNOWN, "context canceled")), Kind::Unavailable);
    assert_eq!(fails(response("502 Bad Gateway", "<html>")), Kind::Unavailable);
    assert_eq!(fails(failure(PERMISSION_DENIED, "etcdserver: permission denied")), Kind::Denied);
    assert_eq!(fails(failure(3, "etcdserver: request is too large")), Kind::Exhausted);
    assert_eq!(fails(failure(RESOURCE_EXHAUSTED, "database space exceeded")), Kind::Exhausted);
    assert_eq!(fails(failure(3, "etcdserver: user name is empty")), Kind::Denied);
}

#[test]
fn a_token_from_before_users_were_changed_is_renewed() {
    for failure in [
        r#"{"code":3,"message":"etcdserver: revision of auth store is old"}"#,
        r#"{"code":2,"message":"auth: revision in header is old"}"#,
    ] {
        let token = response("200 OK", r#"{"token":"t"}"#);
        let found = response("200 OK", r#"{"header":{},"kvs":[{"value":"YmFy"}]}"#);
        let old = response("400 Bad Request", failure);
        let (address, serving) = serve(vec![token.clone(), found.clone(), old, token, found]);
        let mut etcd = Etcd::open(&address, LIMIT).unwrap();
        for _ in 0..2 {
            assert_eq!(etcd.get(b"k").unwrap().unwrap(), b"bar");
        }
        serving.join().unwrap();
    }
}

#[test]
fn a_token_that_has_become_stale_is_renewed_once() {
    let token = |name: &str| response("200 OK", &format!(r#"{{"token":"{name}"}}"#));
    let found = response("200 OK", r#"{"header":{},"kvs":[{"value":"YmFy"}]}"#);
    let stale = response("401 Unauthorized", r#"{"code":16,"message":"invalid auth token"}"#);
    let (address, serving) = serve(vec![
        token("one"),
        found.clone(),
        stale.clone(),
        token("two"),
        found,
        stale.clone(),
        token("three"),
        stale,
    ]);
    let mut etcd = Etcd::open(&address, LIMIT).unwrap();
    for _ in 0..2 {
        assert_eq!(etcd.get(b"k").unwrap().unwrap(), b"bar");
    }
    assert_eq!(*etcd.get(b"k").unwrap_err().kind(), Kind::Denied);
    let asked = serving.join().unwrap();
    let [authenticate, range] = ["/v3/auth/authenticate", "/v3/kv/range"];
    assert_eq!(asked[0], authenticate);
    assert_eq!(asked[1], format!("{range} as one"));
    assert!(asked[3].starts_with(authenticate) && asked[4] == format!("{range} as two"), "{asked:?}");
}

#[test]
fn a_member_that_does_not_answer_is_passed_over() {
    let found = response("200 OK", r#"{"header":{},"kvs":[]}"#);
    let (address, serving) = serve(vec![response("200 OK", r#"{"token":"t"}"#), found]);
    // The discard port (RFC 863), which only a privileged program could serve.
    let urls = address.urls();
    let there = urls[0].trim_start_matches("http://");
    let address = EtcdAddress::parse(&format!("etcd://me:hunter2@127.0.0.1:9,{there}/p"), &|_| None).unwrap();
    assert_eq!(Etcd::open(&address, LIMIT).unwrap().get(b"k").unwrap(), None);
    serving.join().unwrap();
    let alone = EtcdAddress::parse("etcd://127.0.0.1:9", &|_| None).unwrap();
    let error = Etcd::open(&alone, LIMIT).unwrap().get(b"k").unwrap_err();
    assert_eq!(*error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}
