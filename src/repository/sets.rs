//! Sets: the machine around the disks of an instance at one instant, kept beside the manifests of the disks.
//!
//! A set is one object, `instances/TIME.INSTANCE`: which snapshot is which disk, in device order, and the inventory. It is written
//! after its manifests and needs only their names. A prune removes it when no manifest and no tombstone of its instant
//! is left.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::str::FromStr;
use std::time::SystemTime;

use futures_util::stream::TryStreamExt;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::catalog::RepositoryCatalog;
use super::lines;
use super::manifest::{ManifestName, parse_time, time_text, whole_millis};
use super::select::Selection;
use super::store::Store;
use crate::error::{Error, Kind, Result};
use crate::inventory::{INVENTORY_VERSION, Inventory, InventoryDisk};
use crate::snapshot::{SnapshotId, instance_id, volume_id};
use crate::target::VolumeKey;
use crate::time::rfc3339_millis;

/// What this program writes and reads.
const SET_FORMAT: u32 = 1;
/// The folder of the objects.
const FOLDER: &str = "instances";

/// The name of a set: an instance at an instant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SetName {
    /// The instant whose bytes all its snapshots hold, in whole milliseconds.
    pub(crate) time: SystemTime,
    /// The instance's id.
    pub(crate) instance: String,
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", time_text(self.time), self.instance)
    }
}

impl FromStr for SetName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (time, instance) = text.split_once('.')?;
            Some(Self {
                time: parse_time(time)?,
                instance: instance_id(instance).ok()?,
            })
        };
        read().ok_or_else(|| Error::new(Kind::Invalid, format!("{text:?} is no set's name")))
    }
}

/// The disks of an instance at one instant, and the machine around them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineSet {
    format: u32,
    /// The instance's id.
    pub(crate) instance: String,
    /// The instant whose bytes all its snapshots hold.
    pub(crate) time: SystemTime,
    /// Its disks in device order, the root first.
    pub(crate) disks: Vec<SetDisk>,
    /// Volumes of the instance without a snapshot in the set, because a person has excluded them.
    pub(crate) left_out: Vec<String>,
    /// The machine, as it was when the set was added.
    pub(crate) inventory: Inventory,
}

/// A disk of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetDisk {
    /// The name of the device, as EC2 calls it.
    pub(crate) device: Option<String>,
    /// Whether the instance boots from it.
    pub(crate) is_root: bool,
    /// The volume's id.
    pub(crate) volume: String,
    /// The snapshot of it.
    pub(crate) snapshot: SnapshotId,
}

