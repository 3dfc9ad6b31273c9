//! [`stats`]: the size of the snapshots of each volume, and the savings of deduplication and compression.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::time::SystemTime;

use futures_util::StreamExt;
use serde::{Serialize, Serializer};
use tracing::warn;

use super::catalog::RepositoryCatalog;
use super::check::{is_damage, segments_of, short};
use super::manifest::Manifest;
use super::pack::{Name, Spot};
use super::segments;
use super::store::Store;
use crate::block::BLOCK_SIZE;
use crate::error::Result;
use crate::progress::Progress;
use crate::target::VolumeKey;

/// Distinct blocks that are counted together: some 40 MB. Of a volume with more, the segments are read several times.
const ROWS: usize = 1 << 20;

/// The sizes of the snapshots of a volume, or of all volumes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// Snapshots.
    pub(crate) snapshots: u64,
    /// Bytes of the volume, by its newest snapshot.
    pub(crate) volume_bytes: u64,
    /// Bytes of the blocks that the newest snapshot holds.
    pub(crate) held_bytes: u64,
    /// Bytes of the blocks that all snapshots hold, each counted by itself.
    pub(crate) all_held_bytes: u64,
    /// Distinct blocks in packs that the snapshots lead to.
    pub(crate) unique_blocks: u64,
    /// Bytes of those in packs.
    pub(crate) stored_bytes: u64,
    /// Held bytes of all snapshots for each byte of distinct blocks.
    pub(crate) dedup_ratio: f64,
    /// Bytes of distinct blocks for each byte stored.
    pub(crate) compression_ratio: f64,
    /// The growth by each snapshot, the oldest first.
    pub(crate) growth: Vec<Growth>,
}

/// The growth by the run of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Growth {
    /// The name of its manifest.
    pub(crate) name: String,
    /// Its time.
    #[serde(serialize_with = "seconds")]
    pub(crate) time: SystemTime,
    /// Bytes of the blocks that were sent.
    pub(crate) sent_bytes: u64,
    /// Bytes stored for them.
    pub(crate) stored_bytes: u64,
}

fn seconds<S: Serializer>(
    time: &SystemTime,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::time::rfc3339_seconds(*time))
}

/// The sizes of a repository's snapshots.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Stats {
    /// By volume.
    pub(crate) volumes: BTreeMap<VolumeKey, Usage>,
    /// All volumes together, blocks that they share counted once; without `growth`.
    pub(crate) total: Usage,
    /// Manifests and segments that could not be read; what they lead to is not counted.
    pub(crate) unreadable: u64,
}

/// Counts the sizes of the snapshots of each volume. `progress` shows the phases.
///
/// # Errors
/// Why the repository cannot be read.
pub(crate) async fn stats(catalog: &RepositoryCatalog, progress: &Progress) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut volumes: BTreeMap<VolumeKey, Vec<Manifest>> = BTreeMap::new();
    progress.begin("listing snapshots", 0);
    let names = catalog.names().await?;
    progress.begin(format!("reading {} manifests", names.len()), 0);
    for (name, manifest) in catalog.manifests(names, |manifest| manifest).await? {
        match manifest {
            Ok(manifest) => volumes.entry(name.volume).or_default().push(manifest),
            Err(error) if is_damage(&error) => {
                warn!("{name} is left out: {}", error.chain());
                stats.unreadable += 1;
            }
            Err(error) => return Err(error),
        }
    }
    let mut reader = UsageReader {
        store: catalog.store(),
        damaged: BTreeSet::new(),
        progress,
    };
    let mut all = BTreeSet::new();
    for (key, manifests) in &volumes {
        let segments: BTreeSet<Name> = segments_of(manifests).into_keys().collect();
        let mut usage = of_manifests(manifests);
        usage.count(reader.distinct(&segments, key.as_str()).await?);
        all.extend(segments);
        stats.total.add(&usage);
        stats.volumes.insert(key.clone(), usage);
    }
    match stats.volumes.len() {
        // One volume: all is counted.
        0 | 1 => {
            let one = stats.volumes.values().next();
            stats.total = one.cloned().unwrap_or_default();
            stats.total.growth.clear();
        }
        _ => {
            let counted = reader.distinct(&all, "all volumes").await?;
            stats.total.count(counted);
        }
    }
    stats.unreadable += reader.damaged.len() as u64;
    Ok(stats)
}

