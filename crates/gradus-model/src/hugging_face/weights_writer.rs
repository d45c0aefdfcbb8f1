//! Writing weights: one file, or shards with an index, tensor by tensor.
//!
//! The header is laid out by the safetensors library from shapes alone; then each tensor is read from the caller and
//! written, so that at most one transposed matrix, or one piece of another tensor, is in memory at a time. Every file
//! is written beside its place and renamed; a folder that is to appear whole is the caller's to rename.

use super::config_writer::write_json;
use super::mapping::{Mapped, mapping};
use super::weights_file::{INDEX_FILE, SINGLE_FILE};
use crate::config::ModelConfig;
use crate::parameters::Parameters;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk::write_atomically;
use gradus_memory::Span;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Elements that are asked for at a time where a tensor is written as it lies: 4 MiB.
const PIECE: usize = 1 << 20;

/// Writes the weights that `read` returns into `folder` as F32: into `model.safetensors`, or where they are longer than
/// `max_shard_bytes` (0: no limit) into shards of at most that, and an index. A longer tensor is a shard of its own.
///
/// The padding of the vocabulary is left out. `read` is asked for ranges of whole tensors or of pieces of them, in the
/// order of the files.
///
/// # Errors
/// `Invalid` where the folder holds weights that this does not overwrite and that would be read in its stead; the
/// system's failure to write, with `Exhausted` for a full disk; `Internal` where `read` returns another number of
/// elements than asked.
pub fn write_weights(
    folder: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    read: &dyn Fn(Span) -> Vec<f32>,
    max_shard_bytes: usize,
) -> Result<()> {
    let mapping = mapping(config, parameters);
    let shards = shards(&mapping, max_shard_bytes);
    refuse_others(folder, shards.len())?;
    let mut index = Index::default();
    for (number, shard) in shards.iter().enumerate() {
        let name = shard_name(number, shards.len());
        write_shard(&folder.join(&name), shard, read)?;
        index.add(&name, shard);
    }
    if shards.len() > 1 { write_json(&folder.join(INDEX_FILE), &index) } else { Ok(()) }
}

/// The single file takes precedence over an index, and an index beside a single file misleads other readers.
fn refuse_others(folder: &Path, shards: usize) -> Result<()> {
    let other = folder.join(if shards > 1 { SINGLE_FILE } else { INDEX_FILE });
    if other.exists() {
        return Err(Error::invalid(format!(
            "{} is in the way of new weights: write into a new folder",
            other.display()
        )));
    }
    Ok(())
}

fn bytes(mapped: &Mapped) -> usize {
    mapped.target.len * size_of::<f32>()
}

/// Cuts the list where the next tensor would make a shard too long.
fn shards(mapping: &[Mapped], max_shard_bytes: usize) -> Vec<&[Mapped]> {
    let limit = if max_shard_bytes == 0 { usize::MAX } else { max_shard_bytes };
    let mut cuts = vec![0];
    let mut filled = 0;
    for (index, mapped) in mapping.iter().enumerate() {
        if filled > 0 && filled + bytes(mapped) > limit {
            cuts.push(index);
            filled = 0;
        }
        filled += bytes(mapped);
    }
    cuts.push(mapping.len());
    cuts.windows(2).map(|cut| &mapping[cut[0]..cut[1]]).collect()
}

fn shard_name(number: usize, count: usize) -> String {
    match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

fn write_shard(path: &Path, shard: &[Mapped], read: &dyn Fn(Span) -> Vec<f32>) -> Result<()> {
    write_atomically(path, |writer| {
        write_header(writer, shard).context(|| format!("cannot write {}", path.display()))?;
        for mapped in shard {
            let describe = || format!("cannot write {} to {}", mapped.name, path.display());
            let write = &mut |values: &[f32]| write_values(writer, values).context(describe);
            if mapped.transposed {
                write(&transposed(&ask(read, mapped.target)?, &mapped.shape))?;
            } else {
                for piece in pieces(mapped.target) {
                    write(&ask(read, piece)?)?;
                }
            }
        }
        Ok(())
    })
}

/// Length and JSON, padded with spaces so that the tensors begin on a multiple of eight bytes.
fn write_header(writer: &mut dyn Write, shard: &[Mapped]) -> std::io::Result<()> {
    let mut end = 0;
    let tensors = shard.iter().map(|mapped| {
        let start = end;
        end += bytes(mapped);
        let info = TensorInfo { dtype: Dtype::F32, shape: mapped.shape.clone(), data_offsets: (start, end) };
        (mapped.name.clone(), info)
    });
    // transformers refuses a file that does not say for which framework it is.
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let metadata = Metadata::new(Some(format), tensors.collect()).map_err(std::io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)
}

fn ask(read: &dyn Fn(Span) -> Vec<f32>, span: Span) -> Result<Vec<f32>> {
    let values = read(span);
    if values.len() == span.len {
        return Ok(values);
    }
    Err(Error::internal(format!("asked for {} elements of the model, got {}", span.len, values.len())))
}

fn pieces(span: Span) -> impl Iterator<Item = Span> {
    (0..span.len).step_by(PIECE).map(move |first| span.part(first, PIECE.min(span.len - first)))
}

fn write_values(writer: &mut dyn Write, values: &[f32]) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(size_of_val(values));
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    writer.write_all(&bytes)
}

/// `[columns, rows]` of the layout as the file's `[rows, columns]`.
fn transposed(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let (rows, columns) = (shape[0], shape[1]);
    (0..rows).flat_map(|row| (0..columns).map(move |column| values[column * rows + row])).collect()
}

/// `model.safetensors.index.json`.
#[derive(Default, Serialize)]
struct Index {
    metadata: IndexMetadata,
    weight_map: BTreeMap<String, String>,
}

#[derive(Default, Serialize)]
struct IndexMetadata {
    total_parameters: usize,
    total_size: usize,
}

impl Index {
    fn add(&mut self, file: &str, shard: &[Mapped]) {
        for mapped in shard {
            self.metadata.total_parameters += mapped.target.len;
            self.metadata.total_size += bytes(mapped);
            self.weight_map.insert(mapped.name.clone(), file.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(lengths: &[usize]) -> Vec<Mapped> {
        let one = |len: &usize| Mapped {
            name: len.to_string(),
            shape: vec![*len],
            target: Span::new(0, *len),
            transposed: false,
        };
        lengths.iter().map(one).collect()
    }

    #[test]
    fn shards_hold_at_most_the_limit_or_one_tensor() {
        let lengths = |limit: usize| -> Vec<usize> {
            shards(&mapped(&[1, 2, 5, 1, 1]), limit).iter().map(|shard| shard.len()).collect()
        };
        assert_eq!(lengths(0), [5]);
        assert_eq!(lengths(40), [5]);
        assert_eq!(lengths(39), [4, 1]);
        assert_eq!(lengths(12), [2, 1, 2]);
        assert_eq!(lengths(1), [1, 1, 1, 1, 1]);
    }

    #[test]
    fn pieces_cover_a_span() {
        let span = Span::new(7, 2 * PIECE + 1);
        let pieces: Vec<_> = pieces(span).collect();
        assert_eq!(pieces.first().map(|piece| piece.start), Some(7));
        assert!(pieces.windows(2).all(|pair| pair[0].end() == pair[1].start));
        assert_eq!(pieces.last().map(Span::end), Some(span.end()));
    }

    #[test]
    fn a_matrix_is_turned() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2]), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
