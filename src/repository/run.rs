//! [`RunState`]: the snapshot that a run writes, the manifest that it relies on, and its record in the store.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::catalog::read_manifest;
use super::manifest::{Manifest, ManifestName, manifest_object, whole_millis};
use super::store::Store;
use crate::error::{Error, Kind, Remedy, Result};
use crate::snapshot::SnapshotId;
use crate::target::{SinkBody, VolumeKey};

/// The snapshot that a run writes, and its progress: the body of the sink's state in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// The run, which names its object in `runs/`.
    pub(crate) run: String,
    /// Where the repository is, for people.
    pub(crate) address: String,
    /// See [`Manifest`].
    pub(crate) snapshot: SnapshotId,
    /// See [`Manifest`].
    pub(crate) volume: Option<String>,
    /// See [`Manifest`].
    pub(crate) volume_key: VolumeKey,
    /// See [`Manifest`].
    pub(crate) time: SystemTime,
    /// See [`Manifest`].
    pub(crate) volume_bytes: u64,
    /// The snapshot that the plan is a delta of; then `parent` is its manifest. None for a full copy.
    pub(crate) base: Option<SnapshotId>,
    /// The manifest whose blocks are not sent again where they are the same.
    pub(crate) parent: Option<Parent>,
    /// The run of the damaged manifest of the same snapshot, which this run replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<String>,
    /// See [`Manifest`].
    pub(crate) encrypted: Option<bool>,
    /// See [`Manifest`].
    pub(crate) description: Option<String>,
    /// See [`Manifest`].
    pub(crate) tags: BTreeMap<String, String>,
    /// Packs named so far.
    pub(crate) packs: u32,
    /// See [`Manifest`].
    pub(crate) sent_blocks: u64,
    /// See [`Manifest`].
    pub(crate) sent_bytes: u64,
    /// See [`Manifest`].
    pub(crate) stored_bytes: u64,
}

/// A manifest that a run relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    name: String,
    /// The run that wrote it: another run may have written the same snapshot since.
    run: String,
}

impl Parent {
    /// This manifest.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        Self {
            name: manifest.name().to_string(),
            run: manifest.run.clone(),
        }
    }

    /// Whether its removal has begun.
    pub(super) async fn is_removed(&self, store: &Store) -> Result<bool> {
        match store.head(&removed(&self.name, &self.run)).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// Reads it, after the run was put on record: from then on `prune` keeps everything that it leads to, removed or not. A
    /// new run (`is_new`) does not rely on a manifest that was removed before that.
    pub(super) async fn read(&self, store: &Store, is_new: bool) -> Result<Manifest> {
        let there = read_manifest(store, &manifest_object(&self.name)).await;
        match there {
            Ok(manifest)
                if manifest.run == self.run && !(is_new && self.is_removed(store).await?) =>
            {
                return Ok(manifest);
            }
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ if is_new => return Err(removed_meanwhile(&self.name)),
            _ => {}
        }
        read_manifest(store, &removed(&self.name, &self.run)).await
    }
}

/// The error of a run whose base or parent is removed between planning and opening.
pub(super) fn removed_meanwhile(name: &str) -> Error {
    let what = format!("cannot use {name} as a base: it was removed meanwhile");
    Error::new(Kind::NotFound, what).with_remedy(Remedy::TryLater)
}

/// Replaces the manifest that the run `old` has written. That one stays as a tombstone, which is written first. False when
/// another one is there by now, or none.
pub(super) async fn replace_manifest(store: &Store, old: &str, new: &Manifest) -> Result<bool> {
    let name = new.name().to_string();
    let object = manifest_object(&name);
    let there = match read_manifest(store, &object).await {
        Err(error) if error.kind() == Kind::NotFound => return Ok(false),
        there => there?,
    };
    if there.run != old {
        return Ok(false);
    }
    let tombstone = removed(&name, old);
    store.put(&tombstone, &[there.encode().into()]).await?;
    store.put(&object, &[new.encode().into()]).await?;
    Ok(true)
}

/// The name of a removed manifest's tombstone.
pub(super) fn removed(name: &str, run: &str) -> String {
    format!("removed/{name}.{run}")
}

impl RunState {
    /// The manifest, if it was published already.
    pub(super) async fn published(&self, store: &Store) -> Result<Option<Manifest>> {
        let name = ManifestName {
            time: whole_millis(self.time),
            volume: self.volume_key.clone(),
            snapshot: self.snapshot.clone(),
        };
        match read_manifest(store, &manifest_object(&name)).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            manifest => manifest.map(|manifest| (manifest.run == self.run).then_some(manifest)),
        }
    }
}

/// The error of a run that is not on record any more.
pub(super) fn forgotten(store: &Store) -> Error {
    let what = format!(
        "cannot resume the run: {} has no record of it, and prune may have removed its packs",
        store.address()
    );
    Error::new(Kind::Invalid, what).with_remedy(Remedy::Restart)
}

impl SinkBody for RunState {
    const KIND: &'static str = "repository";
    const VERSION: u32 = 1;
}
