//! Digests of whole images.

mod lanes;

use std::fs::File;

use futures_util::future::{try_join, try_join_all};
use futures_util::stream::TryStreamExt;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tracing::warn;

use self::lanes::{Lane, LaneBlock, lanes};
use super::super::job::OnDamage;
use super::{IN_FLIGHT, OnBlocks, VolumeStep, digest_of_zeroes, steps};
use crate::block::{Block, BlockIndex, Digest, Extent, hexadecimal};
use crate::error::Result;
use crate::files::blocking;
use crate::source::BlockSource;
use crate::target::{Stop, Written};

/// Pieces of at most 8 MiB that wait for a lane. After a stop, a lane ends within 0.3 s.
const WAITING: usize = 16;
/// Blocks of a hole in a piece.
const HOLE_PIECE: u32 = 16;

/// Digests of all bytes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageDigests {
    /// SHA-256.
    pub(crate) sha256: Digest,
    /// SHA-1, if it was asked for.
    pub(crate) sha1: Option<[u8; 20]>,
    /// MD5, if it was asked for.
    pub(crate) md5: Option<[u8; 16]>,
}

/// A block that an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldBlock {
    /// Its number.
    pub(crate) index: BlockIndex,
    /// Whether all of its bytes are zero.
    pub(crate) is_zero: bool,
    /// SHA-256 of its bytes, which can be fewer in the last block.
    pub(crate) sha256: Digest,
    /// Whether it is damaged and could not be read: it counts as zeroes.
    pub(crate) is_damaged: bool,
}

/// Called with each block that an image holds, by index.
pub(crate) type OnHeldBlock<'a> = &'a mut (dyn FnMut(HeldBlock) -> Result<()> + Send);

/// What is asked of an image besides its SHA-256.
pub(crate) struct DigestRequest<'a> {
    /// Its MD5.
    pub(crate) with_md5: bool,
    /// Its SHA-1.
    pub(crate) with_sha1: bool,
    /// Blocks read at once.
    pub(crate) in_flight: usize,
    /// What happens when a block is damaged.
    pub(crate) on_damage: OnDamage,
    /// Its blocks.
    pub(crate) on_block: Option<OnHeldBlock<'a>>,
    /// An empty file that gets its bytes; holes and blocks of zeroes stay holes. It is flushed to the disk at the end.
    pub(crate) copy: Option<File>,
}

/// SHA-256 of a whole image, holes included, and MD5 if `with_md5`. `progress` counts blocks of the volume.
///
/// # Errors
/// `Stopped`; why a block cannot be read.
pub(crate) async fn image_digest(
    source: &dyn BlockSource,
    with_md5: bool,
    progress: OnBlocks<'_>,
    stop: &Stop,
) -> Result<ImageDigests> {
    let request = DigestRequest {
        with_md5,
        with_sha1: false,
        in_flight: IN_FLIGHT,
        on_damage: OnDamage::Fail,
        on_block: None,
        copy: None,
    };
    digest_with(source, request, progress, stop).await
}

/// The same with more asked of it; each block is read once.
///
/// # Errors
/// As for [`image_digest`]; what [`DigestRequest::on_block`] says; why [`DigestRequest::copy`] cannot be written.
pub(crate) async fn digest_with(
    source: &dyn BlockSource,
    request: DigestRequest<'_>,
    progress: OnBlocks<'_>,
    stop: &Stop,
) -> Result<ImageDigests> {
    let geometry = source.geometry();
    let DigestRequest {
        with_md5,
        with_sha1,
        in_flight,
        on_damage,
        mut on_block,
        copy,
    } = request;
    let (mut senders, mut ends) = (Vec::new(), Vec::new());
    for lane in lanes(with_md5, with_sha1, lanes::has_sha_extensions()) {
        let (sender, pieces) = mpsc::channel(WAITING);
        senders.push(sender);
        ends.push(run_lane(lane, pieces));
    }
    if let Some(file) = copy {
        let (sender, pieces) = mpsc::channel(WAITING);
        senders.push(sender);
        ends.push(run_lane(Lane::of_copy(file, geometry.size())?, pieces));
    }
    let feed = async {
        // Dropped at the end: the lanes finish then.
        let senders = senders;
        let read = |step| async move {
            Ok(match step {
                VolumeStep::Hole(hole) => (hole, Block::Zero, None),
                VolumeStep::Block(index) => {
                    let (block, is_damaged) = match source.read_block(index).await {
                        Err(error) if on_damage.passes(&error) => {
                            warn!("block {index} is taken as zeroes: {}", error.chain());
                            (Block::Zero, true)
                        }
                        read => (read?, false),
                    };
                    (Extent::of(index), block, Some((index, is_damaged)))
                }
            })
        };
        let mut pieces = steps(source, BlockIndex(0))
            .map_ok(read)
            .try_buffered(in_flight.max(1));
        while let Some((extent, block, held)) = pieces.try_next().await? {
            if let (Some((index, is_damaged)), Some(on_block)) = (held, &mut on_block) {
                let sha256 = match &block {
                    Block::Data(_, digest) => *digest,
                    Block::Zero => digest_of_zeroes(geometry.block_len(index)),
                };
                on_block(HeldBlock {
                    index,
                    is_zero: block == Block::Zero,
                    sha256,
                    is_damaged,
                })?;
            }
            let mut at = extent.start();
            while at < extent.end() {
                let end = BlockIndex(at.0.saturating_add(HOLE_PIECE)).min(extent.end());
                let bytes = geometry.offset(end) - geometry.offset(at);
                for sender in &senders {
                    let piece: LaneBlock = (block.clone(), bytes);
                    if sender.send(piece).await.is_err() {
                        // The lane has failed, and its own error ends this.
                        std::future::pending::<()>().await;
                    }
                }
                at = end;
                progress(at.0.into());
            }
        }
        Ok(())
    };
    let (ended, ()) = stop.unless(try_join(try_join_all(ends), feed)).await?;
    let mut whole = Lane::default();
    ended.into_iter().for_each(|lane| whole.merge(lane));
    whole.digests()
}

/// Works on pieces of an image on a thread of its own until their sender is dropped.
async fn run_lane(mut lane: Lane, mut pieces: mpsc::Receiver<LaneBlock>) -> Result<Lane> {
    blocking(move || {
        while let Some((block, bytes)) = pieces.blocking_recv() {
            match block {
                Block::Data(bytes, _) => lane.data(&bytes)?,
                Block::Zero => lane.zeroes(bytes),
            }
        }
        lane.end()?;
        Ok(lane)
    })
    .await
}

/// SHA-256 over the digests of all blocks written, by index, in hexadecimal. A block of zeroes has none.
///
/// # Errors
/// `Stopped`; `Corrupt` when a digest is missing; why the digests cannot be read.
pub(crate) async fn linear_digest(written: Written, stop: &Stop) -> Result<String> {
    let stop = stop.clone();
    blocking(move || {
        let mut hasher = Sha256::new();
        for written in written {
            stop.check()?;
            if let (_, Some(digest)) = written? {
                hasher.update(digest);
            }
        }
        Ok(hexadecimal(&hasher.finalize()))
    })
    .await
}
