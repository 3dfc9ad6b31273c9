//! [`FsReader`]: what each filesystem implements, in the parser; [`DiskWindow`]: the bytes of its partition.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::remote::RemoteImage;
use super::wire::{FailureKind, NAME_LIMIT, is_name};
use super::{FsEntry, FsNode, FsRemarks, FsSpan, FsStream};

/// Entries of a page of a folder, about.
pub(super) const PAGE: usize = 1024;
/// Spans of a page, at most.
pub(super) const SPAN_PAGE: usize = 1024;
/// Streams of a page, at most.
pub(super) const STREAM_PAGE: usize = 256;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FsFailure {
    pub(super) kind: FailureKind,
    pub(super) text: String,
}

impl FsFailure {
    /// Whether the filesystem is to blame: what else is in it can still be read.
    pub(super) fn is_damage(&self) -> bool {
        self.kind == FailureKind::Damaged
    }

    pub(super) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    pub(super) fn damaged(text: impl Into<String>) -> Self {
        Self::new(FailureKind::Damaged, text)
    }

    pub(super) fn unsupported(text: impl Into<String>) -> Self {
        Self::new(FailureKind::Unsupported, text)
    }
}

impl From<io::Error> for FsFailure {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            // What lies outside the partition is asked for by a damaged filesystem only.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => FailureKind::Damaged,
            _ => FailureKind::Image,
        };
        Self::new(kind, error.to_string())
    }
}

pub(super) type FsResult<T> = std::result::Result<T, FsFailure>;

/// A page of something, and where the next one begins.
pub(super) type FsPage<T> = (Vec<T>, Option<u64>);

/// A name of an extended attribute, and its value.
pub(super) type NamedValue = (Vec<u8>, Vec<u8>);

/// Extended attributes, and how many more a file has that Linux could not hold.
pub(super) type FoundValues = (Vec<NamedValue>, u64);

/// An entry of a folder. A name that Linux does not allow is shown with question marks, and its file cannot be used.
pub(super) fn entry_of(name: &[u8], node: impl FnOnce() -> FsResult<FsNode>) -> FsEntry {
    if is_name(name) {
        return FsEntry {
            name: name.to_vec(),
            node: node().map_err(|failure| failure.text),
        };
    }
    let shown = name.iter().map(|byte| match byte {
        0 | b'/' => b'?',
        byte => *byte,
    });
    let shown: Vec<u8> = shown.take(NAME_LIMIT).collect();
    let shown = match is_name(&shown) {
        true => shown,
        false => b"?".to_vec(),
    };
    FsEntry {
        name: shown,
        node: Err("its name is not allowed on Linux".to_owned()),
    }
}

/// How an entry begins that stands for names.
const MISSING: &str = "names are missing: ";

/// The entry that stands for the names which a damaged part of a folder has: they are not left out without a trace.
pub(super) fn missing_names(failure: &FsFailure) -> FsEntry {
    FsEntry {
        name: b"?".to_vec(),
        node: Err(format!("{MISSING}{}", failure.text)),
    }
}

/// What is wrong with a filesystem of so many bytes in a window.
pub(super) fn cut_off(bytes: u64, window: &DiskWindow) -> Vec<String> {
    match bytes > window.size() {
        true => vec!["it is larger than its partition: what is behind the end is lost".to_owned()],
        false => Vec::new(),
    }
}

/// The failure of a request for a stream that a file does not have.
pub(super) fn no_stream() -> FsFailure {
    FsFailure::new(FailureKind::NotFound, "the file has no such stream")
}

/// A filesystem that is read. The disk can hold anything: each method ends, and none of them recurses by what the disk says.
pub(super) trait FsReader {
    /// `ext4`, `vfat`, `ntfs`.
    fn name(&self) -> &'static str;

    /// What a reader should know: a journal was replayed, something was left out; and what is wrong with the whole.
    fn remarks(&self) -> FsRemarks;

    /// The root folder.
    fn root(&mut self) -> FsResult<FsNode>;

