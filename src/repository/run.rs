//! A run: what it is to bring, which root it counts on, and where it is on record.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::catalog::read_root;
use super::root::{Root, RootName};
use super::store::Store;
use crate::error::{Error, Kind, Result};
use crate::source::SnapshotId;
use crate::target::SinkBody;

/// What a run is to bring, and how far it is: the state in its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bringing {
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
    /// What only the changes are sent since; then `parent` is its root.
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
    /// The run that brought it, for another may have brought the same snapshot since.
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

    /// Whether somebody has begun to remove it.
    pub(super) async fn is_removed(&self, store: &Store) -> Result<bool> {
        match store.look(&removed(&self.name, &self.run)).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            told => told.map(|_| true),
        }
    }

    /// Reads it, after the run was put on record: from then on nothing of it goes, removed or not. One that was removed
    /// before that is not counted on.
    pub(super) async fn read(&self, store: &Store, anew: bool) -> Result<Root> {
        let there = read_root(store, &format!("snapshots/{}", self.name)).await;
        match there {
            Ok(root) if root.run == self.run && !(anew && self.is_removed(store).await?) => {
                return Ok(root);
            }
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ if anew => {
                let what = format!("{} was removed meanwhile: say it again", self.name);
                return Err(Error::new(Kind::NotFound, what));
            }
            _ => {}
        }
        read_root(store, &removed(&self.name, &self.run)).await
    }
}

/// Where a root is that was removed.
pub(super) fn removed(name: &str, run: &str) -> String {
    format!("removed/{name}.{run}")
}

impl Bringing {
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

/// What is said of a run that is not on record any more.
pub(super) fn forgotten(store: &Store) -> Error {
    let what = format!(
        "{} has forgotten this run, and what it brought may be gone: --restart begins anew",
        store.address()
    );
    Error::new(Kind::Invalid, what)
}

/// Where a run is on record.
pub(super) fn run_object(run: &str) -> String {
    format!("runs/{run}")
}

impl SinkBody for Bringing {
    const KIND: &'static str = "repository";
    const VERSION: u32 = 1;
}
