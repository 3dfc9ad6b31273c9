//! The part of a check that reads packs: every byte of them, and whether each has the blocks that segments name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};

use super::{Check, ReadData, is_damage, short};
use crate::block::Digest;
use crate::error::{Error, Result};
use crate::files::blocking;
use crate::repository::pack::{self, MOST_BLOCKS, Name, Spot, Stored};
use crate::repository::segments::{self, object};
use crate::repository::store::Store;

/// Packs read at once, of at most 32 MiB each.
const PACKS: usize = 3;
/// Blocks of packs that are checked in one round, each kept as a [`Row`]: about 40 MB. The segments are read once in each
/// round, 2 % of the bytes that are read of the packs themselves.
const ROWS: usize = 1 << 20;

/// An entry of a segment, or of a pack's table: the first bytes of a block's SHA-256, and where the block is.
pub(in crate::repository) type Row = (u64, Spot);

/// What is wrong with a pack.
enum PackDamage {
    /// The pack itself.
    Damaged(String),
    /// The segments contradict its table: they are wrong.
    Lacks(HashSet<Row>),
}

pub(in crate::repository) fn row(digest: &Digest, spot: Spot) -> Row {
    (short(digest), spot)
}

impl ReadData {
    /// Whether a pack is among those that are read. Names are digests: each part has as many, and all parts together have all.
    pub(super) fn is_wanted(self, pack: &Name) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Part(part, of) => {
                // Not the bytes of the name that divide the packs into rounds.
                let bytes = pack.last_chunk().copied().unwrap_or_default();
                u64::from_le_bytes(bytes) % u64::from(of) == u64::from(part) - 1
            }
        }
    }
}

impl Check<'_> {
    /// Reads the wanted ones of these packs; returns how many were read, and their bytes.
    pub(super) async fn read(&mut self, packs: usize, wanted: ReadData) -> Result<(u64, u64)> {
        let parts = (packs * MOST_BLOCKS).div_ceil(ROWS).max(1) as u64;
        let mut wrong: BTreeMap<Name, PackDamage> = BTreeMap::new();
        let (mut read, mut bytes) = (0, 0);
        let (store, progress) = (self.store, self.progress);
        let of = if wanted == ReadData::All { packs } else { 0 };
        progress.begin_units("reading packs", "packs", of as u64);
        for part in 0..parts {
            let is_its = |pack: &Name| wanted.is_wanted(pack) && short(pack) % parts == part;
            let claims = self.claims(is_its).await?;
            if wanted != ReadData::All {
                progress.expect(claims.len() as u64);
            }
            let looks = stream::iter(claims)
                .map(|(name, rows)| async move {
                    let (found, len) = look_at(store, &name, rows).await?;
                    Ok::<_, Error>((name, found, len))
                })
                .buffer_unordered(PACKS);
            let mut looks = pin!(looks);
            while let Some((name, found, len)) = looks.try_next().await? {
                read += 1;
                bytes += len;
                progress.step(1);
                progress.read(len);
                wrong.extend(found.map(|found| (name, found)));
            }
        }
        if !wrong.is_empty() {
            self.blame(wrong).await;
        }
        Ok((read, bytes))
    }

    /// Adds the snapshots that need a damaged pack. They are searched only here, because damage is rare.
    async fn blame(&mut self, wrong: BTreeMap<Name, PackDamage>) {
        let store = self.store;
        for (name, manifests) in self.segments.clone() {
            let Ok(segment) = segments::read(store, &name).await else {
                continue;
            };
            for pack in segment.packs() {
                match wrong.get(pack) {
                    Some(PackDamage::Damaged(what)) => {
                        self.suspects.packs.insert(*pack);
                        self.note_data(object("packs", pack), what, &manifests);
                    }
                    Some(PackDamage::Lacks(rows)) => {
                        let mut its = segment.entries().filter(|(_, entry)| entry.pack == *pack);
                        if its.any(|(_, entry)| rows.contains(&row(&entry.digest, entry.spot))) {
                            let what = "a block that it speaks of is not where it says";
                            self.note_data(object("segments", &name), what, &manifests);
                        }
                    }
                    None => {}
                }
            }
        }
        for (name, found) in wrong {
            if let PackDamage::Lacks(rows) = found {
                self.suspects.lacks.insert(name, rows);
            }
        }
    }

    /// The entries of all segments about some packs. Damaged segments were found before.
    async fn claims(
        &self,
        is_wanted: impl Fn(&Name) -> bool,
    ) -> Result<HashMap<Name, HashSet<Row>>> {
        let mut claims: HashMap<Name, HashSet<Row>> = HashMap::new();
        let names = self.segments.keys().copied();
        let mut read = pin!(segments::read_all(self.store, names));
        while let Some((_, segment)) = read.next().await {
            let segment = match segment {
                Err(error) if is_damage(&error) => continue,
                segment => segment?,
            };
            for (_, entry) in segment.entries() {
                if is_wanted(&entry.pack) {
                    let rows = claims.entry(entry.pack).or_default();
                    rows.insert(row(&entry.digest, entry.spot));
                }
            }
        }
        Ok(claims)
    }
}

/// Checks every byte of a pack against its table and these entries of segments. Returns the damage, and its bytes.
async fn look_at(
    store: &Store,
    name: &Name,
    mut claims: HashSet<Row>,
) -> Result<(Option<PackDamage>, u64)> {
    let bytes = match store.get(&object("packs", name)).await {
        Err(error) if is_damage(&error) => {
            return Ok((Some(PackDamage::Damaged(error.chain())), 0));
        }
        bytes => bytes?,
    };
    let (name, len) = (*name, bytes.len() as u64);
    let wrong = blocking(move || {
        let damaged = |what: &str| Ok(Some(PackDamage::Damaged(what.to_owned())));
        let Some((found, table)) = pack::table(&bytes) else {
            return damaged("it is no pack");
        };
        if found != name {
            return damaged("it is not the pack that was written");
        }
        for (digest, spot) in table {
            let start = spot.offset as usize;
            let end = usize::try_from(spot.end()).unwrap_or(usize::MAX);
            let opened = (start <= end && end <= bytes.len())
                .then(|| Stored::read(bytes.slice(start..end), spot).open())
                .flatten();
            if opened.is_none_or(|block| *Sha256::digest(&block) != digest) {
                return damaged("a block in it is not what it should be");
            }
            claims.remove(&row(&digest, spot));
        }
        Ok((!claims.is_empty()).then_some(PackDamage::Lacks(claims)))
    });
    Ok((wrong.await?, len))
}
