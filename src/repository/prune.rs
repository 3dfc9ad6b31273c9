//! `prune` and `rm`: a snapshot is removed by its manifest; objects that no manifest needs are deleted in two steps.
//!
//! ```text
//! fences    a new pair in each folder; the store's time of them is now
//! runs      who writes and reads, and whether their leases hold
//! manifests a complete listing, in which none is missing that the last prune or `latest/` names
//! retain    writes a tombstone, then deletes the manifest; `latest/` forgets it when the tombstone goes
//! mark      `garbage/`: what no manifest and no tombstone within the grace needs
//! sweep     of that, what an earlier prune marked at least a grace ago: named in `garbage/`, then the manifests are listed again,
//!           then what still none of them needs is deleted
//! ```
//! A writer publishes its manifest and then lists sweeps; a prune writes its sweep and then lists manifests. So one of the two
//! sees the other, whatever their clocks show. A lease only makes that conflict rare: nothing that was written
//! since the oldest living run began is swept.

mod clean_up;
mod marks;
mod needed;
mod sweep;

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tracing::{info, warn};

use super::catalog::{RepositoryCatalog, read_manifest};
use super::latest;
use super::lease::{self, RunOnRecord, boot_time};
use super::listing::{self, Fence};
use super::manifest::{Manifest, ManifestName, manifest_object};
use super::pins::{pinned, refuse_pinned};
use super::retention::{Decisions, Retention, RetentionCandidate};
use super::run::removed;
use super::store::{Deleted, Object, Store};
use crate::error::{Error, Kind, Remedy, Result};
use crate::progress::Progress;
pub(super) use marks::{is_sweep, new_sweeps, read as read_sweeps};
pub(super) use needed::Needed;
use sweep::Sweep;

/// The most time from an object's Last-Modified until it appears: a store may record the start of the PUT.
const SLACK: Duration = Duration::from_secs(130);
/// A shorter grace than this marks and sweeps in one run, where nothing else is on record.
const SHORT_GRACE: Duration = Duration::from_hours(1);
/// Fences and records of dead runs that are older are deleted: no prune takes that long.
const OLD: Duration = Duration::from_hours(24);
/// How often a removal reads a manifest that other runs replace.
const TRIES: usize = 5;
/// How long after its start a prune may delete. A run cannot see its sweep for longer: another prune deletes that seven days
/// after its own grace.
const MOST_TIME: Duration = Duration::from_hours(84);

/// The request to a prune.
#[derive(Clone, Debug)]
pub(crate) struct PruneRequest {
    /// Which snapshots stay.
    pub(crate) retention: Retention,
    /// The grace: how long an object must have been marked before it is deleted.
    pub(crate) grace: Duration,
    /// Report only; delete nothing.
    pub(crate) dry_run: bool,
    /// Manifests that may be missing.
    pub(crate) accept_missing: Vec<String>,
}

/// What a prune did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pruned {
    /// Which snapshots stay, and why.
    #[serde(flatten)]
    pub(crate) decisions: Decisions,
    /// Snapshots removed, by the names of their manifests.
    pub(crate) removed: Vec<String>,
    /// Objects deleted.
    pub(crate) swept: u64,
    /// Their bytes.
    pub(crate) swept_bytes: u64,
    /// Unneeded objects that stay for now: not marked for a grace, or held by a run or reader.
    pub(crate) waiting: u64,
    /// Their bytes.
    pub(crate) waiting_bytes: u64,
    /// Objects that the store refuses to delete: retention or a legal hold.
    pub(crate) locked: u64,
    /// The first reason for that, in the store's words.
    pub(crate) locked_why: Option<String>,
    /// Runs and readers on record.
    pub(crate) runs: Vec<PrunedRun>,
    /// Objects that would have been deleted if none of these were on record.
    pub(crate) held: u64,
    /// Whether one of those that hold objects back is alive.
    pub(crate) is_held_by_living: bool,
    /// Where the repository is.
    #[serde(skip)]
    pub(crate) repository: String,
    /// Why nothing was deleted, where this user may not.
    #[serde(skip)]
    pub(crate) denied: Option<Denied>,
}

/// The refusal of a store to delete anything; any two are equal.
#[derive(Clone, Debug)]
pub(crate) struct Denied(pub(crate) Error);

impl PartialEq for Denied {
    fn eq(&self, other: &Self) -> bool {
        self.0.chain() == other.0.chain()
    }
}

impl Eq for Denied {}

/// A run or reader that is on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PrunedRun {
    /// Its id.
    pub(crate) run: String,
    /// User, machine and process.
    pub(crate) holder: String,
    /// When it began.
    pub(crate) started: String,
    /// When it was last renewed.
    pub(crate) renewed: String,
    /// Whether its lease holds.
    pub(crate) is_alive: bool,
}

