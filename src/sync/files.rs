//! The state files of a target, by name.

use std::path::{Path, PathBuf};

use super::digests::Digests;
use crate::files::{folder_of, with_ending};

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

    /// The progress of an unfinished run.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.file(".ebsfs-checkpoint")
    }

    /// The digests of the recorded content.
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

    /// The one of these two that the digests of the unfinished run do not have.
    pub(super) fn free_digests(&self, unfinished: Option<&Digests>) -> PathBuf {
        let [first, second] = self.next_digests();
        match unfinished.is_some_and(|digests| digests.path() == first) {
            true => second,
            false => first,
        }
    }

    /// The progress of a comparison.
    pub(super) fn compare(&self) -> PathBuf {
        self.file(".ebsfs-compare")
    }

    /// The lock file: at most one run for each target.
    pub(super) fn lock(&self) -> PathBuf {
        self.file(".ebsfs-lock")
    }

    /// Removes temporary files that killed runs have left. The caller has the lock.
    pub(super) fn remove_temporary(&self) {
        let Some(name) = self.stem.file_name().and_then(|name| name.to_str()) else {
            return;
        };
        let prefix = format!("{name}.ebsfs");
        let Ok(entries) = std::fs::read_dir(folder_of(&self.stem)) else {
            return;
        };
        for entry in entries.flatten() {
            let found = entry.file_name();
            let is_its = found
                .to_str()
                .is_some_and(|found| found.starts_with(&prefix) && found.ends_with(".tmp"));
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_its && is_file {
                // Where it cannot be removed it does no harm.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The prefix of the sink's own files.
    pub(super) fn sink(&self) -> PathBuf {
        self.checkpoint()
    }
}
