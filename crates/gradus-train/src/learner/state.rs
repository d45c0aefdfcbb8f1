//! What a learner depends on, in and out: whole tensors by their range of the whole model's layout, whichever ranks have what of
//! them.

use super::Learner;
use crate::stage::{Quantity, Stage};
use gradus_collective::{Collective, Reduction as How};
use gradus_compute::{Format, Matrix};
use gradus_error::{Error, Result};
use gradus_memory::Span;
use gradus_model::{Parameters, Transformer, hugging_face};
use std::path::{Path, PathBuf};

/// Where a run's first weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstWeights {
    /// Random ones, by this seed.
    Seed(u64),
    /// Those of a Hugging Face folder of the same configuration.
    Folder(PathBuf),
}

/// Elements that are collected at once: 64 MiB.
const PIECE: usize = 1 << 24;

/// Said instead of a range once no more is asked for.
const DONE: [i64; 3] = [-1, 0, 0];

impl Learner {
    /// Gives the model its first weights: each rank keeps what it has of them.
    ///
    /// # Errors
    /// What is wrong with the folder.
    pub fn begin_with(&self, first: &FirstWeights) -> Result<()> {
        match first {
            FirstWeights::Seed(seed) => {
                Transformer::initial(&self.config, *seed, &mut |span, values| {
                    self.put(Quantity::Weights, span, values);
                });
                Ok(())
            }
            FirstWeights::Folder(folder) => self.read_weights(folder),
        }
    }

    /// Takes the weights of a Hugging Face folder.
    ///
    /// # Errors
    /// What is wrong with the folder.
    pub(crate) fn read_weights(&self, folder: &Path) -> Result<()> {
        let whole = Parameters::new(&self.config);
        let put = &mut |span, values: &[f32]| self.put(Quantity::Weights, span, values);
        hugging_face::read_weights(folder, &self.config, &whole, put)
    }

    /// Puts a range of the whole model's layout in place, as far as this rank has it.
    pub(crate) fn put(&self, what: Quantity, whole: Span, values: &[f32]) {
        self.stages.iter().for_each(|stage| stage.put(what, whole, values));
    }

    /// Goes on after so many updates, whose moments have been put in place.
    pub(crate) fn resume(&mut self, updates: u64) {
        self.stages.iter_mut().for_each(|stage| stage.optimizer.resume(updates));
    }

    /// Whether every weight that this rank keeps is finite: else the name of a tensor with one that is not.
    pub(crate) fn not_finite(&self) -> Option<String> {
        self.stages.iter().find_map(|stage| {
            let (model, kept) = (&stage.model, stage.kept_weights());
            let (range, _) = kept.iter().find(|(range, place)| !is_finite(stage, *range, *place))?;
            let tensors = model.parameters().layout.tensors();
            let of = tensors
                .iter()
                .find(|tensor| tensor.span().overlaps(range) && has_infinite(stage, tensor.span()));
            of.map(|tensor| tensor.name.clone())
        })
    }

    /// Whether this rank holds the same bits as the others that keep the same weights. Every rank calls it; each finds out
    /// for itself.
    ///
    /// # Errors
    /// `Internal` on the rank that differs; the communicator's.
    pub fn check_agreement(&mut self) -> Result<()> {
        let own = self.stages.iter().fold(DIGEST_BASIS, |hash, stage| {
            let places = stage.kept_weights();
            places.iter().fold(hash, |hash, (range, place)| digest(hash, &read(stage, *range, *place)))
        });
        let mut first = own.to_le_bytes();
        self.alike.broadcast(0, &mut first)?;
        if u64::from_le_bytes(first) == own {
            return Ok(());
        }
        let rank = self.world.rank();
        Err(Error::internal(format!(
            "the weights of rank {rank} differ from those of the ranks that keep the same (digest {own:016x})"
        )))
    }

    /// Whether rank 0 has weights and moments whole, so that it can save without asking the others.
    fn is_whole_on_first(&self) -> bool {
        self.mesh.world_size() == self.mesh.dp
    }

