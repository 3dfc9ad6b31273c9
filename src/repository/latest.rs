//! The manifests that a listing must show: `latest/VOLUME` names the newest ones of each volume, `prune/manifests` those that
//! the last prune kept. They reveal a store that leaves a page out in the middle of a listing.
//!
//! Both are lists of names ([`lines`]). A writer that was paused can add a name again that was removed meanwhile. So
//! `swept/NAME` records for [`SWEPT`] that a snapshot was deleted permanently: a list that names it is an old one.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::lines;
use super::listing;
use super::manifest::ManifestName;
use super::store::{Object, Store};
use crate::error::{Error, Kind, Remedy, Result};
use crate::target::VolumeKey;

/// The names that the last prune kept.
const PRUNED: &str = "prune/manifests";
/// Objects read at once.
const READS: usize = 16;
/// How often at most a writer puts its name into a list: a concurrent writer may overwrite it.
const TRIES: usize = 3;
/// The newest names of a volume that are kept: the last prune has noted the others.
const MOST_NAMES: usize = 256;
/// How long `swept/` keeps a name. A writer that was paused for longer can name a deleted snapshot; then a person must decide.
const SWEPT: Duration = Duration::from_hours(90 * 24);
/// The content of `swept/NAME`: at first, and once the snapshot is copied again.
const IS_SWEPT: &[u8] = b"swept\n";
const IS_BACK: &[u8] = b"published again\n";

fn object(volume: &VolumeKey) -> String {
    format!("latest/{volume}")
}

fn swept(name: &ManifestName) -> String {
    format!("swept/{name}")
}

/// Whether a snapshot and its tombstone were deleted permanently.
pub(super) async fn is_swept(store: &Store, name: &ManifestName) -> Result<bool> {
    match store.get(&swept(name)).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        bytes => Ok(bytes? == IS_SWEPT),
    }
}

/// The names; none when the list is damaged.
fn decode(bytes: &[u8]) -> Option<Vec<ManifestName>> {
    lines::decode(bytes)?
        .map(|line| line.parse().ok())
        .collect()
}

/// Reads a list; none when it is damaged.
async fn read_sound(store: &Store, object: &str) -> Result<Option<Vec<ManifestName>>> {
    match store.get(object).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(Some(Vec::new())),
        bytes => Ok(decode(&bytes?)),
    }
}

async fn read(store: &Store, object: &str) -> Result<Vec<ManifestName>> {
    let names = read_sound(store, object).await?;
    names.ok_or_else(|| damaged(store, object))
}

/// The error of a list that is damaged.
pub(super) fn damaged(store: &Store, object: &str) -> Error {
    let what = format!("{}/{object} is damaged", store.address());
    let remedy =
        "`ebsfs repository check --repair` writes it again from the snapshots that are listed";
    Error::new(Kind::Corrupt, what).with_remedy(Remedy::Do(remedy.into()))
}

/// What a listing must show.
#[derive(Debug, Default)]
pub(super) struct ExpectedManifests {
    pub(super) names: BTreeSet<ManifestName>,
    /// The lists that are damaged: what they named is not known.
    pub(super) damaged: Vec<String>,
}

/// The names that every listing that begins later must show: of one volume, or of all.
pub(super) async fn expected(
    store: &Store,
    volume: Option<&VolumeKey>,
) -> Result<ExpectedManifests> {
    let mut objects: Vec<String> = match volume {
        Some(volume) => vec![object(volume)],
        None => {
            let listed = listing::list(store, "latest", None)
                .await?
                .objects
                .into_iter();
            listed.map(|object| object.name).collect()
        }
    };
    objects.push(PRUNED.to_owned());
    let mut lists = pin!(
        stream::iter(objects)
            .map(|object| async move { (read_sound(store, &object).await, object) })
            .buffer_unordered(READS)
    );
    let mut expected = ExpectedManifests::default();
    while let Some((names, object)) = lists.next().await {
        match names? {
            Some(names) => {
                let names = names.into_iter();
                let its = names.filter(|name| volume.is_none_or(|volume| name.volume == *volume));
                expected.names.extend(its);
            }
            None => expected.damaged.push(object),
        }
    }
    expected.damaged.sort_unstable();
    Ok(expected)
}

/// Writes a damaged list again from a listing, unless a run has done that meanwhile.
pub(super) async fn rewrite(store: &Store, object: &str, listed: &[ManifestName]) -> Result<()> {
    if read_sound(store, object).await?.is_some() {
        return Ok(());
    }
    let is_its = |name: &&ManifestName| object == PRUNED || object == self::object(&name.volume);
    let mut names: Vec<ManifestName> = listed.iter().filter(is_its).cloned().collect();
    names.sort();
    if object != PRUNED {
        let old = names.len().saturating_sub(MOST_NAMES);
        names.drain(..old);
    }
    store.put(object, &[lines::encode(names).into()]).await
}

/// The error of a listing that lacks a manifest which must be there.
pub(super) fn lacks(store: &Store, name: &ManifestName) -> Error {
    let what = format!(
        "cannot use the listing of {}/snapshots: {name} is neither in it nor removed",
        store.address()
    );
    Error::new(Kind::Undecided, what).with_remedy(Remedy::AcceptMissing {
        repository: store.address().to_string(),
        manifest: name.to_string(),
    })
}

/// Names a published snapshot in `latest/`: from now on every listing must show it.
pub(super) async fn advance(store: &Store, name: &ManifestName) -> Result<()> {
    if is_swept(store, name).await? {
        store.put(&swept(name), &[IS_BACK.into()]).await?;
    }
    let object = object(&name.volume);
    for _ in 0..TRIES {
        let mut names = match read(store, &object).await {
            // Written again, so that a prune notices when a snapshot that it named is missing.
            Err(error) if error.kind() == Kind::Corrupt => Vec::new(),
            names => names?,
        };
        if names.contains(name) {
            break;
        }
        names.push(name.clone());
        names.sort();
        let old = names.len().saturating_sub(MOST_NAMES);
        names.drain(..old);
        store.put(&object, &[lines::encode(names).into()]).await?;
    }
    Ok(())
}

/// Removes a snapshot from the lists: its tombstone is being deleted, or a person has accepted its loss.
pub(super) async fn retreat(store: &Store, removed: &ManifestName) -> Result<()> {
    store.put(&swept(removed), &[IS_SWEPT.into()]).await?;
    take_out(store, removed).await
}

/// Removes the names of snapshots that were swept more than [`SWEPT`] ago from the lists again. Returns their objects in
/// `swept/`.
pub(super) async fn old_swept(store: &Store, now: SystemTime) -> Result<Vec<String>> {
    let mut old = Vec::new();
    let mut pages = pin!(store.pages("swept"));
    while let Some(page) = pages.try_next().await? {
        let is_old = |object: &Object| object.modified + SWEPT < now;
        for object in page.into_iter().filter(is_old) {
            if let Some(name) = object.name.rsplit('/').next()
                && let Ok(name) = name.parse()
            {
                take_out(store, &name).await?;
                old.push(object.name);
            }
        }
    }
    Ok(old)
}

async fn take_out(store: &Store, removed: &ManifestName) -> Result<()> {
    for object in [object(&removed.volume), PRUNED.to_owned()] {
        let mut names = read(store, &object).await?;
        if names.contains(removed) {
            names.retain(|name| name != removed);
            store.put(&object, &[lines::encode(names).into()]).await?;
        }
    }
    Ok(())
}

/// Records the names that a prune has kept.
pub(super) async fn note_pruned(store: &Store, names: &[ManifestName]) -> Result<()> {
    store.put(PRUNED, &[lines::encode(names).into()]).await
}
