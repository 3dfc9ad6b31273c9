//! Where a volume can be written: [`Sink`] and its contract.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::block::{BlockIndex, Digest, Extent};
use crate::error::Result;
use crate::source::BlockSource;

/// What a run has written: each block of its plan, by index, with the SHA-256 of its bytes; none for zeroes.
pub type Written = Box<dyn Iterator<Item = Result<(BlockIndex, Option<Digest>)>> + Send>;

/// A volume being written. Blocks come in any order, several at once, none twice in a run; after a crash those that were
/// not flushed come again.
pub trait Sink: Send + Sync {
    /// Which thing it is, kept in the checkpoint: the same target has the same id, another one never.
    fn id(&self) -> &str;

    /// Writes a block.
    ///
    /// # Errors
    /// Why it could not be written; the target may hold any part of it.
    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        digest: Digest,
    ) -> BoxFuture<'_, Result<()>>;

    /// Makes blocks read as zeroes, whatever was there.
    ///
    /// # Errors
    /// As for [`Sink::write_block`].
    fn write_zeroes(&self, extent: Extent) -> BoxFuture<'_, Result<()>>;

    /// What was written before this call survives a crash of the machine. The answer is what a resumed run needs to go on
    /// with the same target.
    ///
    /// # Errors
    /// `Io` when it may not survive: nothing of it counts as written.
    fn flush(&self) -> BoxFuture<'_, Result<Value>>;

    /// What has been written, read back from where it is kept and not from memory; none where that can be read only when it
    /// is finished.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>>;

    /// Publishes: from now on it is there under its name.
    ///
    /// # Errors
    /// Why it could not be published; it can be tried again.
    fn finish(&self, written: Written) -> BoxFuture<'_, Result<()>>;
}
