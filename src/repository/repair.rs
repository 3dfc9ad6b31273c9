//! `check --repair`: finds the blocks of damaged packs, and writes replacements of the damaged snapshots.
//!
//! A lost block is found by its digest: in the packs of other snapshots, in the sound part of its damaged pack, in a source
//! that a person names. Found blocks go into new packs, and new segments lead to them. A replacement manifest of the same name
//! and of a new run leads to those; the old one is kept as a tombstone first. Blocks that are not found are marked in the
//! replacement: they are zero, and the next delta writes them.
//!
//! The repair is a run on record, so that `prune` keeps all objects that it writes or relies on. No manifest leads to its packs
//! and segments before they are whole: killed at any step, it leaves each snapshot unchanged or replaced, and some garbage.

mod replace;
mod search;
mod writer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::SEGMENT_BLOCKS;
use super::catalog::RepositoryCatalog;
use super::check::{LastCheck, ReadData, RepositoryCheck, SuspectObjects, inspect, is_damage, row};
use super::header::{Salt, salt_of_run};
use super::latest;
use super::lease::{Lease, LeaseKind};
use super::manifest::{Manifest, ManifestName};
use super::pack::Name;
use super::segment::{Segment, SegmentEntry};
use super::segments::{self, object};
use super::settled::Unsettled;
use super::store::Store;
use super::swept::Swept;
use crate::block::{BlockIndex, BlockSet, Extent, random_id};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::progress::Progress;
use crate::snapshot::Snapshot;
use crate::source::BlockSource;
use search::LostDigests;
use writer::FoundBlocks;

/// The memory limits of a repair.
#[derive(Clone, Copy, Debug)]
struct RepairLimits {
    /// Blocks that are searched in one round, each about 100 bytes. The segments of all snapshots are read once in each round.
    round: usize,
    /// Blocks whose places are remembered from one round to the next, each some 100 bytes.
    places: usize,
}

const LIMITS: RepairLimits = RepairLimits {
    round: 1 << 18,
    places: 1 << 19,
};

/// A source that a person names for lost blocks.
pub(crate) struct RepairOrigin {
    /// What people call it.
    pub(crate) name: String,
    /// Its blocks.
    pub(crate) blocks: Arc<dyn BlockSource>,
    /// The snapshot that it is; none of an image or device, which may have changed since.
    pub(crate) snapshot: Option<Snapshot>,
    /// The snapshot's volume.
    pub(crate) volume: Option<String>,
}

impl std::fmt::Debug for RepairOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RepairOrigin({})", self.name)
    }
}

/// Blocks of a snapshot that were not found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LostBlocks {
    /// The name of its manifest.
    pub(crate) snapshot: String,
    /// How many are lost.
    pub(crate) blocks: u64,
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Repaired {
    /// The manifests that were replaced, by name.
    pub(crate) replaced: Vec<String>,
    /// Blocks written into new packs.
    pub(crate) written_blocks: u64,
    /// Snapshots with blocks that were not found: these are zero and marked.
    pub(crate) lost: Vec<LostBlocks>,
    /// The remaining damage.
    pub(crate) left: Vec<super::Damage>,
    /// The manifests among it that are not there.
    pub(crate) missing: Vec<String>,
}

/// A segment that is replaced.
#[derive(Clone, Debug, Default)]
struct Fixed {
    /// The new one and its blocks; none when it holds nothing.
    new: Option<(Name, u32)>,
    /// Runs of blocks (first, end) within it that were not found.
    lost: Vec<(u32, u32)>,
}

/// A running repair.
struct Repair<'a> {
    store: &'a Store,
    progress: &'a Progress,
    origin: Option<&'a RepairOrigin>,
    run: String,
    lease: Lease,
    salt: Salt,
    manifests: Vec<Manifest>,
    /// All segments of the manifests, and which segments of volumes they are.
    numbers: BTreeMap<Name, BTreeSet<u32>>,
    /// Those of manifests that are not being removed: what these lead to stays.
    lasting: BTreeSet<Name>,
    /// Blocks of each segment that can be read.
    counts: HashMap<Name, u32>,
    suspects: SuspectObjects,
    /// What prunes are about to delete.
    swept: Swept,
    /// Packs that were found damaged by this repair.
    also: BTreeSet<String>,
    /// Lists of the snapshots that must be there, which are damaged.
    damaged_lists: Vec<String>,
    finds: FoundBlocks,
    fixed: HashMap<Name, Fixed>,
    done: Repaired,
}

