//! What the two processes send each other: frames of a length and a body, and values in them.
//!
//! The reader of a frame believes nothing: each length is compared with a limit and with the bytes that are there.

use super::{FsEntry, FsNode, FsRemarks, FsSpan, FsStream, FsTime, NodeKind, NodeTimes, SpanPlace};

/// Bytes of a frame, at most: a page of a folder whose links are all as long as they can be.
pub(super) const FRAME_LIMIT: usize = 32 << 20;
/// Bytes of the image that one frame asks for, at most.
pub(super) const IMAGE_LIMIT: u32 = 1 << 20;
/// Bytes of a name, at most: 255 UTF-16 units of NTFS are 765 bytes.
pub(super) const NAME_LIMIT: usize = 1024;
/// Bytes of a link's target, at most: what the kernel allows.
pub(super) const TARGET_LIMIT: usize = 4096;
/// Bytes of an extended attribute, at most: what the kernel allows.
pub(super) const VALUE_LIMIT: usize = 64 << 10;
/// Bytes of a message, at most.
pub(super) const TEXT_LIMIT: usize = 1024;
/// Messages about a disk or a filesystem, at most.
const MOST_REMARKS: u32 = 64;

/// The first byte of a frame from the parser.
pub(super) mod from_parser {
    /// It wants bytes of the image.
    pub(in crate::browse) const READ: u8 = 1;
    /// The answer to a request.
    pub(in crate::browse) const ANSWER: u8 = 2;
    /// The request failed.
    pub(in crate::browse) const FAILED: u8 = 3;
    /// Something for the log.
    pub(in crate::browse) const WARNING: u8 = 4;
}

/// The first byte of a frame to the parser.
pub(super) mod to_parser {
    /// Bytes of the image.
    pub(in crate::browse) const BYTES: u8 = 1;
    /// The image cannot be read there.
    pub(in crate::browse) const UNREADABLE: u8 = 2;
    /// The size of the image: find its partitions.
    pub(in crate::browse) const LAYOUT: u8 = 10;
    /// The size of the image, and the range of bytes whose filesystem is opened.
    pub(in crate::browse) const OPEN: u8 = 11;
    /// A page of a folder.
    pub(in crate::browse) const LIST: u8 = 12;
    /// A name in a folder.
    pub(in crate::browse) const FIND: u8 = 13;
    /// Where bytes of a file, or of a stream of it, are.
    pub(in crate::browse) const SPANS: u8 = 14;
    /// Bytes of a file, or of a stream of it.
    pub(in crate::browse) const CONTENT: u8 = 15;
    /// Extended attributes.
    pub(in crate::browse) const XATTRS: u8 = 16;
    /// A page of the names and sizes of a file's streams.
    pub(in crate::browse) const STREAMS: u8 = 17;
}

/// Why a request failed, as the parser sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// There is no such thing.
    NotFound,
    /// The filesystem contradicts itself.
    Damaged,
    /// The parser does not know this feature.
    Unsupported,
    /// The image could not be read.
    Image,
}

impl FailureKind {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::NotFound => 1,
            Self::Damaged => 2,
            Self::Unsupported => 3,
            Self::Image => 4,
        }
    }

    pub(super) fn of(code: u8) -> Option<Self> {
        [
            Self::NotFound,
            Self::Damaged,
            Self::Unsupported,
            Self::Image,
        ]
        .into_iter()
        .find(|kind| kind.code() == code)
    }
}

/// A frame under construction.
#[derive(Debug)]
pub(super) struct FrameWriter(Vec<u8>);

impl FrameWriter {
    pub(super) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    /// Bytes of the body so far.
    pub(super) fn len(&self) -> usize {
        self.0.len() - 4
    }

    /// The body so far.
    pub(super) fn body(&self) -> &[u8] {
        self.0.get(4..).unwrap_or_default()
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Bytes without their length: the frame ends with them.
    pub(super) fn raw(&mut self, value: &[u8]) {
        self.0.extend(value);
    }

    /// Bytes with their length, which the other side limits.
    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend(value);
    }

    /// A message, cut at [`TEXT_LIMIT`].
    pub(super) fn text(&mut self, value: &str) {
        let bytes = value.as_bytes();
        self.bytes(bytes.get(..TEXT_LIMIT).unwrap_or(bytes));
    }

    /// Messages, at most [`MOST_REMARKS`] of each kind.
    pub(super) fn remarks(&mut self, remarks: &FsRemarks) {
        for list in [&remarks.notes, &remarks.damage] {
            let count = list.len().min(MOST_REMARKS as usize);
            self.u32(u32::try_from(count).unwrap_or(0));
            list.iter().take(count).for_each(|text| self.text(text));
        }
    }

    fn time(&mut self, value: Option<FsTime>) {
        self.u8(value.is_some().into());
        if let Some(time) = value {
            self.u64(time.seconds.cast_unsigned());
            self.u32(time.nanoseconds);
        }
    }