    /// Entries of a folder from a cursor on (0 at first).
    fn list(&mut self, folder: u64, cursor: u64) -> FsResult<FsPage<FsEntry>>;

    /// What a name in a folder is.
    fn find(&mut self, folder: u64, name: &[u8]) -> FsResult<Option<FsNode>> {
        let (mut cursor, mut missing) = (0, None);
        loop {
            let (entries, next) = self.list(folder, cursor)?;
            for entry in entries {
                match entry.node {
                    // One of these names may be the wanted one.
                    Err(text) if text.starts_with(MISSING) => {
                        missing = Some(FsFailure::damaged(text));
                    }
                    node if entry.name == name => {
                        return node.map(Some).map_err(FsFailure::damaged);
                    }
                    _ => {}
                }
            }
            match next {
                Some(next) if next > cursor => cursor = next,
                _ => return missing.map_or(Ok(None), Err),
            }
        }
    }

    /// Where the bytes of a file are, from `offset` on, without gaps.
    fn spans(&mut self, file: u64, offset: u64) -> FsResult<FsPage<FsSpan>>;

    /// Bytes of a file that [`super::SpanPlace::Parser`] names: `len` of them, fewer at the end.
    fn content(&mut self, file: u64, offset: u64, len: usize) -> FsResult<Vec<u8>>;

    /// Named streams of a file, from the one of this number on (0 at first).
    fn streams(&mut self, _file: u64, _cursor: u64) -> FsResult<FsPage<FsStream>> {
        Ok((Vec::new(), None))
    }

    /// As [`FsReader::spans`], of a named stream.
    fn stream_spans(&mut self, _file: u64, _name: &[u8], _at: u64) -> FsResult<FsPage<FsSpan>> {
        Err(no_stream())
    }

    /// As [`FsReader::content`], of a named stream.
    fn stream_content(
        &mut self,
        _file: u64,
        _name: &[u8],
        _offset: u64,
        _len: usize,
    ) -> FsResult<Vec<u8>> {
        Err(no_stream())
    }

    /// Extended attributes.
    fn xattrs(&mut self, file: u64) -> FsResult<FoundValues>;
}

/// A range of the image: nothing outside of it can be read through it.
#[derive(Clone)]
pub(super) struct DiskWindow {
    image: Rc<RefCell<RemoteImage>>,
    start: u64,
    size: u64,
}

impl DiskWindow {
    pub(super) fn new(image: Rc<RefCell<RemoteImage>>, start: u64, size: u64) -> Self {
        Self { image, start, size }
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The byte of the image that is the byte `offset` of the window; none where fewer than `len` bytes of it follow.
    pub(super) fn in_image(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        (end <= self.size).then(|| self.start.checked_add(offset))?
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` outside the window; why the image cannot be read.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Some(at) = self.in_image(offset, buffer.len() as u64) else {
            let what = format!("byte {offset} is outside the partition");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        };
        self.image.borrow_mut().read_at(at, buffer)
    }

    /// `len` bytes from `offset`.
    ///
    /// # Errors
    /// As for [`DiskWindow::read_at`].
    pub(super) fn bytes_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// A window as a stream, for crates that read one.
pub(super) struct WindowStream {
    window: DiskWindow,
    position: u64,
}

impl WindowStream {
    pub(super) fn new(window: DiskWindow) -> Self {
        Self {
            window,
            position: 0,
        }
    }
}

impl io::Read for WindowStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.window.size.saturating_sub(self.position);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let wanted = buffer.get_mut(..len).unwrap_or_default();
        self.window.read_at(self.position, wanted)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl io::Seek for WindowStream {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let found = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.window.size.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let found = found.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a position before the start")
        })?;
        self.position = found;
        Ok(found)
    }
}

/// A little-endian number; 0 beyond the end.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// A little-endian number; 0 beyond the end.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A little-endian number; 0 beyond the end.
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A big-endian number; 0 beyond the end.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
