//! Who this process is, as its launcher said it in the environment.
//!
//! Read in this order, the first that speaks decides: torchrun and whoever follows it (`RANK`, `WORLD_SIZE`, ...),
//! Open MPI (`OMPI_COMM_WORLD_*`), Hydra of MPICH and Intel MPI (`PMI_*`, `MPI_LOCAL*`), one process per node
//! (`PET_NNODES`, `PET_NODE_RANK`), Slurm (`SLURM_*`). They nest (torchrun under srun, srun under PMI), so a later
//! family is not held against an earlier one; within one family a contradiction is an error. `MASTER_ADDR` and
//! `MASTER_PORT` count in every family. Where torchrun's agent listens at `MASTER_PORT` itself, the ranks meet at the
//! port after it; `GRADUS_MASTER_PORT` overrides both. Empty variables count as not set.
//!
//! Reading is pure: the environment comes in as a function.

use crate::host::node_mark;
use crate::secret::Secret;
use crate::slurm;
use gradus_error::{Error, Result};
use std::net::IpAddr;
use std::str::FromStr;

/// The port of a rendezvous when nothing says otherwise; torchrun's.
const DEFAULT_PORT: u16 = 29500;

/// The variable that names an inherited, already listening socket for rank 0's rendezvous.
pub const RENDEZVOUS_FD: &str = "GRADUS_RENDEZVOUS_FD";

/// The variable that names the coordinator of the ranks' group, `host:port`.
pub const COORDINATOR: &str = "GRADUS_COORDINATOR";

/// The variable in which people list interfaces for NCCL.
pub(crate) const INTERFACES: &str = "NCCL_SOCKET_IFNAME";

/// The variable that overrides every other port.
const MASTER_PORT: &str = "GRADUS_MASTER_PORT";

/// What torchrun calls every job whose starter has not named it.
const NO_RUN_ID: &str = "none";

/// A rank's place in its world and the way to rank 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// This process, in `0..world_size`.
    pub rank: usize,
    /// Processes that train together.
    pub world_size: usize,
    /// This process among those of its node.
    pub local_rank: usize,
    /// Processes of this node.
    pub local_world_size: usize,
    /// This node among the nodes.
    pub node_rank: usize,
    /// Name or address at which rank 0 listens.
    pub master_address: String,
    /// Port at which rank 0 listens.
    pub master_port: u16,
    /// Descriptor of a socket that listens at that port already; only rank 0 looks at it.
    pub rendezvous_fd: Option<i32>,
    /// Where the coordinator of the ranks' group listens, where their launcher runs one.
    pub coordinator: Option<String>,
    /// What the launcher calls this job, where it gives it a name or number; the same on all ranks.
    pub job: Option<String>,
    /// What the ranks prove to each other. Reading a launcher's words leaves it empty, for it may stand in a file:
    /// [`Secret::from_environment`] reads it.
    pub secret: Secret,
    /// Interfaces to be reached at, as [`INTERFACES`] lists them; counts where settings name none and rank 0 is not met
    /// on loopback.
    pub interfaces: String,
    /// Which variables said so, for a person.
    pub origin: String,
}

impl Launch {
    /// The only rank of a world of one.
    pub fn alone() -> Self {
        Self::local(0, 1, DEFAULT_PORT)
    }

    /// One of `world_size` ranks, all on this host, that meet at a port of the loopback interface.
    pub fn local(rank: usize, world_size: usize, master_port: u16) -> Self {
        Self {
            rank,
            world_size,
            local_rank: rank,
            local_world_size: world_size,
            node_rank: 0,
            master_address: "127.0.0.1".to_owned(),
            master_port,
            rendezvous_fd: None,
            coordinator: None,
            job: None,
            secret: Secret::default(),
            interfaces: String::new(),
            origin: "this host alone".to_owned(),
        }
    }

    /// What tells this job from others, the same on all its ranks: what the launcher calls it, else where its ranks meet.
    pub fn job_name(&self) -> String {
        let Self { master_address: address, master_port: port, .. } = self;
        match &self.job {
            Some(job) => job.clone(),
            // Each host has a loopback interface of its own.
            None if self.meets_on_loopback() => format!("{:016x}/{address}:{port}", node_mark("")),
            None => format!("{address}:{port}"),
        }
    }

