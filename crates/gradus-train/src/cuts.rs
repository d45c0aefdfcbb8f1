//! Where a run's pipeline cuts the model: by what blocks and head cost on these machines, measured once in the life of a run and
//! recorded among its conditions; a resumed run takes the cuts from there.

use crate::checkpoint;
use crate::conditions::Conditions;
use crate::stages;
use crate::trainer::RunSettings;
use gradus_collective::Communicator;
use gradus_compute::Device;
use gradus_error::{Error, Result};
use gradus_host::Clock;
use gradus_model::{Batch, ModelConfig, Transformer, Workspace};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The name of the condition.
const STAGES: &str = "stages";

/// Times that each model is run: the fastest counts, for whatever disturbs a run makes it slower.
const RUNS: usize = 3;

/// What a stage is cut for.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub config: &'a ModelConfig,
    /// Tokens of a microbatch.
    pub rows: usize,
    /// `T`.
    pub sequence: usize,
}

/// The layers of each stage: as rank 0's checkpoint has them, or else by what it measures on `spare`, or else by operations. All
/// ranks call this.
///
/// # Errors
/// `Corrupt` where the checkpoint's cuts are none of this model; those of collectives.
pub(crate) fn settle(
    communicator: &mut Communicator,
    settings: &RunSettings,
    work: Work,
    spare: Option<Arc<dyn Device>>,
    clock: &dyn Clock,
) -> Result<Vec<Range<usize>>> {
    let (layers, count) = (work.config.layers, settings.parallel.stages());
    if count == 1 {
        return Ok(stages::cut(layers, 1, 0.0));
    }
    let mut starts: Vec<i64> = vec![0; count];
    if communicator.rank() == 0 {
        let recorded = settings.resume.as_deref().map(|folder| recorded(folder, layers, count)).transpose();
        let recorded = recorded.inspect_err(|error| communicator.give_up(error))?.flatten();
        let cut = || stages::cut(layers, count, head_in_blocks(work, spare.as_ref(), clock));
        let found = recorded.unwrap_or_else(cut);
        starts = found.iter().map(|run| run.start as i64).collect();
    }
    // Rank 0 measures meanwhile.
    communicator.patiently(|ranks| ranks.broadcast(0, &mut starts))?;
    let starts: Vec<usize> = starts.into_iter().map(|start| start as usize).collect();
    Ok(runs(&starts, layers))
}

/// What the head costs in blocks, measured where that can be.
fn head_in_blocks(work: Work, spare: Option<&Arc<dyn Device>>, clock: &dyn Clock) -> f64 {
    let by_operations = stages::head_in_blocks(work.config, work.sequence);
    match spare.map(|device| measure(work, device, clock)) {
        Some(Ok(Some(measured))) => measured,
        Some(Err(error)) => {
            tracing::warn!("stages are cut by operations, for their costs cannot be measured: {error}");
            by_operations
        }
        Some(Ok(None)) | None => by_operations,
    }
}

/// Runs models of one and of two blocks: their difference is what a block takes, and the rest is the head's. `None` where
/// times say nothing.
///
/// # Errors
/// `Exhausted` where such a model does not fit.
fn measure(work: Work, device: &Arc<dyn Device>, clock: &dyn Clock) -> Result<Option<f64>> {
    let models = [1, 2].map(|layers| Sample::new(work, layers, device));
    let [one, two] = models;
    let (one, two) = (one?, two?);
    let mut fastest = [f64::INFINITY; 2];
    for _ in 0..=RUNS {
        for (sample, fastest) in [&one, &two].into_iter().zip(&mut fastest) {
            *fastest = fastest.min(sample.run(clock)?);
        }
    }
    let [one, two] = fastest;
    let block = two - one;
    Ok((block > 0.0 && one > block).then(|| (one - block) / block))
}

/// A model of few blocks, to be timed.
struct Sample {
    model: Transformer,
    workspace: Workspace,
    gradients: gradus_memory::Span,
    sequence: usize,
    tokens: Vec<u32>,
}

impl Sample {
    fn new(work: Work, layers: usize, device: &Arc<dyn Device>) -> Result<Self> {
        let config = ModelConfig { layers, ..work.config.clone() };
        let workspace = Workspace::for_training(device.as_ref(), &config, work.rows, false)?;
        let vocabulary = config.vocabulary as u32;
        let model = Transformer::new(config, Arc::clone(device))?;
        model.initialise(0);
        let gradients = device.allocate(model.parameters().layout.len())?;
        // Any tokens do: what they are changes no time.
        let tokens = (0..work.rows as u32).map(|row| row.wrapping_mul(2_654_435_761) % vocabulary).collect();
        Ok(Self { model, workspace, gradients, sequence: work.sequence, tokens })
    }

