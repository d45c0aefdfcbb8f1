//! Who reads, what, and from where: plain data, and the command of each.

use super::described;
use super::server::Server;
use super::sets::Set;
use crate::environment::Environment;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Samples of a batch.
pub const BATCH: &str = "32";
/// Of every arm that shuffles.
const SEED: &str = "3";
/// What Gradus may hold in memory beside its disk cache: half of it is for what is on its way, and the rest for copies of what is kept.
const MEMORY_BYTES: u64 = 128 << 20;

/// Where samples come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Scenario {
    /// Files of this host.
    Local,
    /// An S3 server of this host.
    S3,
    /// The same, each request 50 ms later, and caches of half the set.
    Slow,
    /// The same latency, nothing kept, a steady demand: ours alone.
    Demand,
}

impl Scenario {
    /// Epochs of a turn.
    pub fn epochs(self) -> usize {
        if self == Self::Slow { 3 } else { 2 }
    }

    /// Whether there is a server.
    pub fn is_remote(self) -> bool {
        self != Self::Local
    }

    /// How long the server lets each request wait.
    pub fn latency_ms(self) -> u64 {
        match self {
            Self::Local | Self::S3 => 0,
            Self::Slow | Self::Demand => super::demand::LATENCY_MS,
        }
    }

    /// What a local cache may hold; `None`: all.
    pub fn cache_bytes(self, set: &Set) -> Option<u64> {
        (self == Self::Slow).then_some(set.bytes / 2)
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local disk",
            Self::S3 => "S3",
            Self::Slow => "S3, 50 ms, caches of half",
            Self::Demand => "S3, 50 ms, a steady demand",
        }
    }
}

/// Whose code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Ours, with its `--order`.
    Gradus(&'static str),
    /// A peer, by its name in `dataset_arms.py`.
    Peer(&'static str),
    /// Plain reads of one file.
    PageCache,
}

/// One reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm {
    /// As the table has it.
    pub name: &'static str,
    /// Whose code.
    pub engine: Engine,
    /// What is shuffled with what.
    pub shuffle: &'static str,
    /// Numbers of workers (of ours and of plain reads: threads) of which the best is taken.
    pub tries: &'static [usize],
    /// Folder or file of the set that it reads; ours reads `--form`.
    form: &'static str,
    scenarios: &'static [Scenario],
}

use Scenario::{Local, S3, Slow};
const ALL: &[Scenario] = &[Local, S3, Slow];
const WORKERS: &[usize] = &[0, 1, 2];

/// Every arm.
pub const ARMS: &[Arm] = &[
    Arm {
        name: "gradus whole",
        engine: Engine::Gradus("whole"),
        shuffle: "whole",
        tries: &[1, 2],
        form: "",
        scenarios: ALL,
    },
    Arm {
        name: "gradus blocks",
        engine: Engine::Gradus("blocks"),
        shuffle: "blocks",
        tries: &[1, 2],
        form: "",
        scenarios: ALL,
    },
    Arm {
        name: "torch",
        engine: Engine::Peer("torch"),
        shuffle: "whole",
        tries: WORKERS,
        form: "files",
        scenarios: ALL,
    },
    Arm {
        name: "streaming",
        engine: Engine::Peer("streaming"),
        shuffle: "whole",
        tries: WORKERS,
        form: "mds",
        scenarios: ALL,
    },
    Arm {
        name: "streaming blocks",
        engine: Engine::Peer("streaming-blocks"),
        shuffle: "blocks",
        tries: WORKERS,
        form: "mds",
        scenarios: &[Slow],
    },
    Arm {
        name: "litdata",
        engine: Engine::Peer("litdata"),
        shuffle: "blocks",
        tries: WORKERS,
        form: "litdata",
        scenarios: ALL,
    },
    Arm {
        name: "webdataset",
        engine: Engine::Peer("webdataset"),
        shuffle: "blocks",
        tries: WORKERS,
        form: "tars",
        scenarios: ALL,
    },
    Arm {
        name: "page cache, 1 thread",
        engine: Engine::PageCache,
        shuffle: "whole",
        tries: &[1],
        form: "all.bin",
        scenarios: ALL,
    },
    Arm {
        name: "page cache, 2 threads",
        engine: Engine::PageCache,
        shuffle: "whole",
        tries: &[2],
        form: "all.bin",
        scenarios: ALL,
    },
];

fn push(mut command: Command, key: &str, bytes: u64) -> Command {
    command.args([key, &bytes.to_string()]);
    command
}

