//! [`EbsTarget`]: a new EBS snapshot in an account and Region.
//!
//! | part | subject |
//! | --- | --- |
//! | [`evidence`] | which snapshots there are proven replicas, and which of them a delta can start from (pure) |
//! | [`mod@state`] | what a checkpoint keeps of an unfinished snapshot, and what is left of it (pure) |
//! | [`request`] | the body and the client token of StartSnapshot (pure) |
//! | [`observe`] | what EC2 tells, as [`Facts`] |
//! | [`start`] | StartSnapshot until it answers with a snapshot that takes blocks |
//! | [`sink`] | PutSnapshotBlock and CompleteSnapshot |
//!
//! A snapshot there is a *replica* when it holds a snapshot of the source. Its tags name that one; tags can be copied to any
//! snapshot, so they count only where the snapshot is *proven*: this machine's record names it, or its tag `ebsfs:self` is its
//! own id and it was made of no volume.

mod evidence;
mod observe;
mod request;
mod sink;
mod start;
mod state;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::block::{Delta, Geometry};
use crate::ebs::Client;
use crate::error::{Error, Kind, Remedy, Result};
use crate::snapshot::{Descriptions, Selector, Snapshot, SnapshotId, SnapshotState, YOUNG};
use crate::source::{BlockSource, Catalog, held};
use crate::target::{
    Facts, LockPath, ObserveRequest, Opened, Opening, Replica, SinkState, SourceInfo, StatePaths,
    Target, TargetKind, stem_in,
};

use evidence::{NO_VOLUME, OWN_TAGS};
use state::EbsState;

/// The account and Region that a snapshot is made in.
#[derive(Clone)]
pub struct EbsAccount {
    /// The Region.
    pub region: String,
    /// The account as far as this machine knows it: the endpoint, and the profile if one was named.
    pub account: String,
    /// Starts the snapshot, writes its blocks, completes it.
    pub client: Arc<Client>,
    /// Describes snapshots and gives them tags.
    pub descriptions: Arc<dyn Descriptions>,
    /// Reads a snapshot back.
    pub catalog: Arc<dyn Catalog>,
}

impl std::fmt::Debug for EbsAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EbsAccount({}, {})", self.region, self.account)
    }
}

/// What the user asks of the new snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EbsJob {
    /// The ARN of the KMS key to encrypt it with. A child has its parent's key: there this one is compared and not sent.
    pub kms_key: Option<String>,
    /// The completed snapshot that it is a child of.
    pub parent: Option<SnapshotId>,
    /// Its tags, besides those that ebsfs gives it.
    pub tags: Vec<(String, String)>,
    /// Its description, cut at 255 characters.
    pub description: Option<String>,
}

/// A new EBS snapshot of one source.
pub struct EbsTarget {
    place: EbsAccount,
    job: EbsJob,
    name: String,
    id: String,
    stem: PathBuf,
    /// The snapshot that holds the source already, by the last [`Target::observe`].
    held: Mutex<Option<SnapshotId>>,
}

impl std::fmt::Debug for EbsTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EbsTarget({})", self.id)
    }
}

/// The volume that a source is of, if that tells it from others: all copied snapshots have the same one.
fn volume_of(source: &SourceInfo) -> Option<&str> {
    source.volume.as_deref().filter(|id| *id != NO_VOLUME)
}

impl EbsTarget {
    /// The target of copies of the volume that `source` is of, or of that image. It makes no call.
    ///
    /// # Errors
    /// `Invalid` when the job has a tag that ebsfs gives itself.
    pub fn new(
        place: EbsAccount,
        job: EbsJob,
        source: &SourceInfo,
        state_dir: &Path,
    ) -> Result<Self> {
        let taken = |tag: &&(String, String)| OWN_TAGS.contains(&tag.0.as_str());
        if let Some((key, _)) = job.tags.iter().find(taken) {
            let what = format!("cannot tag a new snapshot {key}: ebsfs uses this key itself");
            return Err(Error::new(Kind::Invalid, what));
        }
        let of = volume_of(source).unwrap_or(&source.name);
        let id = format!("ebs:{} ({}) of {of}", place.region, place.account);
        Ok(Self {
            name: format!("ebs:{}", place.region),
            stem: stem_in(state_dir, &id),
            id,
            place,
            job,
            held: Mutex::new(None),
        })
    }

