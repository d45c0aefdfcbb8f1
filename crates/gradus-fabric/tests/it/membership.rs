//! Membership over real sockets, files and processes: this test binary, started again, plays coordinator and members.

use gradus_error::Kind;
use gradus_fabric::Secret;
use gradus_fabric::membership::{
    ClientSettings, CoordinatorNote, CoordinatorServer, Epoch, GroupSettings, Identity, MemberNote,
    MembershipClient, Timeouts,
};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Long enough that no busy machine makes the living look dead.
const FAILURE_DETECTION: Duration = Duration::from_secs(6);

/// How long to wait for what must come.
const LIMIT: Duration = Duration::from_secs(120);

const ROLE: &str = "GRADUS_TEST_MEMBERSHIP";

fn timeouts() -> Timeouts {
    Timeouts::from(FAILURE_DETECTION).unwrap()
}

fn client_settings(coordinator: &str, settings: GroupSettings, name: &str) -> ClientSettings {
    let identity = Identity { name: name.into(), incarnation: 1, host: "here".into(), address: name.into() };
    ClientSettings {
        coordinator: coordinator.into(),
        group: "g".into(),
        settings,
        identity,
        timeouts: timeouts(),
        secret: Secret::default(),
    }
}

fn next(client: &MembershipClient) -> MemberNote {
    client.next_event(LIMIT).unwrap().expect("nothing comes to pass")
}

// A server in this process.

/// Runs `body` beside a coordinator, whose notes are returned.
fn beside_a_coordinator(body: impl FnOnce(&str)) -> Vec<CoordinatorNote> {
    beside_a_coordinator_with(&Secret::default(), body)
}

fn beside_a_coordinator_with(secret: &Secret, body: impl FnOnce(&str)) -> Vec<CoordinatorNote> {
    let folder = tempfile::tempdir().unwrap();
    let mut server =
        CoordinatorServer::open("127.0.0.1:0", &folder.path().join("state"), timeouts(), secret).unwrap();
    let address = server.address().to_string();
    let (stop, stopped) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let mut notes = Vec::new();
            server.run(&stopped, |note| notes.push(note.clone())).unwrap();
            notes
        });
        body(&address);
        drop(stop);
        serving.join().unwrap()
    })
}

#[test]
fn a_large_group_forms_once_acts_and_leaves() {
    const SIZE: u32 = 150;
    let notes = beside_a_coordinator(|address| {
        let join = |number: u32| {
            MembershipClient::join(client_settings(
                address,
                GroupSettings::fixed(SIZE),
                &format!("m{number}"),
            ))
            .unwrap()
        };
        let clients: Vec<MembershipClient> = (0..SIZE).map(join).collect();
        for client in &clients {
            let MemberNote::Formed { table, .. } = next(client) else { panic!("no table comes first") };
            assert_eq!((table.epoch, table.members.len()), (Epoch(1), SIZE as usize));
            assert_eq!(client.may_act(), None);
            client.acknowledge(table.epoch);
        }
        for client in &clients {
            assert!(matches!(next(client), MemberNote::Active { epoch: Epoch(1), .. }));
            assert_eq!(client.may_act(), Some(Epoch(1)));
        }
    });
    let formed = notes.iter().filter(|note| matches!(note, CoordinatorNote::Formed { .. }));
    assert_eq!(formed.count(), 1);
}

#[test]
fn who_wants_another_group_is_refused_and_strangers_hold_nobody_up() {
    beside_a_coordinator(|address| {
        let strangers: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        (&strangers[1]).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        (&strangers[2]).write_all(b"\x02\0\0\0{}").unwrap();
        (&strangers[3]).write_all(&u32::MAX.to_le_bytes()).unwrap();
        let first =
            MembershipClient::join(client_settings(address, GroupSettings::fixed(1), "first")).unwrap();
        assert!(matches!(next(&first), MemberNote::Formed { .. }));
        let second =
            MembershipClient::join(client_settings(address, GroupSettings::fixed(2), "second")).unwrap();
        assert!(matches!(next(&second), MemberNote::Refused { .. }));
        assert_eq!(*second.next_event(LIMIT).unwrap_err().kind(), Kind::Closed);
    });
}

#[test]
fn only_who_knows_the_secret_is_a_member() {
    let secret = Secret::make();
    beside_a_coordinator_with(&secret, |address| {
        let of = |name: &str| client_settings(address, GroupSettings::fixed(1), name);
        for other in [Secret::make(), Secret::default()] {
            let stranger = MembershipClient::join(ClientSettings { secret: other, ..of("stranger") });
            assert_eq!(*stranger.err().unwrap().kind(), Kind::Denied);
        }
        let member =
            MembershipClient::join(ClientSettings { secret: secret.clone(), ..of("member") }).unwrap();
        assert!(matches!(next(&member), MemberNote::Formed { .. }));
    });
}

