//! What the bits of a run depend on: recorded in every checkpoint, held against by every resume.

use crate::mesh::Mesh;
use crate::settings::{OptimizerKind, OptimizerSettings, ParallelSettings};
use crate::trainer::RunSettings;
use gradus_error::{Error, Result};
use gradus_store::OrderSettings;
use serde::Serialize;
use serde_json::{Map, Value};

/// Conditions by name, as text. A newer version may know more of them than an older one has written.
pub(crate) type Conditions = Vec<(String, String)>;

/// The name of what is known of links.
pub(crate) const LINKS: &str = "links";

/// The name of which ranks share a node, where that counts: links are chosen by it, too.
pub(crate) const NODES: &str = "nodes";

/// The setting that says which optimizer it is, and the section that one of them has to itself.
const KIND: &str = "optimizer.kind";
const MUON: &str = "muon";

/// The optimizer's section, and what in it checkpoints do not name that were written when there was no choice.
const OPTIMIZER: &str = "optimizer";
const MASTERS: &str = "masters";

/// The section that says how ranks split the work.
const PARALLEL: &str = "parallel";

/// The section that says in which order samples come.
const ORDER: &str = "order";

/// The conditions of a run. Settings are named by their keys.
///
/// `sums` says how gradients are summed: the order in which three ranks or more are depends on it. `links` are those that
/// algorithms are chosen by, with the nodes, if there are any but the default.
pub(crate) fn of_run(
    settings: &RunSettings,
    (mesh, sums, links): (&Mesh, &str, Conditions),
    device: &str,
    data: &str,
) -> Conditions {
    let (train, world_size) = (&settings.train, mesh.world_size());
    let microbatch = train.microbatch_sequences(settings.parallel.shares(mesh));
    let run = [
        ("world size", world_size.to_string()),
        ("transport", if world_size > 2 { sums.to_owned() } else { "any".to_owned() }),
        ("device", device.to_owned()),
        ("run.seed", settings.seed.to_string()),
        ("data", data.to_owned()),
        ("train.global_batch", train.global_batch.to_string()),
        ("train.microbatch", microbatch.to_string()),
        ("train.bucket_bytes", train.bucket_bytes.to_string()),
        ("train.cross_documents", train.cross_documents.to_string()),
    ];
    let owned = |(key, value): (&str, String)| (key.to_owned(), value);
    let parallel = beside_default(PARALLEL, &settings.parallel.as_far_as_it_counts());
    let order = beside_default(ORDER, &settings.order.as_far_as_it_counts());
    let sections = [parallel, order, of_optimizer(&settings.optimizer), links];
    run.map(owned).into_iter().chain(sections.into_iter().flatten()).collect()
}

/// What of a section is not the default, so that checkpoints of runs that are given none of it stay as they were.
fn beside_default(section: &str, settings: &impl Serialize) -> Conditions {
    let given = named(section, fields_of(settings));
    given.filter(|(key, value)| Some(value) != default_of(key).as_ref()).collect()
}

/// What a key was that a checkpoint does not name, of those that are left out where they are as by default.
fn default_of(key: &str) -> Option<String> {
    let (section, field) = key.split_once('.')?;
    let section = match section {
        PARALLEL => fields_of(&ParallelSettings::default()),
        ORDER => fields_of(&OrderSettings::default()),
        OPTIMIZER if field == MASTERS => fields_of(&OptimizerSettings::default()),
        _ => return None,
    };
    section.get(field).map(Value::to_string)
}

/// Of AdamW neither its kind nor what only Muon has: checkpoints that were written when there was no other lack both.
fn of_optimizer(optimizer: &OptimizerSettings) -> Conditions {
    let mut fields = fields_of(optimizer);
    let default = default_of(&format!("{OPTIMIZER}.{MASTERS}"));
    if fields.get(MASTERS).map(Value::to_string) == default {
        fields.remove(MASTERS);
    }
    let muon = fields.remove(MUON).unwrap_or_default();
    if optimizer.kind == OptimizerKind::AdamW {
        fields.remove("kind");
        return named(OPTIMIZER, fields).collect();
    }
    let muon = muon.as_object().cloned().unwrap_or_default();
    named(OPTIMIZER, fields).chain(named("optimizer.muon", muon)).collect()
}

fn fields_of(settings: &impl Serialize) -> Map<String, Value> {
    // By way of text, in which an f32 has the digits that were given and not those of the f64 next to it.
    let text = serde_json::to_string(settings).expect("plain data has a JSON form");
    serde_json::from_str(&text).expect("a struct is an object")
}

fn named(section: &str, fields: Map<String, Value>) -> impl Iterator<Item = (String, String)> {
    fields.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value.to_string()))
}

/// Whether a checkpoint written under the conditions `before` has the moments that an optimizer of this kind needs.
///
/// # Errors
/// `Invalid`, whatever changes are allowed: there would be nothing to go on from.
pub(crate) fn check_kind(before: &Conditions, kind: OptimizerKind) -> Result<()> {
    let known = |kind| serde_json::to_string(&kind).expect("a kind is a word");
    let found = before.iter().find(|(key, _)| key == KIND).map(|(_, value)| value.clone());
    let (before, now) = (found.unwrap_or_else(|| known(OptimizerKind::AdamW)), known(kind));
    if before == now {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "its moments are those of {KIND} {before}, and {KIND} is {now}: give {before} again, or begin a new run with \
         the folder's weights (model.from)"
    )))
}