impl PrunedRun {
    fn of(run: &RunOnRecord, now: SystemTime) -> Self {
        Self {
            run: run.id.clone(),
            holder: run.holder.clone(),
            started: crate::time::rfc3339_seconds(run.started),
            renewed: crate::time::rfc3339_seconds(run.renewed),
            is_alive: run.is_alive(now),
        }
    }
}

impl Pruned {
    /// The result: an error when objects were held back that a person must decide on, or that a later prune can delete.
    ///
    /// # Errors
    /// `Denied` when nothing could be deleted; `Busy` when a living run or reader holds something back; `Undecided` when a dead
    /// one does.
    pub(crate) fn ended(&self) -> Result<()> {
        if let Some(Denied(error)) = &self.denied {
            return Err(error.clone());
        }
        if self.held == 0 {
            return Ok(());
        }
        let wanted = |run: &&PrunedRun| run.is_alive == self.is_held_by_living;
        let Some(run) = self.runs.iter().find(wanted) else {
            return Ok(());
        };
        let (kind, remedy) = match run.is_alive {
            true => (Kind::Busy, Remedy::TryLater),
            false => {
                let (repository, run) = (self.repository.clone(), run.run.clone());
                (Kind::Undecided, Remedy::ForgetRun { repository, run })
            }
        };
        let what = format!(
            "cannot delete {} objects: the run {} of {} may need them (began {}, last renewed {})",
            self.held, run.run, run.holder, run.started, run.renewed
        );
        Err(Error::new(kind, what).with_remedy(remedy))
    }
}

/// Removes a snapshot: a tombstone keeps its data until the grace is over. A snapshot that the store has locked stays.
///
/// # Errors
/// `Undecided` when it is pinned; else why it could not be removed: it may be there or not.
pub(crate) async fn remove(store: &Store, name: &ManifestName) -> Result<Deleted> {
    refuse_pinned(store, name).await?;
    let object = manifest_object(name);
    let mut buried: Option<String> = None;
    // Read again before it is deleted: another run can have replaced it since.
    for _ in 0..TRIES {
        match read_manifest(store, &object).await {
            Ok(manifest) if buried.as_ref() == Some(&manifest.run) => {
                return store.delete(&object).await;
            }
            Ok(manifest) => {
                // Written again if it is there: its time is that of this removal.
                let tombstone = removed(&name.to_string(), &manifest.run);
                store.put(&tombstone, &[manifest.encode().into()]).await?;
                buried = Some(manifest.run);
            }
            // An unreadable manifest gets no tombstone: `latest/` must forget it here.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Invalid) => {
                warn!("{}", error.chain());
                latest::retreat(store, name).await?;
                return store.delete(&object).await;
            }
            // Another process has removed it.
            Err(error) if error.kind() == Kind::NotFound && buried.is_some() => {
                return Ok(Deleted::Done);
            }
            Err(error) => return Err(error),
        }
    }
    let what = format!("cannot remove {name}: other runs replace it");
    Err(Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater))
}

/// The decision of the retention on these snapshots.
async fn decide(store: &Store, manifests: &[Manifest], retention: &Retention) -> Result<Decisions> {
    let pinned = pinned(store).await?;
    let candidates = manifests.iter().map(|manifest| RetentionCandidate {
        name: manifest.name(),
        tags: manifest.tags.clone(),
        is_pinned: pinned.contains(&manifest.name().to_string()),
    });
    Ok(retention.decide(&candidates.collect::<Vec<_>>()))
}

/// Applies the retention, marks what no snapshot needs, and deletes what was marked long enough ago. `progress` shows the phases.
///
/// # Errors
/// Why the repository could not be read: when a listing is not complete, or a manifest or a segment cannot be read, nothing
/// is deleted.
pub(crate) async fn prune(
    catalog: &RepositoryCatalog,
    request: &PruneRequest,
    progress: &Progress,
) -> Result<Pruned> {
    progress.begin("listing snapshots", 0);
    Prune::begin(catalog, request, progress).await?.run().await
}

/// A prune that is under way.
struct Prune<'a> {
    catalog: &'a RepositoryCatalog,
    store: &'a Store,
    request: &'a PruneRequest,
    progress: &'a Progress,
    /// None in a dry run, which writes nothing.
    fence: Option<Fence>,
    now: SystemTime,
    /// By the clock of [`boot_time`]: nothing is deleted later.
    deadline: Duration,
    runs: Vec<RunOnRecord>,
    /// Manifests that were withdrawn long ago, and are deleted at the end.
    withdrawn: HashSet<ManifestName>,
    pruned: Pruned,
}

