//! The bytes of a text file, unpacked where it is packed.
//!
//! All that is said of a file's bytes elsewhere (how many are used, where a document is parted) is of these. A packed file
//! is only read forwards: to know its size, or to come to a place in it, all before that is unpacked again.

use super::inputs::{InputFile, Packing};
use flate2::bufread::MultiGzDecoder;
use gradus_error::{Error, IoContext, Result};
use std::io::{self, BufRead, BufReader, Read};

/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 18;

/// What a reader of any file is.
pub(crate) type Stream = BufReader<Box<dyn Read + Send>>;

/// The bytes of a file from `start` on.
pub(crate) fn open(file: &InputFile, start: u64) -> Result<Stream> {
    let describe = || format!("cannot read {} (data.input)", file.path.display());
    if file.packing == Packing::None {
        return Ok(BufReader::with_capacity(BUFFER_BYTES, file.open_from(start)?));
    }
    let packed = BufReader::with_capacity(BUFFER_BYTES, file.open_from(0)?);
    let unpacked: Box<dyn Read + Send> = match file.packing {
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed);
            Box::new(Damage(
                decoder.map_err(|error| Error::internal("no Zstandard decoder").with_source(error))?,
            ))
        }
        _ => Box::new(Damage(MultiGzDecoder::new(packed))),
    };
    let mut stream = BufReader::with_capacity(BUFFER_BYTES, unpacked);
    skip(&mut stream, start).context(describe)?;
    Ok(stream)
}

/// Passes over `bytes` bytes, or what there is.
pub(crate) fn skip(stream: &mut impl BufRead, bytes: u64) -> io::Result<u64> {
    io::copy(&mut stream.take(bytes), &mut io::sink())
}

/// Size of a file when unpacked, as far as that is at most `limit`; more than the limit if it is larger.
pub(crate) fn size(file: &InputFile, limit: u64) -> Result<u64> {
    if file.packing == Packing::None {
        return Ok(file.bytes);
    }
    let mut stream = open(file, 0)?;
    skip(&mut stream, limit.saturating_add(1))
        .context(|| format!("cannot read {} (data.input)", file.path.display()))
}

/// Has what does not unpack be damage, whatever the decoder calls it.
struct Damage<R>(R);

impl<R: Read> Read for Damage<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).map_err(|error| {
            let of_the_system = error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Interrupted;
            // What a bucket says has its kind already, as little the fault of what was packed.
            let of_a_bucket = error.get_ref().is_some_and(|inner| inner.is::<Error>());
            let other = of_the_system || of_a_bucket;
            if other { error } else { io::Error::new(io::ErrorKind::InvalidData, error) }
        })
    }
}