    pub(super) fn node(&mut self, node: &FsNode) {
        self.u64(node.id);
        self.u8(node.kind.code());
        for value in [node.mode, node.uid, node.gid, node.links, node.streams] {
            self.u32(value);
        }
        self.u64(node.size);
        self.u32(node.device.0);
        self.u32(node.device.1);
        let times = &node.times;
        for time in [times.modified, times.accessed, times.changed, times.created] {
            self.time(time);
        }
        self.bytes(&node.target);
    }

    pub(super) fn entry(&mut self, entry: &FsEntry) {
        self.bytes(&entry.name);
        match &entry.node {
            Ok(node) => {
                self.u8(1);
                self.node(node);
            }
            Err(problem) => {
                self.u8(0);
                self.text(problem);
            }
        }
    }

    pub(super) fn stream(&mut self, stream: &FsStream) {
        self.bytes(&stream.name);
        self.u64(stream.size);
    }

    pub(super) fn span(&mut self, span: &FsSpan) {
        self.u64(span.offset);
        self.u64(span.len);
        match span.place {
            SpanPlace::Image(at) => {
                self.u8(0);
                self.u64(at);
            }
            SpanPlace::Hole => self.u8(1),
            SpanPlace::Parser => self.u8(2),
        }
    }

    /// The frame with its length.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.len()).unwrap_or(u32::MAX);
        if let Some(head) = self.0.first_chunk_mut::<4>() {
            *head = len.to_le_bytes();
        }
        self.0
    }
}

/// What is wrong with a frame: the other side broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BrokenFrame(pub(super) &'static str);

type Taken<T> = std::result::Result<T, BrokenFrame>;

/// The body of a frame that is read from its start.
#[derive(Debug)]
pub(super) struct FrameReader<'a>(&'a [u8]);

impl<'a> FrameReader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn take(&mut self, len: usize) -> Taken<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(BrokenFrame("a frame is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Taken<[u8; N]> {
        let taken = self.take(N)?;
        taken
            .first_chunk()
            .copied()
            .ok_or(BrokenFrame("a frame is too short"))
    }

    pub(super) fn u8(&mut self) -> Taken<u8> {
        Ok(u8::from_le_bytes(self.chunk()?))
    }

    pub(super) fn u32(&mut self) -> Taken<u32> {
        Ok(u32::from_le_bytes(self.chunk()?))
    }

    pub(super) fn u64(&mut self) -> Taken<u64> {
        Ok(u64::from_le_bytes(self.chunk()?))
    }

    /// Bytes with their length, at most `limit`.
    pub(super) fn bytes(&mut self, limit: usize) -> Taken<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > limit {
            return Err(BrokenFrame("a value is too long"));
        }
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Taken<String> {
        Ok(String::from_utf8_lossy(self.bytes(TEXT_LIMIT)?).into_owned())
    }

    pub(super) fn remarks(&mut self) -> Taken<FsRemarks> {
        let mut list = || -> Taken<Vec<String>> {
            let count = self.u32()?.min(MOST_REMARKS);
            (0..count).map(|_| self.text()).collect()
        };
        Ok(FsRemarks {
            notes: list()?,
            damage: list()?,
        })
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// # Errors
    /// When something is left.
    pub(super) fn end(&self) -> Taken<()> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(BrokenFrame("a frame is too long")),
        }
    }

    fn time(&mut self) -> Taken<Option<FsTime>> {
        if self.u8()? == 0 {
            return Ok(None);
        }
        let (seconds, nanoseconds) = (self.u64()?.cast_signed(), self.u32()?);
        if nanoseconds > 999_999_999 {
            return Err(BrokenFrame("a time has too many nanoseconds"));
        }
        Ok(Some(FsTime {
            seconds,
            nanoseconds,
        }))
    }

    pub(super) fn node(&mut self) -> Taken<FsNode> {
        let id = self.u64()?;
        let kind = NodeKind::of(self.u8()?).ok_or(BrokenFrame("a file has no known type"))?;
        let (mode, uid, gid) = (self.u32()?, self.u32()?, self.u32()?);
        let (links, streams) = (self.u32()?, self.u32()?);
        let size = self.u64()?;
        let device = (self.u32()?, self.u32()?);
        let times = NodeTimes {
            modified: self.time()?,
            accessed: self.time()?,
            changed: self.time()?,
            created: self.time()?,
        };
        let target = self.bytes(TARGET_LIMIT)?.to_vec();
        if size > i64::MAX.unsigned_abs() {
            return Err(BrokenFrame("a file is larger than any file can be"));
        }
        if target.contains(&0) {
            return Err(BrokenFrame("the target of a link has a NUL"));
        }
        Ok(FsNode {
            id,
            kind,
            mode: mode & 0o7777,
            uid,
            gid,
            links,
            streams,
            size,
            device,
            times,
            target,
        })
    }

    pub(super) fn entry(&mut self) -> Taken<FsEntry> {
        let name = self.bytes(NAME_LIMIT)?.to_vec();
        if !is_name(&name) {
            return Err(BrokenFrame("a folder has a name that no file can have"));
        }
        let node = match self.u8()? {
            0 => Err(self.text()?),
            _ => Ok(self.node()?),
        };
        Ok(FsEntry { name, node })
    }

    pub(super) fn stream(&mut self) -> Taken<FsStream> {
        let name = self.bytes(NAME_LIMIT)?.to_vec();
        let size = self.u64()?;
        // The name may have a slash: it is only shown, and refused as the name of a file.
        if name.is_empty() || name.contains(&0) {
            return Err(BrokenFrame("a stream has a name that no stream can have"));
        }
        if size > i64::MAX.unsigned_abs() {
            return Err(BrokenFrame("a stream is larger than any file can be"));
        }
        Ok(FsStream { name, size })
    }

    pub(super) fn span(&mut self) -> Taken<FsSpan> {
        let (offset, len) = (self.u64()?, self.u64()?);
        let place = match self.u8()? {
            0 => SpanPlace::Image(self.u64()?),
            1 => SpanPlace::Hole,
            2 => SpanPlace::Parser,
            _ => return Err(BrokenFrame("bytes of a file are at no known place")),
        };
        Ok(FsSpan { offset, len, place })
    }
}

