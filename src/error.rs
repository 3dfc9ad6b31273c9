//! One error type: a kind to act on, a context to read, the cause behind it.
//!
//! It knows no errno and no HTTP status: each border translates with one table of its own. The table of exit codes is here.

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
    /// Data contradicts its checksum, or a reply contradicts an earlier one.
    Corrupt,
    /// The request itself is wrong: an argument, an index, a name.
    Invalid,
    /// Two snapshots have no history in common: they can only be compared block by block.
    Unrelated,
    /// Something on this machine failed: a mountpoint, a file, a socket.
    Io,
    /// The filesystem or device that is written has no space left.
    NoSpace,
    /// Stopped by a signal; the same command resumes.
    Stopped,
    /// Another run works on the same target or uses the same cache folder: asking again later can succeed.
    Busy,
    /// The evidence contradicts the request, or is not enough for it: a person must decide.
    Undecided,
    /// The copy is done, and some of its blocks are zero and marked because their source is damaged.
    Marked,
    /// A recovery point is missing, not usable or older than it may be: time and the next run can mend it.
    Late,
}

/// Exit codes by kind: the one table, used by every verb. `--help` and docs/troubleshooting.md print it.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done"),
    (1, "this machine (mountpoint, file, socket)"),
    (2, "wrong arguments"),
    (3, "not found"),
    (
        4,
        "not allowed (credentials, permissions, state of the snapshot)",
    ),
    (5, "not ready yet"),
    (6, "throttled"),
    (7, "no answer from the service"),
    (8, "corrupt"),
    (9, "no room on the target"),
    (10, "busy: another run works on the target"),
    (11, "a person must decide"),
    (12, "done, with damaged blocks marked"),
    (13, "a recovery point is missing, late or not usable"),
    (130, "stopped by a signal"),
];

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 15] = [
        Self::NotFound,
        Self::Denied,
        Self::Pending,
        Self::Throttled,
        Self::Unavailable,
        Self::Corrupt,
        Self::Invalid,
        Self::Unrelated,
        Self::Io,
        Self::NoSpace,
        Self::Stopped,
        Self::Busy,
        Self::Undecided,
        Self::Marked,
        Self::Late,
    ];

    /// The exit code of a program that ends with an error of this kind: see [`EXIT_CODES`].
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Io => 1,
            Self::Invalid | Self::Unrelated => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Pending => 5,
            Self::Throttled => 6,
            Self::Unavailable => 7,
            Self::Corrupt => 8,
            Self::NoSpace => 9,
            Self::Busy => 10,
            Self::Undecided => 11,
            Self::Marked => 12,
            Self::Late => 13,
            Self::Stopped => 130,
        }
    }

    /// Its name in lower case with underscores, for counts by kind.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Pending => "pending",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
            Self::Unrelated => "unrelated",
            Self::Io => "io",
            Self::NoSpace => "no_space",
            Self::Stopped => "stopped",
            Self::Busy => "busy",
            Self::Undecided => "undecided",
            Self::Marked => "marked",
            Self::Late => "late",
        }
    }

    /// Which of several failures of one command gives its exit code, the lowest first: stopped, then a fault (the first
    /// target's), then a decision that a person must take, then busy, then marked damage, then a late recovery point.
    pub(crate) fn rank(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Undecided => 2,
            Self::Busy => 3,
            Self::Marked => 4,
            Self::Late => 5,
            _ => 1,
        }
    }
}

