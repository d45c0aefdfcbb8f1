//! Coordinators on a real etcd: one leads, the others take over; what has lost its right writes nothing.

use crate::certificates::Authority;
use crate::etcd_server::{EtcdServer, Line, Passage, ask, etcd_is_there};
use crate::roles::{
    LIMIT, Process, client_settings, coordinator_settings, engine, plays_a_role, survive, three_members,
    timeouts,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gradus_error::{Error, Kind, Result};
use gradus_fabric::membership::{
    ClientSettings, CoordinatorAddress, CoordinatorNote, CoordinatorServer, CoordinatorSettings, Engine,
    Epoch, GroupSettings, MemberNote, MembershipClient, Timeouts,
};
use gradus_fabric::{
    Direction, EtcdAddress, Interest, Lane, NetworkSettings, Order, Secret, Session, SessionSettings,
    TlsSettings, TransportKind, World,
};
use gradus_host::{Clock, RealClock};
use rustix::process::Signal;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

fn coordinator(test: &str, etcd: &str) -> Process {
    Process::start(test, "coordinator", &["127.0.0.1:0", etcd])
}

/// Runs one test's body beside an etcd, unless this process plays a role or there is no etcd.
fn beside_etcd(body: impl FnOnce(EtcdServer, String)) {
    if plays_a_role() || !etcd_is_there() {
        return;
    }
    let etcd = EtcdServer::start(None);
    let address = etcd.address("runs/a");
    body(etcd, address);
}

#[test]
fn another_coordinator_takes_over_from_one_that_is_killed() {
    beside_etcd(|_etcd, address| {
        let test = "etcd::another_coordinator_takes_over_from_one_that_is_killed";
        let first = coordinator(test, &address);
        first.expect("leading 1", &["listening"]);
        let second = coordinator(test, &address);
        second.expect("listening", &[]);
        let (members, epoch) = three_members(test, &address);
        first.signal(Signal::KILL);
        second.expect("leading 2", &[]);
        members[2].signal(Signal::KILL);
        assert!(survive(&members) > epoch);
    });
}

#[test]
fn a_leader_that_was_stopped_finds_itself_deposed_and_leads_again_on_what_was_written_meanwhile() {
    beside_etcd(|_etcd, address| {
        let test = "etcd::a_leader_that_was_stopped_finds_itself_deposed_and_leads_again_on_what_was_written_meanwhile";
        let first = coordinator(test, &address);
        first.expect("leading 1", &["listening"]);
        let second = coordinator(test, &address);
        let (members, epoch) = three_members(test, &address);
        first.signal(Signal::STOP);
        second.expect("leading 2", &["listening"]);
        // The first has this end in its hands too, and would form an epoch of its own.
        members[2].signal(Signal::KILL);
        let without = survive(&members);
        assert!(without > epoch);
        first.signal(Signal::CONT);
        first.expect("deposed 1", &[]);
        second.signal(Signal::KILL);
        first.expect("leading 3", &[]);
        let again = Process::start(test, "member", &[&address, "d"]);
        assert!(again.acts_with(3) > without);
    });
}

#[test]
fn members_outlast_an_etcd_that_is_gone_for_longer_than_leases() {
    beside_etcd(|mut etcd, address| {
        let test = "etcd::members_outlast_an_etcd_that_is_gone_for_longer_than_leases";
        let leader = coordinator(test, &address);
        let (members, epoch) = three_members(test, &address);
        leader.expect("leading 1", &["listening"]);
        etcd.kill();
        leader.expect("deposed 1", &[]);
        for member in &members {
            member.expect("isolated", &[]);
        }
        etcd.start_again();
        leader.expect("leading 2", &[]);
        for member in &members {
            member.expect("heard", &[]);
        }
        members[2].signal(Signal::KILL);
        assert!(survive(&members) > epoch);
    });
}

// A coordinator in this process.

/// A coordinator in a thread, until it is told to stop.
struct Serving {
    address: String,
    notes: Receiver<CoordinatorNote>,
    stop: UnixStream,
    thread: JoinHandle<Result<()>>,
}

impl Serving {
    fn start(engine: Engine) -> Self {
        Self::start_at("127.0.0.1:0", engine)
    }

    fn start_at(listen: &str, engine: Engine) -> Self {
        let server = CoordinatorServer::open(coordinator_settings(listen, engine)).unwrap();
        let address = server.address().to_string();
        let (sender, notes) = channel();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let observe = move |note: &CoordinatorNote| {
            // Nobody listens any more once a test is done.
            let _ = sender.send(note.clone());
        };
        let thread = std::thread::spawn(move || server.run(&stopped, observe));
        Self { address, notes, stop, thread }
    }

    /// All notes up to the first that is like `last`.
    fn notes_until(&self, last: impl Fn(&CoordinatorNote) -> bool) -> Vec<CoordinatorNote> {
        let mut notes = Vec::new();
        while !notes.last().is_some_and(&last) {
            notes.push(self.notes.recv_timeout(LIMIT).expect("nothing comes to pass"));
        }
        notes
    }

    fn end(self) -> Result<()> {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

/// What ends a coordinator by itself.
fn fails(engine: Engine) -> Error {
    Serving::start(engine).thread.join().unwrap().unwrap_err()
}

fn settings_of(coordinator: &str) -> ClientSettings {
    client_settings(coordinator, GroupSettings { min_size: 1, max_size: 3, join_window_ms: 0 }, "alone")
}

/// `runs/a/leader`, `runs/a/state` and `garbage`, as the gateway has them.
const LEADER: &str = "cnVucy9hL2xlYWRlcg==";
const STATE: &str = "cnVucy9hL3N0YXRl";
const GARBAGE: &str = "Z2FyYmFnZQ==";

#[test]
fn a_leader_whose_key_is_gone_writes_nothing_and_has_to_come_into_office_anew() {
    beside_etcd(|etcd, address| {
        let serving = Serving::start(engine(&address));
        serving.notes_until(|note| *note == CoordinatorNote::Started { term: 1 });
        // As somebody may remove it while the lease runs on.
        etcd.ask("/v3/kv/deleterange", &format!(r#"{{"key":"{LEADER}"}}"#));
        let member = MembershipClient::join(settings_of(&serving.address)).unwrap();
        // The member makes an epoch, which cannot be stored, so nobody hears of it.
        let notes = serving.notes_until(|note| *note == CoordinatorNote::Started { term: 2 });
        assert!(notes.contains(&CoordinatorNote::Deposed { term: 1 }), "{notes:?}");
        assert!(!notes.iter().any(|note| matches!(note, CoordinatorNote::Formed { .. })), "{notes:?}");
        let formed = member.next_event(LIMIT).unwrap();
        assert!(matches!(formed, Some(MemberNote::Formed { term: 2, .. })), "{formed:?}");
        drop(member);
        serving.end().unwrap();
        let left = etcd.ask("/v3/kv/range", &format!(r#"{{"key":"{LEADER}"}}"#));
        assert!(!left.contains("kvs"), "who ends in good order lets go at once: {left}");
    });
}

/// The epoch of the table of `size` members that comes to a member, which acknowledges it and all before.
fn formed_with(size: usize, member: &MembershipClient) -> Epoch {
    loop {
        match member.next_event(LIMIT).unwrap().expect("nothing comes to pass") {
            MemberNote::Formed { table, .. } => {
                member.acknowledge(table.epoch);
                if table.members.len() == size {
                    return table.epoch;
                }
            }
            note => assert!(!matches!(note, MemberNote::Fenced), "nobody knows it any more"),
        }
    }
}

#[test]
fn a_leader_whose_key_is_gone_stands_down_though_it_has_nothing_to_write() {
    beside_etcd(|etcd, address| {
        let first = Serving::start(engine(&address));
        first.notes_until(|note| *note == CoordinatorNote::Started { term: 1 });
        let standby = Serving::start(engine(&address));
        let old = MembershipClient::join(settings_of(&address)).unwrap();
        formed_with(1, &old);
        etcd.ask("/v3/kv/deleterange", &format!(r#"{{"key":"{LEADER}"}}"#));
        // The old member would stay with it, and have its leases of it, whatever those who come later are told elsewhere.
        first.notes_until(|note| *note == CoordinatorNote::Deposed { term: 1 });
        let settings = settings_of(&address).settings;
        let new = MembershipClient::join(client_settings(&address, settings, "new")).unwrap();
        assert_eq!(formed_with(2, &new), formed_with(2, &old));
        drop((old, new));
        standby.end().unwrap();
        first.end().unwrap();
    });
}

/// Whether a request to etcd writes the coordinator's state.
fn writes_the_state(json: &str) -> bool {
    json.contains(&format!(r#"request_put":{{"key":"{STATE}""#))
}

#[test]
fn what_etcd_carries_out_late_undoes_nothing_newer_and_a_lost_answer_costs_nothing() {
    beside_etcd(|etcd, _| {
        let mut passages = [Passage::Late, Passage::Whole, Passage::Unanswered].into_iter();
        let line = Line::to(&etcd, move |json| match writes_the_state(json) {
            true => passages.next().unwrap_or(Passage::Whole),
            false => Passage::Whole,
        });
        let serving = Serving::start(engine(&line.address("runs/a")));
        let late = line.late();
        serving.notes_until(|note| *note == CoordinatorNote::Started { term: 1 });
        let member = MembershipClient::join(settings_of(&serving.address)).unwrap();
        let formed = member.next_event(LIMIT).unwrap();
        assert!(matches!(formed, Some(MemberNote::Formed { term: 1, .. })), "{formed:?}");
        let state = || {
            let found = etcd.ask("/v3/kv/range", &format!(r#"{{"key":"{STATE}"}}"#));
            found.split_once("kvs").unwrap().1.to_owned()
        };
        let before = state();
        etcd.ask(&late.path, &late.json);
        assert_eq!(state(), before, "the epoch that the member was told is forgotten");
        drop(member);
        serving.end().unwrap();
    });
}

#[test]
fn who_claims_the_key_when_the_lease_is_over_already_stands_by() {
    beside_etcd(|etcd, _| {
        let (port, mut first) = (etcd.port(), true);
        let claim = format!(r#"request_put":{{"key":"{LEADER}""#);
        let line = Line::to(&etcd, move |json| {
            if json.contains(&claim) && std::mem::take(&mut first) {
                let (_, lease) = json.split_once(r#""lease":""#).unwrap();
                let (lease, _) = lease.split_once('"').unwrap();
                ask(port, "/v3/lease/revoke", &format!(r#"{{"ID":"{lease}"}}"#)).unwrap();
            }
            Passage::Whole
        });
        let serving = Serving::start(engine(&line.address("runs/a")));
        serving.notes_until(|note| *note == CoordinatorNote::Started { term: 1 });
        serving.end().unwrap();
    });
}

#[test]
fn keys_that_are_no_coordinators_are_named() {
    beside_etcd(|etcd, address| {
        let nobody = ClientSettings {
            timeouts: Timeouts::from(Duration::from_secs(2)).unwrap(),
            ..settings_of(&address)
        };
        etcd.ask("/v3/kv/range", &format!(r#"{{"key":"{LEADER}"}}"#));
        let error = MembershipClient::join(nobody.clone()).err().unwrap();
        assert!(*error.kind() == Kind::Unavailable && error.to_string().contains("runs/a"), "{error}");
        for key in [LEADER, STATE] {
            etcd.ask("/v3/kv/put", &format!(r#"{{"key":"{key}","value":"{GARBAGE}"}}"#));
        }
        assert_eq!(*MembershipClient::join(nobody).err().unwrap().kind(), Kind::Corrupt);
        etcd.ask("/v3/kv/deleterange", &format!(r#"{{"key":"{LEADER}"}}"#));
        let error = fails(engine(&address));
        assert!(*error.kind() == Kind::Corrupt && error.to_string().contains("runs/a"), "{error}");
    });
}

#[test]
fn where_etcd_wants_a_user_only_the_right_one_leads() {
    beside_etcd(|etcd, address| {
        etcd.ask("/v3/auth/user/add", r#"{"name":"root","password":"known to root"}"#);
        etcd.ask("/v3/auth/role/add", r#"{"name":"root"}"#);
        etcd.ask("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#);
        etcd.ask("/v3/auth/enable", "{}");
        let place = address.strip_prefix("etcd://").unwrap();
        for wrong in ["", "root:guessed@", "nobody:guessed@"] {
            let error = fails(engine(&format!("etcd://{wrong}{place}")));
            assert_eq!(*error.kind(), Kind::Denied, "{error}");
            assert!(!error.to_string().contains("guessed"), "{error}");
        }
        let right = format!("etcd://root:known%20to%20root@{place}");
        let serving = Serving::start(engine(&right));
        serving.notes_until(|note| *note == CoordinatorNote::Started { term: 1 });
        let member = MembershipClient::join(settings_of(&right)).unwrap();
        assert!(matches!(member.next_event(LIMIT).unwrap(), Some(MemberNote::Formed { .. })));
        drop(member);
        serving.end().unwrap();
    });
}

#[test]
fn etcd_under_tls_is_believed_by_its_authority_only() {
    if !etcd_is_there() {
        return;
    }
    let authority = Authority::new();
    let [server, own, stranger] = [authority.loopback(), authority.member(), Authority::new().member()];
    let etcd = EtcdServer::start(Some(server.settings.clone()));
    let as_holder = |files: &TlsSettings| {
        let lookup = |name: &str| match name {
            "ETCDCTL_CACERT" => Some(files.authority.clone()),
            "ETCDCTL_CERT" => Some(files.certificate.clone()),
            "ETCDCTL_KEY" => Some(files.key.clone()),
            _ => None,
        };
        EtcdAddress::parse(&etcd.address("p"), &lookup).unwrap()
    };
    let own = as_holder(&own.settings);
    let serving = Serving::start(Engine::Etcd { address: own.clone(), advertise: None });
    serving.notes_until(|note| *note == CoordinatorNote::Started { term: 1 });
    let error = fails(Engine::Etcd { address: as_holder(&stranger.settings), advertise: None });
    assert_eq!(*error.kind(), Kind::Denied, "{error}");
    let settings =
        ClientSettings { coordinator: CoordinatorAddress::Etcd(own), ..settings_of("127.0.0.1:9") };
    let member = MembershipClient::join(settings).unwrap();
    assert!(matches!(member.next_event(LIMIT).unwrap(), Some(MemberNote::Formed { .. })));
    drop(member);
    serving.end().unwrap();
}

#[test]
fn who_listens_everywhere_must_say_where_it_is_reached() {
    let address = EtcdAddress::parse("etcd://127.0.0.1:9", &|_| None).unwrap();
    let open = |listen: &str, advertise: Option<&str>| {
        let engine = Engine::Etcd { address: address.clone(), advertise: advertise.map(str::to_owned) };
        let settings = CoordinatorSettings { secret: Secret::make(), ..coordinator_settings(listen, engine) };
        CoordinatorServer::open(settings)
    };
    assert_eq!(*open("0.0.0.0:0", None).err().unwrap().kind(), Kind::Invalid);
    assert_eq!(*open("127.0.0.1:0", Some("nowhere")).err().unwrap().kind(), Kind::Invalid);
    open("0.0.0.0:0", Some("coordinator.example:29600")).unwrap();
}

#[test]
fn members_are_told_what_is_advertised() {
    beside_etcd(|etcd, address| {
        let place = "elsewhere.example:29600";
        let address = EtcdAddress::parse(&address, &|_| None).unwrap();
        let serving = Serving::start(Engine::Etcd { address, advertise: Some(place.into()) });
        serving.notes_until(|note| *note == CoordinatorNote::Started { term: 1 });
        let published = STANDARD.encode(format!(r#"{{"address":"{place}"}}"#));
        let found = etcd.ask("/v3/kv/range", &format!(r#"{{"key":"{LEADER}"}}"#));
        assert!(found.contains(&published), "{found}");
        serving.end().unwrap();
    });
}

/// One of `size` members, by its number.
fn session_settings(coordinator: &str, size: u32, number: usize) -> SessionSettings {
    SessionSettings {
        coordinator: CoordinatorAddress::parse(coordinator, &|_| None).unwrap(),
        group: "g".into(),
        size: GroupSettings::fixed(size),
        name: format!("member-{number}"),
        order: Order::ByName,
        secret: Secret::default(),
        coordinator_tls: TlsSettings::default(),
        transport: TransportKind::Tcp,
        network: NetworkSettings { failure_detection: timeouts().detection, ..NetworkSettings::default() },
        interfaces: String::new(),
        fingerprint: "same".into(),
    }
}

/// Both members' next worlds, which they form together.
fn worlds_of(sessions: [&mut Session; 2]) -> [World; 2] {
    std::thread::scope(|scope| {
        let worlds = sessions.map(|session| scope.spawn(|| session.next_world(LIMIT).unwrap()));
        worlds.map(|world| world.join().unwrap())
    })
}

#[test]
fn a_session_is_reached_where_it_reaches_the_leader_wherever_etcd_is() {
    if TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("not run: this host has no IPv6 loopback");
    }
    beside_etcd(|_etcd, address| {
        let serving = Serving::start_at("[::1]:0", engine(&address));
        let mut session = Session::join(session_settings(&address, 1, 0)).unwrap();
        let world = session.next_world(LIMIT).unwrap();
        assert!(world.members[0].address.starts_with("[::1]:"), "{:?}", world.members);
        drop((world, session));
        serving.end().unwrap();
    });
}

#[test]
fn a_session_goes_on_in_its_epoch_when_another_coordinator_takes_over() {
    beside_etcd(|_etcd, address| {
        let test = "etcd::a_session_goes_on_in_its_epoch_when_another_coordinator_takes_over";
        let first = coordinator(test, &address);
        first.expect("leading 1", &["listening"]);
        let second = coordinator(test, &address);
        second.expect("listening", &[]);
        let join = |number| Session::join(session_settings(&address, 2, number)).unwrap();
        let (mut one, mut two) = (join(0), join(1));
        let [mut here, mut there] = worlds_of([&mut one, &mut two]);
        let epoch = here.epoch;
        assert_eq!(there.epoch, epoch);
        first.signal(Signal::KILL);
        second.expect("leading 2", &[]);

        // Both may act where they did: what one says the other hears, and nothing is newer.
        let clock = RealClock::new();
        let wait_until = |what: &dyn Fn() -> bool| {
            while !what() {
                assert!(clock.now() < LIMIT * 2, "it does not come");
                clock.sleep(Duration::from_millis(10));
            }
        };
        wait_until(&|| [&one, &two].iter().all(|session| session.may_act() == Some(epoch)));
        let lane = Lane::lowest(1);
        assert_eq!(here.transport.try_send(lane, b"x").unwrap(), 1);
        let lane = Lane::lowest(0);
        there.transport.wait(&[Interest { lane, direction: Direction::Receive }], LIMIT).unwrap();
        assert_eq!(there.transport.try_receive(lane, &mut |_, len| len).unwrap(), 1);
        assert!(!one.is_outdated(epoch) && !two.is_outdated(epoch));

        // The one who leads now knows them both: it tells of who leaves, and of who comes.
        drop((there, two));
        wait_until(&|| one.is_outdated(epoch));
        drop(here);
        let mut again = join(1);
        let [here, there] = worlds_of([&mut one, &mut again]);
        assert!(here.epoch > epoch && there.epoch == here.epoch);
    });
}