#[test]
fn a_second_coordinator_and_addresses_beyond_loopback_are_denied() {
    let folder = tempfile::tempdir().unwrap();
    let open = |address: &str| {
        CoordinatorServer::open(address, &folder.path().join("state"), timeouts(), &Secret::default())
    };
    let _first = open("127.0.0.1:0").unwrap();
    assert_eq!(*open("127.0.0.1:0").err().unwrap().kind(), Kind::Denied);
    assert_eq!(*open("0.0.0.0:0").err().unwrap().kind(), Kind::Denied);
    assert_eq!(*open("nonsense").err().unwrap().kind(), Kind::Invalid);
    std::fs::write(folder.path().join("torn"), "{\"version\":1,").unwrap();
    let torn =
        CoordinatorServer::open("127.0.0.1:0", &folder.path().join("torn"), timeouts(), &Secret::default());
    assert_eq!(*torn.err().unwrap().kind(), Kind::Corrupt);
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let settings = ClientSettings {
        timeouts: Timeouts::from(Duration::from_millis(100)).unwrap(),
        // The discard port (RFC 863), which only a privileged program could serve.
        ..client_settings("127.0.0.1:9", GroupSettings::fixed(1), "alone")
    };
    let error = MembershipClient::join(settings).err().unwrap();
    assert_eq!(*error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

// Processes of their own.

/// A process that says one line for each thing that comes to pass, and does not outlive its test.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(test: &str, role: &str, rest: &[&str]) -> Self {
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
    fn expect(&self, word: &str, passing: &[&str]) -> String {
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
    fn acts_with(&self, size: usize) -> u64 {
        loop {
            let active = self.expect("active", &["formed", "broken", "isolated", "heard"]);
            let (epoch, found) = active.split_once(' ').unwrap();
            if found.parse::<usize>().unwrap() == size {
                return epoch.parse().unwrap();
            }
        }
    }

    fn signal(&self, signal: Signal) {
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
fn plays_a_role() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let words: Vec<&str> = role.split(' ').collect();
    match words[0] {
        "coordinator" => play_coordinator(words[1], Path::new(words[2])),
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

fn play_coordinator(address: &str, state: &Path) {
    let mut server = CoordinatorServer::open(address, state, timeouts(), &Secret::default()).unwrap();
    say(&format!("listening {}", server.address()));
    server.run(std::io::stdin(), |_| {}).unwrap();
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

/// A coordinator and three members that act together.
fn three(test: &str, folder: &Path) -> (String, Process, [Process; 3], u64) {
    let state = folder.join("state");
    let coordinator = Process::start(test, "coordinator", &["127.0.0.1:0", state.to_str().unwrap()]);
    let address = coordinator.expect("listening", &[]);
    let members = ["a", "b", "c"].map(|name| Process::start(test, "member", &[&address, name]));
    let epochs = members.each_ref().map(|member| member.acts_with(3));
    assert!(epochs[0] == epochs[1] && epochs[1] == epochs[2], "{epochs:?}");
    (address, coordinator, members, epochs[0])
}

/// The epoch in which both survivors act once they have heard that c is lost.
fn survive([a, b, _]: &[Process; 3]) -> u64 {
    for survivor in [a, b] {
        assert_eq!(survivor.expect("broken", &["isolated", "heard"]), "c");
    }
    let epochs = [a.acts_with(2), b.acts_with(2)];
    assert_eq!(epochs[0], epochs[1]);
    epochs[0]
}

#[test]
fn a_killed_member_is_named_to_the_others_and_they_go_on() {
    if plays_a_role() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "membership::a_killed_member_is_named_to_the_others_and_they_go_on";
    let (_, _coordinator, members, epoch) = three(test, folder.path());
    members[2].signal(Signal::KILL);
    assert!(survive(&members) > epoch);
}

#[test]
fn a_stopped_member_that_wakes_learns_that_it_is_fenced() {
    if plays_a_role() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "membership::a_stopped_member_that_wakes_learns_that_it_is_fenced";
    let (_, _coordinator, members, epoch) = three(test, folder.path());
    members[2].signal(Signal::STOP);
    assert!(survive(&members) > epoch);
    members[2].signal(Signal::CONT);
    members[2].expect("fenced", &["isolated", "broken"]);
}

#[test]
fn a_killed_coordinator_goes_on_from_its_file() {
    if plays_a_role() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "membership::a_killed_coordinator_goes_on_from_its_file";
    let (address, coordinator, members, epoch) = three(test, folder.path());
    drop(coordinator);
    let state = folder.path().join("state");
    let again = Process::start(test, "coordinator", &[&address, state.to_str().unwrap()]);
    assert_eq!(again.expect("listening", &[]), address);
    members[2].signal(Signal::KILL);
    assert!(survive(&members) > epoch);
}
