//! [`Source`]: the source of a sync, and its listings.

use std::sync::Arc;

use crate::block::{BlockSet, Delta};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;
use crate::source::{BlockSource, Catalog, Changes, HeldDigests, held};
use crate::target::{Mark, SourceInfo, Stop};

/// Reads the mark of a source of this machine.
pub(crate) type ReadMark = Box<dyn Fn() -> Option<Mark> + Send + Sync>;

/// A snapshot, or an image or device of this machine.
pub(crate) struct Source {
    /// What is known of it.
    pub(crate) info: SourceInfo,
    /// Its blocks.
    pub(crate) blocks: Arc<dyn BlockSource>,
    /// Lists what changed, of a snapshot.
    pub(crate) catalog: Option<Arc<dyn Catalog>>,
    /// Its mark now, where it can change.
    pub(crate) mark: Option<ReadMark>,
    /// Whether it is what an earlier run staged on this machine.
    pub(crate) is_staged: bool,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.info.name)
    }
}

impl Source {
    /// Whether a source of this machine was written since it was opened.
    pub(crate) fn has_changed(&self) -> bool {
        let now = self.mark.as_ref().map(|mark| mark());
        self.info.mark.is_some() && now.is_some_and(|now| now != self.info.mark)
    }

    /// Checks that a source of this machine was not written since it was opened.
    ///
    /// # Errors
    /// `Corrupt` when it was.
    pub(super) fn check(&self) -> Result<()> {
        if !self.has_changed() {
            return Ok(());
        }
        let what = format!(
            "cannot publish the copy: {} was written while it was copied",
            self.info.name
        );
        Err(Error::new(Kind::Corrupt, what))
    }
}

/// Lists of a source, each made once for all targets that need it.
pub(super) struct Listings<'a> {
    source: &'a Source,
    held: Option<Arc<BlockSet>>,
    deltas: Vec<(SnapshotId, Arc<Delta>)>,
    /// The source by the tokens of a listing of changes.
    blocks: Option<Arc<dyn BlockSource>>,
}

impl<'a> Listings<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            held: None,
            deltas: Vec::new(),
            blocks: None,
        }
    }

    /// The source, read by the tokens of a listing that was made.
    pub(super) fn blocks(&self) -> Arc<dyn BlockSource> {
        let blocks = self.blocks.as_ref().unwrap_or(&self.source.blocks);
        Arc::clone(blocks)
    }

    /// The blocks that the source holds.
    pub(super) async fn held(&mut self, stop: &Stop) -> Result<Arc<BlockSet>> {
        if let Some(held) = &self.held {
            return Ok(Arc::clone(held));
        }
        let listed = Arc::new(stop.unless(held(&*self.source.blocks)).await?);
        self.held = Some(Arc::clone(&listed));
        Ok(listed)
    }

    /// What changed since a snapshot.
    pub(super) async fn delta(&mut self, base: &SnapshotId, stop: &Stop) -> Result<Arc<Delta>> {
        if let Some((_, delta)) = self.deltas.iter().find(|(known, _)| known == base) {
            return Ok(Arc::clone(delta));
        }
        let (Some(catalog), Some(head)) = (&self.source.catalog, self.source.info.id()) else {
            let what = format!(
                "cannot list changes of {}: it is not a snapshot",
                self.source.info.name
            );
            return Err(Error::new(Kind::Invalid, what));
        };
        if *base == head {
            let geometry = self.source.info.geometry;
            return Ok(Arc::new(Delta::new(Some(geometry), geometry)));
        }
        let (delta, blocks) = stop.unless(catalog.delta(base, &head)).await?;
        self.deltas.push((base.clone(), Arc::clone(&delta)));
        self.blocks.get_or_insert(blocks);
        Ok(delta)
    }

    /// What differs from a volume with these digests; none where the source knows no digests of its blocks.
    pub(super) async fn delta_of_digests(
        &mut self,
        held: &dyn HeldDigests,
        stop: &Stop,
    ) -> Result<Option<Arc<Delta>>> {
        let (Some(catalog), Some(head)) = (&self.source.catalog, self.source.info.id()) else {
            return Ok(None);
        };
        let found = stop.unless(catalog.delta_of_digests(held, &head)).await?;
        Ok(self.read_by(found))
    }

    /// What changed since a snapshot that was removed; none where the source does not know that any more.
    pub(super) async fn delta_of_removed(
        &mut self,
        base: &SnapshotId,
        stop: &Stop,
    ) -> Result<Option<Arc<Delta>>> {
        let (Some(catalog), Some(head)) = (&self.source.catalog, self.source.info.id()) else {
            return Ok(None);
        };
        let found = stop.unless(catalog.delta_of_removed(base, &head)).await?;
        Ok(self.read_by(found))
    }

    fn read_by(&mut self, found: Option<Changes>) -> Option<Arc<Delta>> {
        let (delta, blocks) = found?;
        self.blocks.get_or_insert(blocks);
        Some(delta)
    }
}
