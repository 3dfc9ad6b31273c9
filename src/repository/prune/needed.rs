//! [`Needed`]: the segments and packs that manifests lead to.

use std::collections::HashSet;
use std::pin::pin;

use futures_util::stream::StreamExt;
use tracing::warn;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::check::{is_damage, segments_of, short};
use crate::repository::header::from_hex;
use crate::repository::listing::{self, Fence};
use crate::repository::manifest::Manifest;
use crate::repository::segments;
use crate::repository::store::Store;

/// The segments and packs that manifests need, by the first bytes of their names.
#[derive(Debug, Default)]
pub(in crate::repository) struct Needed {
    segments: HashSet<u64>,
    packs: HashSet<u64>,
}

impl Needed {
    /// The objects that these manifests need.
    ///
    /// # Errors
    /// Why a segment cannot be read.
    pub(in crate::repository) async fn of(store: &Store, manifests: &[Manifest]) -> Result<Self> {
        Self::of_shown(store, manifests, &Progress::default()).await
    }

    /// The same, with the segments that are read counted.
    pub(super) async fn of_shown(
        store: &Store,
        manifests: &[Manifest],
        progress: &Progress,
    ) -> Result<Self> {
        Self::collect(store, manifests, progress, Err).await
    }

    /// The objects that removed snapshots need; their lost segments keep no packs.
    pub(super) async fn of_buried(
        store: &Store,
        buried: &[Manifest],
        progress: &Progress,
    ) -> Result<Self> {
        Self::collect(store, buried, progress, |error| {
            if !is_damage(&error) {
                return Err(error);
            }
            warn!("a removed snapshot is damaged: {}", error.chain());
            Ok(())
        })
        .await
    }

    async fn collect(
        store: &Store,
        manifests: &[Manifest],
        progress: &Progress,
        on_error: impl Fn(Error) -> Result<()>,
    ) -> Result<Self> {
        let names = segments_of(manifests);
        let segments = names.keys().map(short).collect();
        let mut packs = HashSet::new();
        progress.begin_units("reading segments", "segments", names.len() as u64);
        let mut read = pin!(segments::read_all(store, names.into_keys()));
        while let Some((_, segment)) = read.next().await {
            progress.step(1);
            match segment {
                Ok(segment) => packs.extend(segment.packs().iter().map(short)),
                Err(error) => on_error(error)?,
            }
        }
        Ok(Self { segments, packs })
    }

    pub(super) fn add(&mut self, other: Self) {
        self.segments.extend(other.segments);
        self.packs.extend(other.packs);
    }

    /// Whether one of these names is among them.
    pub(in crate::repository) fn any_of(&self, names: &HashSet<u64>) -> bool {
        let is_needed = |name: &u64| self.segments.contains(name) || self.packs.contains(name);
        names.iter().any(is_needed)
    }

    /// Whether a complete listing lacks one of them.
    pub(in crate::repository) async fn any_missing(&self, store: &Store) -> Result<bool> {
        for folder in ["segments", "packs"] {
            let mut missing = self.within(folder).clone();
            let fence = Fence::new();
            fence.put(store, folder).await?;
            listing::for_each_page(store, folder, Some(&fence), |page| {
                for object in page {
                    let name = object.name.rsplit('/').next().and_then(from_hex);
                    name.map(|name| missing.remove(&short(&name)));
                }
                Ok(())
            })
            .await?;
            if !missing.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Those of a folder, `packs` or `segments`.
    pub(super) fn within(&self, folder: &str) -> &HashSet<u64> {
        match folder {
            "segments" => &self.segments,
            _ => &self.packs,
        }
    }
}
