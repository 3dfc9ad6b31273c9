//! What was written, read back and compared.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};

use super::{Checkpoint, Target};
use crate::block::{Block, BlockIndex, Change};
use crate::disk::blocking;
use crate::error::{Error, Kind, Result};
use crate::source::BlockSource;

/// Blocks read back at once.
const AT_ONCE: usize = 16;

/// Reads back what a copy wrote and compares it, block by block, with the digests that it was fetched by.
///
/// # Errors
/// `Corrupt` for the first block that is another.
pub async fn verify(target: &Target) -> Result<()> {
    let back = target.sink.read_back().await?;
    let plan = target.checkpoint.plan();
    let digests = target.checkpoint.digests();
    let blocks = plan
        .runs()
        .flat_map(|(extent, change)| extent.blocks().map(move |index| (index, change)));
    let compare = |(index, change)| {
        let (back, digests) = (&back, &digests);
        async move {
            let promised = match change {
                Change::Write => digests.read(index)?,
                Change::Zero => None,
            };
            let found = match back.read_block(index).await? {
                Block::Zero => None,
                Block::Data(_, digest) => Some(digest),
            };
            if found == promised {
                return Ok(());
            }
            let what = format!(
                "{}: block {index} was written and reads back as something else",
                target.sink.id()
            );
            Err(Error::new(Kind::Corrupt, what))
        }
    };
    stream::iter(blocks)
        .map(compare)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// SHA-256 of a whole image, holes included, in hexadecimal.
///
/// # Errors
/// Why a block cannot be read.
pub async fn image_digest(image: &dyn BlockSource) -> Result<String> {
    let geometry = image.geometry();
    let zeroes: Arc<[u8]> = vec![0; geometry.block_len(BlockIndex(0))].into();
    let mut hasher = Sha256::new();
    let mut blocks = stream::iter((0..geometry.block_count()).map(BlockIndex))
        .map(|index| async move { Ok::<_, Error>((index, image.read_block(index).await?)) })
        .buffered(AT_ONCE);
    while let Some((index, block)) = blocks.try_next().await? {
        let zeroes = Arc::clone(&zeroes);
        let len = geometry.block_len(index);
        hasher = blocking(move || {
            match block {
                Block::Zero => hasher.update(zeroes.get(..len).unwrap_or_default()),
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
/// `Io` when the digests cannot be read.
pub fn linear_digest(checkpoint: &Checkpoint) -> Result<String> {
    let digests = checkpoint.digests();
    let mut hasher = Sha256::new();
    for (extent, change) in checkpoint.plan().runs() {
        for index in extent.blocks().filter(|_| change == Change::Write) {
            if let Some(digest) = digests.read(index)? {
                hasher.update(digest);
            }
        }
    }
    Ok(hexadecimal(&hasher.finalize()))
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
