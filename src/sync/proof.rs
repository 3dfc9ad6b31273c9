//! What was written, read back and compared.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};

use super::{Checkpoint, Target};
use crate::block::{Block, BlockIndex, Digest, ZEROES, hexadecimal};
use crate::disk::blocking;
use crate::error::{Error, Kind, Result};
use crate::source::BlockSource;

/// Blocks read back at once.
const AT_ONCE: usize = 16;
/// Blocks compared to tell a target from another: 1 GiB, some seconds.
const MOST_COMPARED: usize = 2048;

/// Reads back what a copy wrote and compares it, block by block, with the digests that it was fetched by.
///
/// # Errors
/// `Corrupt` for the first block that is another.
pub async fn verify(target: &Target, back: &dyn BlockSource) -> Result<()> {
    let compare = |written: Result<(BlockIndex, Option<Digest>)>| async move {
        let (index, promised) = written?;
        let found = match back.read_block(index).await? {
            Block::Zero => None,
            Block::Data(_, digest) => Some(digest),
        };
        if found == promised {
            return Ok(());
        }
        let what = format!(
            "{}: block {index} was written and reads back as something else; --restart writes it all again",
            target.sink.id()
        );
        Err(Error::new(Kind::Corrupt, what))
    };
    stream::iter(target.checkpoint.written())
        .map(compare)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Whether a target changed in place still has what a checkpoint says is done, by as many blocks as a person can wait for.
/// Where nothing is done nothing tells, and it counts as another.
///
/// # Errors
/// `Io` when the digests or the target cannot be read.
pub async fn is_as_kept(checkpoint: &Checkpoint, back: &dyn BlockSource) -> Result<bool> {
    let kept = checkpoint.sample(MOST_COMPARED);
    let is_any = !kept.is_empty();
    let compare = |kept: Result<(BlockIndex, Option<Digest>)>| async move {
        let (index, digest) = kept?;
        Ok::<_, Error>(match back.read_block(index).await? {
            Block::Zero => digest.is_none(),
            Block::Data(_, found) => digest == Some(found),
        })
    };
    let all = stream::iter(kept)
        .map(compare)
        .buffer_unordered(AT_ONCE)
        .try_all(|is_same| async move { is_same });
    Ok(all.await? && is_any)
}

/// SHA-256 of a whole image, holes included, in hexadecimal.
///
/// # Errors
/// Why a block cannot be read.
pub async fn image_digest(image: &dyn BlockSource) -> Result<String> {
    let geometry = image.geometry();
    let mut hasher = Sha256::new();
    let mut blocks = stream::iter((0..geometry.block_count()).map(BlockIndex))
        .map(|index| async move { Ok::<_, Error>((index, image.read_block(index).await?)) })
        .buffered(AT_ONCE);
    while let Some((index, block)) = blocks.try_next().await? {
        let len = geometry.block_len(index);
        hasher = blocking(move || {
            match block {
                Block::Zero => hasher.update(ZEROES.get(..len).unwrap_or_default()),
                Block::Data(bytes, _) => hasher.update(&bytes),
            }
            Ok(hasher)
        })
        .await?;
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// SHA-256 over the digests of all blocks written, by index, in hexadecimal. A block of zeroes has none.
///
/// # Errors
/// `Corrupt` when a digest is missing.
pub fn linear_digest(checkpoint: &Checkpoint) -> Result<String> {
    let mut hasher = Sha256::new();
    for written in checkpoint.written() {
        if let (_, Some(digest)) = written? {
            hasher.update(digest);
        }
    }
    Ok(hexadecimal(&hasher.finalize()))
}