    /// A range of the whole model's layout, brought together from all ranks: on rank 0, while the others are in
    /// [`Learner::serve`].
    ///
    /// # Errors
    /// The communicator's.
    pub(crate) fn collect(&mut self, what: Quantity, whole: Span) -> Result<Vec<f32>> {
        if self.is_whole_on_first() {
            return Ok(self
                .own_bits(what, whole)
                .into_iter()
                .map(|bits| f32::from_bits(bits as u32))
                .collect());
        }
        let number = match what {
            Quantity::Weights => 0,
            Quantity::Moment(moment) => 1 + moment as i64,
        };
        let mut values = Vec::with_capacity(whole.len);
        for first in (0..whole.len).step_by(PIECE) {
            let part = whole.part(first, PIECE.min(whole.len - first));
            self.world.broadcast(0, &mut [number, part.start as i64, part.len as i64])?;
            let bits = self.collect_part(what, part)?;
            values.extend(bits.into_iter().map(|bits| f32::from_bits(bits as u32)));
        }
        Ok(values)
    }

    /// Brings what rank 0 collects, until it says that it is done.
    ///
    /// # Errors
    /// The communicator's.
    pub fn serve(&mut self) -> Result<()> {
        while !self.is_whole_on_first() {
            let mut asked = DONE;
            // Rank 0 writes meanwhile, to whatever disk it is.
            self.world.patiently(|world| world.broadcast(0, &mut asked))?;
            let [number, start, len] = asked;
            let what = match number {
                0 => Quantity::Weights,
                1.. => Quantity::Moment(number as usize - 1),
                _ => break,
            };
            self.collect_part(what, Span::new(start as usize, len as usize))?;
        }
        Ok(())
    }

    /// Ends what the others do in [`Learner::serve`].
    ///
    /// # Errors
    /// The communicator's.
    pub(crate) fn end_service(&mut self) -> Result<()> {
        if self.is_whole_on_first() {
            return Ok(());
        }
        self.world.broadcast(0, &mut DONE.clone())
    }

    /// One rank brings each element and all others zero: the sum of their bits is the element's.
    fn collect_part(&mut self, what: Quantity, whole: Span) -> Result<Vec<i32>> {
        let mut bits = self.own_bits(what, whole);
        self.world.run_in_place(&Collective::reduce(0, How::Sum), &mut bits)?;
        Ok(bits)
    }

    /// The bits of what this rank brings of a range, and zeros.
    fn own_bits(&self, what: Quantity, whole: Span) -> Vec<i32> {
        let mut bits = vec![0; whole.len];
        for (stage, counted) in self.stages.iter().zip(&self.counted) {
            for (local, offset) in stage.local(whole) {
                for own in counted.iter().map(|own| own.common(&local)).filter(|own| !own.is_empty()) {
                    for (range, place) in stage.owned_places(what, own) {
                        let first = offset + range.start - local.start;
                        let values = read(stage, range, place);
                        let to = bits[first..].iter_mut();
                        to.zip(values).for_each(|(bits, value)| *bits = value.to_bits() as i32);
                    }
                }
            }
        }
        bits
    }
}

fn read(stage: &Stage, range: Span, place: Matrix) -> Vec<f32> {
    let mut values = vec![0.0; range.len];
    match place.format {
        Format::F32 => stage.model.device().read(place.span, &mut values),
        Format::Bf16 => stage.model.device().read_bf16(place.span, &mut values),
    }
    values
}

fn is_finite(stage: &Stage, range: Span, place: Matrix) -> bool {
    match place.format {
        Format::F32 => stage.model.device().sum_of_squares(place.span).is_finite(),
        Format::Bf16 => read(stage, range, place).iter().all(|value| value.is_finite()),
    }
}

fn has_infinite(stage: &Stage, range: Span) -> bool {
    let places = stage.owned_places(Quantity::Weights, range);
    places.iter().any(|(range, place)| read(stage, *range, *place).iter().any(|value| !value.is_finite()))
}

/// Where FNV-1a begins (Fowler, Noll and Vo).
const DIGEST_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a over the words' bits, one word at a time: enough to see that two copies differ.
fn digest(basis: u64, values: &[f32]) -> u64 {
    let step = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
    values.iter().fold(basis, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_bit_changes_the_digest() {
        let of = |values: &[f32]| digest(DIGEST_BASIS, values);
        assert_ne!(of(&[1.0, 0.0]), of(&[1.0, -0.0]));
        assert_eq!(of(&[1.0, 2.0]), of(&[1.0, 2.0]));
    }
}