/// The counts in the manifests of a volume, the oldest first.
fn of_manifests(manifests: &[Manifest]) -> Usage {
    let held = |manifest: &Manifest| manifest.blocks * u64::from(BLOCK_SIZE);
    let newest = manifests.last();
    let growth = manifests.iter().map(|manifest| Growth {
        name: manifest.name().to_string(),
        time: manifest.time,
        sent_bytes: manifest.sent_bytes,
        stored_bytes: manifest.stored_bytes,
    });
    Usage {
        snapshots: manifests.len() as u64,
        volume_bytes: newest.map_or(0, |newest| newest.volume_bytes),
        held_bytes: newest.map_or(0, held),
        all_held_bytes: manifests.iter().map(held).sum(),
        growth: growth.collect(),
        ..Usage::default()
    }
}

impl Usage {
    /// Adds the counts that need no distinct blocks.
    fn add(&mut self, other: &Self) {
        self.snapshots += other.snapshots;
        self.volume_bytes += other.volume_bytes;
        self.held_bytes += other.held_bytes;
        self.all_held_bytes += other.all_held_bytes;
    }

    fn count(&mut self, (blocks, stored): (u64, u64)) {
        let ratio = |of: u64, to: u64| match to {
            0 => 1.0,
            // Two digits are enough for people.
            _ => (of as f64 / to as f64 * 100.0).round() / 100.0,
        };
        let unique = blocks * u64::from(BLOCK_SIZE);
        self.unique_blocks = blocks;
        self.stored_bytes = stored;
        self.dedup_ratio = ratio(self.all_held_bytes, unique);
        self.compression_ratio = ratio(unique, stored);
    }
}

struct UsageReader<'a> {
    store: &'a Store,
    damaged: BTreeSet<Name>,
    progress: &'a Progress,
}

impl UsageReader<'_> {
    /// The distinct blocks of the segments of what `whose` names, and their stored bytes.
    async fn distinct(&mut self, segments: &BTreeSet<Name>, whose: &str) -> Result<(u64, u64)> {
        let mut distinct = Distinct::new(ROWS);
        loop {
            let (what, of) = (
                format!("reading segments of {whose}"),
                segments.len() as u64,
            );
            self.progress.begin_units(what, "segments", of);
            let mut read = pin!(segments::read_all(self.store, segments.iter().copied()));
            while let Some((name, segment)) = read.next().await {
                self.progress.step(1);
                let segment = match segment {
                    Err(error) if is_damage(&error) => {
                        if self.damaged.insert(name) {
                            warn!("{}", error.chain());
                        }
                        continue;
                    }
                    segment => segment?,
                };
                for (_, entry) in segment.entries() {
                    distinct.add(short(&entry.pack), entry.spot);
                }
            }
            if !distinct.next() {
                return Ok((distinct.blocks, distinct.bytes));
            }
        }
    }
}

/// Counts distinct blocks in bounded memory: when there are too many, those of a half of the packs are left for another round.
#[derive(Debug)]
struct Distinct {
    most: usize,
    /// A power of two: rounds in all. A pack is counted in the round that its name gives.
    rounds: u64,
    round: u64,
    rows: HashMap<(u64, u32), u32>,
    /// The counts of the rounds that are done.
    blocks: u64,
    bytes: u64,
}

impl Distinct {
    fn new(most: usize) -> Self {
        Self {
            most,
            rounds: 1,
            round: 0,
            rows: HashMap::new(),
            blocks: 0,
            bytes: 0,
        }
    }

    fn add(&mut self, pack: u64, spot: Spot) {
        if pack % self.rounds != self.round {
            return;
        }
        self.rows.insert((pack, spot.offset), spot.len());
        // The later rounds are as long as the first one, nearly: names are digests.
        while self.round == 0 && self.rows.len() > self.most && self.rounds < 1 << 32 {
            self.rounds *= 2;
            let rounds = self.rounds;
            self.rows.retain(|(pack, _), _| pack % rounds == 0);
        }
    }

    /// Ends a round; false after the last one.
    fn next(&mut self) -> bool {
        self.blocks += self.rows.len() as u64;
        self.bytes += self
            .rows
            .values()
            .map(|bytes| u64::from(*bytes))
            .sum::<u64>();
        self.rows.clear();
        self.round += 1;
        self.round < self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_count_each_block_once_however_few_fit_in_memory() {
        let blocks: Vec<(u64, u32)> = (0..500u64)
            .flat_map(|pack| (0..8).map(move |block| (pack * 7919, 32 + block * 1000)))
            .collect();
        for most in [16, 100, 1000, 10_000] {
            let mut distinct = Distinct::new(most);
            loop {
                // Each twice: two snapshots share it.
                for (pack, offset) in blocks.iter().chain(&blocks) {
                    let spot = Spot {
                        offset: *offset,
                        length: 1000,
                    };
                    distinct.add(*pack, spot);
                }
                if !distinct.next() {
                    break;
                }
            }
            assert_eq!(
                (distinct.blocks, distinct.bytes),
                (4000, 4_000_000),
                "{most}"
            );
        }
    }
}