impl Arm {
    /// Whether it is measured there.
    pub fn is_measured(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario)
    }

    /// Whether it is ours.
    pub fn is_ours(&self) -> bool {
        matches!(self.engine, Engine::Gradus(_))
    }

    /// Whether ours is held against it as a peer.
    pub fn is_peer(&self) -> bool {
        matches!(self.engine, Engine::Peer(_))
    }
}

/// Programs of the arms.
pub struct Programs {
    /// The peers' Python.
    pub peers: Environment,
    /// Plain reads.
    pub page_cache: PathBuf,
    /// What has memory used once.
    pub make_present: PathBuf,
    /// Ours; an arm of it that cannot be started is missing.
    pub gradus: PathBuf,
    /// Which form of the set ours reads.
    pub form: String,
    /// Whether it has a description where it lies in a bucket.
    pub is_described: bool,
}

impl Programs {
    /// The command that reads `set` once, its local cache in the empty folder `cache`.
    pub fn command(
        &self,
        arm: &Arm,
        workers: usize,
        (scenario, server): (Scenario, Option<&Server>),
        set: &Set,
        cache: &Path,
    ) -> Command {
        let (epochs, workers) = (scenario.epochs().to_string(), workers.to_string());
        let limit = scenario.cache_bytes(set);
        let mut command = match arm.engine {
            Engine::Gradus(order) => {
                let cache = server.is_some().then_some((cache, limit));
                self.gradus(order, cache, &workers, (set, &self.folder(scenario)))
            }
            Engine::Peer(peer) => self.peer(peer, server.is_some().then_some(limit), &workers, set, cache),
            Engine::PageCache => {
                let mut command = Command::new(&self.page_cache);
                command.arg(&set.folder).args([epochs.as_str(), &workers, SEED]);
                return command;
            }
        };
        let seed = if arm.is_ours() { "--run.seed" } else { "--seed" };
        command.args(["--epochs", &epochs, "--batch", BATCH, seed, SEED]);
        if let Some(server) = server {
            server.introduce(&mut command);
        }
        command
    }

    /// The folder of the set that ours reads.
    pub fn folder(&self, scenario: Scenario) -> String {
        let is_described = self.is_described && scenario.is_remote();
        if is_described { described::name(&self.form) } else { self.form.clone() }
    }

    /// Ours: local files have no disk cache, they are on a disk.
    fn gradus(
        &self,
        order: &str,
        cache: Option<(&Path, Option<u64>)>,
        threads: &str,
        (set, folder): (&Set, &str),
    ) -> Command {
        let mut command = Command::new(&self.gradus);
        let source = match cache {
            None => format!("file://{}/{folder}", set.folder.display()),
            Some(_) => format!("s3://{}/{folder}", set.bucket()),
        };
        command.args(["bench", "dataset", "--stay", "--source", &source, "--threads", threads]);
        command.args(["--order.shuffle", order, "--order.block_samples", "64", "--order.window_blocks", "8"]);
        // A set that memory holds is kept there. Else the disk holds as much as a peer's cache may, and memory what is on its
        // way: of what is kept, memory has copies.
        let Some((folder, Some(limit))) = cache else {
            return push(command, "--cache.memory_bytes", set.bytes + set.bytes / 2);
        };
        command.arg("--cache.folder").arg(folder);
        let command = push(command, "--cache.memory_bytes", MEMORY_BYTES);
        push(command, "--cache.disk_bytes", limit)
    }

    fn peer(
        &self,
        peer: &str,
        remote: Option<Option<u64>>,
        workers: &str,
        set: &Set,
        cache: &Path,
    ) -> Command {
        let mut command = self.peers.script("bench_dataset.py");
        command.args(["read", "--arm", peer, "--workers", workers]);
        command.arg("--set").arg(&set.folder).arg("--cache").arg(cache);
        if let Some(limit) = remote {
            command.args(["--bucket", &set.bucket()]);
            command.args(limit.map(|limit| format!("--cache-bytes={limit}")));
        }
        command
    }

    /// What of the set `arm` reads, so that it can be made warm.
    pub fn reads(&self, arm: &Arm, scenario: Scenario, set: &Set) -> PathBuf {
        set.folder.join(if arm.is_ours() { self.folder(scenario) } else { arm.form.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_ours_peers_and_the_ceiling() {
        for scenario in ALL {
            let there = || ARMS.iter().filter(|arm| arm.is_measured(*scenario));
            assert!(there().any(Arm::is_ours) && there().filter(|arm| arm.is_peer()).count() >= 4);
            assert!(there().any(|arm| arm.engine == Engine::PageCache));
        }
    }

    #[test]
    fn names_are_unlike_each_other() {
        let mut names: Vec<&str> = ARMS.iter().map(|arm| arm.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ARMS.len());
    }
}
