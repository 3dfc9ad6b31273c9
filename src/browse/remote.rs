//! [`RemoteImage`]: the image as the parser reads it, by asking the session for pieces of it.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

use lru::LruCache;

use super::wire::{FRAME_LIMIT, FrameReader, FrameWriter, from_parser, to_parser};

/// Bytes of a piece: an inode table and a folder are read in order, and a block of EBS has eight of these.
const PIECE: u64 = 64 << 10;
/// Pieces that are kept: 16 MiB.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// What the socket of the parser must do.
pub(super) trait ParserLine: Read + Write {}

impl<T: Read + Write> ParserLine for T {}

/// The image, and the socket to the session.
pub(super) struct RemoteImage {
    line: Box<dyn ParserLine>,
    size: u64,
    kept: LruCache<u64, Box<[u8]>>,
}

impl RemoteImage {
    pub(super) fn new(line: Box<dyn ParserLine>) -> Self {
        Self {
            line,
            size: 0,
            kept: LruCache::new(KEPT),
        }
    }

    /// Sets the bytes of the image, as the session states them.
    pub(super) fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    pub(super) fn send(&mut self, frame: FrameWriter) -> io::Result<()> {
        self.line.write_all(&frame.finish())
    }

    /// The next frame; none at the end of the session.
    pub(super) fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 4];
        match self.line.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            done => done?,
        }
        let len = u32::from_le_bytes(head) as usize;
        if len > FRAME_LIMIT {
            return Err(io::Error::other("a frame is too long"));
        }
        let mut body = vec![0; len];
        self.line.read_exact(&mut body)?;
        Ok(Some(body))
    }

    /// Fills `buffer` from the byte `offset` of the image.
    pub(super) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut offset = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let start = offset - offset % PIECE;
            if !self.kept.contains(&start) {
                let piece = self.fetch(start)?;
                self.kept.put(start, piece);
            }
            let piece = self.kept.get(&start).map(|piece| &**piece);
            let within = usize::try_from(offset - start).unwrap_or(usize::MAX);
            let there = piece
                .and_then(|piece| piece.get(within..))
                .unwrap_or_default();
            let len = there.len().min(rest.len());
            if len == 0 {
                let what = "the image ends before that";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(there.get(..len).unwrap_or_default());
            rest = later;
            offset += len as u64;
        }
        Ok(())
    }

    fn fetch(&mut self, start: u64) -> io::Result<Box<[u8]>> {
        let len = self.size.saturating_sub(start).min(PIECE);
        let mut frame = FrameWriter::new(from_parser::READ);
        frame.u64(start);
        frame.u32(u32::try_from(len).unwrap_or(0));
        self.send(frame)?;
        let body = self.receive()?.ok_or(io::ErrorKind::BrokenPipe)?;
        let mut reader = FrameReader::new(&body);
        match reader.u8() {
            Ok(to_parser::BYTES) if reader.rest().len() as u64 == len => {
                Ok(body.get(1..).unwrap_or_default().into())
            }
            Ok(to_parser::UNREADABLE) => Err(io::Error::other("the image cannot be read")),
            _ => Err(io::Error::other("an unexpected answer of the session")),
        }
    }
}
