//! [`Unsettled`]: the manifests that a run may not rely on. Their removal has started, or the run that wrote them is still on
//! record: that run may not have listed the sweeps yet, and may still withdraw its manifest.

use std::collections::{BTreeSet, HashSet};

use super::lease;
use super::listing;
use super::manifest::Manifest;
use super::run::removed;
use super::store::Store;
use crate::error::{Kind, Result};

/// The facts that make manifests unreliable.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// Names of tombstones.
    tombstones: BTreeSet<String>,
    /// Runs on record that wrote some of the manifests.
    runs: HashSet<String>,
}

impl Unsettled {
    /// Examines manifests that were read before this call. A prune keeps what is removed later for every run that is on record by now.
    ///
    /// # Errors
    /// `Corrupt` when a listing is not complete; else why the store cannot be read.
    pub(super) async fn among(store: &Store, manifests: &[Manifest]) -> Result<Self> {
        let tombstones = listing::list(store, "removed", None).await?.objects;
        let listed = listing::list(store, "runs", None).await?.objects;
        let listed: HashSet<String> = listed.into_iter().map(|object| object.name).collect();
        let mut runs = HashSet::new();
        for manifest in manifests {
            if listed.contains(&lease::run_object(&manifest.run))
                && is_on_record(store, &manifest.run).await?
            {
                runs.insert(manifest.run.clone());
            }
        }
        Ok(Self {
            tombstones: tombstones.into_iter().map(|object| object.name).collect(),
            runs,
        })
    }

    /// Why a run may not rely on a manifest; `None` if it may.
    pub(super) fn why(&self, manifest: &Manifest) -> Option<&'static str> {
        let tombstone = removed(&manifest.name().to_string(), &manifest.run);
        if self.tombstones.contains(&tombstone) {
            return Some("its removal has begun");
        }
        let is_running = self.runs.contains(&manifest.run);
        is_running.then_some("its run has not ended")
    }
}

/// Whether a run is on record and has not ended. A damaged record counts as one.
///
/// # Errors
/// Why the store cannot be read.
pub(super) async fn is_on_record(store: &Store, run: &str) -> Result<bool> {
    match lease::read(store, run).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        Err(error) if error.kind() == Kind::Corrupt => Ok(true),
        read => read.map(|_| true),
    }
}
