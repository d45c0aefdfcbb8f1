//! The secret of a run: what its ranks know and nobody else.
//!
//! A launcher hands it on by the environment or a file, never on a command line, which every user of a host can read.
//! Without one there is the *empty* secret: ranks then speak over the loopback interface and Unix sockets only
//! ([`Secret::permits`]). Unix sockets say whose process called, and another user's is refused; loopback does not: every user
//! of the host can call there, and is believed. So a host that is shared with people one does not trust needs a secret.
//!
//! Invariants: no message and no `Debug` shows a secret; its memory is overwritten when it is dropped.

use crate::private;
use gradus_error::{Error, Result};
use gradus_host::random;
use std::ffi::OsStr;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use zeroize::Zeroizing;

/// The variable that holds a run's secret.
pub const SECRET: &str = "GRADUS_SECRET";

/// The variable that names the file that holds a run's secret.
pub const SECRET_FILE: &str = "GRADUS_SECRET_FILE";

/// Bytes of a secret: shorter ones can be guessed, longer ones are some other file.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=4096;

/// Random bytes of a secret that we make: as many as the hash has that proves it.
const MADE_BYTES: usize = 32;

/// A run's secret, or the empty one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Secret(none)" } else { "Secret(hidden)" })
    }
}

impl Secret {
    /// Reads what [`SECRET`] holds, or the file that [`SECRET_FILE`] names; the empty secret when neither is set.
    ///
    /// # Errors
    /// `Invalid` when both are set, the secret is shorter than 16 bytes or longer than 4096, or the file is not there;
    /// `Denied` when others than its owner can read it.
    pub fn from_environment(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        match (set(SECRET), set(SECRET_FILE)) {
            (None, None) => Ok(Self::default()),
            (Some(text), None) => Self::new(text.into_bytes(), SECRET),
            (None, Some(file)) => Self::from_file(Path::new(file.trim())),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "{SECRET} and {SECRET_FILE} are both set: unset the one that is not meant"
            ))),
        }
    }

    fn from_file(path: &Path) -> Result<Self> {
        let place = format!("{SECRET_FILE} {}", path.display());
        let bytes = private::read(path, *LENGTHS.end()).map_err(|error| error.within(&place))?;
        Self::new(bytes, &place)
    }

    /// Checks a secret that stands at `place`; line ends after it are not part of it.
    fn new(bytes: Vec<u8>, place: &str) -> Result<Self> {
        let mut bytes = Zeroizing::new(bytes);
        let end = bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        bytes.truncate(end);
        if !LENGTHS.contains(&bytes.len()) {
            return Err(Error::invalid(format!(
                "the secret in {place} has {} bytes: give {} to {}, such as `openssl rand -hex 32` prints",
                bytes.len(),
                LENGTHS.start(),
                LENGTHS.end()
            )));
        }
        Ok(Self(bytes))
    }

    /// A new one, of letters and digits: it can stand in an environment.
    pub fn make() -> Self {
        let mut bytes = Zeroizing::new([0; MADE_BYTES]);
        random::fill_from_system(bytes.as_mut());
        let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]);
        Self(Zeroizing::new(bytes.iter().flat_map(digits).collect()))
    }

    /// As the value of [`SECRET`] in a child's environment.
    pub fn as_value(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// Whether this is the empty secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether ranks that know this secret may listen at `address`, or call it.
    ///
    /// # Errors
    /// `Denied` for an address beyond loopback without a secret; `what` names whose address it is.
    pub(crate) fn permits(&self, address: IpAddr, what: &str) -> Result<()> {
        if !self.is_empty() || address.to_canonical().is_loopback() {
            return Ok(());
        }
        Err(Error::denied(format!(
            "{what} is {address}, which others can reach, and the run has no secret: give all ranks the same one, in \
             {SECRET} or in a file that {SECRET_FILE} names"
        )))
    }

    /// The bytes, for a hash that is keyed with them.
    pub(crate) fn key(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    const LONG_ENOUGH: &str = "0123456789abcdef";

    /// Names and values.
    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn read(variables: Variables) -> Result<Secret> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        Secret::from_environment(&|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    fn file(mode: u32, bytes: &[u8]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn variable_and_file_give_the_same_secret() {
        let (_folder, path) = file(0o600, format!("{LONG_ENOUGH}\r\n").as_bytes());
        let from_variable = read(&[(SECRET, LONG_ENOUGH)]).unwrap();
        assert_eq!(read(&[(SECRET_FILE, &path)]).unwrap(), from_variable);
        assert_ne!(read(&[(SECRET, "fedcba9876543210")]).unwrap(), from_variable);
        assert!(
            read(&[]).unwrap().is_empty() && read(&[(SECRET, " "), (SECRET_FILE, "")]).unwrap().is_empty()
        );
    }

    #[test]
    fn wrong_secrets_are_refused_and_never_shown() {
        let (_folder, readable) = file(0o644, LONG_ENOUGH.as_bytes());
        let (_other, short) = file(0o400, b"hunter2hunter2\n");
        let (_third, endless) = file(0o600, &[b'x'; 5000]);
        let cases: [(Variables, Kind, &str); 6] = [
            (&[(SECRET, "hunter2hunter2\n")], Kind::Invalid, SECRET),
            (&[(SECRET_FILE, &short)], Kind::Invalid, &short),
            (&[(SECRET_FILE, &endless)], Kind::Invalid, &endless),
            (&[(SECRET_FILE, &readable)], Kind::Denied, "chmod 600"),
            (&[(SECRET_FILE, "/nowhere/secret")], Kind::Invalid, "/nowhere/secret"),
            (&[(SECRET, LONG_ENOUGH), (SECRET_FILE, &short)], Kind::Invalid, "both"),
        ];
        for (variables, kind, culprit) in cases {
            let error = read(variables).unwrap_err();
            assert_eq!(*error.kind(), kind, "{error}");
            assert!(error.to_string().contains(culprit), "{error}");
            assert!(!error.to_string().contains("hunter2") && !error.to_string().contains(LONG_ENOUGH));
        }
    }

    #[test]
    fn debug_hides_it() {
        let shown = format!("{:?}", read(&[(SECRET, LONG_ENOUGH)]).unwrap());
        assert_eq!(shown, "Secret(hidden)");
    }

    #[test]
    fn made_secrets_are_long_and_differ() {
        let made = Secret::make();
        assert_eq!(made.as_value().len(), 64);
        assert_ne!(made, Secret::make());
        assert_eq!(read(&[(SECRET, made.as_value().to_str().unwrap())]).unwrap(), made);
    }

    #[test]
    fn without_a_secret_only_loopback_is_spoken() {
        let none = Secret::default();
        for near in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            none.permits(near.parse().unwrap(), "MASTER_ADDR").unwrap();
        }
        for far in ["10.0.0.1", "0.0.0.0", "::", "fd00::1", "::ffff:10.0.0.1"] {
            let far = far.parse().unwrap();
            let error = none.permits(far, "MASTER_ADDR").unwrap_err();
            assert_eq!(*error.kind(), Kind::Denied);
            assert!(error.to_string().contains(SECRET_FILE), "{error}");
            read(&[(SECRET, LONG_ENOUGH)]).unwrap().permits(far, "MASTER_ADDR").unwrap();
        }
    }
}
