//! [`RepositoryCatalog`]: the snapshots of a repository, found by the names of their manifests.

mod digests;
mod proven;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::SEGMENT_BLOCKS;
use super::check::is_damage;
use super::lease::{LEASE, Lease, LeaseKind};
use super::listing::{self, Fence, Foreign};
use super::manifest::{FORMAT, Manifest, ManifestName, manifest_object};
use super::pack::Name;
use super::segment::{Segment, place_of};
use super::segments::Segments;
use super::source::RepositorySource;
use super::store::{Object, Store};
use crate::block::{BlockIndex, Change, Delta, Extent, random_id};
use crate::error::{Error, Kind, Remedy, Result};
use crate::snapshot::{Snapshot, SnapshotId, sort_by_time};
use crate::source::{BlockSource, Catalog, Changes, HeldDigests};

/// Manifests read at once.
const READS: usize = 16;
const REPOSITORY: &str = "ebsfs-repository.json";

/// What makes a bucket or a folder a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RepositoryHeader {
    format: u32,
    /// The repository's unique id; a copy keeps it.
    id: String,
    encryption: String,
}

/// The snapshots of a repository.
pub struct RepositoryCatalog {
    segments: Arc<Segments>,
    id: String,
    lease: Duration,
    known: Mutex<HashMap<ManifestName, Arc<Snapshot>>>,
    open: Mutex<HashMap<SnapshotId, Arc<RepositorySource>>>,
    /// Whether foreign objects were reported.
    has_warned: AtomicBool,
}

impl std::fmt::Debug for RepositoryCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RepositoryCatalog({})", self.segments.store().address())
    }
}

/// Reads a manifest.
pub(super) async fn read_manifest(store: &Store, object: &str) -> Result<Manifest> {
    let bytes = store.get(object).await?;
    Manifest::decode(&bytes).map_err(|error| error.context(format!("{}/{object}", store.address())))
}

impl RepositoryCatalog {
    /// Makes a repository: the fences of its folders, then its header. Nothing else makes one.
    ///
    /// # Errors
    /// `Invalid` when there is one already; else why it cannot be made.
    pub(crate) async fn init(store: Arc<Store>) -> Result<Self> {
        let already = || {
            let what = format!("cannot make a repository: {} is one", store.address());
            Err(Error::new(Kind::Invalid, what))
        };
        match store.get(REPOSITORY).await {
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
            // A killed init leaves such a file where the filesystem cannot rename without replacing.
            Ok(header) if header.is_empty() => {}
            Ok(_) => return already(),
        }
        Fence::new().put_all(&store).await?;
        let header = RepositoryHeader {
            format: FORMAT,
            id: random_id(),
            encryption: "none".into(),
        };
        let json = serde_json::to_vec(&header).unwrap_or_default();
        let is_sound = |bytes: &[u8]| serde_json::from_slice::<RepositoryHeader>(bytes).is_ok();
        match store.put_new(REPOSITORY, &json, is_sound).await? {
            true => Ok(Self::of(store, header.id)),
            false => already(),
        }
    }

