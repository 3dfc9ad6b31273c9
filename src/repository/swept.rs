//! [`Swept`]: the objects that prunes are about to delete, or have deleted. A run relies on none of them.
//!
//! A sweep can be on record for a long time before its prune deletes anything: that prune may be paused. So a run compares what it
//! relies on (its base, the snapshot that it takes for held, the blocks that its dedup index finds) with all sweeps on record. Sweeps
//! that come later are compared with the whole manifest when that is published.

use std::collections::HashSet;

use super::check::short;
use super::listing;
use super::pack::Name;
use super::prune::{is_sweep, read_sweeps};
use super::store::Store;
use crate::error::Result;

/// The objects that the sweeps on record name.
#[derive(Debug, Default)]
pub(super) struct Swept {
    sweeps: Vec<String>,
    /// The first bytes of the names of segments and packs.
    names: HashSet<u64>,
}

impl Swept {
    /// Reads all sweeps that a listing shows.
    ///
    /// # Errors
    /// `Corrupt` when a sweep is damaged: it may name anything; else why the store cannot be read.
    pub(super) async fn on_record(store: &Store) -> Result<Self> {
        let listed = listing::list(store, "garbage", None).await?.objects;
        let sweeps: Vec<_> = listed.into_iter().filter(is_sweep).collect();
        Ok(Self {
            sweeps: sweeps.iter().map(|object| object.name.clone()).collect(),
            names: read_sweeps(store, sweeps).await?,
        })
    }

    /// Whether a segment or pack is among it.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.names.contains(&short(name))
    }

    /// The objects that name it.
    pub(super) fn sweeps(&self) -> &[String] {
        &self.sweeps
    }
}
