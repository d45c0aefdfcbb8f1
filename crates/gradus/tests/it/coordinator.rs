//! `gradus coordinator` as a person runs it.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
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
