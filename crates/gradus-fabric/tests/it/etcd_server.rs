//! A real etcd on loopback, with a data folder of its own, that does not outlive its test.
//!
//! Where there is none the tests say that they did not run; where `GRADUS_TEST_ETCD` is `required`, as in CI, they fail.

use gradus_fabric::TlsSettings;
use gradus_host::{Clock, RealClock};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// How long to wait for what must come.
const LIMIT: Duration = Duration::from_secs(120);

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

    /// The port of its gateway.
    pub fn port(&self) -> u16 {
        self.ports[0]
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
            match ask(self.ports[0], path, json) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => return answer,
                _ => clock.sleep(Duration::from_millis(20)),
            }
        }
        panic!("etcd does not answer {path}")
    }
}

/// Asks the gateway at a port of loopback once; the answer as it is.
///
/// # Errors
/// When nobody answers.
pub fn ask(port: u16, path: &str, json: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    let length = json.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\ncontent-length: {length}");
    socket.write_all(format!("{head}\r\n\r\n{json}").as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
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

/// What becomes of a request on its way to etcd.
pub enum Passage {
    /// It is carried out and answered.
    Whole,
    /// It is carried out, and the answer is lost.
    Unanswered,
    /// It does not arrive, for now.
    Late,
}

/// A request that has not arrived.
pub struct Late {
    pub path: String,
    pub json: String,
    /// Who hears nothing.
    _caller: TcpStream,
}

/// A line to an etcd on which requests are lost and delayed.
pub struct Line {
    port: u16,
    late: Receiver<Late>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// A line on which `decide` says, by its text, what becomes of each request.
    pub fn to(etcd: &EtcdServer, mut decide: impl FnMut(&str) -> Passage + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, late) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        let (there, is_over) = (etcd.ports[0], Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let mut unanswered = Vec::new();
            for caller in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let Some((path, json)) = read_request(&caller) else { continue };
                match decide(&json) {
                    // A test that has ended has no use for it.
                    Passage::Late => drop(sender.send(Late { path, json, _caller: caller })),
                    passage => {
                        let answer = ask(there, &path, &json).unwrap_or_default();
                        match passage {
                            Passage::Whole => drop((&caller).write_all(answer.as_bytes())),
                            _ => unanswered.push(caller),
                        }
                    }
                }
            }
        });
        Self { port, late, ended, thread: Some(thread) }
    }

    /// Where etcd is found by this line.
    pub fn address(&self, prefix: &str) -> String {
        format!("etcd://127.0.0.1:{}/{prefix}", self.port)
    }

    /// The next request that does not arrive.
    pub fn late(&self) -> Late {
        self.late.recv_timeout(LIMIT).expect("every request arrives")
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The path and the text of a request; `None` when its caller has gone.
fn read_request(caller: &TcpStream) -> Option<(String, String)> {
    let mut reader = BufReader::new(caller);
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let (name, rest) = line.trim().split_once([':', ' ']).unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "post" => path = rest.split(' ').next()?.to_owned(),
            "content-length" => length = rest.trim().parse().ok()?,
            "" => break,
            _ => {}
        }
    }
    let mut json = vec![0; length];
    reader.read_exact(&mut json).ok()?;
    Some((path, String::from_utf8(json).ok()?))
}
