//! A real etcd on loopback, with a data folder of its own, that does not outlive its test.
//!
//! Where there is none the tests say that they did not run; where `GRADUS_TEST_ETCD` is `required`, as in CI, they fail.

use crate::roles::LIMIT;
use gradus_fabric::TlsSettings;
use gradus_host::{Clock, RealClock};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Whether etcd is there.
///
/// # Panics
/// If it is not, and must be.
pub fn etcd_is_there() -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
    let Err(reason) = found else { return true };
    let needs = format!("tests with etcd need it (on Debian: apt install etcd-server): {reason}");
    assert!(std::env::var("GRADUS_TEST_ETCD").as_deref() != Ok("required"), "{needs}");
    eprintln!("not run: {needs}");
    false
}

/// The server.
pub struct EtcdServer {
    child: Child,
    folder: TempDir,
    ports: [u16; 2],
    tls: Option<TlsSettings>,
}

impl EtcdServer {
    /// Starts one, under TLS if certificates are given; it answers as soon as it can.
    pub fn start(tls: Option<TlsSettings>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = held.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(held);
        let child = spawn(folder.path(), ports, tls.as_ref());
        Self { child, folder, ports, tls }
    }

    /// Where members and coordinators find it, with a prefix.
    pub fn address(&self, prefix: &str) -> String {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        format!("{scheme}://127.0.0.1:{}/{prefix}", self.ports[0])
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on what it has written.
    pub fn start_again(&mut self) {
        self.child = spawn(self.folder.path(), self.ports, self.tls.as_ref());
    }

    /// Asks its gateway as any other program would, again and again until it answers well.
    pub fn ask(&self, path: &str, json: &str) -> String {
        let clock = RealClock::new();
        while clock.now() < LIMIT {
            match self.try_to_ask(path, json) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => return answer,
                _ => clock.sleep(Duration::from_millis(20)),
            }
        }
        panic!("etcd does not answer {path}")
    }

    fn try_to_ask(&self, path: &str, json: &str) -> std::io::Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports[0]))?;
        let length = json.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\ncontent-length: {length}");
        socket.write_all(format!("{head}\r\n\r\n{json}").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, [clients, peers]: [u16; 2], tls: Option<&TlsSettings>) -> Child {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (clients, peers) = (format!("{scheme}://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(folder.join("data"));
    command.args(["--name", "alone", "--initial-cluster", &format!("alone={peers}"), "--log-level", "error"]);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    if let Some(tls) = tls {
        command.args(["--cert-file", &tls.certificate, "--key-file", &tls.key]);
        command.args(["--client-cert-auth", "--trusted-ca-file", &tls.authority]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