    /// Whether rank 0 is met on the loopback interface.
    pub(crate) fn meets_on_loopback(&self) -> bool {
        is_loopback(&self.master_address)
    }

    /// Reads the environment through `lookup`; `None` when no launcher left a word.
    ///
    /// # Errors
    /// `Invalid`, naming the variable, when a value cannot be read or contradicts another.
    pub fn from_environment(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let variables = Variables { lookup };
        for family in [torchrun, open_mpi, hydra, one_per_node, slurm::read] {
            if let Some(found) = family(&variables)? {
                return found.finish(&variables).map(Some);
            }
        }
        Ok(None)
    }
}

/// The environment, with errors that name the variable.
pub(crate) struct Variables<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let unreadable =
            || Error::invalid(format!("{name} is {text:?}, which is no number that fits: mend or unset it"));
        text.parse().map(Some).map_err(|_| unreadable())
    }

    /// A rank and its world size: both or neither, the one below the other.
    pub(crate) fn pair(&self, rank: &str, size: &str) -> Result<Option<(usize, usize)>> {
        match (self.number::<usize>(rank)?, self.number::<usize>(size)?) {
            (None, None) => Ok(None),
            (Some(r), Some(s)) if r < s => Ok(Some((r, s))),
            (Some(r), Some(s)) => {
                Err(Error::invalid(format!("{rank} is {r}, which must be below {size}, {s}")))
            }
            (Some(_), None) => {
                Err(Error::invalid(format!("{rank} is set but {size} is not: set both or neither")))
            }
            (None, Some(_)) => {
                Err(Error::invalid(format!("{size} is set but {rank} is not: set both or neither")))
            }
        }
    }
}

/// What one family of variables says; what it leaves open is derived.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) local: Option<(usize, usize)>,
    pub(crate) node_rank: Option<usize>,
    /// Where rank 0 most likely runs.
    pub(crate) master: Option<String>,
    /// Something that tells this job from others on the host.
    pub(crate) job: Option<String>,
    pub(crate) origin: &'static str,
}

fn torchrun(variables: &Variables) -> Result<Option<Found>> {
    let Some((rank, world_size)) = variables.pair("RANK", "WORLD_SIZE")? else { return Ok(None) };
    let local_world_size = variables.number("LOCAL_WORLD_SIZE")?;
    let local = match (variables.number("LOCAL_RANK")?, local_world_size) {
        (Some(_), Some(_)) => variables.pair("LOCAL_RANK", "LOCAL_WORLD_SIZE")?,
        (Some(local_rank), None) if is_local(variables) => Some((local_rank, world_size)),
        (Some(_), None) => {
            return Err(Error::invalid("LOCAL_RANK is set but LOCAL_WORLD_SIZE is not: set both or neither"));
        }
        (None, Some(size)) => Some((rank % std::cmp::max(size, 1), size)),
        (None, None) => None,
    };
    let node_rank = match variables.number("GROUP_RANK")? {
        Some(node_rank) => Some(node_rank),
        None => variables.number("NODE_RANK")?,
    };
    let job = variables.text("TORCHELASTIC_RUN_ID").filter(|id| id != NO_RUN_ID);
    let origin = "RANK and WORLD_SIZE";
    Ok(Some(Found { rank, world_size, local, node_rank, job, origin, ..Found::default() }))
}

