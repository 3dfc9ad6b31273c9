//! Checks the data of a manifest, publishes it, checks again, and withdraws it when a prune may have deleted what it needs. See
//! [`mod@super::prune`] for the other half of this rule.

use std::collections::HashSet;

use futures_util::future::join;
use tracing::info;

use super::catalog::read_manifest;
use super::latest;
use super::lease::{self, Lease};
use super::manifest::{Manifest, manifest_object};
use super::prune::{Needed, new_sweeps};
use super::run::{forgotten, removed, replace_manifest};
use super::settled::is_on_record;
use super::store::Store;
use crate::error::{Error, Kind, Remedy, Result};

/// How often a run tries to publish where other runs publish the same snapshot.
const TRIES: usize = 5;

/// Publishes the manifest of the run that holds a lease, in the place of the one that the run `replaces` wrote, if there is one.
/// Returns the manifest that is there now: another run may have been first. `swept` are the sweeps unknown to the run that an
/// earlier listing has found, if there was one.
///
/// # Errors
/// `Busy` when a prune has removed some of the data: nothing is published, and a new run must copy again; `Invalid` when the run is
/// not on record any more.
pub(super) async fn publish(
    store: &Store,
    lease: &Lease,
    manifest: Manifest,
    replaces: Option<&str>,
    swept: Option<HashSet<u64>>,
) -> Result<Manifest> {
    let (object, name) = (manifest_object(&manifest.name()), manifest.name());
    let on_record = async {
        match lease::read(store, lease.run()).await {
            Err(error) if error.kind() == Kind::NotFound => Err(forgotten(store)),
            record => record.map(drop),
        }
    };
    let check = async {
        match &swept {
            Some(swept) => check_swept(store, lease, &manifest, swept).await,
            None => check_data(store, lease, &manifest).await,
        }
    };
    let (on_record, checked) = join(on_record, check).await;
    on_record.and(checked)?;
    let mut replaced = match replaces {
        Some(old) if replace_manifest(store, old, &manifest).await? => Some(old.to_owned()),
        _ => None,
    };
    // A manifest of a newer format is not ours to replace.
    let is_sound = |bytes: &[u8]| match Manifest::read(bytes) {
        Ok(read) => read.is_some(),
        Err(error) => error.kind() != Kind::Corrupt,
    };
    let mut tries = 0;
    while replaced.is_none() && !store.put_new(&object, &manifest.encode(), is_sound).await? {
        tries += 1;
        if tries > TRIES {
            let what = format!("cannot publish {name}: other runs replace it");
            return Err(Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater));
        }
        let there = match read_manifest(store, &object).await {
            // It was withdrawn meanwhile.
            Err(error) if error.kind() == Kind::NotFound => continue,
            there => there?,
        };
        if there.run == manifest.run {
            break;
        }
        if is_on_record(store, &there.run).await? {
            if replace_manifest(store, &there.run, &manifest).await? {
                info!("replacing {name}: its run has not ended");
                replaced = Some(there.run);
            }
            continue;
        }
        // Read again: a run that withdraws what it has published does so before it ends.
        let still = read_manifest(store, &object).await;
        if still.is_ok_and(|still| still.run == there.run) {
            info!("another run has published {name} meanwhile");
            return Ok(there);
        }
    }
    if let Err(error) = check_data(store, lease, &manifest).await {
        if !is_ours(store, lease, &manifest).await? {
            return Err(error);
        }
        match replaced {
            Some(old) => bring_back(store, &manifest, &old).await?,
            None => withdraw(store, &manifest).await?,
        }
        return Err(error);
    }
    latest::advance(store, &name).await?;
    Ok(manifest)
}

/// Whether a run may withdraw its manifest. While the run is on record no other run relies on the manifest. A run that was
/// taken for dead withdraws only an incomplete one, which no other run relies on either.
async fn is_ours(store: &Store, lease: &Lease, manifest: &Manifest) -> Result<bool> {
    if is_on_record(store, lease.run()).await? {
        return Ok(true);
    }
    match Needed::of(store, std::slice::from_ref(manifest)).await {
        Ok(needed) => needed.any_missing(store).await,
        Err(error) => Ok(error.kind() == Kind::Corrupt),
    }
}

/// Fails when a prune may have deleted data of a manifest: where a sweep that the run does not know names some of it, or where
/// the run was paused so long that it may have been taken for dead and something is missing.
pub(super) async fn check_data(store: &Store, lease: &Lease, manifest: &Manifest) -> Result<()> {
    let swept = new_sweeps(store, &lease.known_sweeps()).await?;
    check_swept(store, lease, manifest, &swept).await
}

async fn check_swept(
    store: &Store,
    lease: &Lease,
    manifest: &Manifest,
    swept: &HashSet<u64>,
) -> Result<()> {
    let was_paused = lease.was_paused();
    if swept.is_empty() && !was_paused {
        return Ok(());
    }
    let is_swept = match Needed::of(store, std::slice::from_ref(manifest)).await {
        Ok(needed) => needed.any_of(swept) || was_paused && needed.any_missing(store).await?,
        // A segment of it is missing.
        Err(error) if error.kind() == Kind::Corrupt => true,
        Err(error) => return Err(error),
    };
    if !is_swept {
        return Ok(());
    }
    let what = format!(
        "cannot publish {}: a prune may have deleted data that it needs",
        manifest.snapshot
    );
    Err(Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater))
}

/// Replaces a manifest by a withdrawal, unless another run has replaced it. A later prune deletes the withdrawal:
/// here another run may have published the same snapshot meanwhile.
async fn withdraw(store: &Store, manifest: &Manifest) -> Result<()> {
    let object = manifest_object(&manifest.name());
    let there = read_manifest(store, &object).await;
    if there.is_ok_and(|there| there.run != manifest.run) {
        return Ok(());
    }
    let withdrawn = manifest.encode_withdrawn();
    store.put(&object, &[withdrawn.into()]).await
}

/// Puts the manifest back that the run `old` wrote and `new` has replaced, unless another run has replaced that.
pub(super) async fn bring_back(store: &Store, new: &Manifest, old: &str) -> Result<()> {
    let name = new.name().to_string();
    let (tombstone, object) = (removed(&name, old), manifest_object(&name));
    let there = read_manifest(store, &object).await;
    if there.is_ok_and(|there| there.run != new.run) {
        return Ok(());
    }
    let before = read_manifest(store, &tombstone).await?;
    store.put(&object, &[before.encode().into()]).await?;
    store.delete(&tombstone).await.map(drop)
}
