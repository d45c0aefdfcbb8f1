//! What takes bytes that a stranger could send, each as a function of bytes: it may refuse them, and must do nothing
//! worse. With every target come inputs that are taken, for a fuzzer to begin with. Built with the feature `fuzzing` only.

use crate::control::LastWord;
use crate::etcd::is_answer;
use crate::frame::{self, Progress, Reader};
use crate::handshake::{Handshake, Purpose, Refusal, Turn};
use crate::interface::{Interface, Wish};
use crate::launch::Launch;
use crate::membership::{
    COORDINATOR, Coordinator, CoordinatorAddress, GroupSettings, Identity, Member, Reply, Request, Timeouts,
    is_published,
};
use crate::mesh::Introduction;
use crate::rendezvous::{Answer, Hello};
use crate::secret::Secret;
use crate::stream::Stream;
use gradus_host::machine::{Action, Event, Machine};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Name, function, which says whether it takes its input, and first inputs, all of which it takes.
pub type Target = (&'static str, fn(&[u8]) -> bool, fn() -> Vec<Vec<u8>>);

/// All of this crate.
pub const TARGETS: [Target; 11] = [
    ("fabric-handshake", handshake, handshakes),
    ("fabric-frames", frames, framed),
    ("fabric-coordinator-state", coordinator_state, states),
    ("fabric-membership-requests", requests, requested),
    ("fabric-membership-replies", replies, replied),
    ("fabric-etcd-answers", is_answer, etcd_answers),
    ("fabric-leader-record", is_published, leader_records),
    ("fabric-coordinator-address", coordinator_address, coordinator_addresses),
    ("fabric-launch-environment", launch_environment, environments),
    ("fabric-interfaces", interfaces, interface_lists),
    ("fabric-secret", secret, environments),
];

/// Bytes beyond these fit no socket's buffer at once.
const MOST_AT_ONCE: usize = 32 << 10;

// Handshakes.

/// The first byte says which side listens, the others are what the other side says, in pieces of any size. Taken is what
/// fails by its proof only.
fn handshake(data: &[u8]) -> bool {
    let Some((side, mut said)) = data.split_first() else { return false };
    let mut last = Turn::More;
    let mut ours = if side % 2 == 0 {
        Handshake::call(&Secret::make(), Purpose::Stream, 1, &[7; 32]).0
    } else {
        Handshake::answer(&Secret::make(), Purpose::Stream, 1, &[7; 32])
    };
    while ours.wanted() > 0 && !said.is_empty() {
        let count = ours.wanted().min(said.len()).min(1 + usize::from(*side));
        let (piece, rest) = said.split_at(count);
        let (turn, reply) = ours.take(piece, &[0; 32]);
        assert!(!matches!(turn, Turn::Proven(_)), "nobody knows this secret");
        assert!(reply.len() < 200, "a handshake is short");
        (said, last) = (rest, turn);
    }
    matches!(last, Turn::Refused(Refusal::Secret(_) | Refusal::Refused(_)))
}

fn handshakes() -> Vec<Vec<u8>> {
    let opening = Handshake::call(&Secret::default(), Purpose::Stream, 1, &[3; 32]).1;
    let answer = [&opening[..11], &[2], &opening[12..]].concat();
    let proof = [0; 33];
    vec![[&[1], &opening[..], &proof[..]].concat(), [&[0], &answer[..], &proof[..]].concat()]
}

// Frames.

/// A connection over which these bytes come; each frame is taken for everything that frames can be, and must be something.
fn frames(data: &[u8]) -> bool {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    ours.write_all(&data[..data.len().min(MOST_AT_ONCE)]).expect("a socket holds that much");
    drop(ours);
    let mut stream = Stream::plain(theirs.into()).expect("a socket can be made non-blocking");
    let mut reader = Reader::default();
    let mut taken = false;
    while let Ok(Progress::Frame(body)) = reader.read(&mut stream) {
        let meanings = [
            frame::decode::<Hello>(&body).is_ok(),
            frame::decode::<Answer>(&body).is_ok(),
            frame::decode::<crate::doors::Member>(&body).is_ok(),
            frame::decode::<Introduction>(&body).is_ok(),
            frame::decode::<LastWord>(&body).is_ok(),
            frame::decode::<Request>(&body).is_ok(),
            frame::decode::<Reply>(&body).is_ok(),
        ];
        taken = meanings.contains(&true);
    }
    taken
}

fn framed() -> Vec<Vec<u8>> {
    let member = r#"{"address":"10.0.0.1:29500","name":"node-1","host":"ab","node":"a.1","processors":"3","socket":"gradus-1"}"#;
    let bodies = [
        format!(
            r#"{{"version":"0.1.0","occasion":{{"group":"g","epoch":1}},"rank":1,"world_size":2,"fingerprint":"a\nb","transport":"auto","priority_levels":2,"member":{member}}}"#
        ),
        member.to_owned(),
        r#"{"welcome":{"world_size":2,"job":"ab"}}"#.to_owned(),
        r#"{"refusal":{"lost":1,"mend":false,"message":"no"}}"#.to_owned(),
        r#"{"job":"ab","rank":1,"line":2}"#.to_owned(),
        r#""goodbye""#.to_owned(),
        r#"{"giving_up":{"kind":{"peer_lost":{"rank":3}},"message":"no"}}"#.to_owned(),
    ];
    let frame = |body: &String| [&(body.len() as u32).to_le_bytes(), body.as_bytes()].concat();
    bodies.iter().map(frame).collect()
}

// Membership.

/// What a coordinator finds on its disk, and what it does then.
fn coordinator_state(data: &[u8]) -> bool {
    let Ok(mut coordinator) = Coordinator::open(Some(data), timeouts()) else { return false };
    for second in 0..40 {
        coordinator.step(Event::Wake, Duration::from_secs(second));
    }
    true
}

fn timeouts() -> Timeouts {
    Timeouts::from(Duration::from_secs(1)).expect("a second is long enough")
}

/// Lines of JSON, each what a member says to a coordinator, some tenths of a second apart.
fn requests(data: &[u8]) -> bool {
    let mut taken = true;
    let mut coordinator = Coordinator::open(None, timeouts()).expect("a new coordinator begins");
    for (number, line) in data.split(|byte| *byte == b'\n').take(200).enumerate() {
        let now = Duration::from_millis(130 * number as u64);
        match frame::decode::<Request>(line) {
            Ok(message) => drop(coordinator.step(Event::Message { from: number as u64 % 5, message }, now)),
            Err(_) => taken = false,
        }
        coordinator.step(Event::Wake, now);
    }
    taken
}

/// Lines of JSON, each what a coordinator says to a member.
fn replies(data: &[u8]) -> bool {
    let mut taken = true;
    let mut member = member("a");
    member.step(Event::Wake, Duration::ZERO);
    for (number, line) in data.split(|byte| *byte == b'\n').take(200).enumerate() {
        let now = Duration::from_millis(130 * number as u64);
        match frame::decode::<Reply>(line) {
            Ok(message) => drop(member.step(Event::Message { from: COORDINATOR, message }, now)),
            Err(_) => taken = false,
        }
        member.step(Event::Wake, now);
    }
    taken
}

fn member(name: &str) -> Member {
    let text = |text: &str| text.to_owned();
    let identity = Identity { name: text(name), incarnation: 1, host: text("h"), address: text("x") };
    Member::new("g", GroupSettings::fixed(2), identity, timeouts())
}

/// A conversation of a coordinator with two members: its last state, what they said and what one of them heard.
fn conversation() -> [Vec<Vec<u8>>; 3] {
    let mut coordinator = Coordinator::open(None, timeouts()).expect("a new coordinator begins");
    let mut members = [member("a"), member("b")];
    let mut told: [Vec<Vec<u8>>; 3] = Default::default();
    for tenth in 0..30 {
        let now = Duration::from_millis(100 * tenth);
        for (peer, member) in members.iter_mut().enumerate() {
            for action in member.step(Event::Wake, now) {
                let Action::Send { message, .. } = action else { continue };
                told[1].push(json(&message));
                for action in coordinator.step(Event::Message { from: peer as u64, message }, now) {
                    match action {
                        Action::Persist(bytes) => told[0] = vec![bytes],
                        Action::Send { to: 0, message } => told[2].push(json(&message)),
                        _ => {}
                    }
                }
            }
        }
    }
    told
}

/// A message as the line that it is here.
fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are JSON")
}

