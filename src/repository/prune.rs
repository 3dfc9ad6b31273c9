//! `prune` and `rm`: snapshots go by their manifests; what no manifest leads to is swept once it is old enough.
//!
//! Nothing written or removed since the *cutoff* is garbage: the beginning of the grace, or of the oldest run that has not
//! ended, whichever is earlier; a run may have begun as much later than its object's time says as a request can take. A manifest
//! that was removed stays aside until then, and as long as it can still be read where it was. All times are the store's own. Runs are listed before manifests: a run that ends meanwhile is found
//! by the one or the other. A run counts on the manifest of its parent, read after the run was on record: whoever removes that
//! manifest does so after the cutoff. Packs and segments have the salt of their run, so that nobody writes anew what is being
//! swept.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use tracing::{info, warn};

use super::catalog::{RepositoryCatalog, read_manifest};
use super::check::{objects, segments_of, short};
use super::manifest::{Manifest, ManifestName};
use super::pack::Name;
use super::pins::{pinned, refuse_pinned};
use super::retention::{Decisions, Retention, RetentionCandidate};
use super::run::{removed, run_object};
use super::segments;
use super::store::{Object, REQUEST_TIMEOUT, Store};
use crate::error::{Error, Kind, Result};

/// Objects removed at once.
const DELETES: usize = 16;
/// An object is seen so much later than its time says, at most.
const SLACK: Duration = REQUEST_TIMEOUT;
/// An object that tells the store's time.
const CLOCK: &str = "clock";

/// What a prune did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Which snapshots stay, and why.
    #[serde(flatten)]
    pub decisions: Decisions,
    /// Snapshots removed, by the names of their manifests.
    pub removed: Vec<String>,
    /// Objects swept.
    pub swept: u64,
    /// Their bytes.
    pub swept_bytes: u64,
    /// Objects that no snapshot leads to and that are kept, for they are not old enough.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Runs that have not ended, and since when: nothing written or removed since is swept.
    pub runs: BTreeMap<String, String>,
}

/// Removes a snapshot: its manifest goes aside until the grace is over.
///
/// # Errors
/// `Undecided` when it is pinned; else why it could not be removed; it is there or it is not.
pub async fn remove(store: &Store, name: &ManifestName) -> Result<()> {
    refuse_pinned(store, name).await?;
    let object = format!("snapshots/{name}");
    match read_manifest(store, &object).await {
        Ok(manifest) => {
            // Written anew if it is there: from now on nobody counts on it who did not before.
            let aside = removed(&name.to_string(), &manifest.run);
            store.put(&aside, &[manifest.encode().into()]).await?;
        }
        // Nobody can count on it.
        Err(error) if error.kind() == Kind::Corrupt => warn!("{}", error.chain()),
        Err(error) => return Err(error),
    }
    store.delete(&object).await
}

