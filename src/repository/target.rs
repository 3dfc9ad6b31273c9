//! [`RepositoryTarget`]: a new snapshot in a repository. It observes the repository's snapshots of the source and of its
//! volume, chooses the parent whose blocks are not sent again, and opens the sink.
//!
//! A base or parent is proven by its manifest and all of its segments, each read once: 40 bytes for each block of 512 KiB; and by
//! its packs, which must be there, long enough, and not known as damaged by the last check. One that is not proven is skipped
//! and the next older one is used. A snapshot that the repository holds is proven in the same way: a damaged one is copied again.

mod observe;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::catalog::RepositoryCatalog;
use super::check::{LastCheck, is_damage};
use super::index::Index;
use super::lease;
use super::locations::Locations;
use super::manifest::Manifest;
use super::run::{Parent, RunState, removed_meanwhile};
use super::segments::Segments;
use super::sink::RepositorySink;
use super::source::RepositorySource;
use super::store::Store;
use super::swept::Swept;
use crate::block::{BlockIndex, BlockSet, Delta, Geometry};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{blocking, with_ending};
use crate::snapshot::SnapshotId;
use crate::source::BlockSource;
use crate::target::{
    Facts, LockPath, ObserveRequest, Opened, Opening, Replica, Sink, SinkState, SourceInfo,
    StatePaths, Target, TargetKind, stem_in,
};
use observe::of_volume;

/// A new snapshot in a repository.
pub(crate) struct RepositoryTarget {
    catalog: RepositoryCatalog,
    name: String,
    id: String,
    stem: PathBuf,
    /// Where the dedup index is, if one is used.
    index: Option<PathBuf>,
    /// Manifests whose segments were read and whose packs are there, by name and run.
    proven: Mutex<HashSet<String>>,
    /// The result of the last check.
    last: OnceCell<LastCheck>,
    /// Objects that this process must not rely on.
    swept: OnceCell<Arc<Swept>>,
    /// The run of the damaged manifest of the source, which the next run replaces.
    replaces: Mutex<Option<String>>,
}

impl std::fmt::Debug for RepositoryTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RepositoryTarget({})", self.name)
    }
}

impl RepositoryTarget {
    /// The target for snapshots of the source's volume, with its state files in `state_dir`: one stem a volume. `dedup` sends
    /// no block that the repository holds in any snapshot, by an index beside the state files.
    pub(crate) fn new(
        catalog: RepositoryCatalog,
        dedup: bool,
        source: &SourceInfo,
        state_dir: &Path,
    ) -> Self {
        let name = catalog.store().address().to_string();
        let repository = format!("repository {}", catalog.id());
        let of = match source.volume_key.is_unknown() {
            true => &*source.name,
            false => source.volume_key.as_str(),
        };
        let id = format!("{repository} of {of}");
        let index = || with_ending(&stem_in(state_dir, &repository), "-index");
        Self {
            name,
            stem: stem_in(state_dir, &id),
            id,
            index: dedup.then(index),
            catalog,
            proven: Mutex::default(),
            last: OnceCell::new(),
            swept: OnceCell::new(),
            replaces: Mutex::default(),
        }
    }

    fn store(&self) -> &Arc<Store> {
        self.catalog.store()
    }

    /// What the last check of the repository has found.
    async fn last_check(&self) -> Result<&LastCheck> {
        let read = || LastCheck::read(self.store());
        self.last.get_or_try_init(read).await
    }

    /// The objects that prunes are about to delete.
    async fn swept(&self) -> Result<&Arc<Swept>> {
        let read = async || Swept::on_record(self.store()).await.map(Arc::new);
        self.swept.get_or_try_init(read).await
    }

    async fn fit(&self, plan: &Delta, base: Option<&Replica>) -> Result<Delta> {
        // What a new snapshot does not name reads as zeroes.
        let mut fitted = plan.without_growth();
        let Some(base) = base else {
            return Ok(fitted);
        };
        let end = BlockIndex(plan.head().block_count());
        let damaged = BlockSet::of_pairs(&self.manifest_of(&base.id).await?.damaged, end);
        if !damaged.is_empty() {
            fitted.rewrite_touched(&Delta::full(plan.head(), &damaged, false));
        }
        Ok(fitted)
    }

    /// The newest manifest of a snapshot.
    async fn manifest_of(&self, id: &SnapshotId) -> Result<Manifest> {
        let names = self.catalog.names().await?;
        let name = names.iter().rfind(|name| name.snapshot == *id);
        let name = name.ok_or_else(|| {
            let what = format!("{} does not hold {id}", self.name);
            Error::new(Kind::NotFound, what)
        })?;
        self.catalog.manifest(name).await
    }

    /// The manifest that a run relies on: its base's, else the newest sound one of the volume.
    async fn parent(
        &self,
        base: Option<&Replica>,
        source: &SourceInfo,
    ) -> Result<Option<Manifest>> {
        if let Some(base) = base {
            let manifest = self.manifest_of(&base.id).await?;
            let found = self.prove(&manifest).await;
            found.map_err(|error| match is_damage(&error) {
                true => error
                    .context(format!("cannot use {} as a base", base.id))
                    .with_remedy(Remedy::CopyAll),
                false => error,
            })?;
            if Parent::of(&manifest).is_removed(self.store()).await? {
                return Err(removed_meanwhile(&manifest.name().to_string()));
            }
            return Ok(Some(manifest));
        }
        let names = self.catalog.names().await?;
        let mut warnings = Vec::new();
        let mut found = None;
        for manifest in self
            .usable_manifests(of_volume(&names, source), &mut warnings)
            .await?
        {
            if self.is_sound(&manifest, &mut warnings).await? {
                found = Some(manifest);
                break;
            }
        }
        warnings.iter().for_each(|warning| warn!("{warning}"));
        if let Some(manifest) = &found {
            info!(
                "not sending blocks that {} has unchanged",
                manifest.snapshot
            );
        }
        Ok(found)
    }

