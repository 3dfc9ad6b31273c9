//! What a bucket of S3 does with objects that are overwritten or deleted: versions, lifecycle rules, Object Lock. Only
//! `ebsfs doctor` reads it: no verb depends on an answer.

use std::sync::Arc;

use super::Store;
use super::backend::StoreAnswer;
use super::transfer::Transfer;
use crate::error::Result;

/// Whether a bucket keeps what is overwritten or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BucketVersions {
    /// It never had versions.
    Off,
    /// It keeps the versions that it has, and makes no new ones.
    Suspended,
    /// It keeps all of them.
    On,
}

/// What the lifecycle rules of a bucket do with the objects of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LifecycleEffects {
    /// Days after which each old version is deleted; none where no rule deletes all of them.
    pub(crate) old_versions: Option<u32>,
    /// The rule that deletes objects that a snapshot can need.
    pub(crate) deletes: Option<String>,
    /// The rule that moves objects to an archive, where they cannot be read at once.
    pub(crate) archives: Option<String>,
}

/// The Object Lock of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ObjectLock {
    /// It has none.
    Off,
    /// Objects can be locked one by one; a new one is not.
    WithoutDefault,
    /// Each new object is locked: the mode, and for how long in words.
    Default(String, String),
}

/// One request each about a bucket.
#[async_trait::async_trait]
pub(super) trait BucketSettings: Send + Sync {
    async fn versions(&self, transfer: &Arc<Transfer>) -> StoreAnswer<BucketVersions>;

    /// Of the objects whose keys begin with `prefix`.
    async fn lifecycle(
        &self,
        prefix: &str,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<LifecycleEffects>;

    async fn object_lock(&self, transfer: &Arc<Transfer>) -> StoreAnswer<ObjectLock>;
}

/// Asks what a bucket does with the objects of a repository.
pub(crate) struct BucketReader<'a> {
    store: &'a Store,
    settings: &'a dyn BucketSettings,
}

impl Store {
    /// What can be asked of its bucket; none where it is not in S3.
    pub(crate) fn bucket(&self) -> Option<BucketReader<'_>> {
        let settings = self.backend.settings()?;
        Some(BucketReader {
            store: self,
            settings,
        })
    }
}

impl BucketReader<'_> {
    /// Whether it keeps versions.
    ///
    /// # Errors
    /// Why it does not say: `Denied` without `s3:GetBucketVersioning`, `Invalid` where the store does not know the request.
    pub(crate) async fn versions(&self) -> Result<BucketVersions> {
        let ask = |transfer| async move { self.settings.versions(&transfer).await };
        self.store.until("look at", "", ask).await
    }

    /// What its lifecycle rules do with the objects of the repository.
    ///
    /// # Errors
    /// As for [`BucketReader::versions`]; the permission is `s3:GetLifecycleConfiguration`.
    pub(crate) async fn lifecycle(&self) -> Result<LifecycleEffects> {
        let prefix = &self.store.key("");
        let ask = |transfer| async move { self.settings.lifecycle(prefix, &transfer).await };
        self.store.until("look at", "", ask).await
    }

    /// Its Object Lock.
    ///
    /// # Errors
    /// As for [`BucketReader::versions`]; the permission is `s3:GetBucketObjectLockConfiguration`.
    pub(crate) async fn object_lock(&self) -> Result<ObjectLock> {
        let ask = |transfer| async move { self.settings.object_lock(&transfer).await };
        self.store.until("look at", "", ask).await
    }
}
