//! [`RunState`]: what a run writes, which root it relies on, and its record in the store.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::catalog::read_root;
use super::root::{Root, RootName};
use super::store::Store;
use crate::error::{Error, Kind, Remedy, Result};
use crate::snapshot::SnapshotId;
use crate::target::SinkBody;

/// What a run writes, and how far it is: the body of the sink's state in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// The run, which names its object in `runs/`.
    pub run: String,
    /// Where the repository is, for people.
    pub address: String,
    /// See [`Root`].
    pub snapshot: SnapshotId,
    /// See [`Root`].
    pub volume: Option<String>,
    /// See [`Root`].
    pub time: SystemTime,
    /// See [`Root`].
    pub volume_bytes: u64,
    /// The snapshot that the plan is a delta of; then `parent` is its root. None for a full copy.
    pub base: Option<SnapshotId>,
    /// The root whose blocks are not sent again where they are the same.
    pub parent: Option<Parent>,
    /// See [`Root`].
    pub encrypted: Option<bool>,
    /// See [`Root`].
    pub description: Option<String>,
    /// See [`Root`].
    pub tags: BTreeMap<String, String>,
    /// Packs named so far.
    pub packs: u32,
    /// See [`Root`].
    pub sent_blocks: u64,
    /// See [`Root`].
    pub sent_bytes: u64,
    /// See [`Root`].
    pub stored_bytes: u64,
}

/// A root that a run counts on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    name: String,
    /// The run that wrote it, for another may have written the same snapshot since.
    run: String,
}

impl Parent {
    /// This root.
    pub fn of(root: &Root) -> Self {
        Self {
            name: root.name().to_string(),
            run: root.run.clone(),
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
    /// run that begins (`is_new`) does not count on a root that was removed before that.
    pub(super) async fn read(&self, store: &Store, is_new: bool) -> Result<Root> {
        let there = read_root(store, &format!("snapshots/{}", self.name)).await;
        match there {
            Ok(root) if root.run == self.run && !(is_new && self.is_removed(store).await?) => {
                return Ok(root);
            }
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ if is_new => return Err(removed_meanwhile(&self.name)),
            _ => {}
        }
        read_root(store, &removed(&self.name, &self.run)).await
    }
}

/// The error of a run whose base or parent is removed between planning and opening.
pub(super) fn removed_meanwhile(name: &str) -> Error {
    let what = format!("cannot use {name} as a base: it was removed meanwhile");
    Error::new(Kind::NotFound, what).with_remedy(Remedy::TryLater)
}

/// The name of a removed root's tombstone.
pub(super) fn removed(name: &str, run: &str) -> String {
    format!("removed/{name}.{run}")
}

impl RunState {
    /// The root, if it was published already.
    pub(super) async fn published(&self, store: &Store) -> Result<Option<Root>> {
        let name = RootName {
            time: self.time,
            volume: RootName::volume_key(self.volume.as_deref()),
            snapshot: self.snapshot.clone(),
        };
        match read_root(store, &format!("snapshots/{name}")).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            root => root.map(|root| (root.run == self.run).then_some(root)),
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

/// The name of a run's record.
pub(super) fn run_object(run: &str) -> String {
    format!("runs/{run}")
}

impl SinkBody for RunState {
    const KIND: &'static str = "repository";
    const VERSION: u32 = 1;
}