impl MachineSet {
    /// Its name.
    pub(crate) fn name(&self) -> SetName {
        SetName {
            time: whole_millis(self.time),
            instance: self.instance.clone(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        // Nothing in it can fail to serialise.
        lines::encode([serde_json::to_string(self).unwrap_or_default()])
    }

    /// What was stored under this name.
    fn decode(bytes: &[u8], name: &SetName) -> Result<Self> {
        let damaged = || Error::new(Kind::Corrupt, format!("the set {name} is damaged"));
        let mut lines = lines::decode(bytes).ok_or_else(damaged)?;
        let (Some(json), None) = (lines.next(), lines.next()) else {
            return Err(damaged());
        };
        #[derive(Deserialize)]
        struct SetVersion {
            format: u32,
        }
        let version: SetVersion = serde_json::from_str(json).map_err(|_| damaged())?;
        if version.format != SET_FORMAT {
            let format = version.format;
            let what = format!(
                "cannot read the set {name}: its format is {format}, this ebsfs knows {SET_FORMAT}"
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        let set: Self = serde_json::from_str(json).map_err(|_| damaged())?;
        let volumes = set.disks.iter().map(|disk| &disk.volume);
        let are_volumes = volumes
            .chain(&set.left_out)
            .all(|volume| volume_id(volume).is_ok());
        if set.name() != *name || set.disks.is_empty() || !are_volumes {
            return Err(damaged());
        }
        Ok(set)
    }
}

impl RepositoryCatalog {
    /// Keeps a machine beside the newest instant at which the repository has a snapshot of each of its disks but those of `without`.
    ///
    /// # Errors
    /// `NotFound` when there is no such instant; `Invalid` for an inventory of another version or without disks, and when a volume
    /// of `without` is none of its disks; why it could not be written.
    pub(crate) async fn add_set(
        &self,
        inventory: Inventory,
        without: &[String],
    ) -> Result<MachineSet> {
        if inventory.version != INVENTORY_VERSION {
            let version = inventory.version;
            let what = format!(
                "cannot use the inventory: its version is {version}, this ebsfs knows {INVENTORY_VERSION}"
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        let instance = instance_id(&inventory.instance.id)?;
        for disk in &inventory.disks {
            volume_id(&disk.volume)?;
        }
        let is_disk = |id: &&String| inventory.disks.iter().any(|disk| disk.volume == **id);
        if let Some(id) = without.iter().find(|id| !is_disk(id)) {
            let what = format!("cannot leave out {id}: it is no disk of {instance}");
            return Err(Error::new(Kind::Invalid, what));
        }
        let disks = inventory.disks.iter();
        let disks: Vec<_> = disks
            .filter(|disk| !without.contains(&disk.volume))
            .collect();
        let names = self.proven_names(None).await?;
        let (time, disks) = newest_set(&disks, &names).map_err(|what| {
            let what = format!("cannot add a set of {instance}: {what}");
            Error::new(Kind::NotFound, what)
        })?;
        let set = MachineSet {
            format: SET_FORMAT,
            instance,
            time,
            disks,
            left_out: without.to_vec(),
            inventory,
        };
        let object = format!("{FOLDER}/{}", set.name());
        self.store().put(&object, &[set.encode().into()]).await?;
        Ok(set)
    }

    /// The names of all sets, oldest first.
    ///
    /// # Errors
    /// Why they cannot be listed.
    pub(crate) async fn sets(&self) -> Result<Vec<SetName>> {
        let mut names = listed(self.store()).await?;
        names.sort();
        Ok(names)
    }

    /// The set that `INSTANCE` or `INSTANCE@TIME` (the last one until then) names.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Corrupt` when it is damaged.
    pub(crate) async fn find_set(&self, select: &str) -> Result<MachineSet> {
        let selection = Selection::read(select)?;
        let instance = instance_id(selection.what)?;
        let is_meant = |name: &&SetName| {
            let is_early = selection.until.is_none_or(|until| name.time <= until);
            name.instance == instance && is_early
        };
        let sets = self.sets().await?;
        let name = sets.iter().rfind(is_meant).ok_or_else(|| {
            let what = format!("{} has no set of {select:?}", self.store().address());
            Error::new(Kind::NotFound, what)
        })?;
        let bytes = self.store().get(&format!("{FOLDER}/{name}")).await?;
        let set = MachineSet::decode(&bytes, name)?;
        // A listing of these objects proves nothing by itself: the manifests show whether it is an old one.
        let mut names = self.proven_names(None).await?;
        names.retain(|name| selection.until.is_none_or(|until| name.time <= until));
        let is_in = |disk: &&InventoryDisk| set.disks.iter().any(|one| one.volume == disk.volume);
        let disks: Vec<_> = set.inventory.disks.iter().filter(is_in).collect();
        if let Ok((newer, _)) = newest_set(&disks, &names)
            && newer > name.time
        {
            warn!(
                "the set of {} is not the newest: the repository has snapshots of these disks of {}, and no set of them",
                rfc3339_millis(name.time),
                rfc3339_millis(newer)
            );
        }
        Ok(set)
    }
}

/// The newest instant of which there is a snapshot of each disk, and these snapshots; else what is missing.
fn newest_set(
    disks: &[&InventoryDisk],
    names: &[ManifestName],
) -> std::result::Result<(SystemTime, Vec<SetDisk>), String> {
    let keys: Vec<VolumeKey> = disks
        .iter()
        .map(|disk| VolumeKey::of_volume(&disk.volume))
        .collect();
    let is_its = |name: &&ManifestName| keys.contains(&name.volume);
    let times: BTreeSet<SystemTime> = names.iter().filter(is_its).map(|name| name.time).collect();
    for time in times.iter().rev() {
        // Several of one volume at one instant are copies of each other: the last one by its id.
        let of = |key: &VolumeKey| {
            let is_it = |name: &&ManifestName| name.time == *time && name.volume == *key;
            names.iter().rfind(is_it)
        };
        let found: Option<Vec<_>> = keys.iter().map(of).collect();
        let Some(found) = found else {
            continue;
        };
        let set = disks.iter().zip(found).map(|(disk, name)| SetDisk {
            device: disk.device.clone(),
            is_root: disk.is_root,
            volume: disk.volume.clone(),
            snapshot: name.snapshot.clone(),
        });
        return Ok((*time, set.collect()));
    }
    let Some(newest) = times.last() else {
        return Err("the repository has no snapshot of its disks".to_owned());
    };
    let is_missing = |key: &&VolumeKey| {
        !names
            .iter()
            .any(|name| name.time == *newest && name.volume == **key)
    };
    let missing: Vec<&str> = keys
        .iter()
        .filter(is_missing)
        .map(VolumeKey::as_str)
        .collect();
    Err(format!(
        "the repository has no instant with a snapshot of each disk; of the newest, {}, it has none of {}",
        rfc3339_millis(*newest),
        missing.join(", ")
    ))
}

async fn listed(store: &Store) -> Result<Vec<SetName>> {
    let mut names = Vec::new();
    let mut pages = pin!(store.pages(FOLDER));
    while let Some(page) = pages.try_next().await? {
        let parsed = page.into_iter().filter_map(|object| {
            let name = object.name.rsplit('/').next()?;
            name.parse().ok()
        });
        names.extend::<Vec<SetName>>(parsed.collect());
    }
    Ok(names)
}

/// The objects of sets of whose instant no snapshot is left: none of `kept`.
pub(super) async fn unneeded(store: &Store, kept: &BTreeSet<SystemTime>) -> Result<Vec<String>> {
    let names = listed(store).await?;
    let old = names.into_iter().filter(|name| !kept.contains(&name.time));
    Ok(old.map(|name| format!("{FOLDER}/{name}")).collect())
}

#[cfg(test)]
mod tests;
