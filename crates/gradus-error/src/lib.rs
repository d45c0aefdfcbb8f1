//! The one vocabulary of failures that every room of Gradus speaks.
//!
//! An error has a *kind*, which says what the caller can do; a *context*, a sentence that names the culprit and the
//! mend, with outer sentences before inner ones; and perhaps a *source*, the foreign error beneath it. It stands on a
//! floor of its own below all others: were each crate to define the same three fields, nothing could be matched
//! across two of them, and the exit codes would be decided in eight places.

use std::error::Error as StdError;
use std::fmt;

/// What the caller can do about a failure. Tests match kinds, never texts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The input is wrong: mend the setting, file or argument that the message names.
    Invalid,
    /// Not allowed: the message says who and what.
    Denied,
    /// Try again: a peer or server did not answer (yet).
    Unavailable,
    /// A budget, disk or memory is full.
    Exhausted,
    /// A peer is gone: form the group again without it.
    PeerLost {
        /// The rank that was lost.
        rank: usize,
    },
    /// Stop: a newer epoch of the group has taken over.
    Fenced,
    /// The data are damaged: do not use them.
    Corrupt,
    /// The other side, or this object, was closed in good order.
    Closed,
    /// A bug in Gradus: report it.
    Internal,
}

/// A failure: what can be done, who is the culprit, what lies beneath.
pub struct Error {
    kind: Kind,
    context: String,
    told: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// A result whose failure is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        $($(#[$doc])* pub fn $name(context: impl Into<String>) -> Self { Self::new(Kind::$kind, context) })*
    };
}

impl Error {
    /// A failure of `kind`; `context` names the culprit and the mend.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), told: false, source: None }
    }

    constructors! {
        /// Short for [`Kind::Invalid`].
        invalid => Invalid;
        /// Short for [`Kind::Denied`].
        denied => Denied;
        /// Short for [`Kind::Unavailable`].
        unavailable => Unavailable;
        /// Short for [`Kind::Exhausted`].
        exhausted => Exhausted;
        /// Short for [`Kind::Corrupt`].
        corrupt => Corrupt;
        /// Short for [`Kind::Closed`].
        closed => Closed;
        /// Short for [`Kind::Internal`].
        internal => Internal;
    }

    /// Short for [`Kind::PeerLost`].
    pub fn peer_lost(rank: usize, context: impl Into<String>) -> Self {
        Self::new(Kind::PeerLost { rank }, context)
    }

    /// A failure of the operating system while doing what `context` says; its kind follows from the system's.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        if let Some(mend) = source.raw_os_error().and_then(exhausted_mend) {
            return Self::new(Kind::Exhausted, format!("{} ({mend})", context.into())).with_source(source);
        }
        let kind = match source.kind() {
            Io::NotFound | Io::InvalidInput | Io::IsADirectory | Io::NotADirectory | Io::AlreadyExists => {
                Kind::Invalid
            }
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Kind::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory | Io::FileTooLarge => Kind::Exhausted,
            Io::InvalidData | Io::UnexpectedEof => Kind::Corrupt,
            _ => Kind::Unavailable,
        };
        Self::new(kind, context).with_source(source)
    }

    /// The same failure with the foreign error beneath it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same failure, which is another's: who failed first has told us, and says so itself where a person can see it.
    #[must_use]
    pub fn told(mut self) -> Self {
        self.told = true;
        self
    }

    /// Whether another has told us of this failure.
    pub fn is_told(&self) -> bool {
        self.told
    }

    /// The same failure, seen from further out: `outer` comes before what was said so far.
    #[must_use]
    pub fn within(mut self, outer: impl fmt::Display) -> Self {
        self.context = format!("{outer}: {}", self.context);
        self
    }

    /// What the caller can do.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The exit code of a program that ends because of this: 2 when the input is to be mended, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        if self.kind == Kind::Invalid { 2 } else { 1 }
    }
}

/// What to do about an exhausted table of the system, which the standard library has no kind for.
fn exhausted_mend(code: i32) -> Option<&'static str> {
    // Linux numbers them alike on every architecture: include/uapi/asm-generic/errno-base.h and errno.h.
    match code {
        ENFILE => Some("the system's files are all open: raise fs.file-max, or run fewer processes"),
        EMFILE => Some("this process may open no more files: raise its limit (ulimit -n)"),
        ENOBUFS => {
            Some("the system has no memory for sockets: raise net.core limits, or run fewer processes")
        }
        _ => None,
    }
}

const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOBUFS: i32 = 105;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if self.kind == Kind::Internal {
            f.write_str(" (this is a bug in Gradus: please report it)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Adds what was being done to a failure of the operating system.
pub trait IoContext<T> {
    /// Turns the system's error into an [`Error`] whose context is made by `context`.
    ///
    /// # Errors
    /// The failure itself, with its kind derived from the system's.
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::io(context(), error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_reads_from_the_outside_in() {
        let error = Error::io("cannot read a.txt", std::io::Error::from(std::io::ErrorKind::NotFound))
            .within("preparing data");
        assert_eq!(*error.kind(), Kind::Invalid);
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("preparing data: cannot read a.txt: "));
    }

    #[test]
    fn too_many_open_files_are_exhaustion_with_a_mend() {
        let error = Error::io("accepting", std::io::Error::from_raw_os_error(EMFILE));
        assert_eq!(*error.kind(), Kind::Exhausted);
        assert!(error.to_string().contains("ulimit -n"), "{error}");
    }

    #[test]
    fn a_full_disk_is_exhaustion_and_exits_with_one() {
        let error = Error::io("saving", std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(*error.kind(), Kind::Exhausted);
        assert_eq!(error.exit_code(), 1);
    }
}
