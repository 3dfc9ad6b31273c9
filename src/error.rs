//! One error type: a kind to act on, a context to read, the cause behind it.
//!
//! It knows no errno, no HTTP status and no exit code: each border translates with one table of its own.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can act on. A kind exists only where some caller acts differently for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The thing named does not exist, or not in this Region or account.
    NotFound,
    /// Credentials or permissions are missing, or the snapshot's state forbids reading it.
    Denied,
    /// It exists and is not ready yet: asking again later can succeed.
    Pending,
    /// The service asked to slow down for longer than the deadline.
    Throttled,
    /// The service did not answer, or answered with its own failure, for longer than the deadline.
    Unavailable,
    /// What arrived contradicts its checksum, or contradicts what was told before.
    Corrupt,
    /// The request itself is wrong: an argument, an index, a name.
    Invalid,
    /// Two snapshots have no history in common: they can only be compared block by block.
    Unrelated,
    /// Something on this machine failed: a mountpoint, a file, a socket.
    Io,
    /// There is no room where something is to be written.
    NoSpace,
    /// Stopped because somebody said so; what was begun can be gone on with.
    Stopped,
}

/// An error: kind, one line that says what was being done and what is wrong with it, and the cause.
///
/// It is cheap to clone because one failed fetch answers all its waiters with the same error.
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    context: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into().into(),
            source: None,
        }
    }

    /// An error with the cause that a reader of the log wants to see behind it.
    pub fn with_source(
        kind: Kind,
        context: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            context: context.into().into(),
            source: Some(Arc::new(source)),
        }
    }

    /// What the system says of a file: `what` was being done to it (`cannot read`).
    pub fn of_file(path: &Path, what: &str, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Io,
        };
        Self::with_source(kind, format!("{what} {}", path.display()), error)
    }

    /// The same failure seen from one step further out: same kind, a new line in front.
    pub fn context(self, context: impl Into<String>) -> Self {
        let kind = self.kind;
        Self::with_source(kind, context, self)
    }

    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The whole chain on one line, outermost first, for a log or a terminal.
    pub fn chain(&self) -> String {
        let mut line = self.context.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // SDK errors repeat their cause in their own text: print each statement once.
            if !line.contains(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        line.replace('\n', " ")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_prints_each_statement_once_outermost_first() {
        let inner = std::io::Error::other("connection refused");
        let error = Error::with_source(Kind::Unavailable, "ListSnapshotBlocks", inner)
            .context("cannot open snap-1");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(
            error.chain(),
            "cannot open snap-1: ListSnapshotBlocks: connection refused"
        );
        let repeated = Error::new(Kind::Io, "disk on fire").context("fatal: disk on fire");
        assert_eq!(repeated.chain(), "fatal: disk on fire");
    }
}
