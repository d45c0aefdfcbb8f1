//! SHA-256 of files and of parts of files, as hexadecimal text.

use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use sha2::{Digest, Sha256};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Hexadecimal digits of a finished digest.
pub(crate) fn finish(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of `bytes`, as 64 hexadecimal digits.
pub(crate) fn digest_bytes(bytes: &[u8]) -> String {
    finish(Sha256::new_with_prefix(bytes))
}

/// The SHA-256 of a file, as 64 hexadecimal digits.
///
/// # Errors
/// The system's failure to open or read the file.
pub fn digest_file(path: &Path) -> Result<String> {
    let describe = || format!("cannot read {}", path.display());
    let mut file = disk::open_regular(path).context(describe)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = file.read(&mut buffer).context(describe)?;
        if read == 0 {
            return Ok(finish(hasher));
        }
        hasher.update(&buffer[..read]);
    }
}

/// The SHA-256 of `len` bytes of a file from `start`.
///
/// # Errors
/// `Corrupt` when the file ends before; the system's failure to open or read it.
pub(crate) fn digest_part(path: &Path, start: u64, len: u64) -> Result<String> {
    let describe = || format!("cannot read {}", path.display());
    let mut file = disk::open_regular(path).context(describe)?;
    file.seek(SeekFrom::Start(start)).context(describe)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = len;
    while left > 0 {
        let wanted = left.min(BUFFER_BYTES as u64) as usize;
        let read = file.read(&mut buffer[..wanted]).context(describe)?;
        if read == 0 {
            return Err(Error::corrupt(format!("{} ends {left} bytes too early", path.display())));
        }
        hasher.update(&buffer[..read]);
        left -= read as u64;
    }
    Ok(finish(hasher))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn digests_are_the_published_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "xabcx").unwrap();
        // FIPS 180-2, appendix B.1: the message "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_bytes(b"abc"), abc);
        assert_eq!(digest_part(&path, 1, 3).unwrap(), abc);
        assert_eq!(*digest_part(&path, 3, 3).unwrap_err().kind(), Kind::Corrupt);
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(digest_file(&path).unwrap(), abc);
    }
}
