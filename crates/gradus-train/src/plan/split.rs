//! What is to be trained, and one way to split it.

use crate::learner::checks;
use crate::mesh::{Axis, Mesh};
use crate::pipeline::{Kind, Shape};
use crate::settings::{OptimizerSettings, ParallelSettings, TrainSettings};
use crate::stages::{self, cut_layers};
use gradus_compute::Precision;
use gradus_error::Result;
use gradus_model::{ModelConfig, Part};
use std::ops::Range;

/// What is to be trained.
#[derive(Debug, Clone)]
pub struct Work {
    /// The model.
    pub model: ModelConfig,
    /// Batches and arithmetic, with the sequence length filled in; how long the run takes does not matter.
    pub train: TrainSettings,
    /// Which moments there are, and what weights are kept in.
    pub optimizer: OptimizerSettings,
}

impl Work {
    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.train.global_batch * self.train.sequence_length
    }

    /// Whether so many data ranks can share out its batches.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self, data_ranks: usize) -> Result<()> {
        // The run's length is no matter here.
        TrainSettings { steps: 1, duration: String::new(), ..self.train.clone() }.check(data_ranks)
    }

    /// Whether linear layers' weights are kept rounded and packed, too, where a rank has them for long.
    pub(super) fn prepares(&self) -> bool {
        self.train.precision == Precision::Bf16 && !self.train.recompute
    }
}

/// One way to split the work among ranks, which was found possible.
#[derive(Debug, Clone)]
pub struct Split<'a> {
    /// What is split.
    pub work: &'a Work,
    /// How, with the size of every axis.
    pub parallel: ParallelSettings,
    /// The axes.
    pub mesh: Mesh,
    /// Sequences of a microbatch.
    pub sequences: usize,
    /// Microbatches of the data rank that has most.
    pub microbatches: usize,
    /// Layers of each stage, where they are not cut by operations.
    pub(super) cuts: Option<Vec<Range<usize>>>,
}

impl<'a> Split<'a> {
    /// The split that the settings ask for among `world_size` ranks.
    ///
    /// # Errors
    /// `Invalid`, naming the keys, where model or batch cannot be split so.
    pub fn new(work: &'a Work, parallel: &ParallelSettings, world_size: usize) -> Result<Self> {
        let mesh = Mesh::from_settings(parallel, world_size)?;
        work.check(mesh.data_ranks())?;
        let train = &work.train;
        mesh.check_model(&work.model, parallel.stages_per_rank)?;
        checks::check(&work.model, &mesh, &work.optimizer, parallel)?;
        let sequences = train.microbatch_sequences(parallel.shares(&mesh));
        mesh.check_microbatch(sequences, train.sequence_length)?;
        let parallel = ParallelSettings { dp: mesh.dp, ..parallel.clone() };
        Ok(Self::of(work, parallel, mesh, sequences))
    }

    /// A split of known sizes that is possible.
    pub(super) fn of(work: &'a Work, parallel: ParallelSettings, mesh: Mesh, sequences: usize) -> Self {
        let microbatches = work.train.global_batch.div_ceil(sequences).div_ceil(mesh.data_ranks());
        Self { work, parallel, mesh, sequences, microbatches, cuts: None }
    }

    /// The same, with these layers in each stage: a run measures what they cost, and may cut them otherwise.
    ///
    /// # Panics
    /// If it has another number of stages.
    #[must_use]
    pub fn with_stages(self, layers: Vec<Range<usize>>) -> Self {
        assert_eq!(layers.len(), self.shape().stages(), "each stage has its layers");
        Self { cuts: Some(layers), ..self }
    }

    /// Tokens of a microbatch.
    pub fn rows(&self) -> usize {
        self.sequences * self.work.train.sequence_length
    }

    /// The schedule of its pipeline.
    pub fn kind(&self) -> Kind {
        self.parallel.order()
    }

    /// Whether backward passes come in two halves.
    pub fn splits_backward(&self) -> bool {
        self.kind() == Kind::ZeroBubble
    }

    /// Its pipeline.
    pub fn shape(&self) -> Shape {
        let (ranks, chunks_per_rank) = (self.mesh.pp, self.parallel.stages_per_rank);
        Shape { ranks, chunks_per_rank, microbatches: self.microbatches }
    }

    /// What each stage has of the model, on the tensor rank given.
    pub fn parts(&self, tensor_rank: usize) -> Vec<Part> {
        let tensor = (tensor_rank, self.mesh.tp);
        match &self.cuts {
            Some(layers) => stages::parts(layers, tensor),
            None => cut_layers(&self.work.model, self.shape().stages(), tensor),
        }
    }

    /// The stages of a rank of the pipeline, by growing chunk.
    pub fn stages_of(&self, pp: usize) -> impl Iterator<Item = usize> {
        let shape = self.shape();
        (0..shape.chunks_per_rank).map(move |chunk| shape.stage(pp, chunk))
    }

    /// Ranks of an axis, and how far its neighbours are apart in the order of ranks.
    pub fn ranks_and_stride(&self, axis: Axis) -> (usize, usize) {
        let Mesh { pp, dp, fsdp, tp } = self.mesh;
        match axis {
            Axis::Tp => (tp, 1),
            Axis::Fsdp => (fsdp, tp),
            Axis::Dp => (dp, fsdp * tp),
            Axis::Pp => (pp, dp * fsdp * tp),
        }
    }
}
