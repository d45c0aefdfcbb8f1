//! Slurm's variables, and its short forms of lists of hosts and counts.
//!
//! Sources: the manual pages srun(1), "OUTPUT ENVIRONMENT VARIABLES", and scontrol(1), "show hostnames".

use crate::launch::{Found, Variables};
use gradus_error::{Error, Result};

/// Without `SLURM_PROCID` and `SLURM_STEP_ID` this process is no task of a step, whatever else is set: in a batch script,
/// which Slurm runs once for the whole job, the number of a step is missing, and who starts ranks there is its launcher.
pub(crate) fn read(variables: &Variables) -> Result<Option<Found>> {
    if variables.text("SLURM_PROCID").is_none() || variables.text("SLURM_STEP_ID").is_none() {
        return Ok(None);
    }
    let size = first_set(variables, &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"])
        .unwrap_or("SLURM_NTASKS");
    let Some((rank, world_size)) = variables.pair("SLURM_PROCID", size)? else { return Ok(None) };
    let node_rank = variables.number("SLURM_NODEID")?;
    let local = local_place(variables, rank, world_size, node_rank)?;
    let job = variables.text("SLURM_JOB_ID").map(|job| {
        // Steps of one job may run side by side.
        format!("{job}.{}", variables.text("SLURM_STEP_ID").unwrap_or_default())
    });
    Ok(Some(Found {
        rank,
        world_size,
        local,
        node_rank,
        master: first_host(variables)?,
        job,
        origin: "SLURM_PROCID and SLURM_NTASKS",
    }))
}

fn first_set<'a>(variables: &Variables, names: &[&'a str]) -> Option<&'a str> {
    names.iter().copied().find(|name| variables.text(name).is_some())
}

fn local_place(
    variables: &Variables,
    rank: usize,
    world_size: usize,
    node_rank: Option<usize>,
) -> Result<Option<(usize, usize)>> {
    let local_rank = variables.number("SLURM_LOCALID")?;
    let per_node = first_set(variables, &["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"]);
    let nodes = first_set(variables, &["SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"]);
    let one_node = match nodes {
        Some(name) => variables.number::<usize>(name)? == Some(1),
        None => world_size == 1,
    };
    if one_node {
        return Ok(Some((local_rank.unwrap_or(rank), world_size)));
    }
    let per_node_option = variables.number("SLURM_NTASKS_PER_NODE")?;
    if nodes.is_none() && per_node.is_none() && per_node_option.is_none() {
        return Ok(None);
    }
    let Some(local_rank) = local_rank else { return Ok(Some((0, 1))) };
    let size = match per_node {
        Some(name) => {
            let counts = variables.text(name).unwrap_or_default();
            count_at(&counts, node_rank.unwrap_or(0)).ok_or_else(|| {
                Error::invalid(format!(
                    "{name} is {counts:?}, which has no count for node {}",
                    node_rank.unwrap_or(0)
                ))
            })?
        }
        // The greatest number fits no world, and is refused as one that does not.
        None => per_node_option.unwrap_or(local_rank.saturating_add(1)),
    };
    Ok(Some((local_rank, size)))
}

/// The count of node `node` in a list such as `2(x3),1`: three nodes of two, then one of one.
fn count_at(list: &str, node: usize) -> Option<usize> {
    let mut nodes = 0usize;
    for part in list.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1usize),
        };
        nodes = nodes.checked_add(times)?;
        if node < nodes {
            return count.trim().parse().ok();
        }
    }
    None
}

/// Rank 0 runs on the first host of the step, or of the job; srun's own host is the last resort, for it may be a
/// login node.
fn first_host(variables: &Variables) -> Result<Option<String>> {
    for name in ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"] {
        if let Some(list) = variables.text(name) {
            let unreadable =
                || Error::invalid(format!("{name} is {list:?}, which names no host: set MASTER_ADDR"));
            return first_of(&list).ok_or_else(unreadable).map(Some);
        }
    }
    Ok(variables.text("SLURM_LAUNCH_NODE_IPADDR"))
}

/// The first host of a list such as `node[003-007,9]-ib,other`.
fn first_of(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    while let Some(stop) = rest.find(['[', ',']) {
        host.push_str(&rest[..stop]);
        if rest[stop..].starts_with(',') {
            return valid(host);
        }
        let close = stop + rest[stop..].find(']')?;
        let number = rest[stop + 1..close].split([',', '-']).next()?;
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        host.push_str(number);
        rest = &rest[close + 1..];
    }
    host.push_str(rest);
    valid(host)
}

fn valid(host: String) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    (!host.is_empty() && host.bytes().all(allowed)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_hosts_of_lists() {
        let cases = [
            ("node7", Some("node7")),
            ("a,b", Some("a")),
            ("node[003-007,9]", Some("node003")),
            ("node[9,3-4]-ib,other", Some("node9-ib")),
            ("rack[1-2]n[05-06]", Some("rack1n05")),
            ("node[003", None),
            ("node[]", None),
            ("", None),
            ("a b", None),
            (",a", None),
        ];
        for (list, host) in cases {
            assert_eq!(first_of(list).as_deref(), host, "{list}");
        }
    }

    #[test]
    fn counts_of_nodes() {
        let cases = [
            ("4", 0, Some(4)),
            ("4", 1, None),
            ("2(x3),1", 2, Some(2)),
            ("2(x3),1", 3, Some(1)),
            ("2(x", 0, None),
            ("x", 0, None),
            ("2(x99999999999999999999)", 0, None),
        ];
        for (list, node, count) in cases {
            assert_eq!(count_at(list, node), count, "{list} {node}");
        }
    }
}