/// Whether this can be one name in a folder.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_LIMIT
        && !name.contains(&b'/')
        && !name.contains(&0)
        && name != b"."
        && name != b".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FsNode {
        FsNode {
            id: 7,
            kind: NodeKind::Link,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            links: 3,
            streams: 2,
            size: 9,
            device: (8, 1),
            times: NodeTimes {
                modified: Some(FsTime {
                    seconds: -5,
                    nanoseconds: 999_999_999,
                }),
                created: Some(FsTime {
                    seconds: 1 << 33,
                    nanoseconds: 0,
                }),
                ..NodeTimes::default()
            },
            target: b"/etc/\xff".to_vec(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let entry = FsEntry {
            name: b"a\xffb".to_vec(),
            node: Ok(sample()),
        };
        let broken = FsEntry {
            name: b"x".to_vec(),
            node: Err("inode 5 is damaged".to_owned()),
        };
        let span = FsSpan {
            offset: 1,
            len: 2,
            place: SpanPlace::Image(3),
        };
        let stream = FsStream {
            name: b"a/b".to_vec(),
            size: 1 << 40,
        };
        let mut frame = FrameWriter::new(from_parser::ANSWER);
        frame.entry(&entry);
        frame.entry(&broken);
        frame.span(&span);
        frame.stream(&stream);
        let bytes = frame.finish();
        let (head, body) = bytes.split_at(4);
        assert_eq!(head, u32::try_from(body.len()).unwrap().to_le_bytes());
        let mut reader = FrameReader::new(body);
        assert_eq!(reader.u8(), Ok(from_parser::ANSWER));
        assert_eq!(reader.entry(), Ok(entry));
        assert_eq!(reader.entry(), Ok(broken));
        assert_eq!(reader.span(), Ok(span));
        assert_eq!(reader.stream(), Ok(stream));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn a_name_is_one_component() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'a'; 1025]] {
            assert!(!is_name(name), "{name:?}");
            let mut frame = FrameWriter::new(0);
            frame.bytes(name);
            frame.u8(0);
            frame.text("");
            let bytes = frame.finish();
            let mut reader = FrameReader::new(&bytes[5..]);
            assert!(reader.entry().is_err());
        }
        for name in [&b"..."[..], b"a b", b"\xff", b"-", b"\n"] {
            assert!(is_name(name), "{name:?}");
        }
    }

    #[test]
    fn any_bytes_are_a_value_or_a_broken_frame() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut frame = FrameWriter::new(0);
        frame.node(&sample());
        let good = frame.finish()[5..].to_vec();
        for _ in 0..5_000 {
            let mut bytes = good[..random.usize(..=good.len())].to_vec();
            for _ in 0..random.usize(..4) {
                if let Some(byte) = random.choice(&mut bytes) {
                    *byte = 0xff;
                }
            }
            if let Ok(node) = FrameReader::new(&bytes).node() {
                assert!(node.size <= i64::MAX.unsigned_abs() && node.target.len() <= TARGET_LIMIT);
            }
            let _ = FrameReader::new(&bytes).entry();
            let _ = FrameReader::new(&bytes).span();
            if let Ok(stream) = FrameReader::new(&bytes).stream() {
                assert!(stream.size <= i64::MAX.unsigned_abs() && !stream.name.contains(&0));
            }
        }
    }
}
