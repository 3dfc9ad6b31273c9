//! [`FileView`]: the partitions of an image, and the files of one of them.

mod ahead;
mod partitions;
mod paths;
mod spans;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;

use super::lines::quoted;
use super::reader::NamedValue;
use super::session::{
    FsRequest, LastingSession, ParserSession, RestartLimit, SessionLimits, SessionStart,
};
use super::wire::{FrameReader, FrameWriter, NAME_LIMIT, VALUE_LIMIT, is_name, to_parser};
use super::{FsData, FsEntry, FsNode, FsRemarks, FsSpan, FsStream, NodeKind, SpanPlace};
use crate::block::{Block, ZEROES};
use crate::error::{Error, Kind, Result};
use crate::source::BlockSource;
use ahead::ReadSequences;
pub(crate) use ahead::{BlocksAhead, FileReading, SpanPage};
pub(crate) use partitions::ViewPartition;
use partitions::choose;
pub(crate) use paths::{FoundPath, stream_path};
use spans::{FoundData, check_spans};

/// Partitions of an image, at most.
const MOST_PARTITIONS: u32 = 256;
/// Items of a page, at most: a frame holds no more.
const MOST_ITEMS: u32 = 1 << 17;
/// Streams of a file, at most: its attributes are described in at most 256 KiB.
const MOST_STREAMS: usize = 1 << 16;
/// Bytes of a file that are read at once: 16 blocks in flight.
pub(super) const PIECE: u64 = 8 << 20;

/// The bytes of an image, read in exactly the blocks that hold them.
pub(super) struct ImageBytes {
    blocks: Arc<dyn BlockSource>,
}

impl ImageBytes {
    pub(super) fn new(blocks: Arc<dyn BlockSource>) -> Self {
        Self { blocks }
    }

    pub(super) fn size(&self) -> u64 {
        self.blocks.geometry().size()
    }

    /// Bytes of the image, all of them or none.
    ///
    /// # Errors
    /// Why a block cannot be read; `Invalid` beyond the end.
    pub(super) async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let geometry = self.blocks.geometry();
        let parts: Vec<_> = geometry.split(offset, len).collect();
        let reads = parts.iter().map(|part| self.blocks.read_block(part.index));
        let blocks = try_join_all(reads).await?;
        let mut bytes = BytesMut::with_capacity(len);
        for (part, block) in parts.iter().zip(&blocks) {
            let there = match block {
                Block::Zero => ZEROES.get(part.start..part.end),
                Block::Data(data, _) => data.get(part.start..part.end),
            };
            bytes.extend_from_slice(there.unwrap_or_default());
        }
        match bytes.len() == len {
            true => Ok(bytes.freeze()),
            false => Err(Error::new(
                Kind::Invalid,
                format!("cannot read byte {offset} of the image: it ends before that"),
            )),
        }
    }
}

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ViewLayout {
    /// `gpt`, `mbr` or `none`.
    pub(crate) table: String,
    /// Of the table and of LVM.
    pub(crate) remarks: FsRemarks,
    pub(crate) partitions: Vec<ViewPartition>,
}

/// The files of a partition.
pub(crate) struct FileView {
    session: LastingSession,
    image: Arc<ImageBytes>,
    layout: ViewLayout,
    partition: Option<ViewPartition>,
    filesystem: String,
    root: Option<FsNode>,
    /// How much of a file was found so far, when its spans are requested in order.
    found: FoundData,
    /// Reads of files in order.
    sequences: ReadSequences,
}

impl std::fmt::Debug for FileView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileView({:?})", self.partition)
    }
}

fn broken(what: &'static str) -> super::wire::BrokenFrame {
    super::wire::BrokenFrame(what)
}

/// A page: a count, the items, and where the next page begins.
fn page<'f, T>(
    reader: &mut FrameReader<'f>,
    item: impl Fn(&mut FrameReader<'f>) -> std::result::Result<T, super::wire::BrokenFrame>,
) -> std::result::Result<(Vec<T>, Option<u64>), super::wire::BrokenFrame> {
    let count = reader.u32()?;
    if count > MOST_ITEMS {
        return Err(broken("a page has too many items"));
    }
    let items = (0..count)
        .map(|_| item(reader))
        .collect::<std::result::Result<_, _>>()?;
    let has_next = reader.u8()? != 0;
    let next = reader.u64()?;
    Ok((items, has_next.then_some(next)))
}