/// What a person can do about an error, as a value: `cli` words it as an option or a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Drop the progress of the unfinished run and copy from the start.
    Restart,
    /// Allow this target to be overwritten, named by the token.
    Overwrite(String),
    /// Write over what something else has written to the target.
    DiscardForeignWrites,
    /// Confirm that the target holds this snapshot.
    Trust(String),
    /// Copy every block, without a base.
    CopyAll,
    /// Copy what changed since whatever base the target is proven to hold.
    BaseAuto,
    /// Encrypt the target, or allow a copy that is not encrypted.
    AllowPlaintext,
    /// Mark damaged blocks and continue.
    MarkDamage,
    /// Compare the target with a snapshot itself: this one, or one that a person names.
    Fetch(Option<String>),
    /// Replace the record that is there.
    ReplaceRecord,
    /// Compare two snapshots without a common history block by block.
    CompareUnrelated,
    /// Attach a filesystem with an overlay, in which its journal is replayed.
    ReplayInOverlay,
    /// Attach a filesystem without an overlay.
    NoOverlay,
    /// Run the same command later.
    TryLater,
    /// Make a repository at this address.
    InitRepository(String),
    /// Prune a repository without this manifest, which its store does not show any more.
    AcceptMissing {
        /// Where the repository is.
        repository: String,
        /// The manifest's name.
        manifest: String,
    },
    /// Prune a repository and forget this run, which is not resumed.
    ForgetRun {
        /// Where the repository is.
        repository: String,
        /// The run's id.
        run: String,
    },
    /// Name the partition that is read.
    NamePartition,
    /// Replace files that are there.
    ReplaceFiles,
    /// Name another directory for the overlays of a drill.
    NameScratch,
    /// Keep what the booted machine prints.
    KeepConsole,
    /// Give the booted machine less memory.
    GuestMemory,
    /// Boot the disks.
    BootDisks,
    /// Write each stream of a file as a file of its own.
    StreamFiles,
    /// Allow a retention to remove all snapshots of a volume.
    RemoveAll,
    /// Run this cycle again: it adopts the snapshots that were made.
    AdoptCycle(String),
    /// Remove the pin of this snapshot of a repository.
    Unpin(String),
    /// Choose a Region of AWS, by what is named here (an option) or otherwise.
    GiveRegion(String),
    /// Give credentials of AWS, by a profile that is named by this (an option) or otherwise.
    GiveCredentials(String),
    /// Let a check write.
    AllowWrites,
    /// Anything else: a sentence that names no option of the command line.
    Do(String),
}

/// An error: kind, one line that says what was being done and what is wrong with it, and the cause.
///
/// It is cheap to clone because one failed fetch answers all its waiters with the same error.
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    context: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    remedy: Option<Arc<Remedy>>,
}

impl Error {
    /// An error without a deeper cause.
    pub(crate) fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into().into(),
            source: None,
            remedy: None,
        }
    }

    /// An error with the cause that a reader of the log wants to see behind it.
    pub(crate) fn with_source(
        kind: Kind,
        context: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            context: context.into().into(),
            source: Some(Arc::new(source)),
            remedy: None,
        }
    }

    /// The same error with what a person can do about it.
    #[must_use]
    pub(crate) fn with_remedy(mut self, remedy: Remedy) -> Self {
        self.remedy = Some(Arc::new(remedy));
        self
    }

    /// The same error of another kind.
    #[must_use]
    pub(crate) fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> Option<&Remedy> {
        self.remedy.as_deref()
    }

    /// The system's error about a file: `what` was being done to it (`cannot read`).
    pub(crate) fn of_file(path: &Path, what: &str, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Io,
        };
        Self::with_source(kind, format!("{what} {}", path.display()), error)
    }

    /// The same failure seen from one step further out: same kind, a new line in front.
    pub(crate) fn context(self, context: impl Into<String>) -> Self {
        let (kind, remedy) = (self.kind, self.remedy.clone());
        Self {
            remedy,
            ..Self::with_source(kind, context, self)
        }
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
    fn every_kind_has_an_exit_code_of_the_table() {
        use Kind::{Busy, Corrupt, Late, Marked, Stopped, Undecided};
        for kind in Kind::ALL {
            let code = kind.exit_code();
            assert!(EXIT_CODES.iter().any(|(listed, _)| *listed == code));
        }
        let mut names = Kind::ALL.map(Kind::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        // 130, else the first target's 1 to 9, else 11, 10, 12, 13.
        let mut order = [Late, Marked, Busy, Undecided, Corrupt, Stopped];
        order.sort_by_key(|kind| kind.rank());
        assert_eq!(order, [Stopped, Corrupt, Undecided, Busy, Marked, Late]);
    }

    #[test]
    fn a_remedy_survives_context() {
        let error = Error::new(Kind::Undecided, "a").with_remedy(Remedy::Restart);
        assert_eq!(error.context("b").remedy(), Some(&Remedy::Restart));
    }

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
