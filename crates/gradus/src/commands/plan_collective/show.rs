//! A choice, for people and for programs.

use crate::wording::{brief, bytes, counted, rate};
use gradus_collective::algorithm::Algorithm;
use gradus_collective::cost::{Curve, Link, LinkFigures, Method, NeighbourFigures, Price};
use gradus_collective::tuner::{Candidate, Case, Choice, Neighbourhood, Purpose, Scheme};
use serde::Serialize;

/// What `--json` prints.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    purpose: Purpose,
    world_size: usize,
    ranks_of_nodes: Vec<usize>,
    bytes: u64,
    element_bytes: usize,
    links: LinkFigures,
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbours: Option<&'a Neighbourhood>,
    chosen: &'a Scheme,
    why: String,
    candidates: Vec<Row>,
    unpriced: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    algorithm: String,
    chosen: bool,
    #[serde(flatten)]
    price: Price,
}

impl<'a> Report<'a> {
    pub(super) fn new(choice: &'a Choice) -> Self {
        let Case { purpose, nodes, len, element_bytes, figures, .. } = &choice.case;
        let row = |Candidate { algorithm, price }: &Candidate| {
            let chosen = *algorithm == choice.chosen.algorithm;
            Row { algorithm: algorithm.to_string(), chosen, price: *price }
        };
        Self {
            purpose: *purpose,
            world_size: nodes.world_size(),
            ranks_of_nodes: nodes.members().iter().map(Vec::len).collect(),
            bytes: (len * element_bytes) as u64,
            element_bytes: *element_bytes,
            links: *figures,
            neighbours: neighbours(&choice.case),
            chosen: &choice.chosen.algorithm,
            why: choice.why(),
            candidates: choice.candidates.iter().map(row).collect(),
            unpriced: choice.unpriced.iter().map(Algorithm::to_string).collect(),
        }
    }
}

/// The lines for a person.
pub(super) fn table(choice: &Choice) -> Vec<String> {
    let mut lines = vec![heading(&choice.case), links(&choice.case.figures)];
    lines.extend(neighbours(&choice.case).map(|all| touches(&all.figures, &choice.case)));
    lines.push(String::new());
    let width =
        choice.candidates.iter().map(|candidate| candidate.algorithm.to_string().len()).max().unwrap_or(0);
    lines.push(format!(
        "  {:<width$}  {:>9}  {:>12}  {:>12}  {:>9}",
        "algorithm", "predicted", "inside nodes", "across nodes", "steps"
    ));
    for Candidate { algorithm, price } in &choice.candidates {
        let mark = if *algorithm == choice.chosen.algorithm { '*' } else { ' ' };
        let by_formula = if price.method == Method::ClosedForm { " (formula)" } else { "" };
        let [inside, across] = [price.traffic.inside_bytes, price.traffic.across_bytes];
        lines.push(format!(
            "{mark} {:<width$}  {:>9}  {:>12}  {:>12}  {:>9}{by_formula}",
            algorithm.to_string(),
            brief(price.seconds),
            bytes(inside),
            bytes(across),
            price.traffic.most_steps
        ));
    }
    lines.push(String::new());
    let unpriced =
        choice.unpriced.iter().map(|algorithm| format!("not priced, for it has too many steps: {algorithm}"));
    lines.extend(unpriced);
    lines.push(format!("chosen: {}", choice.why()));
    lines
}

fn heading(case: &Case) -> String {
    let Case { purpose, nodes, len, element_bytes, .. } = case;
    let size = bytes((len * element_bytes) as u64);
    let what = match purpose {
        Purpose::AllReduce => format!("all-reduce of {size}"),
        Purpose::Reduce { root } => format!("reduce of {size} to rank {root}"),
        Purpose::Broadcast { root } => format!("broadcast of {size} from rank {root}"),
        Purpose::Barrier => "barrier".to_owned(),
    };
    let ranks = counted(nodes.world_size() as u64, "rank");
    let on = counted(nodes.members().len() as u64, "node");
    match (nodes.smallest(), nodes.largest()) {
        (least, most) if least == most => format!("{what} among {ranks} on {on} of {most}"),
        (least, most) => format!("{what} among {ranks} on {on} of {least} to {most}"),
    }
}

fn links(figures: &LinkFigures) -> String {
    let link = |link: &Link| {
        let Link { latency_us, bandwidth_bytes_per_s, message_overhead_us } = link;
        format!("{latency_us} us, {} and {message_overhead_us} us a message", rate(*bandwidth_bytes_per_s))
    };
    let shared = |limit: Option<f64>| limit.map_or_else(|| "no limit".to_owned(), rate);
    format!(
        "links: inside nodes {}; across {}\nranks add {}{}; a node's bus carries {}, its network card {} each way",
        link(&figures.inside),
        link(&figures.across),
        rate(figures.reduction_bytes_per_s),
        if figures.one_at_a_time { ", and send, receive and add one at a time" } else { "" },
        shared(figures.bus_bytes_per_s),
        shared(figures.nic_bytes_per_s)
    )
}

/// Those of a case in which programs among neighbours could serve.
fn neighbours(case: &Case) -> Option<&Neighbourhood> {
    case.neighbours.as_ref().filter(|_| case.nodes.members().len() == 1 && case.nodes.world_size() > 1)
}

fn touches(figures: &NeighbourFigures, case: &Case) -> String {
    let bytes = (case.len * case.element_bytes) as u64;
    let at = |curve: &Curve| {
        curve.seconds_per_byte(bytes).map_or_else(|| "unknown".to_owned(), |seconds| rate(1.0 / seconds))
    };
    let NeighbourFigures { start_us, signal_us, hop_us, processors, switch_us, bytes_per_s } = figures;
    let shared = match *processors {
        0 => String::new(),
        processors => {
            format!("; they share {}, {switch_us} us a turn", counted(processors as u64, "processor"))
        }
    };
    format!(
        "neighbours: {start_us} us a collective, {signal_us} us a signal, {hop_us} us a hop{shared}\n\
         they stage {}, and combine what is staged {}, registered {} (and write {} there), private {}",
        at(&bytes_per_s.own),
        at(&bytes_per_s.staged_combined),
        at(&bytes_per_s.registered_combined),
        at(&bytes_per_s.registered_given),
        at(&bytes_per_s.private_combined)
    )
}
