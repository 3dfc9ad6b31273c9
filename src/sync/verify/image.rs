//! Digests of whole images.

use futures_util::future::try_join3;
use futures_util::stream::TryStreamExt;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{IN_FLIGHT, OnBlocks, VolumeStep, digest_of_zeroes, steps};
use crate::block::{Block, BlockIndex, Digest, Extent, ZEROES, hexadecimal};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::source::BlockSource;
use crate::target::{Stop, Written};

/// Pieces of at most 8 MiB that wait for a hasher. After a stop, a hasher ends within 0.3 s.
const WAITING: usize = 16;
/// Blocks of a hole in a piece.
const HOLE_PIECE: u32 = 16;

/// Digests of all bytes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageDigests {
    /// SHA-256.
    pub(crate) sha256: Digest,
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
}

/// Called with each block that an image holds, by index.
pub(crate) type OnHeldBlock<'a> = &'a mut (dyn FnMut(HeldBlock) -> Result<()> + Send);

/// What is asked of an image besides its SHA-256.
pub(crate) struct DigestRequest<'a> {
    /// Its MD5.
    pub(crate) with_md5: bool,
    /// Blocks read at once.
    pub(crate) in_flight: usize,
    /// Its blocks.
    pub(crate) on_block: Option<OnHeldBlock<'a>>,
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
        in_flight: IN_FLIGHT,
        on_block: None,
    };
    digest_with(source, request, progress, stop).await
}

/// The same with more asked of it; each block is read once.
///
/// # Errors
/// As for [`image_digest`]; what [`DigestRequest::on_block`] says.
pub(crate) async fn digest_with(
    source: &dyn BlockSource,
    request: DigestRequest<'_>,
    progress: OnBlocks<'_>,
    stop: &Stop,
) -> Result<ImageDigests> {
    let geometry = source.geometry();
    let DigestRequest {
        with_md5,
        in_flight,
        mut on_block,
    } = request;
    let (to_sha256, pieces) = mpsc::channel(WAITING);
    let sha256 = hash::<Sha256>(pieces);
    let (to_md5, pieces) = mpsc::channel(WAITING);
    let md5 = hash::<Md5>(pieces);
    let feed = async {
        // Dropped at the end: the hashers finish then.
        let (to_sha256, to_md5) = (to_sha256, to_md5);
        let read = |step| async move {
            Ok(match step {
                VolumeStep::Hole(hole) => (hole, Block::Zero, None),
                VolumeStep::Block(index) => (
                    Extent::of(index),
                    source.read_block(index).await?,
                    Some(index),
                ),
            })
        };
        let mut pieces = steps(source, BlockIndex(0))
            .map_ok(read)
            .try_buffered(in_flight.max(1));
        while let Some((extent, block, held)) = pieces.try_next().await? {
            if let (Some(index), Some(on_block)) = (held, &mut on_block) {
                let sha256 = match &block {
                    Block::Data(_, digest) => *digest,
                    Block::Zero => digest_of_zeroes(geometry.block_len(index)),
                };
                on_block(HeldBlock {
                    index,
                    is_zero: block == Block::Zero,
                    sha256,
                })?;
            }
            let mut at = extent.start();
            while at < extent.end() {
                let end = BlockIndex(at.0.saturating_add(HOLE_PIECE)).min(extent.end());
                let bytes = geometry.offset(end) - geometry.offset(at);
                let piece = (block.clone(), bytes);
                if with_md5 {
                    to_md5.send(piece.clone()).await.map_err(closed)?;
                }
                to_sha256.send(piece).await.map_err(closed)?;
                at = end;
                progress(at.0.into());
            }
        }
        Ok(())
    };
    let ((), sha256, md5) = stop.unless(try_join3(feed, sha256, md5)).await?;
    Ok(ImageDigests {
        sha256: sha256.into(),
        md5: with_md5.then_some(md5.into()),
    })
}

fn closed<T>(_: mpsc::error::SendError<T>) -> Error {
    Error::new(Kind::Io, "cannot hash: the hashing thread ended")
}

/// Hashes pieces of an image on a thread of its own until their sender is dropped. A piece of zeroes has that many bytes.
async fn hash<H: sha2::Digest + Send + 'static>(
    mut pieces: mpsc::Receiver<(Block, u64)>,
) -> Result<sha2::digest::Output<H>> {
    blocking(move || {
        let mut hasher = H::new();
        while let Some((block, bytes)) = pieces.blocking_recv() {
            match block {
                Block::Data(bytes, _) => hasher.update(&bytes),
                Block::Zero => update_zeroes(&mut hasher, bytes),
            }
        }
        Ok(hasher.finalize())
    })
    .await
}

fn update_zeroes(hasher: &mut impl sha2::Digest, bytes: u64) {
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        hasher.update(ZEROES.get(..len).unwrap_or_default());
        left -= len as u64;
    }
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
