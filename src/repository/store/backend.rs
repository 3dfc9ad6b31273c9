//! [`Backend`]: one request to a store, without retries and proofs.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use md5::{Digest as _, Md5};

use super::bucket::BucketSettings;
use super::transfer::Transfer;
use crate::aws::Generation;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;

/// The most bytes of an object: a manifest of 64 TiB has less than 1 MB, a segment 5 MB, a pack 32 MiB.
pub(super) const MOST_BYTES: u64 = 64 << 20;

/// What a caller does about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultAction {
    /// Send it again until the deadline.
    Retry,
    /// Fail: another attempt would fail too.
    Final,
    /// The store's clock differs from ours: send it again once, with the corrected time.
    Skewed,
    /// The credentials were refused: send it again with new ones.
    Refused,
    /// There is no such object.
    Absent,
    /// An object of this name exists, or another writer makes it now.
    Exists,
    /// The store does not know conditional writes.
    NoCondition,
    /// Retention or a legal hold forbids to delete the object.
    Locked,
}

/// A failed request.
#[derive(Clone, Debug)]
pub(super) struct StoreFault {
    pub(super) error: Error,
    pub(super) next: FaultAction,
}

pub(super) type StoreAnswer<T> = std::result::Result<T, StoreFault>;

impl StoreFault {
    pub(super) fn new(next: FaultAction, error: Error) -> Self {
        Self { error, next }
    }

    pub(super) fn is_absent(&self) -> bool {
        self.next == FaultAction::Absent
    }
}

/// The metadata of an object.
#[derive(Clone, Debug)]
pub(super) struct ObjectHead {
    pub(super) size: Option<u64>,
    pub(super) modified: Option<SystemTime>,
    pub(super) etag: Option<String>,
    /// Checksums of the whole object that the store computed: algorithm, value in base64.
    pub(super) checksums: Vec<(&'static str, String)>,
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedKey {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

/// Where the next page of a listing begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListCursor {
    Start,
    /// The continuation token of version 2 of ListObjects.
    Token(String),
    /// Behind this key.
    After(String),
}

/// One page of a listing.
#[derive(Clone, Debug)]
pub(super) struct StorePage {
    pub(super) keys: Vec<ListedKey>,
    /// None where the listing ends.
    pub(super) next: Option<ListCursor>,
}

/// The bytes of an object to put.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) pieces: Vec<Bytes>,
    pub(super) len: u64,
    pub(super) md5: Option<[u8; 16]>,
}

impl Upload {
    /// An upload; `wants_md5` where the store is asked over a network.
    pub(super) async fn new(pieces: &[Bytes], wants_md5: bool) -> Result<Self> {
        let pieces = pieces.to_vec();
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        let md5 = match wants_md5 {
            false => None,
            true => {
                let hashed = pieces.clone();
                let md5 = blocking(move || {
                    let mut md5 = Md5::new();
                    hashed.iter().for_each(|piece| md5.update(piece));
                    Ok(md5.finalize().into())
                });
                Some(md5.await?)
            }
        };
        Ok(Self { pieces, len, md5 })
    }

    /// Whether it has these bytes.
    pub(super) fn is(&self, mut bytes: &[u8]) -> bool {
        let bytes_len = bytes.len() as u64;
        let is_next = |piece: &Bytes| {
            let rest = bytes.strip_prefix(&piece[..]);
            bytes = rest.unwrap_or_default();
            rest.is_some()
        };
        bytes_len == self.len && self.pieces.iter().all(is_next)
    }
}

/// One request to a store. Keys are whole: the prefix of the repository is part of them.
#[async_trait::async_trait]
pub(super) trait Backend: Send + Sync {
    /// The object `key`, or a range of it; never more than [`MOST_BYTES`].
    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<Bytes>;

    /// Puts an object; with `create` only where there is none ([`FaultAction::Exists`], [`FaultAction::NoCondition`]).
    async fn put(
        &self,
        key: &str,
        upload: &Upload,
        create: bool,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<()>;

    /// The metadata of an object; with its checksums if `checksums` is set.
    async fn head(
        &self,
        key: &str,
        checksums: bool,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<ObjectHead>;

    /// One page of the keys that begin with `prefix`, in the order of their bytes.
    async fn page(
        &self,
        prefix: &str,
        from: &ListCursor,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<StorePage>;

    /// Deletes an object; one that does not exist counts as deleted.
    async fn delete(&self, key: &str, transfer: &Arc<Transfer>) -> StoreAnswer<()>;

    /// An error of an operation on a key.
    fn error(&self, kind: Kind, verb: &str, key: &str, what: &str) -> Error;

    /// Whether objects reach it over a network, so that MD5 proves what arrived.
    fn is_remote(&self) -> bool {
        true
    }

    /// The version of ListObjects that the last listing was answered by; none where the store has no versions of it, or none was
    /// listed.
    fn listing_version(&self) -> Option<u8> {
        None
    }

    /// What can be asked of a bucket of S3; none for other stores.
    fn settings(&self) -> Option<&dyn BucketSettings> {
        None
    }

    /// How long no byte may move.
    fn silence(&self, timeout: Duration) -> Duration {
        super::transfer::SILENCE.min(timeout)
    }

    /// Waits for credentials, so that the time that a person needs to answer a credential program does not count as silence of
    /// the store.
    fn ready(&self) -> BoxFuture<'_, StoreAnswer<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The credentials that the next request is signed with.
    fn generation(&self) -> Generation {
        Generation::default()
    }

    /// Credentials were refused; returns whether new ones may work.
    fn refused(&self, _used: Generation) -> bool {
        false
    }

    /// A connection was silent: the idle ones are suspect too.
    fn forget_idle(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_upload_is_its_bytes_and_no_others() {
        let pieces = [
            Bytes::from_static(b"ab"),
            Bytes::new(),
            Bytes::from_static(b"c"),
        ];
        let upload = Upload::new(&pieces, true).await.unwrap();
        assert!(upload.is(b"abc") && upload.len == 3);
        for other in [&b""[..], b"ab", b"abcd", b"abd", b"xbc"] {
            assert!(!upload.is(other), "{other:?}");
        }
    }
}