    /// The state of a new run.
    async fn begin(&self, opening: &Opening<'_>) -> Result<RunState> {
        let Opening { task, source, .. } = *opening;
        let parent = self.parent(opening.base, source).await?;
        Ok(RunState {
            run: task.run.clone(),
            address: self.name.clone(),
            snapshot: match source.id() {
                Some(id) => id,
                None => made_id(&task.run)?,
            },
            volume: volume_of(source).map(str::to_owned),
            volume_key: source.volume_key.clone(),
            time: source.time().unwrap_or_else(SystemTime::now),
            volume_bytes: bytes_of(source),
            base: opening.base.map(|base| base.id.clone()),
            parent: parent.as_ref().map(Parent::of),
            replaces: self.replaces.lock().clone(),
            encrypted: source.encrypted,
            description: source
                .snapshot
                .as_ref()
                .and_then(|snapshot| snapshot.description.clone()),
            tags: source.tags(),
            packs: 0,
            sent_blocks: 0,
            sent_bytes: 0,
            stored_bytes: 0,
        })
    }

    async fn open_sink(&self, opening: Opening<'_>) -> Result<Opened> {
        let stop = opening.stop;
        let (state, done) = match opening.resume {
            Some(left) => (left.open::<RunState>()?, Some(opening.done)),
            None => (stop.unless(self.begin(&opening)).await?, None),
        };
        // A delta without its base would lose every block that it leaves alone.
        if state.base.is_some() != opening.plan.base().is_some() {
            let what = format!("cannot write {}: the plan has another base", self.name);
            return Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart));
        }
        let named = SinkState::of(&state);
        if done.is_none() {
            // Saved before the store has a record of the run, so that this machine can always find that record.
            (opening.name)(&named)?;
        }
        let store = Arc::clone(self.store());
        let (lease, swept) = (self.catalog.lease(), stop.unless(self.swept()).await?);
        let sink = RepositorySink::open(store, state, &opening.files, done, lease, swept);
        let mut sink = stop.unless(sink).await?;
        if let Some(path) = &self.index {
            match Index::update(&self.catalog, path, stop).await {
                Ok(index) => {
                    let last = self.last_check().await?.clone();
                    sink = sink.with_index(index, last, Arc::clone(swept));
                }
                // The index only saves transfers: the run is correct without it.
                Err(error) if matches!(error.kind(), Kind::Io | Kind::NoSpace | Kind::Corrupt) => {
                    warn!("not using the dedup index: {}", error.chain());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Opened {
            sink: Arc::new(sink) as Arc<dyn Sink>,
            state: named,
            zero_the_rest: false,
        })
    }

    async fn read(&self, replica: Option<&str>) -> Result<Arc<dyn BlockSource>> {
        let replica = replica.ok_or_else(|| {
            let what = format!("cannot read {}: no snapshot of it is known", self.name);
            Error::new(Kind::NotFound, what)
        })?;
        let manifest = self.manifest_of(&replica.parse()?).await?;
        let segments = Arc::new(Segments::new(Arc::clone(self.store())));
        Ok(Arc::new(RepositorySource::new(manifest, segments)?))
    }

    async fn forget(&self, left: &SinkState) -> Result<()> {
        let stem = self.stem.clone();
        blocking(move || Locations::remove_all(&stem)).await?;
        match left.open::<RunState>() {
            Ok(state) => lease::end_run(self.store(), &state.run).await,
            // The name contains no run.
            Err(_) => Ok(()),
        }
    }
}

/// The source's volume, of an image or a device its path; none of a snapshot whose volume is not known.
fn volume_of(source: &SourceInfo) -> Option<&str> {
    let path = source.snapshot.is_none().then_some(&*source.name);
    source.volume.as_deref().or(path)
}

fn bytes_of(source: &SourceInfo) -> u64 {
    source.size.unwrap_or(source.geometry.size())
}

/// The id of a snapshot that is made of an image.
fn made_id(run: &str) -> Result<SnapshotId> {
    format!("snap-{}", run.get(..17).unwrap_or(run)).parse()
}

impl Target for RepositoryTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Repository
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
        self.facts(ask).boxed()
    }

    fn adapt<'a>(
        &'a self,
        plan: Arc<Delta>,
        base: Option<&'a Replica>,
    ) -> BoxFuture<'a, Result<Arc<Delta>>> {
        async move {
            match plan.base() {
                None => Ok(plan),
                Some(_) => Ok(Arc::new(self.fit(&plan, base).await?)),
            }
        }
        .boxed()
    }

    fn open<'a>(&'a self, opening: Opening<'a>) -> BoxFuture<'a, Result<Opened>> {
        self.open_sink(opening).boxed()
    }

    fn reader<'a>(
        &'a self,
        replica: Option<&'a str>,
        _geometry: Geometry,
    ) -> BoxFuture<'a, Result<Arc<dyn BlockSource>>> {
        self.read(replica).boxed()
    }

    fn discard<'a>(&'a self, left: &'a SinkState) -> BoxFuture<'a, Result<()>> {
        self.forget(left).boxed()
    }
}

#[cfg(test)]
mod tests;