fn states() -> Vec<Vec<u8>> {
    let [states, ..] = conversation();
    states
}

fn requested() -> Vec<Vec<u8>> {
    let [_, requests, _] = conversation();
    vec![requests.join(&b'\n')]
}

fn replied() -> Vec<Vec<u8>> {
    let [.., replies] = conversation();
    vec![replies.join(&b'\n')]
}

// etcd, and what a coordinator says there of itself.

/// What a gateway of etcd answers to each of our questions, and why it refuses; no other program's answer has all of these.
fn etcd_answers() -> Vec<Vec<u8>> {
    let header = r#""header":{"cluster_id":"10144879847569953045","revision":"2"}"#;
    let pairs = r#""kvs":[{"key":"Zm9v","value":"YmFy"}]"#;
    let texts = [
        format!(r#"{{{header},{pairs},"count":"1"}}"#),
        format!(
            r#"{{{header},"succeeded":true,"responses":[{{"response_put":{{}}}},{{"response_range":{{{header},{pairs}}}}}]}}"#
        ),
        format!(r#"{{{header},"ID":"14","TTL":"3"}}"#),
        format!(r#"{{"result":{{{header},"ID":"14","TTL":"3"}}}}"#),
        format!(r#"{{{header},"token":"abc"}}"#),
        r#"{"error":"no","code":14,"message":"etcdserver: no leader"}"#.to_owned(),
    ];
    texts.map(String::into_bytes).into()
}

fn leader_records() -> Vec<Vec<u8>> {
    vec![br#"{"address":"10.0.0.1:29400"}"#.to_vec()]
}

fn coordinator_address(data: &[u8]) -> bool {
    CoordinatorAddress::parse(&String::from_utf8_lossy(data), &|_| None).is_ok()
}

fn coordinator_addresses() -> Vec<Vec<u8>> {
    let texts = [
        "host:29400",
        "[::1]:1",
        "etcd://a:2379,b/some/prefix",
        "etcd://user:pass%20word@127.0.0.1:2379,[::1]/some/prefix",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

// What launchers and people set.

/// Lines `NAME=VALUE`: the environment of a rank.
fn launch_environment(data: &[u8]) -> bool {
    let variables = variables(data);
    Launch::from_environment(&|name| variables.get(name).cloned()).is_ok_and(|launch| launch.is_some())
}

fn secret(data: &[u8]) -> bool {
    let mut variables = variables(data);
    // Files of this host are none of a fuzzer's business.
    variables.remove(crate::secret::SECRET_FILE);
    Secret::from_environment(&|name| variables.get(name).cloned()).is_ok()
}

fn variables(data: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(data);
    let entries = text.lines().filter_map(|line| line.split_once('='));
    entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn environments() -> Vec<Vec<u8>> {
    let texts = [
        "RANK=1\nWORLD_SIZE=4\nLOCAL_RANK=1\nLOCAL_WORLD_SIZE=2\nMASTER_ADDR=a\nMASTER_PORT=29500",
        "SLURM_PROCID=3\nSLURM_NTASKS=8\nSLURM_LOCALID=1\nSLURM_JOB_ID=7\nSLURM_STEP_ID=0\nSLURM_NNODES=2\nSLURM_NODEID=0\n\
         SLURM_STEP_TASKS_PER_NODE=4(x2)\n\
         SLURM_STEP_NODELIST=a[1-3,7],b\nSLURM_JOB_NODELIST=gpu[001-128,130],c",
        "OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=2\nOMPI_COMM_WORLD_LOCAL_RANK=0\nOMPI_COMM_WORLD_LOCAL_SIZE=2",
        "PMI_RANK=0\nPMI_SIZE=2\nMPI_LOCALRANKID=0\nMPI_LOCALNRANKS=2\nGRADUS_SECRET=0123456789abcdef0123456789abcdef",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

/// A list of interfaces, and the choice among some by it.
fn interfaces(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let Ok(wish) = Wish::parse(&text, "a fuzzer") else { return false };
    let here = |name: &str, last| Interface {
        name: name.to_owned(),
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
    };
    let all = [here("eth0", 1), here("ib0", 2), here("docker0", 3)];
    let chosen = wish.choose(&all, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)), "a fuzzer");
    assert!(chosen.is_err() || chosen.is_ok_and(|chosen| all.contains(&chosen)));
    true
}

fn interface_lists() -> Vec<Vec<u8>> {
    ["eth0,ib", "=eth0", "^lo,docker"].map(|text| text.as_bytes().to_vec()).into()
}