impl FileView {
    /// Starts a parser for an image, and finds its partitions.
    ///
    /// # Errors
    /// Why the image cannot be read; `Io` when the parser does not start.
    pub(crate) async fn start(blocks: Arc<dyn BlockSource>, limits: SessionLimits) -> Result<Self> {
        let image = Arc::new(ImageBytes::new(blocks));
        let own = Arc::clone(&image);
        let start: SessionStart = Box::new(move || ParserSession::start(Arc::clone(&own), limits));
        let mut session = LastingSession::start(start)?;
        let mut request = FrameWriter::new(to_parser::LAYOUT);
        let size = image.size();
        request.u64(size);
        let layout = session.ask_image(request, |reader| {
            let table = reader.text()?;
            let remarks = reader.remarks()?;
            let count = reader.u32()?.min(MOST_PARTITIONS);
            let partitions = (0..count).map(|_| {
                let found = ViewPartition {
                    name: reader.text()?,
                    start: reader.u64()?,
                    size: reader.u64()?,
                    content: reader.text()?,
                    is_efi: reader.u8()? != 0,
                };
                let end = found.start.checked_add(found.size);
                match end.is_some_and(|end| end <= size) {
                    true => Ok(found),
                    false => Err(broken("a partition is outside the image")),
                }
            });
            let partitions = partitions.collect::<std::result::Result<_, _>>()?;
            Ok(ViewLayout {
                table,
                remarks,
                partitions,
            })
        });
        let layout = layout.await?;
        Ok(Self {
            session,
            image,
            layout,
            partition: None,
            filesystem: String::new(),
            root: None,
            found: FoundData::default(),
            sequences: ReadSequences::default(),
        })
    }

    /// Starts the parser again when it has ended, up to this limit and not that of a command. The request at which it ended fails, and
    /// is not sent again.
    pub(crate) fn restart_within(&mut self, limit: RestartLimit) {
        self.session.restart_within(limit);
    }

    /// Whether further requests have a parser.
    pub(crate) fn is_alive(&self) -> bool {
        self.failure().is_none()
    }