/// Repairs what a check has found, with the help of `origin`. `progress` shows the phases.
///
/// # Errors
/// Why the repository cannot be read or written. Blocks that are not found are no error here.
pub(crate) async fn repair(
    catalog: &RepositoryCatalog,
    checked: &RepositoryCheck,
    origin: Option<&RepairOrigin>,
    progress: &Progress,
) -> Result<Repaired> {
    repair_within(catalog, checked, origin, LIMITS, progress).await
}

async fn repair_within(
    catalog: &RepositoryCatalog,
    checked: &RepositoryCheck,
    origin: Option<&RepairOrigin>,
    limits: RepairLimits,
    progress: &Progress,
) -> Result<Repaired> {
    let store = &**catalog.store();
    let run = random_id();
    let swept = Swept::on_record(store).await?;
    // Before it reads any object that it relies on: from now on `prune` keeps those.
    let (of, kind, known) = (
        Arc::clone(catalog.store()),
        LeaseKind::Repair,
        swept.sweeps(),
    );
    let lease = Lease::begin(of, kind, &run, "", catalog.lease(), known).await?;
    let salt = salt_of_run(&run);
    let mut repair = Repair {
        store,
        progress,
        origin,
        salt,
        run,
        lease,
        manifests: Vec::new(),
        numbers: BTreeMap::new(),
        lasting: BTreeSet::new(),
        counts: HashMap::new(),
        suspects: checked.suspects.clone(),
        swept,
        also: BTreeSet::new(),
        damaged_lists: Vec::new(),
        finds: FoundBlocks::new(salt, limits.places),
        fixed: HashMap::new(),
        done: Repaired::default(),
    };
    let done = repair.all(catalog, limits.round).await;
    // A repair cannot be resumed: its objects that no manifest leads to are garbage.
    let Repair {
        lease,
        also,
        finds,
        done: mut repaired,
        ..
    } = repair;
    let ended = lease.end().await;
    done?;
    ended?;
    repaired.written_blocks = finds.written;
    let mut before = LastCheck::read(store).await?;
    before.add(also);
    let (after, last) = inspect(catalog, ReadData::None, &before, progress).await?;
    last.after(checked).write(store).await;
    (repaired.left, repaired.missing) = (after.damages, after.missing);
    Ok(repaired)
}

