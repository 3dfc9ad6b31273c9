//! [`Image`]: the bytes of a volume over its blocks. It knows no inode and no cache.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use parking_lot::Mutex;

use crate::block::{BLOCK_SIZE, Block, BlockIndex, Geometry};
use crate::error::{Error, Kind, Result};
pub use crate::readahead::Budget as ReadaheadBudget;
use crate::readahead::{Read, Readahead};
use crate::source::BlockSource;

/// Listings of 10,000 blocks (5 GiB) that one seek waits for.
const SEEK_LISTINGS: usize = 4;

/// What a hole reads as, without allocating.
static ZEROES: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// A volume as one run of bytes.
pub struct Image {
    source: Arc<dyn BlockSource>,
    readahead: Mutex<Readahead>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} bytes)", self.size())
    }
}

impl Image {
    /// The image over a source; its sequential readers share `budget` with those of other images.
    pub fn new(source: Arc<dyn BlockSource>, budget: Arc<ReadaheadBudget>) -> Self {
        let readahead = Mutex::new(Readahead::new(source.geometry(), budget));
        Self { source, readahead }
    }

    /// Bytes of the image.
    pub(crate) fn size(&self) -> u64 {
        self.geometry().size()
    }

    fn geometry(&self) -> Geometry {
        self.source.geometry()
    }

    /// The bytes from `offset`, `len` of them or as many as there are before the end.
    ///
    /// # Errors
    /// Why one of the blocks cannot be read; never a short or wrong answer.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let parts: Vec<_> = self.geometry().split(offset, len).collect();
        let reads = parts.iter().map(|part| self.source.read_block(part.index));
        let mut reads = pin!(try_join_all(reads));
        // The reader's own blocks are requested before any prefetch.
        let first = poll_fn(|task| Poll::Ready(reads.as_mut().poll(task))).await;
        self.read_ahead(Read {
            offset,
            len,
            waits: first.is_pending(),
            at: Instant::now(),
        });
        let blocks = match first {
            Poll::Ready(blocks) => blocks?,
            Poll::Pending => reads.await?,
        };
        let mut slices = Vec::with_capacity(blocks.len());
        for (part, block) in parts.iter().zip(blocks) {
            slices.push(match block {
                Block::Zero => {
                    Bytes::from_static(ZEROES.get(part.start..part.end).unwrap_or_default())
                }
                Block::Data(bytes, _) if part.end <= bytes.len() => {
                    bytes.slice(part.start..part.end)
                }
                Block::Data(bytes, _) => {
                    return Err(Error::new(
                        Kind::Corrupt,
                        format!("block {} holds {} bytes", part.index, bytes.len()),
                    ));
                }
            });
        }
        Ok(concat(slices))
    }

    /// Prefetches the blocks that a reader will want next.
    fn read_ahead(&self, read: Read) {
        let mut readahead = self.readahead.lock();
        let request = readahead.observe(read, |block| self.source.is_known_zero(block));
        if let Some(request) = request {
            let taken = self.source.prefetch(&request.blocks);
            readahead.was_taken(&request, taken);
        }
    }

    /// The first byte at or after `offset` that is held; `None` when only holes follow, or at the end.
    ///
    /// # Errors
    /// Why the source cannot tell.
    pub(crate) async fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        let Some(index) = self.geometry().block_at(offset) else {
            return Ok(None);
        };
        Ok(self
            .source
            .next_extent(index)
            .await?
            .map(|extent| self.geometry().offset(extent.start()).max(offset)))
    }

    /// The first byte at or after `offset` that is in a hole, the end of the image counting as one;
    /// `None` at or beyond the end.
    ///
    /// A hole that is longer than [`SEEK_LISTINGS`] listings is reported as if it ended there: a seek cannot be interrupted,
    /// and all of a large volume may be one run. The next seek starts at that position, so no data is taken for a hole.
    ///
    /// # Errors
    /// Why the source cannot tell.
    pub(crate) async fn seek_hole(&self, offset: u64) -> Result<Option<u64>> {
        let Some(mut index) = self.geometry().block_at(offset) else {
            return Ok(None);
        };
        let end = BlockIndex(self.geometry().block_count());
        for _ in 0..=SEEK_LISTINGS {
            match self.source.next_extent(index).await? {
                Some(extent) if extent.start() == index => index = extent.end(),
                _ => break,
            }
            if index >= end {
                break;
            }
        }
        Ok(Some(self.geometry().offset(index).max(offset)))
    }
}

/// One slice as it is, several copied into one.
fn concat(mut slices: Vec<Bytes>) -> Bytes {
    if slices.len() == 1
        && let Some(only) = slices.pop()
    {
        return only;
    }
    let mut bytes = BytesMut::with_capacity(slices.iter().map(Bytes::len).sum());
    for slice in slices {
        bytes.extend_from_slice(&slice);
    }
    bytes.freeze()
}
