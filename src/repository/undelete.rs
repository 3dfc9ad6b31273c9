//! [`undelete`]: restores a removed snapshot while its tombstone and all of its data are there.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures_util::stream::{StreamExt, TryStreamExt};
use tracing::info;

use super::catalog::{RepositoryCatalog, read_manifest};
use super::latest;
use super::lease::{Lease, LeaseKind};
use super::listing::{self, objects};
use super::manifest::{Manifest, ManifestName, manifest_object};
use super::pack::Name;
use super::presence::{ends, lacking};
use super::prune::{Needed, new_sweeps};
use super::run::replace_manifest;
use super::segments;
use super::store::Store;
use crate::block::random_id;
use crate::error::{Error, Kind, Result};

/// Up to this many packs get one HEAD each; for more, the folder is listed.
const FEW: usize = 1000;

/// Puts the manifest of a removed snapshot back: the last one of this snapshot's id that was removed. Its tombstone
/// stays until the grace is over.
///
/// # Errors
/// `NotFound` when there is no tombstone or a pack is missing; `Corrupt` when a segment is; `Invalid` when the snapshot was copied again since.
pub(crate) async fn undelete(catalog: &RepositoryCatalog, snapshot: &str) -> Result<ManifestName> {
    let store = &**catalog.store();
    let manifest = removed_manifest(store, snapshot).await;
    let manifest =
        manifest.map_err(|error| error.context(format!("cannot undelete {snapshot}")))?;
    let name = manifest.name();
    let cannot = |error: Error| error.context(format!("cannot undelete {name}"));
    is_whole(store, &manifest).await.map_err(cannot)?;
    // By another run than the one of the tombstone: that stays, and keeps the data even if a removal is still under way.
    let back = Manifest {
        run: random_id(),
        ..manifest.clone()
    };
    // On record until its data is proven: before that no other run relies on it. It compares all sweeps.
    let (of, kind) = (Arc::clone(catalog.store()), LeaseKind::Repair);
    let lease = Lease::begin(of, kind, &back.run, snapshot, catalog.lease(), &[]).await?;
    let put_back = put_back(store, &name, &manifest, &back).await;
    let ended = lease.end().await;
    put_back.map_err(|error| error.context(format!("cannot undelete {name}")))?;
    ended?;
    info!("{name} is back, as of run {}", back.run);
    Ok(name)
}

/// Puts `back` in the place of the removed `manifest`.
async fn put_back(
    store: &Store,
    name: &ManifestName,
    manifest: &Manifest,
    back: &Manifest,
) -> Result<()> {
    let published = manifest_object(name);
    let is_there = async || {
        let there = read_manifest(store, &published).await;
        there.map(|there| there.run == back.run)
    };
    if !replace_manifest(store, &manifest.run, back).await? {
        // A damaged manifest there is replaced.
        let is_sound = |bytes: &[u8]| matches!(Manifest::read(bytes), Ok(Some(_)));
        let is_new = store.put_new(&published, &back.encode(), is_sound).await?;
        if !is_new && !is_there().await? {
            let what = "it was copied again since, or undeleted";
            return Err(Error::new(Kind::Invalid, what));
        }
    }
    // A sweep that listed the manifests before this one was there may be removing its data.
    if let Err(error) = is_not_swept(store, manifest).await {
        // Keep a manifest that another run has published since.
        if is_there().await.unwrap_or(false) {
            store.delete(&published).await?;
        }
        return Err(error);
    }
    latest::advance(store, name).await?;
    // A removal that was still running has removed it again.
    read_manifest(store, &published).await.map(drop)
}

/// Fails when data of a manifest is missing or named in a sweep.
async fn is_not_swept(store: &Store, manifest: &Manifest) -> Result<()> {
    is_whole(store, manifest).await?;
    let swept = new_sweeps(store, &[]).await?;
    let needed = Needed::of(store, std::slice::from_ref(manifest)).await?;
    match needed.any_of(&swept) {
        true => Err(Error::new(
            Kind::NotFound,
            "a prune has begun to sweep its data",
        )),
        false => Ok(()),
    }
}

/// The manifest of a removed snapshot: the last one of this id that was removed.
///
/// # Errors
/// `NotFound` when there is no tombstone; `Corrupt` when it is damaged or of another snapshot.
pub(super) async fn removed_manifest(store: &Store, snapshot: &str) -> Result<Manifest> {
    let (name, tombstone) = tombstone_of(store, snapshot).await?;
    let manifest = read_manifest(store, &tombstone).await?;
    if manifest.name() != name || !tombstone.ends_with(&format!(".{}", manifest.run)) {
        let what = format!("{}/{tombstone} is of another snapshot", store.address());
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(manifest)
}

/// The tombstone of a snapshot that was written last.
async fn tombstone_of(store: &Store, snapshot: &str) -> Result<(ManifestName, String)> {
    let tombstones = listing::list(store, "removed", None)
        .await?
        .objects
        .into_iter();
    let its = tombstones.filter_map(|tombstone| {
        let text = tombstone.name.rsplit('/').next()?;
        let (name, _run) = text.rsplit_once('.')?;
        let name: ManifestName = name.parse().ok()?;
        (name.snapshot.as_str() == snapshot).then_some((name, tombstone))
    });
    let newest = its.max_by_key(|(_, tombstone)| tombstone.modified);
    let (name, tombstone) = newest.ok_or_else(|| {
        let what = format!(
            "{} has no removed snapshot {snapshot}, or it was swept",
            store.address()
        );
        Error::new(Kind::NotFound, what)
    })?;
    Ok((name, tombstone.name))
}

/// Whether all segments and packs of a manifest are there; every segment is read.
async fn is_whole(store: &Store, manifest: &Manifest) -> Result<()> {
    let mut needed: BTreeMap<Name, u64> = BTreeMap::new();
    let names: Vec<Name> = manifest.segments.iter().map(|of| of.name).collect();
    let mut read = pin!(segments::read_all(store, names));
    while let Some((_, segment)) = read.next().await {
        for (pack, end) in ends(&*segment?) {
            let before = needed.entry(pack).or_default();
            *before = end.max(*before);
        }
    }
    if needed.len() > FEW {
        let mut parts = pin!(objects(store, "packs"));
        while let Some(found) = parts.try_next().await? {
            for (name, object) in found {
                if needed.get(&name).is_some_and(|end| object.size >= *end) {
                    needed.remove(&name);
                }
            }
        }
    }
    // A listing can lack objects: each missing one gets a HEAD.
    match lacking(store, needed).await?.is_empty() {
        true => Ok(()),
        false => Err(Error::new(Kind::NotFound, "a pack of it was swept")),
    }
}