    /// Why no request is answered any more.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.session.failure()
    }

    /// What the image holds.
    pub(crate) fn layout(&self) -> &ViewLayout {
        &self.layout
    }

    /// Opens a partition: the one of this name, or the only one that can be read.
    ///
    /// # Errors
    /// `Undecided` when there are several; `NotFound` when there is no such partition; `Invalid` when it holds something else.
    pub(crate) async fn open(&mut self, name: Option<&str>) -> Result<FsRemarks> {
        let chosen = choose(&self.layout.partitions, name)?;
        let opened = self.session.open(chosen.start, chosen.size);
        let opened = opened.await.map_err(|error| {
            let what = match chosen.name.as_str() {
                "0" => "cannot open the filesystem on the disk".to_owned(),
                name => format!(
                    "cannot open the filesystem on partition {}",
                    quoted(name.as_bytes())
                ),
            };
            error.context(what)
        });
        let opened = opened?;
        if opened.root.kind != NodeKind::Folder {
            let what = "cannot read the filesystem: its root is no folder";
            return Err(Error::new(Kind::Corrupt, what));
        }
        self.filesystem = opened.name;
        self.root = Some(opened.root);
        self.partition = Some(chosen);
        Ok(opened.remarks)
    }

    /// The open partition.
    pub(crate) fn partition(&self) -> Option<&ViewPartition> {
        self.partition.as_ref()
    }

    /// The name of its filesystem.
    pub(crate) fn filesystem(&self) -> &str {
        &self.filesystem
    }

    /// The root folder.
    ///
    /// # Errors
    /// `Invalid` before a partition is open.
    pub(crate) fn root(&self) -> Result<FsNode> {
        let root = self.root.clone();
        root.ok_or_else(|| Error::new(Kind::Invalid, "no partition is open"))
    }

    /// A page of a folder, from a cursor on (0 at first), and where the next one begins.
    ///
    /// # Errors
    /// As for [`FileView::start`]; `Corrupt` when the folder is damaged.
    pub(crate) async fn list(
        &mut self,
        folder: u64,
        cursor: u64,
    ) -> Result<(Vec<FsEntry>, Option<u64>)> {
        let request = FsRequest::new(to_parser::LIST, folder, b"").at(cursor);
        let entries = self.session.ask(request, |reader| {
            let (entries, next) = page(reader, FrameReader::entry)?;
            match next.is_some_and(|next| next <= cursor) {
                true => Err(broken("a folder does not end")),
                false => Ok((entries, next)),
            }
        });
        entries.await
    }

    /// What a name in a folder is.
    ///
    /// # Errors
    /// As for [`FileView::list`].
    pub(crate) async fn find(&mut self, folder: u64, name: &[u8]) -> Result<Option<FsNode>> {
        if !is_name(name) {
            return Ok(None);
        }
        let request = FsRequest::new(to_parser::FIND, folder, name);
        let found = self.session.ask(request, |reader| match reader.u8()? {
            0 => Ok(None),
            _ => reader.node().map(Some),
        });
        found.await
    }

    /// Where the bytes of a file are, from `offset` on: they follow each other without a gap; and where the next page begins.
    ///
    /// # Errors
    /// As for [`FileView::list`]; `Corrupt` when pages in order have more bytes of the disk than the partition has: the file names
    /// the same bytes many times, and a copy of it would fill any disk.
    pub(crate) async fn spans(&mut self, data: &FsData, offset: u64) -> Result<SpanPage> {
        let (size, image) = (data.size, self.image.size());
        if offset >= size {
            return Ok((Vec::new(), None));
        }
        let request = FsRequest::new(to_parser::SPANS, data.file, &data.stream).at(offset);
        let found = self.session.ask(request, |reader| {
            let (spans, next) = page(reader, FrameReader::span)?;
            let end = check_spans(&spans, offset, size, image)?;
            match (end >= size, next) {
                (true, _) => Ok((spans, None)),
                (false, Some(next)) if next == end && end > offset => Ok((spans, Some(end))),
                _ => Err(broken("a file has bytes at no known place")),
            }
        });
        let (spans, next) = found.await?;
        let most = self.partition.as_ref().map_or(u64::MAX, |one| one.size);
        match self.found.add(data, offset, &spans) > most {
            true => {
                let what = "the file has more bytes on the disk than its partition has";
                Err(Error::new(Kind::Corrupt, what))
            }
            false => Ok((spans, next)),
        }
    }

    /// The bytes of a span, from its start on, at most [`PIECE`].
    ///
    /// # Errors
    /// Why they cannot be read.
    pub(crate) async fn bytes(&mut self, data: &FsData, span: &FsSpan) -> Result<Bytes> {
        let len = usize::try_from(span.len.min(PIECE)).unwrap_or(0);
        match span.place {
            SpanPlace::Image(at) => self.image.read(at, len).await,
            SpanPlace::Hole => Ok(Bytes::from(vec![0; len])),
            SpanPlace::Parser => {
                let len = u32::try_from(len).unwrap_or(u32::MAX);
                let len = len.min(super::wire::IMAGE_LIMIT);
                let request = FsRequest::new(to_parser::CONTENT, data.file, &data.stream);
                let request = request.at(span.offset).up_to(len);
                let content = self.session.ask(request, |reader| {
                    let bytes = reader.bytes(len as usize)?;
                    match bytes.is_empty() {
                        true => Err(broken("a file is shorter than its size")),
                        false => Ok(Bytes::copy_from_slice(bytes)),
                    }
                });
                content.await
            }
        }
    }

    /// The bytes of a file from `offset`, at most `len`; fewer at its end. Of reads in order, what follows is requested too.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub(crate) async fn read(&mut self, data: &FsData, offset: u64, len: usize) -> Result<Bytes> {
        let end = offset.saturating_add(len as u64).min(data.size);
        let wanted = end.saturating_sub(offset);
        let ahead = self.sequences.observe(data, offset, wanted);
        let mut bytes = BytesMut::new();
        let mut at = offset;
        while at < end {
            let (spans, _) = self.spans(data, at).await?;
            if ahead > 0 {
                self.prefetch(&spans, (end - at).saturating_add(ahead));
            }
            for span in spans {
                let mut rest = span;
                while rest.len > 0 && at < end {
                    let part = FsSpan {
                        len: rest.len.min(end - at),
                        ..rest
                    };
                    let piece = self.bytes(data, &part).await?;
                    bytes.extend_from_slice(&piece);
                    at += piece.len() as u64;
                    rest = rest.behind(piece.len() as u64);
                }
            }
        }
        Ok(bytes.freeze())
    }

    /// The named streams of a file.
    ///
    /// # Errors
    /// As for [`FileView::list`].
    pub(crate) async fn streams(&mut self, file: &FsNode) -> Result<Vec<FsStream>> {
        let mut all = Vec::new();
        let mut cursor = (file.streams > 0).then_some(0);
        while let Some(at) = cursor {
            let request = FsRequest::new(to_parser::STREAMS, file.id, b"").at(at);
            let found = self.session.ask(request, |reader| {
                let (found, next) = page(reader, FrameReader::stream)?;
                match next.is_some_and(|next| next <= at) {
                    true => Err(broken("the streams of a file do not end")),
                    false => Ok((found, next)),
                }
            });
            let (found, next) = found.await?;
            all.extend(found);
            if all.len() > MOST_STREAMS {
                let what = "a file has too many streams";
                return Err(Error::new(Kind::Corrupt, what));
            }
            cursor = next;
        }
        Ok(all)
    }

    /// Extended attributes: names and values, and how many more the file has that Linux could not hold.
    ///
    /// # Errors
    /// As for [`FileView::list`].
    pub(crate) async fn xattrs(&mut self, file: u64) -> Result<(Vec<NamedValue>, u64)> {
        let request = FsRequest::new(to_parser::XATTRS, file, b"");
        let found = self.session.ask(request, |reader| {
            let (found, _) = page(reader, |reader| {
                let name = reader.bytes(NAME_LIMIT)?.to_vec();
                Ok((name, reader.bytes(VALUE_LIMIT)?.to_vec()))
            })?;
            match found.iter().any(|(name, _)| name.contains(&0)) {
                true => Err(broken("the name of an attribute has a NUL")),
                false => Ok((found, reader.u64()?)),
            }
        });
        found.await
    }
}

impl FsSpan {
    /// What is left of it behind its first `len` bytes.
    pub(crate) fn behind(self, len: u64) -> Self {
        let len = len.min(self.len);
        Self {
            offset: self.offset + len,
            len: self.len - len,
            place: match self.place {
                SpanPlace::Image(at) => SpanPlace::Image(at + len),
                other => other,
            },
        }
    }
}