impl<'a> Prune<'a> {
    async fn begin(
        catalog: &'a RepositoryCatalog,
        request: &'a PruneRequest,
        progress: &'a Progress,
    ) -> Result<Self> {
        let store = &**catalog.store();
        let mut prune = Self {
            catalog,
            store,
            request,
            progress,
            fence: None,
            now: SystemTime::now(),
            deadline: boot_time() + MOST_TIME,
            runs: Vec::new(),
            withdrawn: HashSet::new(),
            pruned: Pruned {
                repository: store.address().to_string(),
                ..Pruned::default()
            },
        };
        if !request.dry_run {
            let fence = Fence::new();
            fence.put_all(store).await?;
            prune.now = fence.time(store, "snapshots").await?;
            prune.fence = Some(fence);
        }
        Ok(prune)
    }

    async fn run(mut self) -> Result<Pruned> {
        let (runs, ends) = lease::all(self.store, self.fence.as_ref()).await?;
        self.catalog.warn_of(&ends.foreign);
        let on_record = runs.iter().filter(|run| !run.has_ended);
        self.pruned.runs = on_record.map(|run| PrunedRun::of(run, self.now)).collect();
        self.runs = runs;
        let (manifests, names) = self.retain().await?;
        let (needed, tombstones) = self.needed(&manifests).await?;
        self.progress
            .begin_units("listing segments and packs", "objects", 0);
        let mut sweep = Sweep::new(self.ripe_before(), self.kept_since());
        sweep
            .find(
                self.catalog,
                self.fence.as_ref(),
                &needed,
                self.request.grace,
                self.now,
                self.progress,
            )
            .await?;
        let (is_immediate, is_short) = (self.is_immediate(), self.request.grace < SHORT_GRACE);
        sweep.report(&mut self.pruned, is_immediate, is_short);
        if self.fence.is_none() {
            return Ok(self.pruned);
        }
        let mut old_fences = std::mem::take(&mut sweep.old_fences);
        old_fences.extend(ends.old_fences.into_iter().map(|fence| ("runs", fence)));
        self.progress.begin("marking what no snapshot needs", 0);
        sweep.mark(self.store).await?;
        let doomed = sweep.doomed(self.is_immediate());
        if !doomed.is_empty() {
            let doomed = self.still_unneeded(&manifests, doomed).await?;
            let of = doomed.len() as u64;
            self.progress
                .begin_units("deleting packs and segments", "objects", of);
            let (store, progress) = (self.store, self.progress);
            sweep::delete(store, doomed, self.deadline, &mut self.pruned, progress).await?;
        }
        self.progress.begin("removing old marks and records", 0);
        latest::note_pruned(self.store, &names).await?;
        self.clean_up(&tombstones, &manifests, old_fences).await?;
        Ok(self.pruned)
    }

    /// Objects marked before this time are deleted now.
    fn ripe_before(&self) -> SystemTime {
        before(self.now, self.request.grace)
    }

    /// Start of the oldest living run or reader: the prune keeps all objects and tombstones written since.
    fn kept_since(&self) -> Option<SystemTime> {
        let living = self.runs.iter().filter(|run| run.is_alive(self.now));
        living.map(|run| before(run.started, SLACK)).min()
    }

    /// Tombstones written before this time no longer keep data.
    fn buried_before(&self) -> SystemTime {
        let ripe = self.ripe_before();
        self.kept_since().map_or(ripe, |since| since.min(ripe))
    }

    /// Whether objects are deleted in the run that finds them: a short grace, and no other run is on record.
    fn is_immediate(&self) -> bool {
        self.request.grace < SHORT_GRACE && self.runs.iter().all(|run| run.has_ended)
    }

