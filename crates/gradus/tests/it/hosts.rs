//! Ranks on hosts of their own: network namespaces that one bridge joins, each with one routed interface.
//!
//! This needs the rights to make namespaces (root) and `ip` of iproute2. Where they are missing the tests say that they did
//! not run; where `GRADUS_TEST_HOSTS` is `required`, as in CI, they fail.

use crate::corpus::{Place, STEPS};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Well above what connecting takes on a loaded machine.
const PATIENCE: [&str; 2] = ["--network.rendezvous_timeout_s", "60"];

/// Runs `ip`; what it says when it fails.
fn try_ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.map_err(|error| format!("cannot start ip: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

/// Whether hosts can be made here.
///
/// # Panics
/// If they cannot, and must.
pub fn hosts_can_be_made() -> bool {
    static PROBES: AtomicUsize = AtomicUsize::new(0);
    let probe = format!("g{}p{}", std::process::id(), PROBES.fetch_add(1, Relaxed));
    let made = try_ip(&format!("netns add {probe}")).and_then(|()| try_ip(&format!("netns del {probe}")));
    let Err(reason) = made else { return true };
    let needs = format!("tests of hosts need root and iproute2 (on Debian: apt install iproute2): {reason}");
    assert!(std::env::var("GRADUS_TEST_HOSTS").as_deref() != Ok("required"), "{needs}");
    eprintln!("not run: {needs}");
    false
}

fn ip(words: &str) {
    try_ip(words).unwrap_or_else(|reason| panic!("`ip {words}` failed: {reason}"));
}

/// Namespaces that are joined by a bridge in one more; gone when this is dropped.
pub struct Hosts {
    mark: String,
    count: usize,
}

impl Hosts {
    pub fn new(count: usize) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let hosts = Self { mark: format!("g{}x{}", std::process::id(), MADE.fetch_add(1, Relaxed)), count };
        let Self { mark, .. } = &hosts;
        ip(&format!("netns add {mark}s"));
        ip(&format!("-n {mark}s link add bridge type bridge"));
        ip(&format!("-n {mark}s link set bridge up"));
        (0..count).for_each(|host| hosts.add(host));
        hosts
    }

    fn add(&self, host: usize) {
        let Self { mark, .. } = self;
        ip(&format!("netns add {mark}h{host}"));
        ip(&format!("-n {mark}s link add port{host} type veth peer name way{host} netns {mark}h{host}"));
        ip(&format!("-n {mark}s link set port{host} master bridge up"));
        ip(&format!("-n {mark}h{host} link set lo up"));
        // A second interface, which leads nowhere, is there to be chosen wrongly.
        ip(&format!("-n {mark}h{host} link add astray type veth peer name tail"));
        ip(&format!("-n {mark}h{host} addr add 10.88.0.1/24 dev astray"));
        ip(&format!("-n {mark}h{host} link set astray up"));
        ip(&format!("-n {mark}h{host} link set tail up"));
        ip(&format!("-n {mark}h{host} addr add {}/24 dev way{host}", address(host)));
        ip(&format!("-n {mark}h{host} link set way{host} up"));
    }

    /// Rank `rank` of as many as there are hosts, on the host of its number, which trains; stderr can be read.
    fn start(&self, rank: usize, place: &Place, secret: Option<&str>, arguments: &[&str]) -> Child {
        let mut command = self.rank(rank, place, secret);
        command.args(["train", "run.toml"]).args(PATIENCE).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The program as rank `rank` of as many as there are hosts, on the host of its number.
    pub fn rank(&self, rank: usize, place: &Place, secret: Option<&str>) -> Command {
        // `ip netns exec` becomes the program: its process is the rank.
        let mut command = place.foreign_command("ip");
        command.args(["netns", "exec", &format!("{}h{rank}", self.mark), env!("CARGO_BIN_EXE_gradus")]);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", self.count.to_string());
        command.env("MASTER_ADDR", address(0)).env("MASTER_PORT", "29500");
        command.envs(secret.map(|secret| ("GRADUS_SECRET", secret)));
        command
    }

    /// Lets a host's cable carry so much, such as `40mbit`, each way.
    pub fn shape(&self, host: usize, rate: &str) {
        let Self { mark, .. } = self;
        let limit = format!("root tbf rate {rate} burst 64kb latency 100ms");
        ip(&format!("netns exec {mark}h{host} tc qdisc add dev way{host} {limit}"));
        ip(&format!("netns exec {mark}s tc qdisc add dev port{host} {limit}"));
    }

    /// Lets nothing go from one host to another.
    pub fn part(&self, from: usize, to: usize) {
        ip(&format!("-n {}h{from} route add unreachable {}/32", self.mark, address(to)));
    }

    /// Takes the cable out of a host.
    fn cut(&self, host: usize) {
        ip(&format!("-n {}s link set port{host} down", self.mark));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Ranks that a test has left are no reason to leave namespaces; what cannot be removed is shown.
        let names =
            (0..self.count).map(|host| format!("{}h{host}", self.mark)).chain([format!("{}s", self.mark)]);
        for name in names {
            if let Err(reason) = try_ip(&format!("netns del {name}")) {
                eprintln!("network namespace {name} is left behind: {reason}");
            }
        }
    }
}

fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// Children that do not outlive a test.
pub struct Ranks(pub Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

impl Ranks {
    /// Exit codes (none for a signal) and everything on stderr, by rank.
    pub fn end(mut self) -> Vec<(Option<i32>, String)> {
        std::mem::take(&mut self.0)
            .into_iter()
            .map(|rank| {
                let output = rank.wait_with_output().unwrap();
                (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
            })
            .collect()
    }
}

pub const SECRET: &str = "known to the ranks of this test only";

#[test]
fn ranks_on_three_hosts_learn_what_three_on_one_host_learn() {
    if !hosts_can_be_made() {
        return;
    }
    let (place, hosts) = (Place::new(), Hosts::new(3));
    place.train(&["--run.dir", "runs/near", "--nproc-per-node", "3", "--launch.transport", "tcp"]);
    let start = |rank: usize| {
        // Every host calls its interface differently.
        let interface = [format!("=way{rank}"), "^lo,astray".into(), "nothing,way".into()][rank].clone();
        hosts.start(rank, &place, Some(SECRET), &["--run.dir", "runs/far", "--network.interface", &interface])
    };
    let ended = Ranks((0..3).map(start).collect()).end();
    for (rank, (code, text)) in ended.iter().enumerate() {
        assert_eq!(*code, Some(0), "rank {rank}: {text}");
        let reached = format!("rank {rank} of 3 is reached at {}:", address(rank));
        assert!(text.contains(&reached) && text.contains(&format!("(way{rank}), over TCP")), "{text}");
    }
    assert_eq!(place.losses("far").len() as u64, STEPS);
    assert!(place.final_bytes("far") == place.final_bytes("near"));
}

#[test]
fn another_secret_is_refused_and_no_secret_does_not_leave_the_host() {
    if !hosts_can_be_made() {
        return;
    }
    let (place, hosts) = (Place::new(), Hosts::new(2));
    let brief = ["--network.rendezvous_timeout_s", "10"];
    let secrets = [SECRET, "not known to the ranks of this test"];
    let ranks = (0..2).map(|rank| hosts.start(rank, &place, Some(secrets[rank]), &brief)).collect();
    for (rank, (code, text)) in Ranks(ranks).end().into_iter().enumerate() {
        assert_eq!(code, Some(1), "{text}");
        let other = ["rank 1", "rank 0"][rank];
        assert!(text.contains(other) && text.contains("secret") && !text.contains("known to"), "{text}");
    }
    let ranks = (0..2).map(|rank| hosts.start(rank, &place, None, &brief)).collect();
    for (code, text) in Ranks(ranks).end() {
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("MASTER_ADDR is 10.77.0.1") && text.contains("GRADUS_SECRET_FILE"), "{text}");
    }
}

/// Starts endless ranks on three hosts, lets `strike` happen once they learn, and returns how they ended.
fn interrupted(strike: impl FnOnce(&Hosts, &mut Ranks)) -> Vec<(Option<i32>, String)> {
    let (place, hosts) = (Place::new(), Hosts::new(3));
    let endless = ["--train.steps", "1000000", "--launch.stall_timeout", "600s"];
    let start = |rank| hosts.start(rank, &place, Some(SECRET), &endless);
    let mut ranks = Ranks((0..3).map(start).collect());
    let mut stderr = crate::ranks::wait_for(&mut ranks.0[0], "step: 3");
    strike(&hosts, &mut ranks);
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    let mut ended = ranks.end();
    ended[0].1 = text;
    ended
}

#[test]
fn a_rank_that_is_killed_on_its_host_is_named_on_the_others() {
    if !hosts_can_be_made() {
        return;
    }
    let ended = interrupted(|_, ranks| ranks.0[2].kill().unwrap());
    assert_eq!(ended[2].0, None);
    for (code, text) in &ended[..2] {
        assert!(*code == Some(1) && text.contains("rank 2"), "{text}");
    }
}

#[test]
fn a_host_that_is_cut_off_is_named_on_the_others_and_ends_too() {
    if !hosts_can_be_made() {
        return;
    }
    let ended = interrupted(|hosts, _| hosts.cut(1));
    for (rank, (code, text)) in ended.iter().enumerate() {
        assert_eq!(*code, Some(1), "rank {rank}: {text}");
        let lost = if rank == 1 {
            text.contains("rank 0") || text.contains("rank 2")
        } else {
            text.contains("rank 1")
        };
        assert!(lost, "rank {rank}: {text}");
    }
}
