//! The files in a disk image, without root and without a mount by the kernel.
//!
//! Two processes do it. The *parser* reads the filesystem: it is this program once more, started with nothing but one socket,
//! and it gives up what it could do on this machine ([`sandbox`]). The *session* is in the process that has the credentials: it
//! reads blocks of the image for the parser, and believes nothing that it says ([`wire`]).
//!
//! ```text
//!  session     starts the parser, asks it, reads the image for it, ends it when it is silent or busy for too long; restart: the
//!              next parser, for a mount
//!  view        what a session shows: partitions, folders, bytes of files; paths are looked up name by name
//!  walk        all files below a folder, in bounded memory
//!  copy        files onto this machine: only below the destination, never through a link
//!  changes     which files lie in changed blocks
//!  parser      the loop of the parser; reader: what each filesystem implements
//!  ext, fat, ntfs   the filesystems
//!  lines       how names, modes and times are shown
//! ```
//!
//! # Names
//! *Node*: a file, folder or anything else with metadata; its *id* is the filesystem's own (an inode number, a record of the
//! MFT). *Span*: bytes of a file that follow each other, and where they are: in the image, in a hole, or only known to the parser
//! (compressed, or in an inode). The session reads what is in the image itself, so a large file never passes through the parser.
//!
//! # Rules
//! Links are shown and never followed. A name is one component, never `.` or `..`. What the parser says is limited in size and
//! number; a folder within itself is an error, and so is a tree deeper than [`MOST_DEPTH`].

mod changes;
mod copy;
mod ext;
mod fat;
mod lines;
mod ntfs;
mod parser;
mod reader;
mod remote;
mod sandbox;
mod session;
mod view;
mod walk;
mod wire;

pub(crate) use changes::{ChangeKind, FileChange, TreeChanges};
pub(crate) use copy::{CopyOptions, CopyReport, copy_out};
pub(crate) use lines::{body_line, mode_text, quoted, shown_time, utf8_or_hex};
pub(crate) use parser::{is_called, parser_main};
pub(crate) use session::{RestartLimit, SessionLimits};
pub(crate) use view::{FileReading, FileView, FoundPath, stream_path};
pub(crate) use walk::{TreeWalk, WalkItem};

/// Folders within folders, at most. Linux has no limit; a path of 4,096 bytes has 2,048 folders.
pub(crate) const MOST_DEPTH: usize = 512;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Regular,
    Folder,
    Link,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl NodeKind {
    /// All kinds, with the code of each and its letter in `ls -l`.
    const ALL: [(Self, u8, char); 7] = [
        (Self::Regular, 8, '-'),
        (Self::Folder, 4, 'd'),
        (Self::Link, 10, 'l'),
        (Self::CharDevice, 2, 'c'),
        (Self::BlockDevice, 6, 'b'),
        (Self::Fifo, 1, 'p'),
        (Self::Socket, 12, 's'),
    ];

    /// The type as the upper four bits of a mode.
    fn code(self) -> u8 {
        let found = Self::ALL.iter().find(|(kind, ..)| *kind == self);
        found.map_or(0, |(_, code, _)| *code)
    }

    fn of(code: u8) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, known, _)| *known == code);
        found.map(|(kind, ..)| *kind)
    }

    /// Its letter in `ls -l`.
    pub(crate) fn letter(self) -> char {
        let found = Self::ALL.iter().find(|(kind, ..)| *kind == self);
        found.map_or('?', |(_, _, letter)| *letter)
    }

    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Regular => "file",
            Self::Folder => "directory",
            Self::Link => "symlink",
            Self::CharDevice => "char_device",
            Self::BlockDevice => "block_device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// An instant of a filesystem, since 1970 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FsTime {
    pub(crate) seconds: i64,
    /// Less than 10^9.
    pub(crate) nanoseconds: u32,
}

/// The times of a node, as far as the filesystem has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeTimes {
    pub(crate) modified: Option<FsTime>,
    pub(crate) accessed: Option<FsTime>,
    /// When the metadata changed.
    pub(crate) changed: Option<FsTime>,
    pub(crate) created: Option<FsTime>,
}

/// The metadata of a file, a folder or anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FsNode {
    /// The filesystem's own number.
    pub(crate) id: u64,
    pub(crate) kind: NodeKind,
    /// Permissions, set-user-id and the like: the lower 12 bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names of it.
    pub(crate) links: u32,
    /// Named streams that it has besides its data; only NTFS has them.
    pub(crate) streams: u32,
    /// Bytes, at most 2^63 - 1.
    pub(crate) size: u64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    pub(crate) times: NodeTimes,
    /// Where a link points, as it is on the disk.
    pub(crate) target: Vec<u8>,
}

/// A named stream of a file or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FsStream {
    /// Without the colon before it.
    pub(crate) name: Vec<u8>,
    /// Bytes, at most 2^63 - 1.
    pub(crate) size: u64,
}

/// Bytes that are read: the data of a file, or one of its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FsData {
    /// The id of the file.
    pub(crate) file: u64,
    /// The name of the stream; empty: the data itself.
    pub(crate) stream: Vec<u8>,
    pub(crate) size: u64,
}

impl FsNode {
    /// The data of the file.
    pub(crate) fn data(&self) -> FsData {
        FsData {
            file: self.id,
            stream: Vec::new(),
            size: self.size,
        }
    }

    /// One of its streams.
    pub(crate) fn data_of(&self, stream: &FsStream) -> FsData {
        FsData {
            file: self.id,
            stream: stream.name.clone(),
            size: stream.size,
        }
    }
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FsEntry {
    /// One component, in the filesystem's own bytes (NTFS and FAT: UTF-8).
    pub(crate) name: Vec<u8>,
    /// What it names, or what is wrong with it.
    pub(crate) node: std::result::Result<FsNode, String>,
}

/// What there is to say of a disk or a filesystem as a whole: sentences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FsRemarks {
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
    /// What is wrong with it.
    pub(crate) damage: Vec<String>,
}

/// Where bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanPlace {
    /// At this byte of the image.
    Image(u64),
    /// They read as zeroes.
    Hole,
    /// Only the parser can tell them.
    Parser,
}

impl SpanPlace {
    /// Whether the byte `at` of the image is the one behind `len` bytes here.
    fn follows(self, len: u64, at: u64) -> bool {
        match self {
            Self::Image(start) => start.checked_add(len) == Some(at),
            Self::Hole | Self::Parser => false,
        }
    }
}

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FsSpan {
    /// The first byte within the file.
    pub(crate) offset: u64,
    /// Bytes, more than 0.
    pub(crate) len: u64,
    pub(crate) place: SpanPlace,
}

#[cfg(test)]
mod tests;
