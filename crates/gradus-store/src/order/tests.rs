//! What holds of every order.

use super::*;
use gradus_error::Kind;
use proptest::prelude::*;
use std::ops::Range;

/// An order that can be made again, as one does who resumes.
#[derive(Debug, Clone)]
pub(super) struct Case {
    settings: OrderSettings,
    seed: u64,
    /// Samples and weights of the components of a mixture; a single one is no mixture.
    components: Vec<(u64, f64)>,
}

impl Case {
    pub(super) fn order(&self) -> Box<dyn Order> {
        match self.components.as_slice() {
            [(samples, _)] => self.settings.order(self.seed, *samples).unwrap(),
            components => Box::new(self.settings.mixture(self.seed, components).unwrap()),
        }
    }

    /// The samples of each component.
    fn parts(&self) -> Vec<Range<u64>> {
        let mut first = 0;
        let next = |(samples, _): &(u64, f64)| {
            first += samples;
            first - samples..first
        };
        self.components.iter().map(next).collect()
    }
}

/// An order of any kind, of few samples.
pub(super) fn any_case() -> impl Strategy<Value = Case> {
    let shuffle = prop_oneof![Just(Shuffle::Whole), Just(Shuffle::Blocks), Just(Shuffle::None)];
    let settings = (shuffle, 1u64..30, 1u64..12).prop_map(|(shuffle, block_samples, window_blocks)| {
        OrderSettings { shuffle, block_samples, window_blocks }
    });
    let weights = prop_oneof![0u32..6, 1u32..2].prop_map(f64::from);
    let some = |components: &Vec<(u64, f64)>| components.iter().any(|(_, weight)| *weight > 0.0);
    let components = prop::collection::vec((1u64..150, weights), 1..5).prop_filter("all of weight 0", some);
    (settings, any::<u64>(), components).prop_map(|(settings, seed, components)| Case {
        settings,
        seed,
        components,
    })
}

fn samples_of(order: &dyn Order, positions: Range<u64>) -> Vec<u64> {
    positions.map(|position| order.sample_at(position)).collect()
}

/// Whether the samples of each part have come equally often, but for those that its present epoch has had already.
fn equally_often(seen: &[u32], parts: &[Range<u64>]) -> bool {
    parts.iter().all(|part| {
        let part = &seen[part.start as usize..part.end as usize];
        let least = part.iter().min().copied().unwrap_or_default();
        part.iter().all(|count| *count - least <= 1)
    })
}

#[test]
fn epochs_and_seeds_differ() {
    for shuffle in [Shuffle::Whole, Shuffle::Blocks] {
        let settings = OrderSettings { shuffle, block_samples: 10, window_blocks: 10 };
        let of = |seed, epoch: u64| {
            samples_of(settings.order(seed, 1000).unwrap().as_ref(), epoch * 1000..(epoch + 1) * 1000)
        };
        assert_ne!(of(1, 0), of(1, 1), "{shuffle:?}");
        assert_ne!(of(1, 0), of(2, 0), "{shuffle:?}");
        assert_eq!(of(1, 1), of(1, 1), "{shuffle:?}");
    }
}

