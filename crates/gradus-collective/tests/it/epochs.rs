//! Processes that live through epochs of a group: this test binary, started again, plays the members.

use crate::beside;
use crate::namespaces::{Namespaces, address};
use crate::world::PATIENCE;
use gradus_collective::Communicator;
use gradus_error::{Error, Kind};
use gradus_fabric::membership::{
    CoordinatorAddress, CoordinatorServer, CoordinatorSettings, Engine, GroupSettings, Timeouts,
};
use gradus_fabric::{
    NetworkSettings, Order, Secret, Session, SessionSettings, TlsSettings, TransportKind, World,
};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Long enough that no busy machine makes the living look dead.
const FAILURE_DETECTION: Duration = Duration::from_secs(6);

/// The variable that makes a test play a member: coordinator, name and transport; or `coordinator` and where it listens.
const ROLE: &str = "GRADUS_TEST_MEMBER";

/// Elements of a sum: more than a ring or a socket holds, so that nobody is done while a peer is missing.
const LEN: usize = 200_000;

/// Sums between two signs of progress.
const ROUNDS: i64 = 8;

// A member.

/// Plays the member that the environment names; whether it names one.
fn plays_a_member() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let words: Vec<&str> = role.split(' ').collect();
    if let ["coordinator", address] = words[..] {
        serve(address);
        return true;
    }
    let (transport, node) = match words[2] {
        "tcp" => (TransportKind::Tcp, ""),
        // The victim has a neighbour, and a member on another node.
        "nodes" => (TransportKind::Auto, if words[1] == "c" { "node-2" } else { "node-1" }),
        _ => (TransportKind::SharedMemory, ""),
    };
    let network = NetworkSettings {
        failure_detection: FAILURE_DETECTION,
        node_id: node.into(),
        ..NetworkSettings::default()
    };
    let settings = SessionSettings {
        coordinator: CoordinatorAddress::At(words[0].into()),
        group: "epochs".into(),
        size: GroupSettings { min_size: 2, max_size: 3, join_window_ms: 0 },
        name: words[1].into(),
        order: Order::Dealt,
        secret: secret(),
        coordinator_tls: TlsSettings::default(),
        transport,
        network,
        interfaces: String::new(),
        fingerprint: "tests".into(),
    };
    let wants_to_leave = listen_for_leave();
    while !live(&settings, &wants_to_leave) {}
    true
}

/// What processes of several hosts know.
fn secret() -> Secret {
    Secret::from_environment(&|name| std::env::var(name).ok()).unwrap()
}

/// A coordinator that keeps no state, until it is told to leave.
fn serve(address: &str) {
    let settings = CoordinatorSettings {
        listen: address.into(),
        engine: Engine::Nothing,
        timeouts: Timeouts::from(FAILURE_DETECTION).unwrap(),
        secret: secret(),
        tls: TlsSettings::default(),
    };
    let server = CoordinatorServer::open(settings).unwrap();
    say("listening");
    server.run(std::io::stdin(), |_| {}).unwrap();
}

/// Readable, in that something has come or it has ended, once the test wants this member to leave.
fn listen_for_leave() -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_ok_and(|count| count > 0) {
            sender.send(()).unwrap();
        }
    });
    receiver
}