impl Repair<'_> {
    /// Repairs everything, `most` blocks at a time.
    async fn all(&mut self, catalog: &RepositoryCatalog, most: usize) -> Result<()> {
        let lost = self.read_manifests(catalog).await?;
        let affected = self.read_segments().await?;
        let mut affected = affected.into_iter().peekable();
        while affected.peek().is_some() {
            let (mut round, mut blocks) = (Vec::new(), 0);
            while let Some((name, bad)) = affected.next_if(|_| blocks < most) {
                blocks += bad;
                round.push(name);
            }
            self.heal(&round).await?;
        }
        self.replace_all().await?;
        for name in lost {
            self.make_again(&name).await?;
        }
        self.rewrite_lists(catalog).await
    }

    /// Rewrites the damaged lists of required snapshots. A person who starts a repair accepts the snapshots that are listed
    /// now.
    async fn rewrite_lists(&self, catalog: &RepositoryCatalog) -> Result<()> {
        if self.damaged_lists.is_empty() {
            return Ok(());
        }
        let names = catalog.names().await?;
        for object in &self.damaged_lists {
            latest::rewrite(self.store, object, &names).await?;
        }
        Ok(())
    }

    /// Reads all manifests; the names of those that cannot be read or are missing.
    async fn read_manifests(&mut self, catalog: &RepositoryCatalog) -> Result<Vec<ManifestName>> {
        self.progress.begin("repairing: reading manifests", 0);
        let listed = catalog.list_with_missing(None, None).await?;
        let mut lost = listed.missing;
        self.damaged_lists = listed.damaged_lists;
        let names = listed.named.into_iter().map(|(name, _)| name).collect();
        let read = catalog.manifests(names, |manifest| manifest);
        for (name, manifest) in read.await? {
            match manifest {
                Ok(manifest) => self.manifests.push(manifest),
                Err(error) if is_damage(&error) => lost.push(name),
                Err(error) => return Err(error),
            }
        }
        // One with a tombstone is being removed, or a repair was killed before it could replace it.
        let unsettled = Unsettled::among(self.store, &self.manifests).await?;
        for manifest in &self.manifests {
            let is_lasting = unsettled.why(manifest).is_none();
            for of in &manifest.segments {
                self.numbers.entry(of.name).or_default().insert(of.number);
                if is_lasting {
                    self.lasting.insert(of.name);
                }
            }
        }
        Ok(lost)
    }

    /// Whether an entry leads to damage, or to a pack that a prune is about to delete.
    fn is_bad(&self, entry: &SegmentEntry) -> bool {
        let SuspectObjects { packs, lacks } = &self.suspects;
        let lacks = lacks.get(&entry.pack);
        packs.contains(&entry.pack)
            || self.swept.has(&entry.pack)
            || lacks.is_some_and(|rows| rows.contains(&row(&entry.digest, entry.spot)))
    }

    /// Reads all segments: those that lead to damage, with the number of blocks that do. A segment that cannot be read counts
    /// as lost as a whole until a source provides its blocks.
    async fn read_segments(&mut self) -> Result<Vec<(Name, usize)>> {
        let mut affected = Vec::new();
        let names: Vec<Name> = self.numbers.keys().copied().collect();
        let (what, of) = ("repairing: reading segments", names.len() as u64);
        self.progress.begin_units(what, "segments", of);
        let mut read = pin!(segments::read_all(self.store, names));
        while let Some((name, segment)) = read.next().await {
            self.progress.step(1);
            let segment = match segment {
                Err(error) if is_damage(&error) => {
                    let lost = vec![(0, SEGMENT_BLOCKS)];
                    self.fixed.insert(name, Fixed { new: None, lost });
                    continue;
                }
                segment => segment?,
            };
            let count = u32::try_from(segment.len()).unwrap_or(SEGMENT_BLOCKS);
            self.counts.insert(name, count);
            let bad = segment.entries().filter(|(_, entry)| self.is_bad(entry));
            match bad.count() {
                0 if !self.swept.has(&name) => {}
                bad => affected.push((name, bad)),
            }
        }
        Ok(affected)
    }

    /// Finds the lost blocks of some segments, and writes the segments again.
    async fn heal(&mut self, names: &[Name]) -> Result<()> {
        self.finds.forget_many();
        let mut lost = LostDigests::default();
        for name in names {
            let segment = segments::read(self.store, name).await?;
            let numbers = self.numbers.get(name).into_iter().flatten();
            for (within, entry) in segment.entries() {
                if !self.is_bad(&entry) {
                    continue;
                }
                lost.digests.insert(entry.digest);
                let claims = lost.claims.entry(entry.pack).or_default();
                claims.push((entry.digest, entry.spot));
                let indexes = numbers.clone().map(|number| {
                    let index = number * SEGMENT_BLOCKS + u32::from(within);
                    (index, entry.digest)
                });
                lost.indexes.extend(indexes);
            }
        }
        for claims in lost.claims.values_mut() {
            claims.sort_unstable_by_key(|(digest, spot)| (spot.offset, *digest));
            claims.dedup();
        }
        let of = lost.digests.len() as u64;
        self.progress.begin("repairing: searching lost blocks", of);
        self.search(&lost).await?;
        for name in names {
            let segment = segments::read(self.store, name).await?;
            let (mut blocks, mut missing) = (Vec::new(), Vec::new());
            for (within, mut entry) in segment.entries() {
                // A pack that the search itself has found damaged is left for the next repair.
                let is_bad = lost.digests.contains(&entry.digest) && self.is_bad(&entry);
                if is_bad {
                    let Some((pack, spot)) = self.finds.place(&entry.digest) else {
                        missing.push(BlockIndex(within.into()));
                        continue;
                    };
                    (entry.pack, entry.spot) = (pack, spot);
                }
                blocks.push((within, entry));
            }
            let new = self.put_segment(blocks).await?;
            let lost = runs(missing);
            self.fixed.insert(*name, Fixed { new, lost });
        }
        Ok(())
    }

    /// Writes a segment of these blocks, unless there are none.
    async fn put_segment(&self, blocks: Vec<(u16, SegmentEntry)>) -> Result<Option<(Name, u32)>> {
        if blocks.is_empty() {
            return Ok(None);
        }
        let salt = self.salt;
        let count = u32::try_from(blocks.len()).unwrap_or(SEGMENT_BLOCKS);
        let made = blocking(move || {
            let stored = Segment::of(blocks).encode(&salt);
            let stored = stored
                .map_err(|error| Error::with_source(Kind::Io, "cannot make a segment", error))?;
            let name: Name = Sha256::digest(&stored).into();
            Ok((name, stored))
        });
        let (name, stored) = made.await?;
        self.store
            .put(&object("segments", &name), &[stored])
            .await?;
        Ok(Some((name, count)))
    }
}

/// Runs of blocks (first, end), ascending.
fn runs(blocks: impl IntoIterator<Item = BlockIndex>) -> Vec<(u32, u32)> {
    let mut set = BlockSet::new();
    blocks.into_iter().for_each(|index| set.insert(index));
    set.runs().map(pair).collect()
}

fn pair(run: Extent) -> (u32, u32) {
    (run.start().0, run.end().0)
}

#[cfg(test)]
mod tests;
