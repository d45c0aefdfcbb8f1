//! `gradus plan collective`: what each algorithm would cost, which one is chosen, and why. Nothing is run.

mod show;

use crate::logging;
use crate::settings::{parse_bytes, resolve};
use anyhow::Result;
use clap::ValueEnum;
use gradus_collective::algorithm::Nodes;
use gradus_collective::cost::{LinkFigures, NeighbourFigures, Touches};
use gradus_collective::one_sided::Reach;
use gradus_collective::tuner::{Case, Neighbourhood, Purpose, choose};
use gradus_error::Error;
use gradus_train::links_of_checkpoint;
use serde::{Deserialize, Serialize};
use show::{Report, table};
use std::path::{Path, PathBuf};

/// Larger worlds are a slip of the finger, or deserve a look at what they would take to price.
const MOST_RANKS: usize = 1 << 16;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct PlanCollectiveArguments {
    /// What is to be done.
    #[arg(long, value_enum, default_value = "all-reduce")]
    pub operation: PlannedOperation,
    /// Ranks.
    #[arg(long)]
    pub world: usize,
    /// Ranks of each node, the last having what is left; or of every node: 8,8,4. All on one node if not given.
    #[arg(long, value_delimiter = ',')]
    pub ranks_per_node: Vec<usize>,
    /// Size of the buffer, such as 1GiB; a barrier has none.
    #[arg(long, value_parser = |text: &str| parse_bytes(text))]
    pub bytes: Option<u64>,
    /// Bytes of an element.
    #[arg(long, default_value_t = 4)]
    pub element_bytes: usize,
    /// Who sends a broadcast or gets a reduce.
    #[arg(long, default_value_t = 0)]
    pub root: usize,
    /// Figures of links, as TOML; each can also follow by its dotted name: --links.across.latency_us 5.
    #[arg(long)]
    pub links: Option<PathBuf>,
    /// Microseconds of a hop, for links of both levels.
    #[arg(long)]
    pub alpha_us: Option<f64>,
    /// Bytes per second, such as 10GB, for links of both levels, of which none shares anything.
    #[arg(long, value_parser = |text: &str| parse_bytes(text))]
    pub bandwidth: Option<u64>,
    /// A checkpoint of a run that measured its links: figures as they were measured there.
    #[arg(long, conflicts_with_all = ["links", "alpha_us", "bandwidth"])]
    pub checkpoint: Option<PathBuf>,
    /// The buffer lies in memory that all ranks of the host have registered.
    #[arg(long)]
    pub registered: bool,
    /// Ranks of one host read each other's private memory fast.
    #[arg(long)]
    pub peer_memory: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Collectives that have algorithms to choose among.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlannedOperation {
    /// The sum of all ranks', to all.
    AllReduce,
    /// The sum of all ranks', to one.
    Reduce,
    /// What one rank has, to all.
    Broadcast,
    /// All wait for all.
    Barrier,
}

/// What a file of links holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LinksFile {
    links: LinkFigures,
    neighbours: NeighbourFigures,
}

/// Prints the prices and the choice.
///
/// # Errors
/// `Invalid`, naming the argument, for worlds, nodes, sizes or figures that cannot be; what is wrong with the file.
pub fn run(arguments: &PlanCollectiveArguments, overrides: &[(String, String)]) -> Result<()> {
    let choice = choose(arguments.case(overrides)?)?;
    if arguments.json {
        logging::print(serde_json::to_string_pretty(&Report::new(&choice))?)?;
        return Ok(());
    }
    for line in table(&choice) {
        logging::print(line)?;
    }
    Ok(())
}

impl PlanCollectiveArguments {
    fn case(&self, overrides: &[(String, String)]) -> Result<Case, Error> {
        let root = self.root;
        let purpose = match self.operation {
            PlannedOperation::AllReduce => Purpose::AllReduce,
            PlannedOperation::Reduce => Purpose::Reduce { root },
            PlannedOperation::Broadcast => Purpose::Broadcast { root },
            PlannedOperation::Barrier => Purpose::Barrier,
        };
        let (nodes, len, element_bytes) = (self.nodes()?, self.len()?, self.element_bytes);
        let LinksFile { links: figures, neighbours } = match &self.checkpoint {
            Some(folder) => measured(folder, (len as u64).saturating_mul(element_bytes as u64))?,
            None => self.given(overrides)?,
        };
        let reach = Reach { registered: self.registered, reads_private: self.peer_memory };
        let neighbours = Some(Neighbourhood { figures: neighbours, reach });
        Ok(Case { purpose, nodes, len, element_bytes, figures, neighbours })
    }

