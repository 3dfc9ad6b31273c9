//! The state files of a target, by name.

use std::path::{Path, PathBuf};

use crate::files::with_ending;

/// The state files of one target. Beside an image, or flat in the state directory.
#[derive(Clone, Debug)]
pub(super) struct StateFiles {
    stem: PathBuf,
}

impl StateFiles {
    pub(super) fn of(stem: &Path) -> Self {
        Self {
            stem: stem.to_owned(),
        }
    }

    fn file(&self, ending: &str) -> PathBuf {
        with_ending(&self.stem, ending)
    }

    /// What the target holds.
    pub(super) fn record(&self) -> PathBuf {
        self.file(".ebsfs.json")
    }

    /// How far an unfinished run is.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.file(".ebsfs-checkpoint")
    }

    /// The digests of what the record says.
    pub(super) fn digests(&self) -> PathBuf {
        self.file(".ebsfs-digests")
    }

    /// The digests of an unfinished run. Two names, so that a run that takes over from another one has its own before it drops
    /// the other's.
    pub(super) fn next_digests(&self) -> [PathBuf; 2] {
        [
            self.file(".ebsfs-digests-next"),
            self.file(".ebsfs-digests-other"),
        ]
    }

    /// How far a comparison is.
    pub(super) fn compare(&self) -> PathBuf {
        self.file(".ebsfs-compare")
    }

    /// One run a target.
    pub(super) fn lock(&self) -> PathBuf {
        self.file(".ebsfs-lock")
    }

    /// Files of the sink's own begin with this.
    pub(super) fn sink(&self) -> PathBuf {
        self.checkpoint()
    }
}