    fn of(store: Arc<Store>, id: String) -> Self {
        Self {
            segments: Arc::new(Segments::new(store)),
            id,
            lease: LEASE,
            known: Mutex::default(),
            open: Mutex::default(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// The catalog of a repository.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Invalid` when it is of a format that this ebsfs does not know.
    pub async fn open(store: Arc<Store>) -> Result<Self> {
        let header = match store.get(REPOSITORY).await {
            Ok(header) if header.is_empty() => Err(Error::new(Kind::NotFound, "it is empty")),
            header => header,
        };
        let header = match header {
            Err(error) if error.kind() == Kind::NotFound => {
                let what = format!("{} is no repository", store.address());
                let remedy = Remedy::InitRepository(store.address().to_string());
                return Err(Error::with_source(Kind::NotFound, what, error).with_remedy(remedy));
            }
            header => header?,
        };
        let wrong = |what: String| {
            let what = format!("cannot use {}/{REPOSITORY}: {what}", store.address());
            Err(Error::new(Kind::Invalid, what))
        };
        let Ok(header) = serde_json::from_slice::<RepositoryHeader>(&header) else {
            return wrong("it is not what ebsfs writes".into());
        };
        match (header.format, &*header.encryption) {
            (FORMAT, "none") => Ok(Self::of(store, header.id)),
            (1, _) => wrong(
                "it has format 1, of versions before the first release: make a repository elsewhere and copy again".into(),
            ),
            (format, encryption) => wrong(format!(
                "this ebsfs does not know its format {format} with encryption {encryption:?}: a newer one is needed"
            )),
        }
    }

    /// The same with leases of another length than [`LEASE`].
    #[must_use]
    pub(crate) fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The same without warnings of foreign objects, for a listing that is repeated.
    #[must_use]
    pub(crate) fn without_warnings(self) -> Self {
        self.has_warned.store(true, Ordering::Relaxed);
        self
    }

    /// How long a lease of this process holds without being renewed.
    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// Puts a reader on record, so that `prune` keeps what it may read. None where this user may not write to the repository:
    /// then it reads without a lease.
    ///
    /// # Errors
    /// Why the store cannot be reached.
    pub(crate) async fn begin_reading(&self, what: &str) -> Result<Option<Lease>> {
        let id = random_id();
        let store = Arc::clone(self.store());
        match Lease::begin(store, LeaseKind::Read, &id, what, self.lease, &[]).await {
            Err(error) if matches!(error.kind(), Kind::Denied | Kind::Io | Kind::NoSpace) => {
                info!(
                    "reading without a lease, a prune does not wait for it: {}",
                    error.chain()
                );
                Ok(None)
            }
            lease => lease.map(Some),
        }
    }

    /// Its unique id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Its objects.
    pub(crate) fn store(&self) -> &Arc<Store> {
        self.segments.store()
    }

    /// Lists the manifests completely, oldest first; with `fence` by a listing that is newer than that pair.
    pub(super) async fn list_manifests(
        &self,
        fence: Option<&Fence>,
    ) -> Result<(Vec<(ManifestName, Object)>, listing::ListingExtras)> {
        let listed = listing::list(self.store(), "snapshots", fence).await?;
        self.warn_of(&listed.ends.foreign);
        let named = listed.objects.into_iter().filter_map(|object| {
            let name = object.name.rsplit('/').next()?.parse().ok()?;
            Some((name, object))
        });
        let mut named: Vec<(ManifestName, Object)> = named.collect();
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok((named, listed.ends))
    }

    /// One warning in the life of this catalog.
    pub(super) fn warn_of(&self, foreign: &Foreign) {
        if foreign.count > 0 && !self.has_warned.swap(true, Ordering::Relaxed) {
            let named = foreign.named.join(", ");
            let address = self.store().address();
            warn!(
                "ignoring {} objects of {address} that ebsfs did not write: {named}",
                foreign.count
            );
        }
    }

    /// The names of all manifests, oldest first.
    ///
    /// # Errors
    /// `Corrupt` when the listing is not complete; else why they cannot be listed.
    pub(crate) async fn names(&self) -> Result<Vec<ManifestName>> {
        let (named, _) = self.list_manifests(None).await?;
        Ok(named.into_iter().map(|(name, _)| name).collect())
    }

    /// The manifest of a name.
    ///
    /// # Errors
    /// `NotFound` when there is none or its run withdrew it; `Corrupt` when it is damaged.
    pub(crate) async fn manifest(&self, name: &ManifestName) -> Result<Manifest> {
        let manifest = self.unless_withdrawn(name).await?;
        manifest.ok_or_else(|| {
            let address = self.store().address();
            let what = format!("{address} has no {name}: its run withdrew it");
            Error::new(Kind::NotFound, what)
        })
    }

    /// The manifest of a name; none when its run withdrew it.
    async fn unless_withdrawn(&self, name: &ManifestName) -> Result<Option<Manifest>> {
        let object = manifest_object(name);
        let address = self.store().address();
        let bytes = self.store().get(&object).await?;
        let read = Manifest::read(&bytes);
        let Some(manifest) = read.map_err(|error| error.context(format!("{address}/{object}")))?
        else {
            return Ok(None);
        };
        if manifest.name() != *name {
            let what = format!("{address}/{object} is the manifest of {}", manifest.name());
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(Some(manifest))
    }

    /// The results of `take` for the manifests of these names, in their order. Manifests that were removed
    /// after the listing are left out; one that is still listed but absent is `NotFound`.
    ///
    /// # Errors
    /// Why they cannot be listed again; each result carries its own error.
    pub(crate) async fn manifests<T>(
        &self,
        names: Vec<ManifestName>,
        take: impl Fn(Manifest) -> T,
    ) -> Result<Vec<(ManifestName, Result<T>)>> {
        let take = &take;
        let is_gone =
            |read: &Result<T>| matches!(read, Err(error) if error.kind() == Kind::NotFound);
        let read = stream::iter(names).map(|name| async move {
            let manifest = self.unless_withdrawn(&name).await;
            manifest
                .map(|manifest| manifest.map(take))
                .transpose()
                .map(|read| (name, read))
        });
        let read = read.buffered(READS).filter_map(std::future::ready);
        let mut read: Vec<_> = read.collect().await;
        if read.iter().any(|(_, manifest)| is_gone(manifest)) {
            let listed = self.names().await?;
            read.retain(|(name, manifest)| {
                !is_gone(manifest) || listed.binary_search(name).is_ok()
            });
        }
        Ok(read)
    }

    async fn source(&self, id: &SnapshotId) -> Result<Arc<RepositorySource>> {
        if let Some(open) = self.open.lock().get(id) {
            return Ok(Arc::clone(open));
        }
        let names = self.names().await?;
        let name = names
            .iter()
            .rfind(|name| name.snapshot == *id)
            .ok_or_else(|| {
                let what = format!("{} has no {id}", self.store().address());
                Error::new(Kind::NotFound, what)
            })?;
        let manifest = self.manifest(name).await?;
        let source = RepositorySource::new(manifest, Arc::clone(&self.segments))?;
        let mut open = self.open.lock();
        Ok(Arc::clone(
            open.entry(id.clone()).or_insert_with(|| Arc::new(source)),
        ))
    }

    async fn list_all(&self) -> Result<Vec<Arc<Snapshot>>> {
        let (mut new, mut snapshots) = (Vec::new(), Vec::new());
        for name in self.names().await? {
            match self.known.lock().get(&name) {
                Some(known) => snapshots.push(Arc::clone(known)),
                None => new.push(name),
            }
        }
        for (name, shown) in self
            .manifests(new, |manifest| Arc::new(manifest.shown()))
            .await?
        {
            match shown {
                Ok(shown) => {
                    self.known.lock().insert(name, Arc::clone(&shown));
                    snapshots.push(shown);
                }
                // The others can be read.
                Err(damaged) if is_damage(&damaged) => {
                    error!("{name} is left out: {}", damaged.chain());
                }
                Err(error) => return Err(error),
            }
        }
        sort_by_time(&mut snapshots);
        Ok(snapshots)
    }

    /// A segment of a snapshot; none when it is damaged.
    async fn segment_if_sound(&self, name: &Name, id: &SnapshotId) -> Result<Option<Arc<Segment>>> {
        match self.segments.load(name).await {
            Err(error) if error.kind() == Kind::Corrupt => {
                warn!("all blocks there count as changed: {id}: {}", error.chain());
                Ok(None)
            }
            segment => segment.map(Some),
        }
    }

    async fn difference(&self, base: &SnapshotId, head: &SnapshotId) -> Result<Changes> {
        let (old, new) = (self.source(base).await?, self.source(head).await?);
        self.difference_of(&old, new).await
    }

    /// What differs between two snapshots, by their segments.
    async fn difference_of(
        &self,
        old: &RepositorySource,
        new: Arc<RepositorySource>,
    ) -> Result<Changes> {
        let (base, head) = (&old.manifest().snapshot, &new.manifest().snapshot);
        let mut delta = Delta::new(Some(old.geometry()), new.geometry());
        let both = [old.manifest(), new.manifest()];
        let mut numbers: Vec<u32> = both
            .iter()
            .flat_map(|manifest| manifest.segments.iter().map(|of| of.number))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let of = both.map(|manifest| manifest.segment(number).map(|of| of.name));
            if let [Some(old), Some(new)] = of
                && old == new
            {
                continue;
            }
            let mut segments = Vec::new();
            for (name, id) in of.into_iter().zip([base, head]) {
                segments.push(match name {
                    Some(name) => self.segment_if_sound(&name, id).await?,
                    None => Some(Arc::default()),
                });
            }
            let [old, new] = &segments[..] else { continue };
            // The content of a damaged segment is unknown: every block in which the other one may differ is written or zeroed.
            let (old, new) = match (old, new) {
                (Some(old), Some(new)) => (old, new),
                (_, new) => {
                    let new = new.as_deref();
                    delta_of_damage(&mut delta, number, new);
                    continue;
                }
            };
            let index = |within: u16| BlockIndex(number * SEGMENT_BLOCKS + u32::from(within));
            for (within, entry) in new.entries() {
                if old.get(within).is_none_or(|old| old.digest != entry.digest) {
                    delta.insert(index(within), Change::Write);
                }
            }
            for (within, _) in old.entries() {
                if new.get(within).is_none() {
                    delta.insert(index(within), Change::Zero);
                }
            }
        }
        // The content of blocks lost in the old one is unknown, so they are always written or zeroed.
        let end = BlockIndex(new.geometry().block_count());
        for index in old
            .damaged()
            .runs_in(BlockIndex(0), end)
            .flat_map(Extent::blocks)
        {
            delta.insert(
                index,
                match new.entry(index).await? {
                    Some(_) => Change::Write,
                    None => Change::Zero,
                },
            );
        }
        delta.write_too(new.damaged());
        delta.zero_what_grew();
        Ok((Arc::new(delta), new))
    }
}

/// What differs where the segment of a base, or of both, cannot be read: a head that cannot be read either is written, so that its
/// damage is found where its blocks are read.
fn delta_of_damage(delta: &mut Delta, number: u32, new: Option<&Segment>) {
    let end = delta.head().block_count();
    let first = number.saturating_mul(SEGMENT_BLOCKS);
    for index in first..first.saturating_add(SEGMENT_BLOCKS).min(end) {
        let within = place_of(BlockIndex(index)).1;
        let change = match new {
            Some(new) if new.get(within).is_none() => Change::Zero,
            _ => Change::Write,
        };
        delta.insert(BlockIndex(index), change);
    }
}

impl Catalog for RepositoryCatalog {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>> {
        self.list_all().boxed()
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        async move {
            let source = self.source(id).await?;
            Ok((source.manifest().shown(), source as Arc<dyn BlockSource>))
        }
        .boxed()
    }

    fn delta<'a>(
        &'a self,
        base: &'a SnapshotId,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Changes>> {
        self.difference(base, head).boxed()
    }

    fn delta_of_removed<'a>(
        &'a self,
        base: &'a SnapshotId,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Option<Changes>>> {
        self.difference_of_removed(base, head).boxed()
    }

    fn delta_of_digests<'a>(
        &'a self,
        held: &'a dyn HeldDigests,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Option<Changes>>> {
        async move { self.difference_of_digests(held, head).await.map(Some) }.boxed()
    }
}