/// One life of a member, from world to world; whether it left by its own wish.
fn live(settings: &SessionSettings, wants_to_leave: &Receiver<()>) -> bool {
    let mut session = Session::join(settings.clone()).unwrap();
    loop {
        let World { epoch, rank, members, transport, unfenced } = match session.next_world(PATIENCE) {
            Ok(world) => world,
            Err(error) if *error.kind() == Kind::Fenced => {
                assert_eq!(session.may_act(), None);
                say("fenced");
                return false;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(unfenced, []);
        say(&format!("world {epoch} {} {rank} {}", members.len(), holdings()));
        let mut communicator = Communicator::new(transport, PATIENCE);
        assert_eq!((communicator.rank(), communicator.world_size()), (rank, members.len()));
        loop {
            if wants_to_leave.try_recv().is_ok() {
                say("leaves");
                return true;
            }
            match sums(&mut communicator, session.is_outdated(epoch)) {
                Ok(false) => say(&format!("goes-on {epoch}")),
                Ok(true) => break,
                Err(error) => {
                    say(&format!("error {:?} {error}", error.kind()));
                    break;
                }
            }
        }
    }
}

/// Adds integers, so that every bit is known; whether somebody has heard of a newer epoch.
fn sums(communicator: &mut Communicator, outdated: bool) -> Result<bool, Error> {
    let (rank, size) = (communicator.rank() as i64, communicator.world_size() as i64);
    for round in 0..ROUNDS {
        let mut data: Vec<i64> = (0..LEN as i64).map(|index| (rank + 1) * (index + round)).collect();
        communicator.all_reduce(&mut data)?;
        let right = |(index, sum): (usize, &i64)| *sum == size * (size + 1) / 2 * (index as i64 + round);
        assert!(data.iter().enumerate().all(right), "a sum is wrong");
    }
    let mut hears = [i32::from(outdated)];
    communicator.all_reduce(&mut hears)?;
    Ok(hears[0] > 0)
}

/// Descriptors and mapped inboxes of this process.
fn holdings() -> String {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    format!("{descriptors}+{}", maps.matches("gradus-inbox").count())
}

/// A line of its own, whatever the test harness has begun to write.
fn say(line: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "\n> {line}").unwrap();
    output.flush().unwrap();
}

// The test's view.

/// A member that does not outlive its test.
struct Member {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a member says of a world.
#[derive(Debug, PartialEq, Eq)]
struct Sight {
    epoch: u64,
    rank: usize,
    holdings: String,
}

impl Member {
    fn start(role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env_remove("GRADUS_SECRET").env_remove("GRADUS_SECRET_FILE");
        Self::start_as(command, role)
    }

    /// This test binary as a command starts it.
    fn start_as(mut command: Command, role: &str) -> Self {
        let test = "epochs::survivors_form_a_new_world_in_the_same_processes";
        command.args(["--exact", test, "--nocapture"]).env(ROLE, role);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let orders = child.stdin.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, orders, lines }
    }

    /// What follows `word` in the next line that begins with it.
    fn expect(&self, word: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{word:?} does not come"));
            if let Some(rest) = line.strip_prefix("> ").and_then(|line| line.strip_prefix(word)) {
                return rest.trim().to_owned();
            }
        }
    }

    /// The next world of `size` members.
    fn sees(&self, size: usize) -> Sight {
        loop {
            let line = self.expect("world");
            let words: Vec<&str> = line.split(' ').collect();
            if words[1].parse::<usize>().unwrap() == size {
                let (epoch, rank) = (words[0].parse().unwrap(), words[2].parse().unwrap());
                return Sight { epoch, rank, holdings: words[3].into() };
            }
        }
    }

    /// Waits for two signs of progress in an epoch.
    fn goes_on_in(&self, epoch: u64) {
        let progress = format!("goes-on {epoch}");
        (0..2).for_each(|_| drop(self.expect(&progress)));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

/// Runs `body` beside a coordinator that keeps its state in a file.
fn beside_a_coordinator(body: impl FnOnce(&str)) {
    let folder = tempfile::tempdir().unwrap();
    let state = Engine::File(folder.path().join("state"));
    beside::beside_a_coordinator(state, FAILURE_DETECTION, body);
}

/// What becomes of one of three members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Stopped,
    Killed,
    Leaves,
}

const VICTIM: &str = "b";

/// The same epoch on all who are given.
fn agreed(sights: &[&Sight]) -> u64 {
    assert!(sights.windows(2).all(|pair| pair[0].epoch == pair[1].epoch), "{sights:?}");
    sights[0].epoch
}

fn strike(transport: &str, blow: Blow, coordinator: &str) {
    let role = |name: &str| format!("{coordinator} {name} {transport}");
    let start = |name: &str| (name.to_owned(), Member::start(&role(name)));
    let mut members: BTreeMap<String, Member> = ["a", VICTIM, "c"].map(start).into();
    let first: BTreeMap<String, Sight> =
        members.iter().map(|(name, member)| (name.clone(), member.sees(3))).collect();
    let old = agreed(&first.values().collect::<Vec<_>>());
    members.values().for_each(|member| member.goes_on_in(old));

    let mut victim = members.remove(VICTIM).unwrap();
    match blow {
        Blow::Stopped => victim.signal(Signal::STOP),
        Blow::Killed => victim.signal(Signal::KILL),
        Blow::Leaves => writeln!(victim.orders, "leave").unwrap(),
    }
    let lost = first[VICTIM].rank;
    let host = match transport {
        "nodes" => "node-1".to_owned(),
        _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    for survivor in members.values() {
        let error = survivor.expect("error");
        let named = error.contains(&format!("rank {lost} on {host}")) && error.contains("all-reduce number");
        assert!(error.starts_with(&format!("PeerLost {{ rank: {lost} }}")) && named, "{error}");
        // Nothing but membership tells of a process that is stopped.
        assert!(blow != Blow::Stopped || error.contains(&format!("lost in epoch {old}")), "{error}");
    }
    let second: Vec<Sight> = members.values().map(|survivor| survivor.sees(2)).collect();
    let new = agreed(&second.iter().collect::<Vec<_>>());
    assert!(new > old);

    // What has become of the victim before anybody acted without it.
    match (blow, transport) {
        (Blow::Stopped, "tcp") => {
            victim.signal(Signal::CONT);
            victim.expect("fenced");
        }
        (Blow::Stopped | Blow::Killed, _) => {
            let ended = victim.child.try_wait().unwrap().expect("its end came before the new epoch");
            assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
        }
        (Blow::Leaves, _) => assert!(victim.child.wait().unwrap().success(), "who leaves is not ended"),
    }
    if blow != Blow::Stopped || transport != "tcp" {
        victim = Member::start(&role(VICTIM));
    }
    members.insert(VICTIM.to_owned(), victim);

    // A new life of the name: all three go on, and hold what they held before, not more.
    let third: BTreeMap<String, Sight> =
        members.iter().map(|(name, member)| (name.clone(), member.sees(3))).collect();
    let newest = agreed(&third.values().collect::<Vec<_>>());
    assert!(newest > new);
    members.values().for_each(|member| member.goes_on_in(newest));
    for name in ["a", "c"] {
        assert_eq!(third[name].holdings, first[name].holdings, "{name}");
    }
}

#[test]
fn survivors_form_a_new_world_in_the_same_processes() {
    if plays_a_member() {
        return;
    }
    for transport in ["shared-memory", "tcp", "nodes"] {
        for blow in [Blow::Stopped, Blow::Killed, Blow::Leaves] {
            beside_a_coordinator(|coordinator| strike(transport, blow, coordinator));
        }
    }
}

/// A coordinator on host 3 and members on hosts 0 to 2, which have formed an epoch and go on in it.
fn on_hosts_of_their_own(hosts: &Namespaces) -> (Member, [Member; 3], [Sight; 3]) {
    let place = format!("{}:29600", address(3));
    let start = |host: usize, role: &str| Member::start_as(hosts.command(host, 0, 1, 9), role);
    let coordinator = start(3, &format!("coordinator {place}"));
    coordinator.expect("listening");
    let members = [0, 1, 2].map(|host| start(host, &format!("{place} m{host} tcp")));
    let first = members.each_ref().map(|member| member.sees(3));
    let epoch = agreed(&first.iter().collect::<Vec<_>>());
    members.iter().for_each(|member| member.goes_on_in(epoch));
    (coordinator, members, first)
}

/// The first world that all three see. For a while a host may still refuse to call another that has just come back, and an
/// epoch that not all could connect in is followed by the next.
fn agree_at_last(members: &[Member; 3]) -> u64 {
    let mut epochs = members.each_ref().map(|member| member.sees(3).epoch);
    loop {
        let newest = epochs.into_iter().max().unwrap();
        let Some(late) = epochs.iter().position(|epoch| *epoch < newest) else { return newest };
        epochs[late] = members[late].sees(3).epoch;
    }
}

#[test]
fn a_member_that_is_cut_off_is_fenced_and_joins_anew_when_the_cable_is_back() {
    let Some(hosts) = Namespaces::joined(4) else { return };
    let (_coordinator, members, first) = on_hosts_of_their_own(&hosts);
    let [one, victim, two] = &members;
    hosts.cut(1);
    let (old, lost) = (first[0].epoch, first[1].rank);
    for survivor in [one, two] {
        let error = survivor.expect("error");
        // Its host vanished without a word: whether membership or the connection tells of it first, it is the one.
        assert!(error.starts_with(&format!("PeerLost {{ rank: {lost} }}")), "{error}");
    }
    let second = [one, two].map(|survivor| survivor.sees(2));
    let new = agreed(&second.iter().collect::<Vec<_>>());
    assert!(new > old);
    one.goes_on_in(new);
    hosts.mend(1);
    victim.expect("fenced");
    let newest = agree_at_last(&members);
    assert!(newest > new);
    members.iter().for_each(|member| member.goes_on_in(newest));
}

#[test]
fn members_that_only_a_coordinator_still_reaches_form_epochs_until_they_reach_each_other() {
    let Some(hosts) = Namespaces::joined(4) else { return };
    let (_coordinator, members, first) = on_hosts_of_their_own(&hosts);
    hosts.part(0, 1);
    // All hear of it, though only two have lost each other: an epoch holds for all its members, or for none.
    for member in &members {
        member.expect("error");
    }
    hosts.join(0, 1);
    let new = agree_at_last(&members);
    assert!(new > first[0].epoch);
    members.iter().for_each(|member| member.goes_on_in(new));
}