fn open_mpi(variables: &Variables) -> Result<Option<Found>> {
    let pair = variables.pair("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let Some((rank, world_size)) = pair else { return Ok(None) };
    let local = variables.pair("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")?;
    let job = variables.text("OMPI_MCA_ess_base_jobid").or_else(|| variables.text("PMIX_NAMESPACE"));
    Ok(Some(Found { rank, world_size, local, job, origin: "OMPI_COMM_WORLD_*", ..Found::default() }))
}

fn hydra(variables: &Variables) -> Result<Option<Found>> {
    let Some((rank, world_size)) = variables.pair("PMI_RANK", "PMI_SIZE")? else { return Ok(None) };
    let local = variables.pair("MPI_LOCALRANKID", "MPI_LOCALNRANKS")?;
    Ok(Some(Found { rank, world_size, local, origin: "PMI_RANK and PMI_SIZE", ..Found::default() }))
}

/// torchrun's own arguments, as orchestrators set them for every node. With one process per node they name a rank;
/// with more, this process should have been a launcher.
fn one_per_node(variables: &Variables) -> Result<Option<Found>> {
    let Some((rank, world_size)) = variables.pair("PET_NODE_RANK", "PET_NNODES")? else { return Ok(None) };
    match variables.text("PET_NPROC_PER_NODE").as_deref() {
        None | Some("1") => {}
        Some(count) => {
            return Err(Error::invalid(format!(
                "PET_NPROC_PER_NODE asks for {count} processes on this node, and this one was started without a RANK: \
                 start it through a launcher such as torchrun"
            )));
        }
    }
    let origin = "PET_NODE_RANK and PET_NNODES";
    Ok(Some(Found {
        rank,
        world_size,
        local: Some((0, 1)),
        node_rank: Some(rank),
        origin,
        ..Found::default()
    }))
}

/// Whether what is said about rank 0 points to this host, or nothing is said.
fn is_local(variables: &Variables) -> bool {
    master(variables).is_none_or(|address| is_loopback(&address))
}

fn master(variables: &Variables) -> Option<String> {
    variables.text("MASTER_ADDR").or_else(|| variables.text("PET_MASTER_ADDR"))
}

/// Whether torchrun's agent itself listens at `MASTER_PORT`: ranks in PyTorch are clients of its store there.
fn is_taken_by_torchrun(variables: &Variables) -> bool {
    variables.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

fn is_loopback(address: &str) -> bool {
    address == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Found {
    fn finish(self, variables: &Variables) -> Result<Launch> {
        let (local_rank, local_world_size) = self.local_place(variables)?;
        Ok(Launch {
            rank: self.rank,
            world_size: self.world_size,
            local_rank,
            local_world_size,
            node_rank: self.node_rank.unwrap_or(self.rank / local_world_size),
            master_address: self.master_address(variables, local_world_size)?,
            master_port: self.master_port(variables)?,
            rendezvous_fd: variables.number(RENDEZVOUS_FD)?,
            coordinator: variables.text(COORDINATOR),
            job: self.job.clone(),
            secret: Secret::default(),
            interfaces: variables.text(INTERFACES).unwrap_or_default(),
            origin: self.origin.to_owned(),
        })
    }

    /// Without a word, ranks that meet on the loopback interface share this host; others are alone on theirs.
    fn local_place(&self, variables: &Variables) -> Result<(usize, usize)> {
        let (rank, size) = match self.local {
            Some(place) => place,
            None if is_local(variables) => (self.rank, self.world_size),
            None => (0, 1),
        };
        if size == 0 || size > self.world_size || rank >= size || rank > self.rank {
            return Err(Error::invalid(format!(
                "local rank {rank} of {size} on this node does not fit rank {} of {} (read from {}): mend the local \
                 rank or its world size (LOCAL_RANK, LOCAL_WORLD_SIZE or the launcher's own)",
                self.rank, self.world_size, self.origin
            )));
        }
        Ok((rank, size))
    }

    fn master_address(&self, variables: &Variables, local_world_size: usize) -> Result<String> {
        if let Some(address) = master(variables) {
            return Ok(address);
        }
        if local_world_size == self.world_size {
            return Ok("127.0.0.1".to_owned());
        }
        self.master.clone().ok_or_else(|| {
            Error::invalid(format!(
                "MASTER_ADDR is not set, and the {} ranks do not all run on this node: set it to the host of rank 0",
                self.world_size
            ))
        })
    }

    fn master_port(&self, variables: &Variables) -> Result<u16> {
        for name in [MASTER_PORT, "MASTER_PORT", "PET_MASTER_PORT"] {
            match variables.number::<u16>(name)? {
                Some(0) => return Err(Error::invalid(format!("{name} is 0, which is no port to meet at"))),
                Some(port) if name != MASTER_PORT && is_taken_by_torchrun(variables) => {
                    return Ok(port.checked_add(1).unwrap_or(port - 1));
                }
                Some(port) => return Ok(port),
                None => {}
            }
        }
        Ok(self.job.as_deref().map_or(DEFAULT_PORT, port_of_job))
    }
}

/// A port in 15000..30000, below the range that systems hand out by themselves, which jobs rarely share.
fn port_of_job(job: &str) -> u16 {
    // FNV-1a (Fowler, Noll, Vo): job numbers that follow each other give ports far apart.
    let hash =
        job.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    15000 + (hash % 15000) as u16
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
