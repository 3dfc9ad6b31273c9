//! `check`: whether everything that the manifests lead to is there and is what its name says, and which snapshots suffer if not.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::pin::pin;

use futures_util::future::TryFutureExt;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::catalog::RepositoryCatalog;
use super::header::from_hex;
use super::lease;
use super::manifest::Manifest;
use super::pack::{self, MOST_BLOCKS, Name, Spot, Stored};
use super::segments::{self, object};
use super::store::{Object, Store};
use crate::block::Digest;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;

/// So many objects of a folder are listed at once: a page, of S3.
const FEW: usize = 1000;
/// Listings of a part at once; of the 2^21 packs of 64 TiB each part has 8,192.
const LISTS: usize = 4;
/// Packs read at once, of at most 32 MiB each.
const PACKS: usize = 3;
/// Blocks of packs that are looked at together, each remembered as a [`Row`]: some 40 MB. The segments are read once for each
/// so many blocks, 2 % of what is read of the packs themselves.
const ROWS: usize = 1 << 20;

/// What a segment says of a block, and a pack's table too: the first bytes of its SHA-256, and where it is.
type Row = (u64, Spot);

/// What is wrong with a pack.
enum Wrong {
    /// The pack itself.
    Damaged(String),
    /// Segments say of it what its table does not say: they are wrong.
    Lacks(HashSet<Row>),
}

/// What is damaged, and what suffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The snapshots that cannot be read whole, by the names of their manifests.
    pub snapshots: Vec<String>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Snapshots there.
    pub snapshots: u64,
    /// Segments that they lead to.
    pub segments: u64,
    /// Packs that those lead to.
    pub packs: u64,
    /// Bytes of these packs.
    pub packed_bytes: u64,
    /// Segments and packs that no snapshot leads to: of unfinished runs, or garbage.
    pub unused: u64,
    /// Bytes of those.
    pub unused_bytes: u64,
    /// Runs that have not ended.
    pub runs: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
}

/// So much of a name, or of a block's digest, tells it from others: two of 2^21 packs are taken for one once in eight million repositories, and what
/// that leads to is an object kept for nothing.
pub(super) fn short(name: &Name) -> u64 {
    name.first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first))
}

/// The objects of `packs/` or `segments/`, all at once where they are few, else those together whose names begin with the same
/// byte: in a bounded part of memory, and in few requests either way.
pub(super) fn objects<'a>(
    store: &'a Store,
    folder: &'a str,
) -> impl Stream<Item = Result<Vec<(Name, Object)>>> + 'a {
    let parts = async move {
        let all = store.list_some(folder, FEW).await?;
        Ok::<_, Error>(match all.len() {
            FEW => stream::iter(0..=u8::MAX)
                .map(move |byte| async move { store.list(&format!("{folder}/{byte:02x}")).await })
                .buffered(LISTS)
                .left_stream(),
            _ => stream::once(std::future::ready(Ok(all))).right_stream(),
        })
    };
    let named = |objects: Vec<Object>| {
        let named = objects.into_iter().filter_map(|object| {
            let name = from_hex(object.name.rsplit('/').next()?)?;
            Some((name, object))
        });
        named.collect()
    };
    parts.try_flatten_stream().map_ok(named)
}

/// The segments that manifests lead to, and which of the manifests.
pub(super) fn segments_of(manifests: &[Manifest]) -> BTreeMap<Name, BTreeSet<usize>> {
    let mut segments: BTreeMap<Name, BTreeSet<usize>> = BTreeMap::new();
    for (number, manifest) in manifests.iter().enumerate() {
        for of in &manifest.segments {
            segments.entry(of.name).or_default().insert(number);
        }
    }
    segments
}

/// A check on its way.
struct Check<'a> {
    store: &'a Store,
    manifests: Vec<Manifest>,
    segments: BTreeMap<Name, BTreeSet<usize>>,
    damages: BTreeMap<String, (String, BTreeSet<String>)>,
}

/// Looks at every manifest, every segment, and that every pack is there and long enough; with `read_data` at every byte, and that
/// each block of each snapshot is where its segment says.
///
/// # Errors
/// Why the repository cannot be looked at. Damage is no error here.
pub async fn check(catalog: &RepositoryCatalog, read_data: bool) -> Result<Checked> {
    let store = &**catalog.store();
    let mut damages = BTreeMap::new();
    let mut manifests = Vec::new();
    let read = catalog.manifests(catalog.names().await?, |manifest| manifest);
    for (name, manifest) in read.await? {
        match manifest {
            Ok(manifest) => manifests.push(manifest),
            Err(error) if is_damage(&error) => {
                let suffers = BTreeSet::from([name.to_string()]);
                damages.insert(format!("snapshots/{name}"), (error.chain(), suffers));
            }
            Err(error) => return Err(error),
        }
    }
    let mut check = Check {
        store,
        segments: segments_of(&manifests),
        manifests,
        damages,
    };
    let sizes = check.sizes().await?;
    let used = check.segments(&sizes).await?;
    let mut checked = Checked {
        snapshots: check.manifests.len() as u64,
        segments: check.segments.len() as u64,
        packs: used.len() as u64,
        runs: lease::runs(store).await?.len() as u64,
        ..Checked::default()
    };
    let segments: HashSet<u64> = check.segments.keys().map(short).collect();
    let mut parts = pin!(objects(store, "segments"));
    while let Some(found) = parts.try_next().await? {
        for (name, object) in found {
            if !segments.contains(&short(&name)) {
                checked.unused += 1;
                checked.unused_bytes += object.size;
            }
        }
    }
    for (name, size) in &sizes {
        if used.contains(name) {
            checked.packed_bytes += size;
        } else {
            checked.unused += 1;
            checked.unused_bytes += size;
        }
    }
    if read_data {
        check.read(used.len()).await?;
    }
    let damages = check.damages.into_iter();
    checked.damages = damages
        .map(|(object, (what, snapshots))| Damage {
            object,
            what,
            snapshots: snapshots.into_iter().collect(),
        })
        .collect();
    Ok(checked)
}

pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Invalid)
}

impl Check<'_> {
    fn note(&mut self, object: String, what: &str, manifests: &BTreeSet<usize>) {
        let names = manifests
            .iter()
            .filter_map(|manifest| self.manifests.get(*manifest));
        let names: Vec<String> = names.map(|manifest| manifest.name().to_string()).collect();
        let damage = self.damages.entry(object);
        let (_, suffers) = damage.or_insert_with(|| (what.to_owned(), BTreeSet::new()));
        suffers.extend(names);
    }

    /// The bytes of each pack that is there.
    async fn sizes(&self) -> Result<BTreeMap<u64, u64>> {
        let mut sizes = BTreeMap::new();
        let mut parts = pin!(objects(self.store, "packs"));
        while let Some(packs) = parts.try_next().await? {
            let packs = packs.iter();
            sizes.extend(packs.map(|(name, object)| (short(name), object.size)));
        }
        Ok(sizes)
    }

    /// Reads every segment; the packs that they lead to.
    async fn segments(&mut self, sizes: &BTreeMap<u64, u64>) -> Result<HashSet<u64>> {
        let mut used = HashSet::new();
        let store = self.store;
        let names: Vec<Name> = self.segments.keys().copied().collect();
        let mut read = pin!(segments::read_all(store, names));
        while let Some((name, segment)) = read.next().await {
            let manifests = self.segments.get(&name).cloned().unwrap_or_default();
            let segment = match segment {
                Ok(segment) => segment,
                Err(error) if is_damage(&error) => {
                    self.note(object("segments", &name), &error.chain(), &manifests);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut ends: BTreeMap<Name, u64> = BTreeMap::new();
            for (_, entry) in segment.entries() {
                let end = ends.entry(entry.pack).or_default();
                *end = entry.spot.end().max(*end);
            }
            for (pack, end) in ends {
                used.insert(short(&pack));
                match sizes.get(&short(&pack)) {
                    None => self.note(object("packs", &pack), "it is missing", &manifests),
                    Some(size) if *size < end => {
                        self.note(object("packs", &pack), "it is cut short", &manifests);
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(used)
    }

    /// Reads so many packs, and whether each has the blocks that segments say are in it.
    async fn read(&mut self, packs: usize) -> Result<()> {
        let parts = (packs * MOST_BLOCKS).div_ceil(ROWS).max(1) as u64;
        let mut wrong: BTreeMap<Name, Wrong> = BTreeMap::new();
        let store = self.store;
        for part in 0..parts {
            let said = self.said(|pack| short(pack) % parts == part).await?;
            let looks = stream::iter(said)
                .map(|(name, rows)| async move {
                    let found = look_at(store, &name, rows).await?;
                    Ok::<_, Error>(found.map(|wrong| (name, wrong)))
                })
                .buffer_unordered(PACKS);
            let found: Vec<_> = looks
                .try_filter_map(|found| std::future::ready(Ok(found)))
                .try_collect()
                .await?;
            wrong.extend(found);
        }
        if wrong.is_empty() {
            return Ok(());
        }
        // Who suffers is looked for only now: that is rare.
        for (name, manifests) in self.segments.clone() {
            let Ok(segment) = segments::read(store, &name).await else {
                continue;
            };
            for pack in segment.packs() {
                match wrong.get(pack) {
                    Some(Wrong::Damaged(what)) => {
                        self.note(object("packs", pack), what, &manifests)
                    }
                    Some(Wrong::Lacks(rows)) => {
                        let mut its = segment.entries().filter(|(_, entry)| entry.pack == *pack);
                        if its.any(|(_, entry)| rows.contains(&row(&entry.digest, entry.spot))) {
                            let what = "a block that it speaks of is not where it says";
                            self.note(object("segments", &name), what, &manifests);
                        }
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// What all segments say of some packs. Those that are damaged were found before.
    async fn said(&self, is_wanted: impl Fn(&Name) -> bool) -> Result<HashMap<Name, HashSet<Row>>> {
        let mut said: HashMap<Name, HashSet<Row>> = HashMap::new();
        let names = self.segments.keys().copied();
        let mut read = pin!(segments::read_all(self.store, names));
        while let Some((_, segment)) = read.next().await {
            let segment = match segment {
                Err(error) if is_damage(&error) => continue,
                segment => segment?,
            };
            for (_, entry) in segment.entries() {
                if is_wanted(&entry.pack) {
                    let rows = said.entry(entry.pack).or_default();
                    rows.insert(row(&entry.digest, entry.spot));
                }
            }
        }
        Ok(said)
    }
}

fn row(digest: &Digest, spot: Spot) -> Row {
    (short(digest), spot)
}

/// What is wrong with a pack, every byte of it, of which segments say so much.
async fn look_at(store: &Store, name: &Name, mut said: HashSet<Row>) -> Result<Option<Wrong>> {
    let damaged = |what: &str| Ok(Some(Wrong::Damaged(what.to_owned())));
    let bytes = match store.get(&object("packs", name)).await {
        Err(error) if is_damage(&error) => return damaged(&error.chain()),
        bytes => bytes?,
    };
    let name = *name;
    blocking(move || {
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
            said.remove(&row(&digest, spot));
        }
        Ok((!said.is_empty()).then_some(Wrong::Lacks(said)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use bytes::Bytes;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::block::BlockIndex;
    use crate::repository::manifest::{FORMAT, SegmentOf};
    use crate::repository::pack::{Filling, Packer};
    use crate::repository::segment::{Entry, Segment};
    use crate::repository::store::Connection;

    /// A repository in a folder, and the store that it is in.
    async fn repository(folder: &std::path::Path) -> RepositoryCatalog {
        let connection = Connection::new(std::time::Duration::from_secs(5));
        let address = format!("file://{}", folder.display()).parse().unwrap();
        let store = Arc::new(Store::open(&address, &connection).unwrap());
        RepositoryCatalog::init(store).await.unwrap()
    }

    async fn put_manifest(store: &Store, snapshot: &str, segment: &Segment) {
        let stored = segment.encode(&[0; 16]).unwrap();
        let of = SegmentOf {
            number: 0,
            name: Sha256::digest(&stored).into(),
            blocks: 2,
        };
        let manifest = Manifest {
            format: FORMAT,
            run: "run".into(),
            snapshot: snapshot.parse().unwrap(),
            volume: Some("vol-0a".into()),
            volume_key: crate::target::VolumeKey::of_volume("vol-0a"),
            time: SystemTime::UNIX_EPOCH,
            volume_bytes: 1 << 30,
            base: None,
            description: None,
            tags: BTreeMap::new(),
            written: SystemTime::UNIX_EPOCH,
            encrypted: None,
            blocks: 2,
            sent_blocks: 2,
            sent_bytes: 2 << 19,
            stored_bytes: 2 << 19,
            damaged: Vec::new(),
            segments: vec![of],
        };
        let name = object("segments", &of.name);
        store.put(&name, &[stored]).await.unwrap();
        let name = format!("snapshots/{}", manifest.name());
        store.put(&name, &[manifest.encode().into()]).await.unwrap();
    }

    #[tokio::test]
    async fn a_segment_that_speaks_of_what_no_pack_holds_is_damage_of_its_snapshots_alone() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = repository(folder.path()).await;
        let store = catalog.store();
        let places = Arc::new(Semaphore::new(2));
        let (mut filling, mut packer) = (Filling::default(), Packer::new().unwrap());
        for number in 1..=2u8 {
            let block = Bytes::from(vec![number; 1 << 19]);
            let digest = Sha256::digest(&block).into();
            let place = Arc::clone(&places).try_acquire_owned().unwrap();
            let stored = packer.pack(block);
            filling.push(BlockIndex(number.into()), digest, stored, place);
        }
        let packed = filling.pack(&[7; 16]);
        let name = object("packs", &packed.name);
        store.put(&name, &packed.pieces).await.unwrap();
        let [(_, one, at_one), (_, two, at_two)] = packed.spots[..] else {
            panic!("two blocks");
        };
        let segment = |blocks: [(Digest, Spot); 2]| {
            let entries = blocks.map(|(digest, spot)| Entry {
                pack: packed.name,
                spot,
                digest,
            });
            Segment::of((0..).zip(entries))
        };
        put_manifest(store, "snap-0a", &segment([(one, at_one), (two, at_two)])).await;
        // All is there, and one block is said to be where the other one is.
        put_manifest(store, "snap-0b", &segment([(one, at_one), (one, at_two)])).await;
        let checked = check(&catalog, false).await.unwrap();
        assert_eq!((checked.snapshots, checked.damages.len()), (2, 0));
        let checked = check(&catalog, true).await.unwrap();
        let [damage] = &checked.damages[..] else {
            panic!("{checked:?}");
        };
        assert!(damage.object.starts_with("segments/"), "{damage:?}");
        assert_eq!(damage.snapshots, ["19700101T000000000Z.vol-0a.snap-0b"]);
    }
}
