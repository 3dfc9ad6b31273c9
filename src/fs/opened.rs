//! [`OpenFile`]: the contents of an open file, and for an image who reads it and what: two lines of the log, and what a [`Custodian`]
//! is shown.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::debug;

use super::tree::Contents;
use crate::block::{BlockIndex, BlockSet, Extent, Geometry, MAX_VOLUME_SIZE};
use crate::error::Result;

/// Who opened an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageReader {
    /// User id.
    pub(crate) uid: u32,
    /// Process id; 0 for a process in a PID namespace that this process does not see.
    pub(crate) pid: u32,
}

impl ImageReader {
    /// The name of the process, which it chooses itself.
    pub(crate) fn command(&self) -> String {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.pid));
        comm.map_or("unknown".into(), |name| {
            name.trim_end().escape_default().to_string()
        })
    }
}

impl fmt::Display for ImageReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = self.command();
        write!(f, "uid {}, pid {} ({command})", self.uid, self.pid)
    }
}

/// What was read of an image from an opening to its closing.
#[derive(Debug, Default)]
pub(crate) struct ImageRead {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Reads of the kernel.
    pub(crate) reads: u64,
    /// How long it was open.
    pub(crate) seconds: f64,
    /// The blocks that the bytes are of.
    pub(crate) blocks: BlockSet,
}

/// Records who opens images of a mount, and what they read.
pub(crate) trait Custodian: fmt::Debug + Send + Sync {
    /// An image is opened. The number of the opening; it is not answered before this returns.
    ///
    /// # Errors
    /// Why the opening cannot be recorded: then it fails.
    fn opened(&self, image: &str, reader: &ImageReader) -> Result<u64>;

    /// An opening has ended.
    fn closed(&self, opening: u64, read: &ImageRead);
}

/// An opening that a custodian has recorded.
#[derive(Debug)]
struct Custody {
    custodian: Arc<dyn Custodian>,
    opening: u64,
    blocks: Mutex<BlockSet>,
}

/// An open image.
#[derive(Debug)]
struct OpenRecord {
    image: String,
    reader: String,
    opened: Instant,
    bytes: AtomicU64,
    reads: AtomicU64,
    custody: Option<Custody>,
}

/// An open file. It keeps its contents while caches drop theirs.
pub(super) struct OpenFile {
    pub(super) contents: Contents,
    record: Option<OpenRecord>,
}

impl OpenFile {
    /// Logs the opening of an image at debug level, and shows it to the custodian; `provenance` is called only for one of these.
    ///
    /// # Errors
    /// That of the custodian.
    pub(super) fn new(
        contents: Contents,
        reader: ImageReader,
        custodian: Option<Arc<dyn Custodian>>,
        provenance: impl FnOnce() -> Option<String>,
    ) -> Result<Self> {
        let is_shown = tracing::enabled!(tracing::Level::DEBUG) || custodian.is_some();
        let Some(image) = is_shown.then(provenance).flatten() else {
            let record = None;
            return Ok(Self { contents, record });
        };
        let custody = match custodian {
            None => None,
            Some(custodian) => Some(Custody {
                opening: custodian.opened(&image, &reader)?,
                custodian,
                blocks: Mutex::default(),
            }),
        };
        let reader = reader.to_string();
        debug!("opened {image} by {reader}");
        let record = Some(OpenRecord {
            image,
            reader,
            opened: Instant::now(),
            bytes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            custody,
        });
        Ok(Self { contents, record })
    }

    /// Whether a custodian is to learn which blocks are read.
    pub(super) fn is_recorded(&self) -> bool {
        let record = self.record.as_ref();
        record.is_some_and(|record| record.custody.is_some())
    }

    pub(super) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let bytes = self.contents.read_at(offset, len).await?;
        if let Some(record) = &self.record {
            record.reads.fetch_add(1, Ordering::Relaxed);
            let read = bytes.len() as u64;
            record.bytes.fetch_add(read, Ordering::Relaxed);
            if let (Some(custody), Some(blocks)) = (&record.custody, blocks_of(offset, read)) {
                custody.blocks.lock().insert_extent(blocks);
            }
        }
        Ok(bytes)
    }
}

/// The blocks that bytes of an image are of.
fn blocks_of(offset: u64, len: u64) -> Option<Extent> {
    let largest = Geometry::new(MAX_VOLUME_SIZE).ok()?;
    let first = largest.block_at(offset)?;
    let last = largest.block_at(offset.checked_add(len.checked_sub(1)?)?)?;
    Extent::new(first, BlockIndex(last.0 + 1))
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let Some(record) = &self.record else {
            return;
        };
        let read = ImageRead {
            bytes: record.bytes.load(Ordering::Relaxed),
            reads: record.reads.load(Ordering::Relaxed),
            seconds: record.opened.elapsed().as_secs_f64(),
            blocks: match &record.custody {
                Some(custody) => std::mem::take(&mut custody.blocks.lock()),
                None => BlockSet::new(),
            },
        };
        debug!(
            "closed {} by {}: {} bytes in {} reads of the kernel, open for {:.1} s",
            record.image, record.reader, read.bytes, read.reads, read.seconds
        );
        if let Some(custody) = &record.custody {
            custody.custodian.closed(custody.opening, &read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_touch_whole_blocks() {
        const BLOCK: u64 = 512 * 1024;
        for (offset, len, blocks) in [
            (0, 1, Some((0, 1))),
            (BLOCK - 1, 1, Some((0, 1))),
            (BLOCK - 1, 2, Some((0, 2))),
            (3 * BLOCK, 2 * BLOCK, Some((3, 5))),
            (7, 0, None),
            (u64::MAX, 2, None),
        ] {
            let found = blocks_of(offset, len).map(|e| (e.start().0, e.end().0));
            assert_eq!(found, blocks, "{offset} {len}");
        }
    }
}