    /// Lists and reads the manifests, and removes those that the retention does not keep. The manifests of what a dry run would
    /// remove are among those that it returns: what they need is needed until the grace is over.
    async fn retain(&mut self) -> Result<(Vec<Manifest>, Vec<ManifestName>)> {
        let accept = &self.request.accept_missing;
        let listed = self
            .catalog
            .list_proven(None, self.fence.as_ref(), accept)
            .await?;
        let old = listed
            .iter()
            .filter(|(_, object)| object.modified < before(self.now, OLD));
        let old: HashSet<ManifestName> = old.map(|(name, _)| name.clone()).collect();
        let listed = listed.into_iter().map(|(name, _)| name).collect();
        let mut manifests = Vec::new();
        for (_, manifest) in self.catalog.manifests(listed, |manifest| manifest).await? {
            manifests.push(manifest?);
        }
        self.withdrawn = old;
        let mut names: Vec<ManifestName> = manifests.iter().map(Manifest::name).collect();
        names.sort();
        self.withdrawn
            .retain(|name| names.binary_search(name).is_err());
        if self.fence.is_some() {
            for accepted in accept.iter().filter_map(|name| name.parse().ok()) {
                if names.binary_search(&accepted).is_err() {
                    latest::retreat(self.store, &accepted).await?;
                }
            }
        }
        let retention = &self.request.retention;
        let decisions = decide(self.store, &manifests, retention).await?;
        if self.fence.is_some() {
            decisions.check(retention)?;
        }
        let removed = decisions.removed().count() as u64;
        if self.fence.is_some() && removed > 0 {
            self.progress
                .begin_units("removing snapshots", "snapshots", removed);
        }
        for name in decisions.removed() {
            self.progress.step(1);
            if self.fence.is_some() {
                match remove(self.store, name).await {
                    Ok(Deleted::Locked(why)) => {
                        self.pruned.locked += 1;
                        self.pruned.locked_why.get_or_insert(why);
                        continue;
                    }
                    Ok(Deleted::Done) => {}
                    // Another prune has removed it.
                    Err(error) if error.kind() == Kind::NotFound => {}
                    // It was pinned since the pins were listed.
                    Err(error) if error.kind() == Kind::Undecided => {
                        warn!("{}", error.chain());
                        continue;
                    }
                    Err(error) if error.kind() == Kind::Denied => {
                        self.pruned.denied.get_or_insert(Denied(error));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                info!("removed {name}");
                names.retain(|kept| kept != name);
                manifests.retain(|manifest| manifest.name() != *name);
            }
            self.pruned.removed.push(name.to_string());
        }
        self.pruned.decisions = decisions;
        Ok((manifests, names))
    }

    /// What the manifests need, and the tombstones that are within the grace or that a living run or reader may use; and all
    /// tombstones that are not.
    async fn needed(&mut self, manifests: &[Manifest]) -> Result<(Needed, Vec<Object>)> {
        let listed = listing::list(self.store, "removed", self.fence.as_ref()).await?;
        let since = self.buried_before();
        let mut buried = Vec::new();
        let mut old = Vec::new();
        for object in listed.objects {
            if object.modified < since {
                old.push(object);
                continue;
            }
            if object.modified < self.ripe_before() {
                // Only a living run or reader keeps it.
                self.pruned.held += 1;
                self.pruned.is_held_by_living = true;
            }
            match read_manifest(self.store, &object.name).await {
                Err(error) if error.kind() == Kind::NotFound => {}
                manifest => buried.push(manifest?),
            }
        }
        let progress = self.progress;
        let mut needed = Needed::of_shown(self.store, manifests, progress).await?;
        needed.add(Needed::of_buried(self.store, &buried, progress).await?);
        Ok((needed, old))
    }

    /// Names what is to be deleted in `garbage/`, then leaves out what manifests need that were published since those of `before`
    /// were listed.
    async fn still_unneeded(
        &mut self,
        before: &[Manifest],
        mut doomed: Vec<sweep::SweptObject>,
    ) -> Result<Vec<sweep::SweptObject>> {
        let sweeps = marks::put_sweep(self.store, &doomed).await?;
        let needed = self.published_meanwhile(before).await?;
        marks::put_spared(self.store, &sweeps, &doomed, &needed).await?;
        sweep::spare(&mut doomed, &needed, &mut self.pruned);
        Ok(doomed)
    }

    /// The needs of manifests that were published after `before` was listed.
    async fn published_meanwhile(&self, before: &[Manifest]) -> Result<Needed> {
        let fence = Fence::new();
        fence.put(self.store, "snapshots").await?;
        let accept = &self.request.accept_missing;
        let named = self.catalog.list_proven(None, Some(&fence), accept).await?;
        let of = |manifest: &Manifest| (manifest.name().to_string(), manifest.run.clone());
        let known: HashSet<(String, String)> = before.iter().map(of).collect();
        let names: HashSet<&String> = known.iter().map(|(name, _)| name).collect();
        let new = named.into_iter().filter(|(name, object)| {
            let is_known = names.contains(&name.to_string());
            // The same name can be written again by another run.
            !is_known || object.modified >= self::before(self.now, SLACK)
        });
        let new: Vec<ManifestName> = new.map(|(name, _)| name).collect();
        let mut manifests = Vec::new();
        for (_, manifest) in self.catalog.manifests(new, |manifest| manifest).await? {
            manifests.push(manifest?);
        }
        manifests.retain(|manifest| !known.contains(&of(manifest)));
        Needed::of(self.store, &manifests).await
    }
}

fn before(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Deletes the record of a run that will not be resumed: what it wrote can be swept.
///
/// # Errors
/// `NotFound` when there is none; else why it cannot be forgotten.
pub(crate) async fn forget_run(store: &Store, run: &str) -> Result<()> {
    let object = lease::run_object(run);
    store.head(&object).await.map_err(|error| {
        let what = format!(
            "cannot forget the run {run}: {} has no record of it",
            store.address()
        );
        Error::with_source(error.kind(), what, error)
    })?;
    store.delete(&object).await.map(drop)
}
