//! [`CopyReport`]: what was copied, and what was not.

use super::super::lines::quoted;
use crate::error::{Error, Remedy};

/// Problems that are listed; the others are only counted.
const MOST_PROBLEMS: usize = 20;

/// What was copied, and what could not be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CopyReport {
    pub(crate) files: u64,
    pub(crate) folders: u64,
    /// Links, devices, pipes and sockets.
    pub(crate) others: u64,
    /// Bytes of data; holes are not counted.
    pub(crate) bytes: u64,
    /// Files whose owner could not be set.
    pub(crate) owners_lost: u64,
    /// Files without a set-user-id or set-group-id bit that they had.
    pub(crate) modes_lost: u64,
    /// Files whose mode the destination does not hold.
    pub(crate) permissions_lost: u64,
    /// Extended attributes that could not be set.
    pub(crate) xattrs_lost: u64,
    /// Named streams that were written as files.
    pub(crate) streams: u64,
    /// Named streams that are neither attributes nor files of the copy.
    pub(crate) streams_lost: u64,
    /// Devices that only root can make.
    pub(crate) devices_lost: u64,
    /// Files with more names than are remembered, or than the destination holds: copied more than once.
    pub(crate) links_lost: u64,
    /// Files that could not be read or written.
    pub(crate) failed: u64,
    /// Of these, files whose destination exists and must not be replaced.
    pub(crate) occupied: u64,
    /// The first of these and of the lost streams.
    pub(crate) problems: Vec<String>,
}

impl CopyReport {
    /// Counts a file or stream that could not be copied.
    pub(super) fn fail(&mut self, path: &[u8], error: &Error) {
        self.failed += 1;
        self.occupied += u64::from(matches!(error.remedy(), Some(Remedy::ReplaceFiles)));
        self.name(path, &error.chain());
    }

    /// Counts streams of a file that were not kept. `path` is that of the stream, or for several streams that of the file.
    pub(super) fn lose_streams(&mut self, path: &[u8], count: u32, why: &str) {
        if count > 0 {
            self.streams_lost += u64::from(count);
            self.name(path, why);
        }
    }

    fn name(&mut self, path: &[u8], why: &str) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(format!("{}: {why}", quoted(path)));
        }
    }
}