    fn nodes(&self) -> Result<Nodes, Error> {
        let world = self.world;
        if world == 0 || world > MOST_RANKS {
            return Err(Error::invalid(format!("--world {world}: choose 1 to {MOST_RANKS} ranks")));
        }
        match &self.ranks_per_node[..] {
            [] => Ok(Nodes::even(world, world)),
            [size] if *size > 0 => Ok(Nodes::even(world, *size)),
            sizes => uneven(world, sizes),
        }
    }

    fn len(&self) -> Result<usize, Error> {
        let refuse = |what: &str| Err(Error::invalid(what));
        match (self.operation, self.bytes) {
            (_, _) if self.element_bytes == 0 => refuse("--element-bytes 0: an element has bytes"),
            (PlannedOperation::Barrier, None) => Ok(1),
            (PlannedOperation::Barrier, Some(_)) => refuse("--bytes: a barrier moves none, leave it out"),
            (_, None) => refuse("--bytes is missing: say how large the buffer is, such as --bytes 1GiB"),
            (_, Some(bytes)) => Ok(bytes.div_ceil(self.element_bytes as u64) as usize),
        }
    }

    fn given(&self, overrides: &[(String, String)]) -> Result<LinksFile, Error> {
        let mut file = resolve::<LinksFile>(self.links.as_deref(), overrides)?.settings;
        let figures = &mut file.links;
        if let Some(alpha_us) = self.alpha_us {
            (figures.inside.latency_us, figures.across.latency_us) = (alpha_us, alpha_us);
            file.neighbours.hop_us = alpha_us;
        }
        if let Some(bandwidth) = self.bandwidth.map(|bytes_per_s| bytes_per_s as f64) {
            (figures.inside.bandwidth_bytes_per_s, figures.across.bandwidth_bytes_per_s) =
                (bandwidth, bandwidth);
            (figures.nic_bytes_per_s, figures.bus_bytes_per_s) = (None, None);
            file.neighbours.bytes_per_s = Touches::uniform(bandwidth);
        }
        figures.validate()?;
        file.neighbours.validate()?;
        Ok(file)
    }
}

/// What a run measured, for a buffer of so many bytes. Where its ranks were no neighbours, those of this plan are none.
fn measured(checkpoint: &Path, bytes: u64) -> Result<LinksFile, Error> {
    let profile = links_of_checkpoint(checkpoint)?.ok_or_else(|| {
        Error::invalid(format!(
            "--checkpoint {}: its run measured no links; have it do so with train.measure_links",
            checkpoint.display()
        ))
    })?;
    profile.validate().map_err(|error| error.within(format!("--checkpoint {}", checkpoint.display())))?;
    let neighbours = profile.neighbours.clone().unwrap_or_else(NeighbourFigures::unknown);
    Ok(LinksFile { links: profile.at(bytes), neighbours })
}

