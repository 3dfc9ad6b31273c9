//! [`RepositoryCatalog`]: the snapshots of a repository, found by the names of their manifests.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::SEGMENT_BLOCKS;
use super::check::is_damage;
use super::manifest::{FORMAT, Manifest, ManifestName};
use super::pack::Name;
use super::segment::{Segment, place_of};
use super::segments::Segments;
use super::source::RepositorySource;
use super::store::{Object, Store};
use crate::block::{BlockIndex, Change, Delta, Extent};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Snapshot, SnapshotId, sort_by_time};
use crate::source::{BlockSource, Catalog, Changes};

/// Manifests read at once.
const READS: usize = 16;
const REPOSITORY: &str = "ebsfs-repository.json";

/// What makes a bucket or a folder a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: u32,
    /// Tells it from every other one, wherever it is copied to.
    id: String,
    encryption: String,
}

/// The snapshots of a repository.
pub struct RepositoryCatalog {
    segments: Arc<Segments>,
    id: String,
    known: Mutex<HashMap<ManifestName, Arc<Snapshot>>>,
    open: Mutex<HashMap<SnapshotId, Arc<RepositorySource>>>,
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
    /// The catalog of what is to be a repository, or is one: nothing is made.
    ///
    /// # Errors
    /// As for [`RepositoryCatalog::open`].
    pub async fn look(store: Arc<Store>) -> Result<Self> {
        match Self::open(Arc::clone(&store), false).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(Self::of(store, String::new())),
            opened => opened,
        }
    }

    fn of(store: Arc<Store>, id: String) -> Self {
        Self {
            segments: Arc::new(Segments::new(store)),
            id,
            known: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// The catalog of a repository; with `make` there is one from now on.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Invalid` when it is of a kind that nobody here knows.
    pub async fn open(store: Arc<Store>, make: bool) -> Result<Self> {
        let header = match store.get(REPOSITORY).await {
            Err(error) if error.kind() == Kind::NotFound && make => {
                let new = Header {
                    format: FORMAT,
                    id: format!("{:032x}", fastrand::u128(..)),
                    encryption: "none".into(),
                };
                let json = serde_json::to_vec(&new).unwrap_or_default();
                let is_sound =
                    |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).is_ok();
                match store.put_new(REPOSITORY, &json, is_sound).await? {
                    true => Bytes::from(json),
                    false => store.get(REPOSITORY).await?,
                }
            }
            Err(error) if error.kind() == Kind::NotFound => {
                let what = format!("{} is no repository: ebsfs sync makes one", store.address());
                return Err(Error::with_source(Kind::NotFound, what, error));
            }
            header => header?,
        };
        let wrong = |what: &str| {
            Error::new(
                Kind::Invalid,
                format!("{}/{REPOSITORY} {what}", store.address()),
            )
        };
        let header: Header =
            serde_json::from_slice(&header).map_err(|_| wrong("is not what ebsfs writes"))?;
        if header.format != FORMAT || header.encryption != "none" {
            return Err(wrong(
                "is of a newer ebsfs: its format or encryption is not known here",
            ));
        }
        Ok(Self::of(store, header.id))
    }

    /// What tells it from every other repository.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its objects.
    pub fn store(&self) -> &Arc<Store> {
        self.segments.store()
    }

    /// The names of all manifests, oldest first, and the objects beside them that are none.
    async fn listed(&self) -> Result<(Vec<ManifestName>, Vec<Object>)> {
        let (mut names, mut others) = (Vec::new(), Vec::new());
        for object in self.store().list("snapshots").await? {
            match object.name.rsplit('/').next().unwrap_or_default().parse() {
                Ok(name) => names.push(name),
                Err(_) => others.push(object),
            }
        }
        names.sort();
        Ok((names, others))
    }

    /// The names of all manifests, oldest first.
    ///
    /// # Errors
    /// Why they cannot be listed.
    pub async fn names(&self) -> Result<Vec<ManifestName>> {
        Ok(self.listed().await?.0)
    }

    /// The same, and nothing else may be among them: who removes what no manifest leads to must know all manifests.
    ///
    /// # Errors
    /// `Corrupt` when something there is no manifest's name; else as for [`RepositoryCatalog::names`].
    pub async fn all_names(&self) -> Result<Vec<ManifestName>> {
        let (names, others) = self.listed().await?;
        if let Some(other) = others.first() {
            let (address, name) = (self.store().address(), &other.name);
            let what = format!("{address}/{name} is no manifest that is known here");
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(names)
    }

    /// The manifest of a name.
    ///
    /// # Errors
    /// `NotFound`, or `Corrupt` when it is damaged.
    pub async fn manifest(&self, name: &ManifestName) -> Result<Manifest> {
        let object = format!("snapshots/{name}");
        let manifest = read_manifest(self.store(), &object).await?;
        if manifest.name().to_string() != name.to_string() {
            let what = format!(
                "{}/{object} is the manifest of {}",
                self.store().address(),
                manifest.name()
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(manifest)
    }

    /// What `take` makes of the manifests of these names, in their order. Those that somebody has removed since they were listed
    /// are left out; one that is listed still and not there is `NotFound`.
    ///
    /// # Errors
    /// Why they cannot be listed again; what is wrong with each manifest is told with it.
    pub async fn manifests<T>(
        &self,
        names: Vec<ManifestName>,
        take: impl Fn(Manifest) -> T,
    ) -> Result<Vec<(ManifestName, Result<T>)>> {
        let (take, is_gone) = (
            &take,
            |read: &Result<T>| matches!(read, Err(error) if error.kind() == Kind::NotFound),
        );
        let read = stream::iter(names).map(|name| async move {
            let manifest = self.manifest(&name).await.map(take);
            (name, manifest)
        });
        let mut read: Vec<_> = read.buffered(READS).collect().await;
        if read.iter().any(|(_, manifest)| is_gone(manifest)) {
            let listed = self.names().await?;
            read.retain(|(name, manifest)| {
                !is_gone(manifest) || listed.binary_search(name).is_ok()
            });
        }
        Ok(read)
    }

    /// The snapshot that `latest`, an id, a volume, or `VOLUME@TIME` (the last one until then) names.
    ///
    /// # Errors
    /// `NotFound` when none does, `Invalid` when it names nothing.
    pub async fn find(&self, select: &str) -> Result<ManifestName> {
        let names = self.names().await?;
        let (volume, until) = match select.split_once('@') {
            Some((volume, time)) => (volume, Some(instant(time)?)),
            None => (select, None),
        };
        let is_meant = |name: &&ManifestName| {
            let is_before = until.is_none_or(|until| name.time <= until);
            let is_its = match volume {
                "latest" => true,
                volume if name.snapshot.as_str() == volume => true,
                volume => {
                    name.volume == volume || name.volume == ManifestName::volume_key(Some(volume))
                }
            };
            is_before && is_its
        };
        let found = names.iter().rfind(is_meant).cloned();
        found.ok_or_else(|| {
            let what = format!(
                "{} has no snapshot {select:?}: latest, an id, VOLUME and VOLUME@TIME name one (ebsfs repository ls)",
                self.store().address()
            );
            Error::new(Kind::NotFound, what)
        })
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
            // Of a damaged segment nothing is known: all that the other one may differ in is written or zeroed.
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
        // Of what was lost in the old one nothing is known, so that it is never left alone.
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
}

/// A time as people write it: `2026-06-30T12:00:00Z`, `2026-06-30T12:00Z` or `2026-06-30`, which is its end.
fn instant(text: &str) -> Result<std::time::SystemTime> {
    let forms = [
        text.to_owned(),
        text.replace('Z', ":59.999Z"),
        format!("{text}T23:59:59.999Z"),
    ];
    let read = forms
        .iter()
        .find_map(|form| humantime::parse_rfc3339(form).ok());
    read.ok_or_else(|| {
        let what = format!("{text:?} is no time: write 2026-06-30T12:00Z or 2026-06-30");
        Error::new(Kind::Invalid, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_leave_out_what_is_small() {
        let at = |text| crate::time::rfc3339_seconds(instant(text).unwrap());
        assert_eq!(at("2026-06-30T12:00:07Z"), "2026-06-30T12:00:07Z");
        assert_eq!(at("2026-06-30T12:00Z"), "2026-06-30T12:00:59Z");
        assert_eq!(at("2026-06-30"), "2026-06-30T23:59:59Z");
        assert!(instant("yesterday").is_err());
    }
}
