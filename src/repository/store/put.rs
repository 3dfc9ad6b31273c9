//! Puts objects and proves each: a store can acknowledge a PUT and keep nothing, or other bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::Store;
use super::backend::{FaultAction, StoreAnswer, StoreFault, Upload};
use super::proof::{self, ObjectProof};
use super::transfer::Transfer;
use crate::error::{Kind, Result};

impl Store {
    /// Puts an object, and checks that the store holds its bytes.
    ///
    /// # Errors
    /// `Corrupt` when the store acknowledges it and does not keep it; else why it cannot be put.
    pub async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<()> {
        self.put_proven(name, pieces).await.map(drop)
    }

    /// The same, and by what the store has proven it.
    ///
    /// # Errors
    /// As for [`Store::put`].
    pub(crate) async fn put_proven(&self, name: &str, pieces: &[Bytes]) -> Result<ObjectProof> {
        self.put_in(&self.requests, name, pieces).await
    }

    /// The same for the renewal of a lease, which does not wait for transfers.
    ///
    /// # Errors
    /// As for [`Store::put`].
    pub(in crate::repository) async fn put_renewal(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.put_in(&self.renewals, name, &[bytes]).await.map(drop)
    }

    async fn put_in(&self, queue: &Semaphore, name: &str, pieces: &[Bytes]) -> Result<ObjectProof> {
        let key = &self.key(name);
        let upload = &Upload::new(pieces, self.backend.is_remote()).await?;
        self.until_in(queue, "put", key, |transfer| async move {
            self.backend.put(key, upload, false, &transfer).await?;
            self.traffic.written(upload.len);
            self.prove(key, upload, &transfer).await
        })
        .await
    }

    /// Checks that an object exists with these bytes: by its ETag or a checksum, else by reading it.
    async fn prove(
        &self,
        key: &str,
        upload: &Upload,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<ObjectProof> {
        let head = |checksums| async move {
            match self.backend.head(key, checksums, transfer).await {
                Err(fault) if fault.is_absent() => Err(self.lost(key, "it is not there")),
                head => head,
            }
        };
        let asks = self.needs_checksums.load(Ordering::Relaxed);
        let mut found = head(asks).await?;
        if let Some(size) = found.size.filter(|size| *size != upload.len) {
            let what = format!("it has {size} bytes, not {}", upload.len);
            return Err(self.lost(key, &what));
        }
        if proof::is_tagged(&found, upload) {
            return Ok(ObjectProof::Etag);
        }
        if !asks && self.address.is_s3() {
            found = head(true).await?;
        }
        match proof::checksum_says(&found, upload) {
            Some((name, true)) => {
                self.needs_checksums.store(true, Ordering::Relaxed);
                return Ok(ObjectProof::Checksum(name));
            }
            Some((_, false)) => return Err(self.lost(key, "it holds other bytes")),
            None => {}
        }
        match self.existing(key, transfer).await? {
            Some(kept) if upload.is(&kept) => Ok(ObjectProof::Bytes),
            Some(_) => Err(self.lost(key, "it holds other bytes")),
            // Deleted since the HEAD.
            None => Err(self.lost(key, "it is not there")),
        }
    }

    /// The error of a store that acknowledged an object and did not keep it.
    fn lost(&self, key: &str, what: &str) -> StoreFault {
        let what = format!("the store has taken it, and {what}");
        StoreFault::new(
            FaultAction::Retry,
            self.backend.error(Kind::Corrupt, "put", key, &what),
        )
    }

    /// Puts a small object unless there is a sound one of this name; returns whether this one is there now.
    ///
    /// # Errors
    /// As for [`Store::put`].
    pub async fn put_new(
        &self,
        name: &str,
        bytes: &[u8],
        is_sound: impl Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let key = &self.key(name);
        let bytes = Bytes::copy_from_slice(bytes);
        let upload = &Upload::new(std::slice::from_ref(&bytes), self.backend.is_remote()).await?;
        let (bytes, is_sound) = (&bytes, &is_sound);
        self.until("put", key, |transfer| async move {
            // For stores that ignore the condition. A damaged object may be the result of this
            // very PUT, and is replaced.
            let create = match self.existing(key, &transfer).await? {
                Some(there) if there == bytes || is_sound(&there) => return Ok(there == bytes),
                there => there.is_none(),
            };
            match self.backend.put(key, upload, create, &transfer).await {
                Err(fault) if fault.next == FaultAction::NoCondition => {
                    self.backend.put(key, upload, false, &transfer).await?;
                    self.traffic.written(upload.len);
                }
                // Perhaps by this very request, whose reply was lost.
                Err(fault) if fault.next == FaultAction::Exists => {}
                put => {
                    put?;
                    self.traffic.written(upload.len);
                }
            }
            match self.existing(key, &transfer).await? {
                Some(there) if there == bytes || is_sound(&there) => Ok(there == bytes),
                Some(_) => Err(self.lost(key, "it holds other bytes")),
                None => Err(self.lost(key, "it is not there")),
            }
        })
        .await
    }

    /// Whether the store refuses to create an object of a name that is taken: `None` when it does not know the condition. The
    /// object must exist; a store that ignores the condition then holds `bytes`.
    ///
    /// # Errors
    /// As for [`Store::put`].
    pub(crate) async fn refuses_to_replace(
        &self,
        name: &str,
        bytes: &[u8],
    ) -> Result<Option<bool>> {
        let key = &self.key(name);
        let pieces = [Bytes::copy_from_slice(bytes)];
        let upload = &Upload::new(&pieces, self.backend.is_remote()).await?;
        self.until("put", key, |transfer| async move {
            match self.backend.put(key, upload, true, &transfer).await {
                Ok(()) => Ok(Some(false)),
                Err(fault) if fault.next == FaultAction::Exists => Ok(Some(true)),
                Err(fault) if fault.next == FaultAction::NoCondition => Ok(None),
                Err(fault) => Err(fault),
            }
        })
        .await
    }

    async fn existing(&self, key: &str, transfer: &Arc<Transfer>) -> StoreAnswer<Option<Bytes>> {
        match self.backend.get(key, None, transfer).await {
            Err(fault) if fault.is_absent() => Ok(None),
            there => there.map(Some),
        }
    }
}