#[test]
fn settings_are_read_and_odd_ones_refused() {
    let read = |text: &str| serde_json::from_str::<OrderSettings>(text);
    let blocks = read(r#"{"shuffle": "blocks", "block_samples": 3}"#).unwrap();
    assert_eq!((blocks.shuffle, blocks.block_samples), (Shuffle::Blocks, 3));
    assert!(read(r#"{"shuffle": "some"}"#).is_err());
    assert!(read(r#"{"window": 3}"#).is_err());
    for text in [r#"{"block_samples": 0}"#, r#"{"window_blocks": 0}"#] {
        let error = read(text).unwrap().order(1, 10).unwrap_err();
        assert_eq!(error.kind(), &Kind::Invalid);
    }
    assert_eq!(OrderSettings::default().order(1, 0).unwrap_err().kind(), &Kind::Invalid);
    let mixture = OrderSettings::default().mixture(1, &[(10, 1.0), (0, 1.0)]);
    assert_eq!(mixture.unwrap_err().kind(), &Kind::Invalid);
    let mixture = OrderSettings::default().mixture(1, &[(u64::MAX, 1.0), (1, 1.0)]);
    assert_eq!(mixture.unwrap_err().kind(), &Kind::Invalid);
}

proptest! {
    #[test]
    fn the_next_position_is_the_least(case in any_case(), from in 0u64..1000) {
        let order = case.order();
        // The next positions of all samples, found by walking back from far ahead.
        let mut least = vec![None; order.samples() as usize];
        for position in (from..from + 3000).rev() {
            least[order.sample_at(position) as usize] = Some(position);
        }
        for (sample, expected) in least.into_iter().enumerate() {
            let next = order.next_position(sample as u64, from);
            prop_assert!(next == expected || expected.is_none() && next.is_none_or(|next| next >= from + 3000));
        }
    }

    #[test]
    fn samples_together_are_those_one_by_one(case in any_case(), from in 0u64..1000, back in 200u64..1000, count in 0usize..200) {
        let order = case.order();
        for from in [from, u64::MAX - back] {
            let mut together = vec![u64::MAX; count];
            order.samples_from(from, &mut together);
            prop_assert_eq!(together, samples_of(order.as_ref(), from..from + count as u64));
        }
    }

    #[test]
    fn the_end_of_all_positions_is_no_surprise(case in any_case(), back in 0u64..1000, sample in 0u64..300) {
        let (order, from) = (case.order(), u64::MAX - back);
        if let Some(position) = order.next_position(sample, from) {
            prop_assert!(position >= from);
            prop_assert_eq!(order.sample_at(position), sample);
        }
    }

    #[test]
    fn large_sets_have_their_inverse(
        seed: u64, samples in 1u64.., position in 0u64..=u64::MAX, block_samples in 1u64.., window_blocks in 1u64.., small: bool,
    ) {
        let block_samples = if small { block_samples % 5000 + 1 } else { block_samples };
        let settings = |shuffle| OrderSettings { shuffle, block_samples, window_blocks: window_blocks % 5000 + 1 };
        for shuffle in [Shuffle::Whole, Shuffle::Blocks, Shuffle::None] {
            let order = settings(shuffle).order(seed, samples).unwrap();
            prop_assert_eq!(order.next_position(order.sample_at(position), position), Some(position));
        }
        let mixture = settings(Shuffle::Blocks).mixture(seed, &[(samples / 2 + 1, 0.3), (samples / 3 + 1, 0.777)]).unwrap();
        prop_assert_eq!(mixture.next_position(mixture.sample_at(position), position), Some(position));
    }

    #[test]
    fn what_is_no_sample_never_comes(case in any_case(), from: u64) {
        let order = case.order();
        prop_assert_eq!(order.next_position(order.samples(), from), None);
        for (part, (_, weight)) in case.parts().into_iter().zip(&case.components) {
            prop_assert!(*weight > 0.0 || order.next_position(part.start, from).is_none());
        }
    }

    /// Ranks that share the microbatches of a step out in any way, at a world size that may change at any step, each
    /// knowing nothing but the step, go through each epoch of each component without loss or repetition.
    #[test]
    fn any_world_covers_each_sample_once(
        case in any_case(), microbatches in 1u64..9, rows in 1u64..5, worlds in prop::collection::vec(1u64..9, 1..6),
    ) {
        let mut seen = vec![0u32; case.order().samples() as usize];
        let parts = case.parts();
        for step in 0..1500 / (microbatches * rows) {
            let world = worlds[step as usize % worlds.len()];
            for rank in 0..world {
                let resumed = case.order();
                for microbatch in (rank..microbatches).step_by(world as usize) {
                    let first = (step * microbatches + microbatch) * rows;
                    for sample in samples_of(resumed.as_ref(), first..first + rows) {
                        seen[sample as usize] += 1;
                    }
                }
            }
            prop_assert!(equally_often(&seen, &parts), "step {}", step);
        }
    }

    #[test]
    fn a_mixture_keeps_proportions_and_each_order(case in any_case(), period in 0u64..1000) {
        prop_assume!(case.components.len() > 1);
        let mixture = case.settings.mixture(case.seed, &case.components).unwrap();
        let slots = mixture.share_of(0).1;
        let sum: f64 = case.components.iter().map(|(_, weight)| weight).sum();
        let mut next: Vec<u64> = (0..case.components.len()).map(|c| period * mixture.share_of(c).0).collect();
        for position in period * slots..(period + 1) * slots {
            let (component, local) = mixture.component_at(position);
            prop_assert_eq!(local, next[component]);
            prop_assert!(mixture.samples_of(component).contains(&mixture.sample_at(position)));
            next[component] += 1;
        }
        for (component, (_, weight)) in case.components.iter().enumerate() {
            let of_component = next[component] - period * mixture.share_of(component).0;
            prop_assert!((of_component as f64 - weight / sum * slots as f64).abs() < 1e-6);
        }
    }
}
