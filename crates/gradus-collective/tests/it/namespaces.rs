//! Hosts of their own for ranks: network namespaces that one bridge joins.
//!
//! This needs the rights to make namespaces (root) and `ip` of iproute2. Where they are missing the tests say that they did
//! not run; where `GRADUS_TEST_HOSTS` is `required`, as in CI, they fail.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Runs a tool; what it says when it fails.
fn attempt(words: &str) -> Result<(), String> {
    let mut words = words.split_whitespace();
    let tool = words.next().unwrap();
    let output = Command::new(tool).args(words).output();
    let output = output.map_err(|error| format!("cannot start {tool}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

/// Runs a tool, which must succeed.
pub fn tool(words: &str) {
    attempt(words).unwrap_or_else(|reason| panic!("`{words}` failed: {reason}"));
}

/// A name that no other namespace of this machine has.
fn fresh_mark() -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    format!("c{}x{}", std::process::id(), MADE.fetch_add(1, Relaxed))
}

/// Namespaces `MARKhN`, one for each rank; gone when this is dropped.
pub struct Namespaces {
    mark: String,
    made: Vec<String>,
}

impl Namespaces {
    /// As many hosts as asked for, joined by a bridge; `None` where they cannot be made and need not be.
    ///
    /// # Panics
    /// If they cannot be made, and must.
    pub fn joined(count: usize) -> Option<Self> {
        let mut hosts = Self::apart(count)?;
        let (mark, switch) = (hosts.mark.clone(), format!("{}s", hosts.mark));
        hosts.add(switch);
        tool(&format!("ip -n {mark}s link add bridge type bridge"));
        tool(&format!("ip -n {mark}s link set bridge up"));
        for host in 0..count {
            tool(&format!("ip -n {mark}s link add port{host} type veth peer name way netns {mark}h{host}"));
            tool(&format!("ip -n {mark}s link set port{host} master bridge up"));
            tool(&format!("ip -n {mark}h{host} addr add {}/24 dev way", address(host)));
            tool(&format!("ip -n {mark}h{host} link set way up"));
        }
        Some(hosts)
    }

    /// As many hosts as asked for, which nothing joins.
    pub fn apart(count: usize) -> Option<Self> {
        let mut hosts = Self { mark: fresh_mark(), made: Vec::new() };
        let probe = format!("{}p", hosts.mark);
        if let Err(reason) = attempt(&format!("ip netns add {probe}")) {
            let needs =
                format!("tests of hosts need root and iproute2 (on Debian: apt install iproute2): {reason}");
            assert!(std::env::var("GRADUS_TEST_HOSTS").as_deref() != Ok("required"), "{needs}");
            eprintln!("not run: {needs}");
            return None;
        }
        hosts.made.push(probe);
        for host in 0..count {
            hosts.add(format!("{}h{host}", hosts.mark));
            tool(&format!("ip -n {} link set lo up", hosts.name(host)));
        }
        Some(hosts)
    }

    fn add(&mut self, name: String) {
        tool(&format!("ip netns add {name}"));
        self.made.push(name);
    }

    /// The name of a host's namespace.
    pub fn name(&self, host: usize) -> String {
        format!("{}h{host}", self.mark)
    }

    /// This test binary on a host, as a rank of a world that meets on host 0 at a port.
    pub fn command(&self, host: usize, rank: usize, world_size: usize, port: u16) -> Command {
        // `ip netns exec` becomes the program: its process is the rank.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host)]).arg(std::env::current_exe().unwrap());
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
        command.env("MASTER_ADDR", address(0)).env("MASTER_PORT", port.to_string());
        command.env("GRADUS_SECRET", "known to the ranks of this test only").env_remove("LOCAL_RANK");
        command
    }

    /// Takes the cable out of a host that a bridge joins to others.
    pub fn cut(&self, host: usize) {
        tool(&format!("ip -n {}s link set port{host} down", self.mark));
    }

    /// Puts it back in.
    pub fn mend(&self, host: usize) {
        tool(&format!("ip -n {}s link set port{host} up", self.mark));
    }

    /// Lets nothing go between two hosts that a bridge joins; others reach both.
    pub fn part(&self, one: usize, two: usize) {
        for (from, to) in [(one, two), (two, one)] {
            tool(&format!("ip -n {} route add blackhole {}/32", self.name(from), address(to)));
        }
    }

    /// Lets everything go again.
    pub fn join(&self, one: usize, two: usize) {
        for (from, to) in [(one, two), (two, one)] {
            tool(&format!("ip -n {} route del blackhole {}/32", self.name(from), address(to)));
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // Ranks that a test has left are no reason to leave namespaces; what cannot be removed is shown.
        for name in &self.made {
            if let Err(reason) = attempt(&format!("ip netns del {name}")) {
                eprintln!("network namespace {name} is left behind: {reason}");
            }
        }
    }
}

/// Where a host is reached.
pub fn address(host: usize) -> String {
    format!("10.79.0.{}", host + 1)
}
