//! `gradus coordinator` as a person runs it.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn coordinator(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradus"));
    command.arg("coordinator").args(arguments).current_dir(directory);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts one and reads where it listens.
fn start(directory: &Path) -> (Child, String) {
    let mut child = coordinator(directory, &["--listen", "127.0.0.1:0", "--state", "state"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    (child, address)
}

#[test]
fn it_ends_in_good_order_and_goes_on_from_its_file() {
    let directory = tempfile::tempdir().unwrap();
    for life in 1..=2 {
        let (mut child, address) = start(directory.path());
        std::net::TcpStream::connect(&address).unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let state = std::fs::read_to_string(directory.path().join("state")).unwrap();
        assert!(state.contains(&format!("\"term\":{life}")), "{state}");
    }
}

#[test]
fn with_an_etcd_that_is_not_there_it_stands_by_until_it_is_told_to_stop() {
    let directory = tempfile::tempdir().unwrap();
    // The discard port (RFC 863), which only a privileged program could serve.
    let nowhere = ["--listen", "127.0.0.1:0", "--rdzv", "etcd://127.0.0.1:9/p", "--failure-detection", "1s"];
    let mut command = coordinator(directory.path(), &nowhere);
    let mut child = command.env_remove("GRADUS_SECRET").env_remove("GRADUS_SECRET_FILE").spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
    for named in ["GRADUS_SECRET_FILE", "127.0.0.1:9"] {
        let said = lines.next().unwrap().unwrap();
        assert!(said.contains(named), "{said}");
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Reads a request whole, as far as its length says, and answers it so.
fn answer(mut caller: TcpStream, answer: &str) {
    let mut reader = BufReader::new(caller.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(rest) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = rest.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    // One that has gone is asked for nothing.
    let _ = reader.read_exact(&mut vec![0; length]);
    let _ = caller.write_all(answer.as_bytes());
}

#[test]
fn while_it_stands_by_it_says_once_why_and_again_when_that_changes() {
    let directory = tempfile::tempdir().unwrap();
    let etcd = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = etcd.local_addr().unwrap().port();
    let rdzv = format!("etcd://127.0.0.1:{port}/p");
    let arguments = ["--listen", "127.0.0.1:0", "--rdzv", &rdzv, "--failure-detection", "1s"];
    let mut child = coordinator(directory.path(), &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let mut hear_until = |word: &str, said: &mut Vec<String>| {
        while !said.last().is_some_and(|line| line.contains(word)) {
            said.push(lines.next().unwrap_or_else(|| panic!("it ends before {word:?}: {said:?}")));
        }
    };
    for _ in 0..4 {
        answer(
            etcd.accept().unwrap().0,
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    }
    hear_until("status 503", &mut said);
    drop(etcd);
    hear_until("cannot reach etcd", &mut said);
    assert_eq!(said.iter().filter(|line| line.contains("status 503")).count(), 1, "{said:?}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_ends_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(&[&str], i32, &str); 11] = [
        (&["--state", "state", "--listen", "0.0.0.0:0"], 1, "GRADUS_SECRET"),
        (&["--state", "state", "--listen", "nonsense"], 2, "nonsense"),
        (&["--state", "state", "--failure-detection", "1ms"], 2, "failure_detection"),
        (&["--state", "state", "--failure-detection", "soon"], 2, "soon"),
        (&[], 2, "--rdzv"),
        (&["--state", "state", "--rdzv", "etcd://here"], 2, "--rdzv"),
        (&["--state", "state", "--advertise", "here:1"], 2, "--rdzv"),
        (&["--rdzv", "here:2379"], 2, "etcd://"),
        (&["--rdzv", "etcds://here"], 2, "ETCDCTL_CACERT"),
        (&["--state", "state", "--network.tls.key", "key.pem"], 2, "network.tls.certificate"),
        (&["--state", "state", "--network.interface", "eth0"], 2, "network.interface"),
    ];
    for (arguments, code, reason) in cases {
        let output = coordinator(directory.path(), arguments).env_remove("ETCDCTL_CACERT").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(reason), "{text}");
    }
}