/// Removes the snapshots that the retention does not keep, then sweeps; only tells what it would do with `dry_run`.
///
/// # Errors
/// `Undecided` when the retention would keep none of a volume and does not allow that: nothing is removed. Else why the repository could not be looked at: when a manifest or a segment cannot be read, nothing is swept.
pub async fn prune(
    catalog: &RepositoryCatalog,
    retention: &Retention,
    grace: Duration,
    dry_run: bool,
) -> Result<Pruned> {
    let store = &**catalog.store();
    let mut pruned = Pruned::default();
    let time = [
        std::process::id().to_le_bytes(),
        fastrand::u32(..).to_le_bytes(),
    ]
    .concat();
    let now = match dry_run {
        true => SystemTime::now(),
        false => {
            store.put(CLOCK, &[time.into()]).await?;
            store.look(CLOCK).await?.modified
        }
    };
    let mut cutoff = now.checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
    for run in store.list("runs").await? {
        let begun = run.modified.checked_sub(SLACK);
        cutoff = cutoff.min(begun.unwrap_or(SystemTime::UNIX_EPOCH));
        let since = crate::time::rfc3339_seconds(run.modified);
        let id = run.name.rsplit('/').next().unwrap_or_default();
        pruned.runs.insert(id.to_owned(), since);
    }
    // Whoever ended before the runs were listed has its manifest there.
    let mut names = catalog.all_names().await?;
    pruned.decisions = decide(catalog, &names, retention).await?;
    if !dry_run {
        pruned.decisions.check(retention)?;
    }
    for name in pruned.decisions.removed() {
        if !dry_run {
            match remove(store, name).await {
                // It was pinned since the pins were listed.
                Err(error) if error.kind() == Kind::Undecided => {
                    warn!("{}", error.chain());
                    continue;
                }
                removed => removed?,
            }
            info!("removed {name}");
        }
        // What a dry run only would remove is needed until the grace is over, as what was removed is.
        names.retain(|kept| dry_run || kept != name);
        pruned.removed.push(name.to_string());
    }
    let mut manifests = Vec::new();
    // Of those that somebody removes meanwhile the manifest is aside.
    for (_, manifest) in catalog
        .manifests(names.clone(), |manifest| manifest)
        .await?
    {
        manifests.push(manifest?);
    }
    for aside in store.list("removed").await? {
        // Whoever has put it there has not come to remove the manifest: as long as one can be read the other says not to.
        let is_seen = |name: &ManifestName| aside.name.starts_with(&format!("removed/{name}."));
        if aside.modified >= cutoff {
            match read_manifest(store, &aside.name).await {
                Err(error) if error.kind() == Kind::NotFound => {}
                manifest => manifests.push(manifest?),
            }
        } else if !dry_run && !names.iter().any(is_seen) {
            store.delete(&aside.name).await?;
        }
    }
    let (segments, packs) = used(store, &manifests).await?;
    for (folder, used) in [("segments", segments), ("packs", packs)] {
        let mut parts = pin!(objects(store, folder));
        while let Some(found) = parts.try_next().await? {
            sweep(store, found, &used, cutoff, dry_run, &mut pruned).await?;
        }
    }
    if !dry_run {
        let slack = now.checked_sub(SLACK).unwrap_or(SystemTime::UNIX_EPOCH);
        store.sweep_unfinished(cutoff.min(slack))?;
    }
    Ok(pruned)
}

/// What the retention makes of the snapshots of these names.
async fn decide(
    catalog: &RepositoryCatalog,
    names: &[ManifestName],
    retention: &Retention,
) -> Result<Decisions> {
    let pinned = pinned(catalog.store()).await?;
    let candidate = |name: ManifestName, tags| RetentionCandidate {
        is_pinned: pinned.contains(&name.to_string()),
        name,
        tags,
    };
    let mut candidates = Vec::new();
    if retention.tags.is_empty() {
        let names = names.iter().cloned();
        candidates.extend(names.map(|name| candidate(name, BTreeMap::new())));
    } else {
        let read = catalog.manifests(names.to_vec(), |manifest| manifest.tags);
        for (name, tags) in read.await? {
            candidates.push(candidate(name, tags?));
        }
    }
    Ok(retention.decide(&candidates))
}

/// The segments and packs that manifests lead to.
async fn used(store: &Store, manifests: &[Manifest]) -> Result<(HashSet<u64>, HashSet<u64>)> {
    let names = segments_of(manifests);
    let segments = names.keys().map(short).collect();
    let mut packs = HashSet::new();
    let mut read = pin!(segments::read_all(store, names.into_keys()));
    while let Some((_, segment)) = read.next().await {
        packs.extend(segment?.packs().iter().map(short));
    }
    Ok((segments, packs))
}

async fn sweep(
    store: &Store,
    found: Vec<(Name, Object)>,
    used: &HashSet<u64>,
    cutoff: SystemTime,
    dry_run: bool,
    pruned: &mut Pruned,
) -> Result<()> {
    let mut garbage = Vec::new();
    for (name, object) in found {
        if used.contains(&short(&name)) {
            continue;
        }
        if object.modified >= cutoff {
            pruned.waiting += 1;
            pruned.waiting_bytes += object.size;
            continue;
        }
        pruned.swept += 1;
        pruned.swept_bytes += object.size;
        garbage.push(object.name);
    }
    if dry_run {
        return Ok(());
    }
    stream::iter(garbage)
        .map(|name| async move { store.delete(&name).await })
        .buffer_unordered(DELETES)
        .try_collect::<()>()
        .await
}

/// Forgets a run that nobody goes on with: what it wrote is garbage.
///
/// # Errors
/// `NotFound` when there is none; else why it cannot be forgotten.
pub async fn forget_run(store: &Store, run: &str) -> Result<()> {
    let object = run_object(run);
    store.get(&object).await.map_err(|error| {
        Error::with_source(
            error.kind(),
            format!("{} has no unfinished run {run}", store.address()),
            error,
        )
    })?;
    store.delete(&object).await
}
