//! One safetensors file: its checked header, and its tensors piece by piece.
//!
//! The format (safetensors, "Format"): eight bytes with the header's length, little-endian; the header, JSON; the
//! tensors, without gaps, in the order of the header's offsets. Nothing is believed before it is checked: the header
//! must fit into the file, the tensors must fill the rest of it exactly, and only then is memory set aside on their
//! word. The file is read by position, never mapped: a file that shrinks meanwhile is an error, not a signal.

use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The longest header that the safetensors library reads.
const LONGEST_HEADER_BYTES: u64 = 100_000_000;
/// Elements that are decoded at a time: 1 MiB of f32, far more than a system call costs and less than a cache holds.
const PIECE: usize = 1 << 18;

/// A safetensors file whose header has been read and checked.
pub(super) struct Shard {
    path: PathBuf,
    metadata: Metadata,
    data_start: u64,
}

impl Shard {
    /// Reads and checks the header of the file at `path`.
    ///
    /// # Errors
    /// `Corrupt`, naming the file, for a header that does not fit the file; `Invalid` where there is no regular file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let describe = || format!("cannot read {}", path.display());
        let file = disk::open_regular(path).context(describe)?;
        let file_bytes = file.metadata().context(describe)?.len();
        let damaged = |text: String| Error::corrupt(format!("{}: {text}", path.display()));
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).context(describe)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > LONGEST_HEADER_BYTES.min(file_bytes.saturating_sub(8)) {
            return Err(damaged(format!("a header of {header_bytes} bytes in a file of {file_bytes}")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).context(describe)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged("the header is not a safetensors header".into()).with_source(error))?;
        let data_start = 8 + header_bytes;
        if data_start.checked_add(metadata.data_len() as u64) != Some(file_bytes) {
            return Err(damaged(format!(
                "{} bytes of tensors are promised and {} are there",
                metadata.data_len(),
                file_bytes - data_start
            )));
        }
        Ok(Self { path: path.to_owned(), metadata, data_start })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors, in the file's order.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Type, shape and place of the tensor called `name`.
    pub(super) fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Reads the tensor called `name` as f32, calling `visit` with the index of the first element and the elements of
    /// each piece, in order.
    ///
    /// # Errors
    /// `Corrupt` where the file has shrunk; `Invalid` for a tensor that is absent or of an unsupported type.
    pub(super) fn read(&self, name: &str, visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let describe = || format!("cannot read {name} from {}", self.path.display());
        let info = self.find(name).ok_or_else(|| Error::invalid(format!("{}: not there", describe())))?;
        let element = element_bytes(info.dtype)
            .ok_or_else(|| Error::invalid(format!("{}: {}", describe(), unsupported(info.dtype))))?;
        let file = disk::open_regular(&self.path).context(describe)?;
        let (start, end) = info.data_offsets;
        let elements = (end - start) / element;
        let mut bytes = vec![0; element * elements.min(PIECE)];
        let mut values = Vec::with_capacity(elements.min(PIECE));
        for first in (0..elements).step_by(PIECE) {
            let piece = &mut bytes[..element * (elements - first).min(PIECE)];
            let place = self.data_start + (start + first * element) as u64;
            file.read_exact_at(piece, place).context(describe)?;
            decode(info.dtype, piece, &mut values);
            visit(first, &values);
        }
        Ok(())
    }
}

/// Bytes of an element, for the types that can be read.
pub(super) fn element_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Why a tensor of this type is refused.
pub(super) fn unsupported(dtype: Dtype) -> String {
    format!("it is of type {dtype}, and F32, F16 and BF16 are supported")
}

fn decode(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    values.clear();
    match dtype {
        Dtype::F16 => values.extend(elements(bytes).map(|element| f16::from_le_bytes(element).to_f32())),
        Dtype::BF16 => values.extend(elements(bytes).map(|element| bf16::from_le_bytes(element).to_f32())),
        _ => values.extend(elements(bytes).map(f32::from_le_bytes)),
    }
}

fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn open(bytes: &[u8]) -> Result<Shard> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        Shard::open(&path)
    }

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn a_file_that_contradicts_itself_is_corrupt() {
        let tensor = |shape: &str, end: usize| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
        };
        let damaged = [
            Vec::new(),
            vec![0; 7],
            vec![255; 8],
            9u64.to_le_bytes().to_vec(),
            with_header("{", &[]),
            with_header("[]", &[]),
            with_header(&tensor("[2]", 8), &[0; 7]),
            with_header(&tensor("[2]", 8), &[0; 9]),
            with_header(&tensor("[3]", 8), &[0; 8]),
            with_header(&tensor("[-1]", 8), &[0; 8]),
            with_header(&tensor("[4294967296,4294967296]", 8), &[0; 8]),
        ];
        for bytes in damaged {
            assert_eq!(
                *open(&bytes).err().unwrap().kind(),
                Kind::Corrupt,
                "{:?}",
                String::from_utf8_lossy(&bytes)
            );
        }
        assert!(open(&with_header(&tensor("[2]", 8), &[0; 8])).is_ok());
    }

    #[test]
    fn sizes_that_together_exceed_64_bits_are_corrupt() {
        // Sixteen tensors of 2^60 bytes, the last one 8 short: the end is 2^64 - 8, and the header's own 8 make it 0.
        let end = |index: u128| if index == 16 { (1u128 << 64) - 8 } else { index << 60 };
        let tensors = (0..16).map(|index| {
            let (start, end) = (end(index), end(index + 1));
            format!(r#""{index}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, end - start)
        });
        let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
        assert_eq!(*open(&with_header(&header, &[])).err().unwrap().kind(), Kind::Corrupt);
    }

    #[test]
    fn pieces_join_without_seam() {
        let values: Vec<f32> = (0..PIECE + 3).map(|index| index as f32).collect();
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![values.len()], &data).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
        let mut read = Vec::new();
        let shard = Shard::open(&path).unwrap();
        shard
            .read("a", &mut |first, piece| {
                assert_eq!(first, read.len());
                read.extend_from_slice(piece);
            })
            .unwrap();
        assert_eq!(read, values);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert_eq!(*shard.read("a", &mut |_, _| ()).unwrap_err().kind(), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            length in 0u64..250,
            text in r#"[\{\}\[\]:,"a0-9DFU]{0,100}"#,
        ) {
            let _ = open(&bytes);
            let _ = open(&[&length.to_le_bytes()[..], &bytes].concat());
            let _ = open(&with_header(&text, &bytes));
        }

        #[test]
        fn damaged_headers_never_panic(at in 0usize..120, to in any::<u8>()) {
            let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}}"#;
            let mut bytes = with_header(header, &[0; 12]);
            bytes[at] = to;
            if let Ok(shard) = open(&bytes) {
                prop_assert!(shard.names().len() <= 2);
            }
        }
    }
}
