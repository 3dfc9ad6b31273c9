//! The values that `stat` shows, and the entries of a folder.

use std::time::SystemTime;

use crate::block::BLOCK_SIZE;

/// Owner and permissions of all files of a mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    /// The owner's user id.
    pub(crate) uid: u32,
    /// The owner's group id.
    pub(crate) gid: u32,
    /// Permissions of files, read bits only (at most 0o444). Each read bit also permits to search folders.
    pub(crate) mode: u16,
}

/// What kind of file an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) enum FileKind {
    Folder,
    Regular,
    Link,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Attributes {
    pub(in crate::fs) ino: u64,
    pub(in crate::fs) kind: FileKind,
    pub(in crate::fs) size: u64,
    /// Allocated space in units of 512 bytes.
    pub(in crate::fs) blocks: u64,
    pub(in crate::fs) mode: u16,
    pub(in crate::fs) time: SystemTime,
    /// Whether no value can change.
    pub(in crate::fs) fixed: bool,
}

impl Attributes {
    pub(super) fn folder(ino: u64, ownership: Ownership, time: SystemTime) -> Self {
        let read = ownership.mode & 0o444;
        Self {
            ino,
            kind: FileKind::Folder,
            size: 0,
            blocks: 0,
            mode: read | read >> 2,
            time,
            fixed: false,
        }
    }

    /// A file of `size` bytes, `held` of which are not holes.
    pub(super) fn regular(
        ino: u64,
        ownership: Ownership,
        (size, held): (u64, u64),
        time: SystemTime,
        fixed: bool,
    ) -> Self {
        Self {
            ino,
            kind: FileKind::Regular,
            size,
            blocks: held.div_ceil(512),
            mode: ownership.mode & 0o444,
            time,
            fixed,
        }
    }

    pub(super) fn link(ino: u64, target: &str, time: SystemTime) -> Self {
        Self {
            ino,
            kind: FileKind::Link,
            size: target.len() as u64,
            blocks: 0,
            mode: 0o777,
            time,
            fixed: false,
        }
    }
}

/// One line of a folder.
#[derive(Clone, Debug)]
pub(in crate::fs) struct FolderEntry {
    pub(in crate::fs) ino: u64,
    pub(in crate::fs) kind: FileKind,
    pub(in crate::fs) name: String,
}

impl FolderEntry {
    pub(in crate::fs) fn new(ino: u64, kind: FileKind, name: &str) -> Self {
        Self {
            ino,
            kind,
            name: name.to_owned(),
        }
    }
}

/// Bytes held; if unknown, all but one block. Programs that compare this with the size then look for holes, and none takes the
/// file for empty, as GNU tar does at 0.
pub(super) fn held_bytes(size: u64, full_size: Option<u64>) -> u64 {
    let held = full_size.unwrap_or_else(|| {
        size.saturating_sub(u64::from(BLOCK_SIZE))
            .max(u64::from(BLOCK_SIZE))
    });
    held.min(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_held_are_never_0_when_unknown() {
        assert_eq!(held_bytes(1 << 30, Some(1 << 20)), 1 << 20);
        assert_eq!(held_bytes(1 << 30, Some(0)), 0);
        let unknown = held_bytes(1 << 30, None);
        assert!(unknown > 0 && unknown < 1 << 30);
    }
}
