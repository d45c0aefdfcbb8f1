//! Keepers of several nodes ask each other over loopback, as a caller sets them up, while peers misbehave.

use gradus_error::{Error, Kind, Result};
use gradus_fabric::service::{Connection, Keys, Listener, Moved, call, understand};
use gradus_fabric::{NetworkSettings, Secret};
use gradus_host::{Clock, RealClock};
use gradus_store::BlockKey;
use gradus_store::peers::{Answer, Ask, Asked, Member, Peers, PeersSettings, Place, Serve, Wanted};
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Far beyond every bound of a keeper: who waits that long has found a stall.
const GENEROUS: Duration = Duration::from_secs(60);
const LENGTH: usize = 300_000;
const ASK_BYTES: usize = 49;

/// The bytes of a block, which only its key says.
fn bytes_of(key: BlockKey, length: usize) -> Vec<u8> {
    let seed = key.number.wrapping_mul(0x9E37_79B9) + u64::from(key.object[0]);
    (0..length as u64).map(|i| ((i + seed).wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8).collect()
}

fn key(number: u64) -> BlockKey {
    BlockKey { object: [3; 16], number }
}

/// A page, and how its ask ended.
type Ended = (u64, Vec<u8>, Result<()>);

struct Page {
    number: u64,
    bytes: Vec<u8>,
    tell: Sender<Ended>,
}

impl Wanted for Page {
    fn page(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn done(self: Box<Self>, outcome: Result<()>) {
        // A test that has failed listens no more.
        let _ = self.tell.send((self.number, self.bytes, outcome));
    }
}

/// What a node does with asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Serves,
    HasNothing,
    IsBusy,
    Forgets,
    KeepsForEver,
    SendsTooMuch,
}

struct Store {
    manner: Manner,
    kept: Mutex<Vec<Answer>>,
}

impl Serve for Store {
    fn serve(&self, asked: Asked, answer: Answer) {
        let bytes = move || bytes_of(asked.key, asked.length as usize);
        match self.manner {
            // From another thread, as whoever reads from a disk does.
            Manner::Serves => drop(std::thread::spawn(move || answer.block(Box::new(bytes())))),
            Manner::HasNothing => answer.not_here(),
            Manner::IsBusy => answer.busy(),
            Manner::Forgets => drop(answer),
            Manner::KeepsForEver => self.kept.lock().unwrap().push(answer),
            Manner::SendsTooMuch => answer.block(Box::new([bytes(), vec![0]].concat())),
        }
    }
}

fn settings() -> PeersSettings {
    PeersSettings {
        least_patience: Duration::from_millis(100),
        most_patience: Duration::from_millis(400),
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(50),
        ..PeersSettings::default()
    }
}

fn patient() -> PeersSettings {
    PeersSettings { least_patience: GENEROUS, most_patience: GENEROUS, ..settings() }
}

fn member(node: &str) -> Member {
    Member { node: node.to_owned(), rack: String::new(), capacity_blocks: 100 }
}

fn keys(secret: &Secret) -> Keys {
    Keys::new(secret, &NetworkSettings::default(), 0).unwrap()
}

fn listener(secret: &Secret) -> Listener {
    Listener::open(&keys(secret), &NetworkSettings::default(), "", "127.0.0.1:1").unwrap()
}

/// A node that serves as `manner` says.
fn node(name: &str, secret: &Secret, manner: Manner, settings: &PeersSettings) -> (Peers, Place) {
    node_of("dataset", name, secret, manner, settings)
}

fn node_of(
    dataset: &str,
    name: &str,
    secret: &Secret,
    manner: Manner,
    settings: &PeersSettings,
) -> (Peers, Place) {
    let listener = listener(secret);
    let place = Place { member: member(name), address: listener.address() };
    let store = Arc::new(Store { manner, kept: Mutex::default() });
    let peers = Peers::start(member(name), dataset, keys(secret), listener, store, settings).unwrap();
    (peers, place)
}

fn ask(peers: &Peers, of: &str, number: u64, tell: &Sender<Ended>) {
    let page = Page { number, bytes: vec![0; LENGTH], tell: tell.clone() };
    peers.ask(Ask { node: of.to_owned(), key: key(number), position: number, wanted: Box::new(page) });
}

fn next(told: &Receiver<Ended>) -> Ended {
    let (number, bytes, outcome) = told.recv_timeout(GENEROUS).expect("every ask ends");
    if outcome.is_ok() {
        assert!(bytes == bytes_of(key(number), LENGTH), "wrong bytes for block {number}");
    }
    (number, bytes, outcome)
}

/// Asks for one block and waits.
fn ask_once(peers: &Peers, of: &str, number: u64) -> Result<()> {
    let (tell, told) = channel();
    ask(peers, of, number, &tell);
    next(&told).2
}

/// Asks again until it works: after a peer has recovered it must.
fn ask_until_served(peers: &Peers, of: &str) {
    let clock = RealClock::new();
    let until = clock.now() + GENEROUS;
    while ask_once(peers, of, 1).is_err() {
        assert!(clock.now() < until, "{of} is never asked again");
        clock.sleep(Duration::from_millis(5));
    }
}

#[test]
fn all_nodes_get_the_right_bytes_of_all_others() {
    let secret = Secret::make();
    let names = ["a", "b", "c"];
    let nodes = names.map(|name| node(name, &secret, Manner::Serves, &patient()));
    let places: Vec<Place> = nodes.iter().map(|(_, place)| place.clone()).collect();
    let (tell, told) = channel();
    nodes.iter().for_each(|(peers, _)| peers.update(places.clone()));
    for (peers, place) in &nodes {
        for (index, other) in names.iter().filter(|other| **other != place.member.node).enumerate() {
            (0..20).for_each(|number| ask(peers, other, 20 * index as u64 + number, &tell));
        }
    }
    for _ in 0..120 {
        next(&told).2.unwrap();
    }
    for (peers, place) in &nodes {
        let counters = peers.counters();
        let all = counters.in_rack;
        assert_eq!(
            (all.asked_blocks, all.received_blocks, all.failed()),
            (40, 40, 0),
            "{}",
            place.member.node
        );
        assert_eq!(all.received_bytes, 40 * LENGTH as u64);
        assert_eq!(counters.by_node.len(), 2);
    }
}

#[test]
fn a_node_can_be_asked_only_while_it_is_a_member() {
    let secret = Secret::make();
    let (ours, own) = node("a", &secret, Manner::Serves, &patient());
    let (_theirs, place) = node("b", &secret, Manner::Serves, &patient());
    assert_eq!(*ask_once(&ours, "b", 1).unwrap_err().kind(), Kind::Unavailable);
    ours.update(vec![own.clone(), place.clone()]);
    ask_once(&ours, "b", 1).unwrap();
    assert_eq!(*ask_once(&ours, "a", 1).unwrap_err().kind(), Kind::Unavailable);
    ours.update(vec![own]);
    assert_eq!(*ask_once(&ours, "b", 1).unwrap_err().kind(), Kind::Unavailable);
    ours.update(vec![place]);
    ask_once(&ours, "b", 1).unwrap();
}

#[test]
fn whatever_a_node_answers_an_ask_ends() {
    let secret = Secret::make();
    let cases =
        [Manner::HasNothing, Manner::IsBusy, Manner::Forgets, Manner::KeepsForEver, Manner::SendsTooMuch];
    for manner in cases {
        let settings = if manner == Manner::KeepsForEver { settings() } else { patient() };
        let (ours, _) = node("a", &secret, Manner::Serves, &settings);
        let (_theirs, place) = node("b", &secret, manner, &settings);
        ours.update(vec![place]);
        assert_eq!(*ask_once(&ours, "b", 1).unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(ours.counters().in_rack.failed(), 1);
    }
}

#[test]
fn asks_of_a_node_that_ends_end_and_one_that_returns_is_asked_again() {
    let secret = Secret::make();
    let (ours, _) = node("a", &secret, Manner::Serves, &patient());
    let (theirs, place) = node("b", &secret, Manner::KeepsForEver, &patient());
    ours.update(vec![place]);
    let (tell, told) = channel();
    (0..10).for_each(|number| ask(&ours, "b", number, &tell));
    drop(theirs);
    for _ in 0..10 {
        assert_eq!(*next(&told).2.unwrap_err().kind(), Kind::Unavailable);
    }
    let (_theirs, place) = node("b", &secret, Manner::Serves, &patient());
    ours.update(vec![place]);
    ask_until_served(&ours, "b");
}

#[test]
fn asks_end_when_their_own_keeper_does() {
    let secret = Secret::make();
    let (ours, _) = node("a", &secret, Manner::Serves, &patient());
    let (_theirs, place) = node("b", &secret, Manner::KeepsForEver, &patient());
    ours.update(vec![place]);
    let (tell, told) = channel();
    (0..10).for_each(|number| ask(&ours, "b", number, &tell));
    drop(ours);
    for _ in 0..10 {
        assert_eq!(*next(&told).2.unwrap_err().kind(), Kind::Closed);
    }
}

#[test]
fn who_has_another_secret_or_dataset_or_name_is_not_asked() {
    let secret = Secret::make();
    let (ours, _) = node("a", &secret, Manner::Serves, &patient());
    let others = [
        node("b", &Secret::make(), Manner::Serves, &patient()),
        node_of("another", "b", &secret, Manner::Serves, &patient()),
        node("c", &secret, Manner::Serves, &patient()),
    ];
    for (_, place) in &others {
        ours.update(vec![Place { member: member("b"), ..place.clone() }]);
        assert_eq!(*ask_once(&ours, "b", 1).unwrap_err().kind(), Kind::Unavailable);
    }
    assert_eq!(ours.counters().in_rack.received_blocks, 0);
}

// Peers that are no keepers.

/// What a false keeper does once it was asked, until the other side hangs up.
type Falsehood = fn(&mut Connection, &[u8; ASK_BYTES]);

/// A node `b` that is called as a keeper is and then does as `falsehood` says with every ask, each at its own connection at
/// last.
fn false_node(secret: &Secret, falsehood: Falsehood) -> Place {
    let mut listener = listener(secret);
    let place = Place { member: member("b"), address: listener.address() };
    std::thread::spawn(move || {
        loop {
            poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
            for mut arrival in listener.arrivals() {
                arrival.connection.say(&come()).unwrap();
                std::thread::spawn(move || {
                    while let Some(ask) = read_ask(&mut arrival.connection) {
                        falsehood(&mut arrival.connection, &ask);
                    }
                });
            }
        }
    });
    place
}

fn come() -> std::collections::BTreeMap<&'static str, std::collections::BTreeMap<&'static str, &'static str>>
{
    [("come", [("node", "b")].into())].into()
}

fn read_ask(connection: &mut Connection) -> Option<[u8; ASK_BYTES]> {
    let (mut ask, mut have) = ([0; ASK_BYTES], 0);
    while have < ASK_BYTES {
        match connection.receive(&mut ask[have..]) {
            Ok(Moved::Bytes(count)) => have += count,
            Ok(Moved::Nothing) => drop(poll(&mut [PollFd::new(connection, PollFlags::IN)], None)),
            Ok(Moved::Ended) | Err(_) => return None,
        }
    }
    Some(ask)
}

/// Sends all, or as much as the other side takes before it hangs up.
fn send(connection: &mut Connection, bytes: &[u8]) {
    let mut sent = 0;
    while sent < bytes.len() {
        match connection.send(&bytes[sent..], &[]) {
            Ok(Moved::Bytes(count)) => sent += count,
            Ok(Moved::Nothing) => drop(poll(&mut [PollFd::new(connection, PollFlags::OUT)], None)),
            Ok(Moved::Ended) | Err(_) => return,
        }
    }
}

/// The beginning of a reply with a block.
fn head(ask: &[u8; ASK_BYTES], crc: u32, length: u32) -> Vec<u8> {
    [&[2], &ask[1..9], &length.to_le_bytes(), &crc.to_le_bytes()].concat()
}

/// The block that is asked for.
fn block(ask: &[u8; ASK_BYTES]) -> Vec<u8> {
    bytes_of(key(u64::from_le_bytes(*ask[25..].first_chunk().unwrap())), LENGTH)
}

/// The reply that an honest node sends.
fn honest(ask: &[u8; ASK_BYTES]) -> Vec<u8> {
    let bytes = block(ask);
    [head(ask, crc(&bytes), LENGTH as u32), bytes].concat()
}

fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// How an ask of a false node ends for a keeper with these settings; its page, and its counters.
fn deceived(falsehood: Falsehood, settings: &PeersSettings) -> (Error, gradus_store::peers::PeerCounters) {
    let secret = Secret::make();
    let (ours, _) = node("a", &secret, Manner::Serves, settings);
    ours.update(vec![false_node(&secret, falsehood)]);
    let error = ask_once(&ours, "b", 1).unwrap_err();
    (error, ours.counters().in_rack)
}

#[test]
fn damaged_bytes_are_never_taken_for_a_block() {
    let (error, counters) = deceived(
        |connection, ask| {
            let mut reply = honest(ask);
            reply[LENGTH / 2] ^= 1;
            send(connection, &reply);
        },
        &patient(),
    );
    assert_eq!(*error.kind(), Kind::Corrupt);
    assert_eq!((counters.corrupt, counters.failed(), counters.received_blocks), (1, 1, 0));
}

#[test]
fn a_reply_of_another_length_or_kind_ends_the_connection() {
    let falsehoods: [Falsehood; 4] = [
        |connection, ask| send(connection, &head(ask, 0, LENGTH as u32 + 1)),
        |connection, ask| send(connection, &head(ask, 0, u32::MAX)),
        |connection, _| send(connection, &[9; 17]),
        |connection, _| connection.shut(),
    ];
    for falsehood in falsehoods {
        let (error, counters) = deceived(falsehood, &patient());
        assert_eq!((error.kind(), counters.lost), (&Kind::Unavailable, 1));
    }
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_block_ends_its_ask() {
    let (error, counters) = deceived(
        |connection, ask| {
            send(connection, &honest(ask)[..LENGTH / 2]);
            connection.shut();
        },
        &patient(),
    );
    assert_eq!((error.kind(), counters.lost), (&Kind::Unavailable, 1));
}

#[test]
fn who_never_answers_or_stops_in_the_middle_of_a_block_holds_up_nobody() {
    let falsehoods: [Falsehood; 2] = [
        |_, _| {},
        |connection, ask| {
            send(connection, &honest(ask)[..LENGTH / 2]);
        },
    ];
    for falsehood in falsehoods {
        let (error, counters) = deceived(falsehood, &settings());
        assert_eq!((error.kind(), counters.late), (&Kind::Unavailable, 1));
    }
}

#[test]
fn a_late_reply_is_read_past_and_the_next_one_is_taken() {
    let secret = Secret::make();
    // Set aside after many misses only, so that the same connection goes on.
    let settings = PeersSettings { misses: 1000, ..settings() };
    let (ours, _) = node("a", &secret, Manner::Serves, &settings);
    ours.update(vec![false_node(&secret, |connection, ask| {
        // Until the next ask has come, which it does when this one is over.
        let second = if ask[25] == 1 { read_ask(connection) } else { None };
        for ask in [Some(*ask), second].into_iter().flatten() {
            send(connection, &honest(&ask));
        }
    })]);
    assert_eq!(*ask_once(&ours, "b", 1).unwrap_err().kind(), Kind::Unavailable);
    ask_until(&ours, 2);
    assert_eq!(ours.counters().in_rack.set_aside, 0);
}

/// Asks for a block until it comes.
fn ask_until(peers: &Peers, number: u64) {
    let clock = RealClock::new();
    let until = clock.now() + GENEROUS;
    while ask_once(peers, "b", number).is_err() {
        assert!(clock.now() < until, "block {number} never comes");
    }
}

/// A connection to a keeper, as another keeper makes one.
fn guest(secret: &Secret, place: &Place, hello: &str) -> (Connection, String) {
    let clock = RealClock::new();
    let said: std::collections::BTreeMap<String, serde_json::Value> = serde_json::from_str(hello).unwrap();
    let until = clock.now() + GENEROUS;
    let (connection, answer) = call(&keys(secret), place.address, "it", &said, &clock, until).unwrap();
    (connection, understand::<serde_json::Value>(&answer).unwrap().to_string())
}

const HELLO: &str = r#"{"version":1,"node":"z","rack":"","capacity_blocks":1,"dataset":"dataset"}"#;

#[test]
fn guests_of_another_version_or_dataset_are_told_so() {
    let secret = Secret::make();
    let (_ours, place) = node("a", &secret, Manner::Serves, &patient());
    assert!(guest(&secret, &place, HELLO).1.contains("come"));
    for (from, to) in [("\"version\":1", "\"version\":2"), ("dataset\"}", "other\"}")] {
        assert!(guest(&secret, &place, &HELLO.replace(from, to)).1.contains("refused"));
    }
}

/// Bytes of a block that tell when nobody holds them any more.
struct Held(Vec<u8>, Sender<()>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A test that has failed listens no more.
        let _ = self.1.send(());
    }
}

/// Serves blocks that tell when they are let go.
struct Telling(Mutex<Sender<()>>);

impl Serve for Telling {
    fn serve(&self, asked: Asked, answer: Answer) {
        let tell = self.0.lock().unwrap().clone();
        answer.block(Box::new(Held(bytes_of(asked.key, asked.length as usize), tell)));
    }
}

#[test]
fn a_guest_that_takes_nothing_is_sent_away_and_others_are_served() {
    const LARGE: u32 = 8 << 20;
    let secret = Secret::make();
    let (tell, let_go) = channel();
    let door = listener(&secret);
    let place = Place { member: member("a"), address: door.address() };
    let store = Arc::new(Telling(Mutex::new(tell)));
    let _ours = Peers::start(member("a"), "dataset", keys(&secret), door, store, &settings()).unwrap();
    let (mut slow, _) = guest(&secret, &place, HELLO);
    let most = settings().unsent_bytes / u64::from(LARGE);
    for id in 1..=most {
        let (id, hour) = (id.to_le_bytes(), 3_600_000u32.to_le_bytes());
        send(&mut slow, &[&[1][..], &id, &[3; 16], &id, &LARGE.to_le_bytes(), &id, &hour].concat());
    }
    let (theirs, _) = node("b", &secret, Manner::Serves, &patient());
    theirs.update(vec![place]);
    ask_once(&theirs, "a", 1).unwrap();
    // Sockets do not hold them all, and nobody reads: they are let go because the guest is. One more was for the other node.
    for _ in 0..=most {
        let_go.recv_timeout(GENEROUS).expect("blocks are not held for ever");
    }
}