/// Whether a run that began under the conditions `before` goes on with the same bits under those of `now`.
///
/// # Errors
/// `Invalid`, naming every condition that has changed, what it was and what it is.
pub(crate) fn check_unchanged(before: &Conditions, now: &Conditions) -> Result<()> {
    let is_given = |key: &str| now.iter().any(|(known, _)| known == key);
    let left_out = before.iter().filter(|(key, _)| default_of(key).is_some() && !is_given(key));
    let changed: Vec<String> =
        now.iter().chain(left_out).filter_map(|(key, _)| change(before, now, key)).collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the run would not repeat its bits, for {}; give the same again, or --checkpoint.allow_changes true",
        changed.join(", ")
    )))
}

fn change(before: &Conditions, now: &Conditions, key: &str) -> Option<String> {
    let of = |conditions: &Conditions| {
        let found = conditions.iter().find(|(known, _)| known == key);
        found
            .map(|(_, value)| value.clone())
            .or_else(|| default_of(key))
            .unwrap_or_else(|| "unknown".to_owned())
    };
    let (before, now) = (of(before), of(now));
    (before != now).then(|| format!("{key} was {before} and is {now}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Kind as Schedule;
    use crate::settings::MuonSettings;
    use gradus_compute::Format;
    use gradus_error::Kind;
    use gradus_store::Shuffle;

    #[test]
    fn every_change_is_named_by_its_key() {
        let of = |optimizer: OptimizerSettings| of_optimizer(&optimizer);
        let before = of(OptimizerSettings::default());
        check_unchanged(&before, &before).unwrap();
        let now = of(OptimizerSettings { beta2: 0.5, warmup_steps: 7, ..Default::default() });
        let error = check_unchanged(&before, &now).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(text.contains("optimizer.warmup_steps was 40 and is 7"), "{text}");
        assert!(text.contains("optimizer.beta2 was 0.95 and is 0.5") && !text.contains("beta1"), "{text}");
        assert!(check_unchanged(&Vec::new(), &now).is_err());
    }

    #[test]
    fn weights_in_bf16_are_a_condition_that_older_checkpoints_do_not_name() {
        let of = |masters| of_optimizer(&OptimizerSettings { masters, ..Default::default() });
        let [f32, bf16] = [Format::F32, Format::Bf16].map(of);
        assert!(f32.iter().all(|(key, _)| !key.contains(MASTERS)));
        for (before, now) in [(&f32, &bf16), (&bf16, &f32)] {
            let text = check_unchanged(before, now).unwrap_err().to_string();
            assert!(text.contains("optimizer.masters was"), "{text}");
        }
    }

    #[test]
    fn of_splits_what_counts_and_differs_from_the_default_is_a_condition() {
        let of = |settings: ParallelSettings| beside_default(PARALLEL, &settings.as_far_as_it_counts());
        let none = of(ParallelSettings::default());
        let idle = ParallelSettings { dp: 2, zero: 1, schedule: Schedule::GPipe, ..Default::default() };
        assert_eq!((none.clone(), of(idle)), (Vec::new(), Vec::new()));
        let sharded = of(ParallelSettings { fsdp: 2, zero: 2, ..Default::default() });
        let piped = of(ParallelSettings { pp: 2, schedule: Schedule::GPipe, ..Default::default() });
        assert_eq!(sharded.len(), 2);
        check_unchanged(&sharded, &sharded).unwrap();
        let changes = |before, now| check_unchanged(before, now).unwrap_err().to_string();
        for (before, now) in [(&none, &sharded), (&sharded, &none)] {
            let text = changes(before, now);
            assert!(text.contains("parallel.fsdp was") && text.contains("parallel.zero was"), "{text}");
        }
        let text = changes(&sharded, &piped);
        for named in ["fsdp was 2 and is 1", "pp was 1 and is 2", "schedule was \"1f1b\" and is \"gpipe\""] {
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn another_order_is_a_change_and_what_it_has_no_use_for_is_none() {
        let of = |settings: OrderSettings| beside_default(ORDER, &settings.as_far_as_it_counts());
        let whole = of(OrderSettings { window_blocks: 3, ..Default::default() });
        assert_eq!(whole, Vec::new());
        let blocks = of(OrderSettings { shuffle: Shuffle::Blocks, window_blocks: 3, ..Default::default() });
        for (before, now) in [(&whole, &blocks), (&blocks, &whole)] {
            let text = check_unchanged(before, now).unwrap_err().to_string();
            assert!(text.contains("order.shuffle was") && text.contains("order.window_blocks was"), "{text}");
        }
        let other = of(OrderSettings { shuffle: Shuffle::Blocks, ..Default::default() });
        let text = check_unchanged(&blocks, &other).unwrap_err().to_string();
        assert!(text.contains("order.window_blocks was 3 and is 64") && !text.contains("shuffle"), "{text}");
    }

    #[test]
    fn what_only_muon_has_counts_with_muon_only() {
        let with = |kind, iterations| {
            let muon = MuonSettings { iterations, ..Default::default() };
            of_optimizer(&OptimizerSettings { kind, muon, ..Default::default() })
        };
        let [adamw, muon] = [OptimizerKind::AdamW, OptimizerKind::Muon].map(|kind| with(kind, 5));
        assert_eq!(adamw, with(OptimizerKind::AdamW, 6));
        let text = check_unchanged(&muon, &with(OptimizerKind::Muon, 6)).unwrap_err().to_string();
        assert!(text.contains("optimizer.muon.iterations was 5 and is 6"), "{text}");
        check_kind(&adamw, OptimizerKind::AdamW).unwrap();
        check_kind(&muon, OptimizerKind::Muon).unwrap();
        for (before, now) in [(&adamw, OptimizerKind::Muon), (&muon, OptimizerKind::AdamW)] {
            assert_eq!(*check_kind(before, now).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