/// Nodes of these sizes, in the order of ranks.
fn uneven(world: usize, sizes: &[usize]) -> Result<Nodes, Error> {
    let sum = sizes.iter().try_fold(0usize, |sum, size| sum.checked_add(*size));
    if sum != Some(world) || sizes.contains(&0) {
        return Err(Error::invalid(format!(
            "--ranks-per-node {sizes:?}: choose one size above 0, or sizes of all nodes that make --world {world} in all"
        )));
    }
    let mut ranks = 0..world;
    Nodes::try_from(sizes.iter().map(|size| ranks.by_ref().take(*size).collect()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use gradus_error::Kind;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: PlanCollectiveArguments,
    }

    fn case(line: &str) -> Result<Case, Error> {
        let words = ["gradus"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().arguments.case(&[])
    }

    #[test]
    fn impossible_input_is_named() {
        for (line, culprit) in [
            ("--world 0 --bytes 1", "--world 0"),
            ("--world 18446744073709551615 --bytes 1", "--world"),
            ("--world 4 --bytes 1 --ranks-per-node 0", "--ranks-per-node"),
            ("--world 4 --bytes 1 --ranks-per-node 2,3", "--ranks-per-node"),
            ("--world 4 --bytes 1 --ranks-per-node 4,0", "--ranks-per-node"),
            ("--world 4 --bytes 1 --ranks-per-node 18446744073709551615,5", "--ranks-per-node"),
            ("--world 4", "--bytes"),
            ("--world 4 --operation barrier --bytes 3", "--bytes"),
            ("--world 4 --bytes 1 --element-bytes 0", "--element-bytes"),
            ("--world 4 --bytes 1 --alpha-us NaN", "latency_us"),
            ("--world 4 --bytes 1 --alpha-us=-1", "latency_us"),
            ("--world 4 --bytes 1 --bandwidth 0", "bandwidth_bytes_per_s"),
            ("--world 4 --bytes 1 --links nowhere.toml", "nowhere.toml"),
            ("--world 4 --bytes 1 --checkpoint nowhere", "nowhere"),
        ] {
            let error = case(line).unwrap_err();
            assert!(*error.kind() == Kind::Invalid && error.to_string().contains(culprit), "{line}: {error}");
        }
        let refused = |line| choose(case(line).unwrap()).unwrap_err().kind().clone();
        assert_eq!(refused("--world 4 --bytes 9000000TB"), Kind::Invalid);
        assert_eq!(refused("--world 4 --bytes 4 --operation reduce --root 4"), Kind::Invalid);
    }

    #[test]
    fn no_buffer_is_too_large_and_every_candidate_has_a_name_of_its_own() {
        for line in [
            "--world 4 --bytes 60000TB",
            "--world 512 --ranks-per-node 8 --bytes 4TB",
            "--world 20 --bytes 1MB",
        ] {
            let choice = choose(case(line).unwrap()).unwrap();
            let mut names: Vec<_> =
                choice.candidates.iter().map(|candidate| candidate.algorithm.to_string()).collect();
            names.sort_unstable();
            assert!(names.len() > 3 && names.windows(2).all(|pair| pair[0] != pair[1]), "{line}: {names:?}");
        }
    }

    #[test]
    fn tables_and_reports_show_the_same_choice() {
        let choice = choose(case("--world 10 --ranks-per-node 4 --bytes 1MB").unwrap()).unwrap();
        let lines = table(&choice);
        assert_eq!(lines[0], "all-reduce of 1.00MB among 10 ranks on 3 nodes of 2 to 4");
        let marked: Vec<_> = lines.iter().filter(|line| line.starts_with('*')).collect();
        assert!(marked.len() == 1 && marked[0].contains(&choice.chosen.algorithm.to_string()));
        let report = serde_json::to_value(Report::new(&choice)).unwrap();
        assert_eq!(report["ranks_of_nodes"], serde_json::json!([4, 4, 2]));
        let rows = report["candidates"].as_array().unwrap();
        assert!(
            rows.len() == choice.candidates.len()
                && rows.iter().filter(|row| row["chosen"] == true).count() == 1
        );
    }

    #[test]
    fn programs_of_one_host_are_priced_by_what_they_reach() {
        let chosen = |line| choose(case(line).unwrap()).unwrap().chosen.algorithm.to_string();
        assert_eq!(chosen("--world 2 --bytes 4KiB"), "one-sided, flat");
        assert!(chosen("--world 2 --bytes 1MiB --registered").contains("registered"));
        assert_eq!(chosen("--world 4 --operation barrier"), "one-sided, all to all");
        assert!(!chosen("--world 4 --ranks-per-node 2 --bytes 4KiB").contains("one-sided"));
        let choice = choose(case("--world 2 --bytes 1MiB --peer-memory").unwrap()).unwrap();
        let lines = table(&choice);
        assert!(lines.iter().any(|line| line.contains("pulled")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("neighbours: ")), "{lines:#?}");
        let report = serde_json::to_value(Report::new(&choice)).unwrap();
        assert_eq!(report["neighbours"]["reach"]["reads_private"], true);
    }

    #[test]
    fn a_flag_for_all_links_is_one() {
        let figures = case("--world 2 --bytes 1 --alpha-us 2.5 --bandwidth 10GB").unwrap().figures;
        assert_eq!((figures.inside.latency_us, figures.across.bandwidth_bytes_per_s), (2.5, 1e10));
        assert_eq!(figures.nic_bytes_per_s, None);
    }
}
