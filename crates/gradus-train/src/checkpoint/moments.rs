//! The file of a checkpoint that holds the optimizer's moments: whole tensors, f32, by the names of the model's.

use crate::settings::OptimizerKind;
use gradus_error::{Error, IoContext, Result};
use gradus_memory::{Layout, Span, Tensor};
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Reads a range of the first (0) or second (1) moments.
type Read<'a> = &'a dyn Fn(usize, Span) -> Vec<f32>;

/// A tensor of moments that is read when it is written out.
struct Moment<'a> {
    tensor: &'a Tensor,
    index: usize,
    read: Read<'a>,
}

impl View for Moment<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = (self.read)(self.index, self.tensor.span());
        values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.tensor.len() * size_of::<f32>()
    }
}

/// Which moments an optimizer has of the tensors of a whole model: what Muon updates has no second ones.
fn all(layout: &Layout, kind: OptimizerKind) -> impl Iterator<Item = (String, usize, &Tensor)> {
    layout.tensors().iter().flat_map(move |tensor| {
        let by_muon = kind == OptimizerKind::Muon && !tensor.matrices.is_empty();
        let count = if by_muon { 1 } else { 2 };
        (0..count).map(move |index| (format!("moment{}.{}", index + 1, tensor.name), index, tensor))
    })
}

fn views<'a>(
    layout: &'a Layout,
    kind: OptimizerKind,
    read: Read<'a>,
) -> impl Iterator<Item = (String, Moment<'a>)> {
    all(layout, kind).map(move |(name, index, tensor)| (name, Moment { tensor, index, read }))
}

/// Writes the moments of a model of this layout.
///
/// # Errors
/// The system's; on a full disk `Exhausted`.
pub(super) fn write(path: &Path, layout: &Layout, kind: OptimizerKind, read: Read) -> Result<()> {
    safetensors::serialize_to_file(views(layout, kind, read), None, path).map_err(|error| match error {
        SafeTensorError::IoError(error) => Error::io(format!("cannot write {}", path.display()), error),
        other => Error::internal(format!("cannot lay out {}", path.display())).with_source(other),
    })
}

/// What stands in such a file.
#[cfg(feature = "fuzzing")]
pub(crate) fn as_bytes(layout: &Layout, kind: OptimizerKind, read: Read) -> Result<Vec<u8>> {
    safetensors::serialize(views(layout, kind, read), None)
        .map_err(|error| Error::internal("cannot lay out moments").with_source(error))
}

/// Reads a file of moments and hands each tensor's to `put`: which moment, its range of the layout, its values.
///
/// # Errors
/// `Corrupt`, naming file and tensor.
pub(super) fn read(
    path: &Path,
    layout: &Layout,
    kind: OptimizerKind,
    put: &mut dyn FnMut(usize, Span, &[f32]),
) -> Result<()> {
    let bytes = fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    parse(path, &bytes, layout, kind, put)
}

/// As [`read`], from what stands in the file; `path` is only named in messages.
pub(crate) fn parse(
    path: &Path,
    bytes: &[u8],
    layout: &Layout,
    kind: OptimizerKind,
    put: &mut dyn FnMut(usize, Span, &[f32]),
) -> Result<()> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| Error::corrupt(format!("{} is damaged", path.display())).with_source(error))?;
    let expected: BTreeSet<String> = all(layout, kind).map(|(name, ..)| name).collect();
    if let Some(extra) = file.names().into_iter().find(|name| !expected.contains(*name)) {
        return Err(Error::corrupt(format!(
            "{} holds {extra}, which is no moment of this model",
            path.display()
        )));
    }
    for (name, index, tensor) in all(layout, kind) {
        let within = |reason: &str| format!("{}: {name} {reason}", path.display());
        let view =
            file.tensor(&name).map_err(|error| Error::corrupt(within("is missing")).with_source(error))?;
        let (dtype, shape) = (view.dtype(), view.shape());
        if dtype != Dtype::F32 || shape != tensor.shape {
            let expected = format!("is {dtype:?} {shape:?}, expected F32 {:?}", tensor.shape);
            return Err(Error::corrupt(within(&expected)));
        }
        let words = view.data().chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
        let values: Vec<f32> = words.map(f32::from_le_bytes).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::corrupt(within("is not finite")));
        }
        put(index, tensor.span(), &values);
    }
    Ok(())
}