    /// What EC2 reports of one snapshot; none when it does not know it.
    async fn describe(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        let select = [Selector::Snapshot(id.clone())];
        match self.place.descriptions.describe(&select).await {
            Ok(found) => Ok(found.into_iter().find(|snapshot| snapshot.id == *id)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the Region encrypts new snapshots unasked; none without the permission to know.
    async fn encrypts_by_default(&self) -> Result<Option<bool>> {
        match self.place.descriptions.encrypts_by_default().await {
            Ok(encrypts) => Ok(Some(encrypts)),
            Err(error) if error.kind() == Kind::Denied => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The parent that the job names.
    async fn named_parent(&self) -> Result<Option<Snapshot>> {
        let Some(id) = &self.job.parent else {
            return Ok(None);
        };
        let found = self.describe(id).await?.ok_or_else(|| {
            let what = format!(
                "cannot use {id} as the parent: it does not exist in {}",
                self.place.region
            );
            Error::new(Kind::Undecided, what)
        })?;
        let usable = found.readable();
        usable.map_err(|error| error.context(format!("cannot use {id} as the parent")))?;
        let key = self.job.kms_key.as_deref();
        if let Some(why) = key.and_then(|key| evidence::other_key(key, &found)) {
            let what = format!("cannot use {id} as the parent: {why}");
            return Err(Error::new(Kind::Undecided, what));
        }
        Ok(Some(found))
    }

    async fn fit(&self, plan: Arc<Delta>, base: Option<&Replica>) -> Result<Arc<Delta>> {
        let own = plan.head().rounded_to_gib()?;
        if plan.base().is_some() {
            let base = base.ok_or_else(no_replica)?;
            if base.volume_bytes.is_some_and(|bytes| bytes > own.size()) {
                let what = format!(
                    "cannot make a child of {}: its volume is larger than the source",
                    base.id
                );
                return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::CopyAll));
            }
            return Ok(match base.encrypted {
                // Absent is zero there: what the volume has grown by needs nothing.
                Some(false) => Arc::new(plan.without_growth()),
                // An encrypted replica has no absent block, and a child must have none either.
                _ => plan,
            });
        }
        let parent = self.named_parent().await?;
        let (is_encrypted, parent_bytes) = match &parent {
            Some(parent) => (parent.encrypted, parent.volume_size),
            None if self.job.kms_key.is_some() => (Some(true), None),
            None => (self.encrypts_by_default().await?, None),
        };
        let is_encrypted = is_encrypted == Some(true);
        let head = Geometry::new(own.size().max(parent_bytes.unwrap_or(0)))?;
        let mut full = Delta::full(head, plan.write(), is_encrypted);
        if let Some(parent) = parent.filter(|_| !is_encrypted) {
            let (_, blocks) = self.place.catalog.open(&parent.id).await?;
            full.zero_where_held(&held(&*blocks).await?);
        }
        Ok(Arc::new(full))
    }
}

impl Target for EbsTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Ebs
    }

    fn state(&self) -> StatePaths {
        StatePaths {
            stem: self.stem.clone(),
        }
    }

    fn locks(&self) -> Result<Vec<LockPath>> {
        Ok(Vec::new())
    }

    fn observe<'a>(&'a self, ask: &'a ObserveRequest<'a>) -> BoxFuture<'a, Result<Facts>> {
        self.look(ask).boxed()
    }

    fn adapt<'a>(
        &'a self,
        plan: Arc<Delta>,
        base: Option<&'a Replica>,
    ) -> BoxFuture<'a, Result<Arc<Delta>>> {
        self.fit(plan, base).boxed()
    }

    fn open<'a>(&'a self, opening: Opening<'a>) -> BoxFuture<'a, Result<Opened>> {
        self.start(opening).boxed()
    }

    fn reader<'a>(
        &'a self,
        replica: Option<&'a str>,
        _geometry: Geometry,
    ) -> BoxFuture<'a, Result<Arc<dyn BlockSource>>> {
        async move {
            let named = replica.map(str::parse::<SnapshotId>).transpose()?;
            let id = named.or_else(|| self.held.lock().clone());
            let id = id.ok_or_else(|| {
                let what = format!("cannot read {}: no snapshot is known there", self.id);
                Error::new(Kind::NotFound, what)
            })?;
            let (_, blocks) = self.place.catalog.open(&id).await?;
            Ok(blocks)
        }
        .boxed()
    }

    /// EBS gives up what is not completed; the permission to delete a snapshot is not asked for.
    fn discard<'a>(&'a self, left: &'a SinkState) -> BoxFuture<'a, Result<()>> {
        if let Ok(state) = left.open::<EbsState>()
            && let Some(id) = state.snapshot
        {
            info!(
                "{id} is left unfinished in {}: EBS gives it up after {} minutes without a write",
                self.place.region, state.start.timeout_minutes
            );
        }
        std::future::ready(Ok(())).boxed()
    }
}

/// The changed blocks alone are no volume.
fn no_replica() -> Error {
    let what = "cannot make a snapshot of changed blocks without the replica that they start from";
    Error::new(Kind::Invalid, what).with_remedy(Remedy::CopyAll)
}

/// Whether a snapshot is completed.
fn is_completed(snapshot: &Snapshot) -> bool {
    snapshot.state == Some(SnapshotState::Completed)
}
