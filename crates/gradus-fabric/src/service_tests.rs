use super::*;
use crate::tls::TlsSettings;
use gradus_error::Kind;
use gradus_host::RealClock;
use rustix::event::{PollFd, poll};
use std::io::{Read, Write};
use std::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOPBACK: &str = "127.0.0.1:1";

fn keys(secret: &Secret, tls: &TlsSettings) -> Keys {
    let network = NetworkSettings { tls: tls.clone(), ..NetworkSettings::default() };
    Keys::new(secret, &network, 0).unwrap()
}

fn open(keys: &Keys) -> Listener {
    Listener::open(keys, &NetworkSettings::default(), "", LOOPBACK).unwrap()
}

fn ring(keys: &Keys, address: SocketAddr) -> Result<(Connection, Vec<u8>)> {
    let clock = RealClock::new();
    call(keys, address, "the listener", &"hello", &clock, clock.now() + PATIENCE)
}

/// Waits for one who comes, and answers it.
fn answer(listener: &mut Listener) -> Arrival {
    loop {
        poll(&mut [PollFd::new(listener, PollFlags::IN)], None).unwrap();
        if let Some(mut arrival) = listener.arrivals().pop() {
            arrival.connection.say(&"welcome").unwrap();
            return arrival;
        }
    }
}

/// Sends all bytes and reads as many at the other end.
fn carry(from: &mut Connection, to: &mut Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut sent, mut received, mut space) = (0, Vec::new(), vec![0; 50_000]);
    while received.len() < bytes.len() {
        if sent < bytes.len() {
            let half = sent + (bytes.len() - sent).div_ceil(2);
            if let Moved::Bytes(count) = from.send(&bytes[sent..half], &bytes[half..]).unwrap() {
                sent += count;
            }
        }
        from.flush().unwrap();
        match to.receive(&mut space).unwrap() {
            Moved::Bytes(count) => received.extend_from_slice(&space[..count]),
            Moved::Nothing => {}
            Moved::Ended => panic!("the connection ended"),
        }
    }
    received
}

#[test]
fn who_knows_the_secret_is_let_in_and_bytes_go_both_ways_plain_and_under_tls() {
    let folder = tempfile::tempdir().unwrap();
    for tls in [TlsSettings::default(), crate::stream::tests::member_files(folder.path())] {
        let keys = keys(&Secret::make(), &tls);
        let mut listener = open(&keys);
        let address = listener.address();
        let ((mut ours, said), mut theirs) = std::thread::scope(|scope| {
            let calling = scope.spawn(|| ring(&keys, address).unwrap());
            let theirs = answer(&mut listener);
            (calling.join().unwrap(), theirs)
        });
        assert_eq!(understand::<String>(&said).unwrap(), "welcome");
        assert_eq!(understand::<String>(&theirs.said).unwrap(), "hello");
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i * 37 % 251) as u8).collect();
        assert!(carry(&mut ours, &mut theirs.connection, &bytes) == bytes);
        assert!(carry(&mut theirs.connection, &mut ours, &bytes) == bytes);
        theirs.connection.shut();
        assert_eq!(ours.receive(&mut [0]).unwrap(), Moved::Ended);
    }
}

#[test]
fn who_does_not_know_the_secret_is_refused_and_hears_nothing() {
    let [ours, others] =
        [Secret::make(), Secret::make()].map(|secret| keys(&secret, &TlsSettings::default()));
    let listener = open(&ours);
    assert_eq!(*ring(&others, listener.address()).map(drop).unwrap_err().kind(), Kind::Denied);
    let mut stranger = TcpStream::connect(listener.address()).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stranger.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
}

#[test]
fn a_proof_for_something_else_is_none_for_a_service() {
    let keys = keys(&Secret::make(), &TlsSettings::default());
    let (listener, clock) = (open(&keys), RealClock::new());
    let socket = TcpStream::connect(listener.address()).unwrap();
    let rank = keys.0.towards(Purpose::Stream);
    let refused = rank.call(socket.into(), "the listener", &clock, clock.now() + PATIENCE).map(drop);
    assert_eq!(*refused.unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn one_who_speaks_tls_and_one_who_does_not_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::make();
    let plain = keys(&secret, &TlsSettings::default());
    let dressed = keys(&secret, &crate::stream::tests::member_files(folder.path()));
    for (caller, called) in [(&plain, &dressed), (&dressed, &plain)] {
        let listener = open(called);
        let kind = ring(caller, listener.address()).map(drop).unwrap_err().kind().clone();
        assert!(matches!(kind, Kind::Invalid | Kind::Denied | Kind::Closed), "{kind:?}");
    }
}

#[test]
fn beyond_loopback_nobody_listens_or_calls_without_a_secret() {
    let keys = keys(&Secret::default(), &TlsSettings::default());
    let clock = RealClock::new();
    let far = "192.0.2.1:9".parse().unwrap();
    let refused = call(&keys, far, "far", &"hello", &clock, clock.now() + PATIENCE).map(drop);
    assert_eq!(*refused.unwrap_err().kind(), Kind::Denied);
    let opened = Listener::open(&keys, &NetworkSettings::default(), "", "192.0.2.1:9").map(drop);
    // A host without a way there cannot even say where it would listen.
    assert!(matches!(opened.unwrap_err().kind(), Kind::Denied | Kind::Unavailable));
}

#[test]
fn ranks_of_one_host_without_a_secret_meet_on_loopback() {
    let launch = Launch { master_address: "10.0.0.9".into(), ..Launch::local(0, 2, 7) };
    assert_eq!(meeting_place(&launch), "127.0.0.1:7");
    let launch = Launch { master_address: "fd00::1".into(), secret: Secret::make(), ..launch };
    assert_eq!(meeting_place(&launch), "[fd00::1]:7");
}
