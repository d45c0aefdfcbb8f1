//! Processes of their own for tests of membership: this test binary, started again, plays coordinator and members.

use gradus_fabric::membership::{
    ClientSettings, CoordinatorAddress, CoordinatorNote, CoordinatorServer, CoordinatorSettings, Engine,
    GroupSettings, Identity, MemberNote, MembershipClient, Timeouts,
};
use gradus_fabric::{EtcdAddress, Secret, TlsSettings};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Long enough that no busy machine makes the living look dead, nor lets the lease of a leader end, which is 4/10 of it.
const FAILURE_DETECTION: Duration = Duration::from_secs(12);

/// How long to wait for what must come.
pub const LIMIT: Duration = Duration::from_secs(120);

const ROLE: &str = "GRADUS_TEST_MEMBERSHIP";

pub fn timeouts() -> Timeouts {
    Timeouts::from(FAILURE_DETECTION).unwrap()
}

/// A coordinator's settings, without secret and certificates.
pub fn coordinator_settings(listen: &str, engine: Engine) -> CoordinatorSettings {
    CoordinatorSettings {
        listen: listen.into(),
        engine,
        timeouts: timeouts(),
        secret: Secret::default(),
        tls: TlsSettings::default(),
    }
}

/// The engine that a text names: an address of etcd, or a file.
pub fn engine(text: &str) -> Engine {
    match EtcdAddress::is_meant(text) {
        true => Engine::Etcd { address: EtcdAddress::parse(text, &|_| None).unwrap(), advertise: None },
        false => Engine::File(text.into()),
    }
}

/// A member's settings, without secret and certificates.
pub fn client_settings(coordinator: &str, settings: GroupSettings, name: &str) -> ClientSettings {
    let identity = Identity { name: name.into(), incarnation: 1, host: "here".into(), address: name.into() };
    ClientSettings {
        coordinator: CoordinatorAddress::parse(coordinator, &|_| None).unwrap(),
        group: "g".into(),
        settings,
        identity,
        timeouts: timeouts(),
        secret: Secret::default(),
        tls: TlsSettings::default(),
    }
}

/// A process that says one line for each thing that comes to pass, and does not outlive its test.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    pub fn start(test: &str, role: &str, rest: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(ROLE, format!("{role} {}", rest.join(" ")));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The rest of the next line that begins with `word`; lines before it must be of one of the kinds in `passing`.
    pub fn expect(&self, word: &str, passing: &[&str]) -> String {
        loop {
            let line = self.lines.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{word:?} does not come"));
            // The test harness of the child speaks as well.
            let Some(line) = line.strip_prefix("> ") else { continue };
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
            assert!(passing.iter().any(|kind| line.starts_with(kind)), "{line:?} comes before {word:?}");
        }
    }

    /// The epoch in which it acts with `size` members.
    pub fn acts_with(&self, size: usize) -> u64 {
        loop {
            let active = self.expect("active", &["formed", "broken", "isolated", "heard"]);
            let (epoch, found) = active.split_once(' ').unwrap();
            if found.parse::<usize>().unwrap() == size {
                return epoch.parse().unwrap();
            }
        }
    }

    /// Lets it hold open no more files than `most`.
    pub fn limit_files(&self, most: u64) {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    /// How many files it holds open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Plays what the environment says; whether it says anything.
pub fn plays_a_role() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let words: Vec<&str> = role.split(' ').collect();
    match words[0] {
        "coordinator" => play_coordinator(words[1], words[2]),
        _ => play_member(words[1], words[2]),
    }
    true
}

/// A line of its own, whatever the test harness has begun to write.
fn say(line: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "\n> {line}").unwrap();
    output.flush().unwrap();
}

fn play_coordinator(address: &str, state: &str) {
    let server = CoordinatorServer::open(coordinator_settings(address, engine(state))).unwrap();
    say(&format!("listening {}", server.address()));
    let observe = |note: &CoordinatorNote| match note {
        CoordinatorNote::Started { term } => say(&format!("leading {term}")),
        CoordinatorNote::Deposed { term } => say(&format!("deposed {term}")),
        _ => {}
    };
    server.run(std::io::stdin(), observe).unwrap();
}

fn play_member(coordinator: &str, name: &str) {
    let settings = GroupSettings { min_size: 2, max_size: 3, join_window_ms: 0 };
    let client = MembershipClient::join(client_settings(coordinator, settings, name)).unwrap();
    let mut size = 0;
    while let Ok(event) = client.next_event(LIMIT) {
        match event {
            Some(MemberNote::Formed { table, .. }) => {
                size = table.members.len();
                say(&format!("formed {}", table.epoch));
                client.acknowledge(table.epoch);
            }
            Some(MemberNote::Active { epoch, .. }) => say(&format!("active {epoch} {size}")),
            Some(MemberNote::Broken { lost, .. }) => {
                let names: Vec<&str> = lost.iter().map(|(_, member)| member.name.as_str()).collect();
                say(&format!("broken {}", names.join(",")));
            }
            Some(MemberNote::Isolated) => say("isolated"),
            Some(MemberNote::Heard) => say("heard"),
            Some(MemberNote::Fenced) => {
                assert_eq!(client.may_act(), None);
                return say("fenced");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Three members that act together, and the epoch in which they do.
pub fn three_members(test: &str, coordinator: &str) -> ([Process; 3], u64) {
    let members = ["a", "b", "c"].map(|name| Process::start(test, "member", &[coordinator, name]));
    let epochs = members.each_ref().map(|member| member.acts_with(3));
    assert!(epochs[0] == epochs[1] && epochs[1] == epochs[2], "{epochs:?}");
    (members, epochs[0])
}

/// The epoch in which both survivors act once they have heard that c is lost.
pub fn survive([a, b, _]: &[Process; 3]) -> u64 {
    for survivor in [a, b] {
        assert_eq!(survivor.expect("broken", &["isolated", "heard"]), "c");
    }
    let epochs = [a.acts_with(2), b.acts_with(2)];
    assert_eq!(epochs[0], epochs[1]);
    epochs[0]
}
