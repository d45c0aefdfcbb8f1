//! Membership over real sockets, files and processes.

use crate::certificates::Authority;
use crate::roles::{
    LIMIT, Process, client_settings, coordinator_settings, plays_a_role, survive, three_members,
};
use gradus_error::Kind;
use gradus_fabric::membership::{
    ClientSettings, CoordinatorNote, CoordinatorServer, CoordinatorSettings, Engine, Epoch, GroupSettings,
    MemberNote, MembershipClient, Timeouts,
};
use gradus_fabric::{Secret, TlsSettings};
use rustix::process::Signal;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

fn next(client: &MembershipClient) -> MemberNote {
    client.next_event(LIMIT).unwrap().expect("nothing comes to pass")
}

// A server in this process.

/// Runs `body` beside a coordinator, whose notes are returned.
fn beside_a_coordinator(body: impl FnOnce(&str)) -> Vec<CoordinatorNote> {
    beside_a_coordinator_with(|settings| settings, body)
}

fn beside_a_coordinator_with(
    change: impl FnOnce(CoordinatorSettings) -> CoordinatorSettings,
    body: impl FnOnce(&str),
) -> Vec<CoordinatorNote> {
    let folder = tempfile::tempdir().unwrap();
    let settings = coordinator_settings("127.0.0.1:0", Engine::File(folder.path().join("state")));
    let server = CoordinatorServer::open(change(settings)).unwrap();
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
    let with_secret = |settings| CoordinatorSettings { secret: secret.clone(), ..settings };
    beside_a_coordinator_with(with_secret, |address| {
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
fn under_tls_only_who_holds_a_certificate_of_the_authority_is_a_member() {
    let authority = Authority::new();
    let [coordinator, member] = [authority.member(), authority.member()];
    // Whether the other side's complaint or its end comes first is chance.
    let without_one_side = [Kind::Invalid, Kind::Closed];
    let with_tls = |settings| CoordinatorSettings { tls: coordinator.settings.clone(), ..settings };
    beside_a_coordinator_with(with_tls, |address| {
        let of = |name: &str, tls: &TlsSettings| {
            let settings = client_settings(address, GroupSettings::fixed(1), name);
            MembershipClient::join(ClientSettings { tls: tls.clone(), ..settings })
        };
        let refused = |tls: &TlsSettings| of("stranger", tls).err().unwrap().kind().clone();
        assert_eq!(refused(&Authority::new().member().settings), Kind::Denied);
        assert_eq!(refused(&authority.member_until(1991).settings), Kind::Denied);
        assert!(without_one_side.contains(&refused(&TlsSettings::default())));
        let missing = TlsSettings { key: String::new(), ..member.settings.clone() };
        assert_eq!(refused(&missing), Kind::Invalid);
        let member = of("member", &member.settings).unwrap();
        assert!(matches!(next(&member), MemberNote::Formed { .. }));
    });
    beside_a_coordinator(|address| {
        let settings = client_settings(address, GroupSettings::fixed(1), "under TLS");
        let refused = MembershipClient::join(ClientSettings { tls: member.settings.clone(), ..settings });
        assert!(without_one_side.contains(refused.err().unwrap().kind()));
    });
}

#[test]
fn a_second_coordinator_and_addresses_beyond_loopback_are_denied() {
    let folder = tempfile::tempdir().unwrap();
    let open = |address: &str, file: &str| {
        let engine = Engine::File(folder.path().join(file));
        CoordinatorServer::open(coordinator_settings(address, engine))
    };
    let _first = open("127.0.0.1:0", "state").unwrap();
    assert_eq!(*open("127.0.0.1:0", "state").err().unwrap().kind(), Kind::Denied);
    assert_eq!(*open("0.0.0.0:0", "state").err().unwrap().kind(), Kind::Denied);
    assert_eq!(*open("nonsense", "state").err().unwrap().kind(), Kind::Invalid);
    std::fs::write(folder.path().join("torn"), "{\"version\":2,").unwrap();
    assert_eq!(*open("127.0.0.1:0", "torn").err().unwrap().kind(), Kind::Corrupt);
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

/// A coordinator on a file and three members that act together.
fn three(test: &str, folder: &Path) -> (String, Process, [Process; 3], u64) {
    let state = folder.join("state");
    let coordinator = Process::start(test, "coordinator", &["127.0.0.1:0", state.to_str().unwrap()]);
    let address = coordinator.expect("listening", &[]);
    let (members, epoch) = three_members(test, &address);
    (address, coordinator, members, epoch)
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

#[test]
fn strangers_leave_a_coordinator_the_files_that_it_needs() {
    if plays_a_role() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let test = "membership::strangers_leave_a_coordinator_the_files_that_it_needs";
    let coordinator = Process::start(test, "coordinator", &["127.0.0.1:0", state.to_str().unwrap()]);
    let address = coordinator.expect("listening", &[]);
    const FILES: u64 = 64;
    coordinator.limit_files(FILES);
    // They are taken in the order in which they call, so all of them before the member.
    let _strangers: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let member =
        MembershipClient::join(client_settings(&address, GroupSettings::fixed(1), "member")).unwrap();
    let MemberNote::Formed { table, .. } = next(&member) else { panic!("no table comes first") };
    member.acknowledge(table.epoch);
    assert!(matches!(next(&member), MemberNote::Active { .. }));
    let open = coordinator.open_files();
    assert!(open < FILES as usize * 3 / 4, "{open} files are open: next to none is left for its own");
}

#[test]
fn a_newcomer_for_whom_there_is_no_room_is_told_so() {
    if plays_a_role() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let test = "membership::a_newcomer_for_whom_there_is_no_room_is_told_so";
    let coordinator = Process::start(test, "coordinator", &["127.0.0.1:0", state.to_str().unwrap()]);
    let address = coordinator.expect("listening", &[]);
    const FILES: u64 = 64;
    coordinator.limit_files(FILES);
    let mut members = Vec::new();
    let refused = (0..FILES).find(|number| {
        let settings = client_settings(&address, GroupSettings::fixed(1), "alone");
        let group = format!("g{number}");
        members.push(MembershipClient::join(ClientSettings { group, ..settings }).unwrap());
        matches!(next(&members[members.len() - 1]), MemberNote::Refused { .. })
    });
    assert_eq!(refused, Some(FILES / 2), "half of them are for members");
}