    /// Seconds of a pass forth and back.
    fn run(&self, clock: &dyn Clock) -> Result<f64> {
        let Self { model, workspace, gradients, sequence, tokens } = self;
        let batch = Batch {
            batch: tokens.len() / sequence,
            sequence: *sequence,
            tokens,
            targets: tokens,
            documents: None,
        };
        let start = clock.now();
        model.forward_backward(workspace, batch, *gradients, &())?;
        Ok((clock.now() - start).as_secs_f64())
    }
}

/// The cuts as a condition of a run: none without a pipeline.
pub(crate) fn condition(layers: &[Range<usize>]) -> Conditions {
    let starts: Vec<String> = layers.iter().map(|run| run.start.to_string()).collect();
    match layers.len() {
        0 | 1 => Vec::new(),
        _ => vec![(STAGES.to_owned(), starts.join(" "))],
    }
}

/// The cuts that a checkpoint's run has, if it has as many stages.
fn recorded(folder: &Path, layers: usize, count: usize) -> Result<Option<Vec<Range<usize>>>> {
    let state = checkpoint::read_state(folder)?;
    let Some((_, text)) = state.conditions.iter().find(|(key, _)| key == STAGES) else { return Ok(None) };
    let Some(starts) = starts_in(text, layers) else {
        return Err(Error::corrupt(format!(
            "{}: {text:?} are no stages of {layers} layers",
            folder.display()
        )));
    };
    Ok((starts.len() == count).then(|| runs(&starts, layers)))
}

/// The first layers of stages, as a condition says them; `None` for what no run has written.
fn starts_in(text: &str, layers: usize) -> Option<Vec<usize>> {
    let starts: Vec<usize> = text.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    let grows = starts.first() == Some(&0) && starts.windows(2).all(|pair| pair[0] < pair[1]);
    (grows && starts.last().is_some_and(|last| *last < layers)).then_some(starts)
}

/// Ranges that begin there, the last up to the end.
fn runs(starts: &[usize], end: usize) -> Vec<Range<usize>> {
    let ends = starts.iter().skip(1).copied().chain([end]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_compute::{CpuDevice, Precision};
    use gradus_model::PRESETS;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    /// A clock by which the model of one block takes three seconds, and that of two five.
    struct Scripted(AtomicU64);

    impl Clock for Scripted {
        fn now(&self) -> Duration {
            const TIMES: [u64; 4] = [0, 3, 3, 8];
            let call = self.0.fetch_add(1, Relaxed);
            Duration::from_secs(call / 4 * 8 + TIMES[call as usize % 4])
        }

        fn calendar(&self) -> Duration {
            Duration::ZERO
        }

        fn sleep(&self, _duration: Duration) {}
    }

    #[test]
    fn what_one_block_does_not_take_is_the_heads() {
        let tiny = PRESETS.iter().find(|(name, _)| *name == "llama-tiny").unwrap().1.clone();
        let config = ModelConfig { vocabulary: 64, context: 8, ..tiny };
        let device: Arc<dyn Device> = Arc::new(CpuDevice::new(1, Precision::F32, 1 << 24).unwrap());
        let work = Work { config: &config, rows: 16, sequence: 8 };
        let clock = Scripted(AtomicU64::new(0));
        assert_eq!(measure(work, &device, &clock).unwrap(), Some(0.5));
        let small: Arc<dyn Device> = Arc::new(CpuDevice::new(1, Precision::F32, 1 << 10).unwrap());
        let by_operations = stages::head_in_blocks(&config, 8);
        assert_eq!(head_in_blocks(work, Some(&small), &clock), by_operations, "no room to measure in");
    }

    #[test]
    fn cuts_are_recorded_and_read_again_and_others_are_refused() {
        let layers = stages::cut(7, 3, 1.5);
        let [(key, text)] = condition(&layers).try_into().unwrap();
        assert_eq!((key.as_str(), runs(&starts_in(&text, 7).unwrap(), 7)), (STAGES, layers));
        assert_eq!(condition(&stages::cut(7, 1, 0.0)), []);
        for text in ["", "0 x", "1 2", "0 3 3", "0 7", "0 -1", "0  3", "0 99999999999999999999"] {
            assert_eq!(starts_in(text, 7), None, "{text:?}");
        }
    }
}
