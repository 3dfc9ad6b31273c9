//! `check`: whether everything that the roots lead to is there and is what its name says, and which snapshots suffer if not.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::pin;

use futures_util::future::TryFutureExt;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::catalog::RepositoryCatalog;
use super::pack::{self, Name, Stored};
use super::root::{Root, from_hex};
use super::segments::{self, object};
use super::store::{Object, Store};
use crate::disk::blocking;
use crate::error::{Error, Kind, Result};

/// So many objects of a folder are listed at once: a page, of S3.
const FEW: usize = 1000;
/// Listings of a part at once; of the 2^21 packs of 64 TiB each part has 8,192.
const LISTS: usize = 4;
/// Packs read at once, of at most 32 MiB each.
const PACKS: usize = 3;

/// What is damaged, and what suffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The snapshots that cannot be read whole, by the names of their roots.
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

/// So much of a name tells it from others: two of 2^21 packs are taken for one once in eight million repositories, and what
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

/// The segments that roots lead to, and which of the roots.
pub(super) fn segments_of(roots: &[Root]) -> BTreeMap<Name, BTreeSet<usize>> {
    let mut segments: BTreeMap<Name, BTreeSet<usize>> = BTreeMap::new();
    for (number, root) in roots.iter().enumerate() {
        for of in &root.segments {
            segments.entry(of.name).or_default().insert(number);
        }
    }
    segments
}

/// A check on its way.
struct Check<'a> {
    store: &'a Store,
    roots: Vec<Root>,
    segments: BTreeMap<Name, BTreeSet<usize>>,
    damages: BTreeMap<String, (String, BTreeSet<String>)>,
}

/// Looks at every root, every segment, and that every pack is there and long enough; with `read_data` at every byte.
///
/// # Errors
/// Why the repository cannot be looked at. Damage is no error here.
pub async fn check(catalog: &RepositoryCatalog, read_data: bool) -> Result<Checked> {
    let store = &**catalog.store();
    let mut damages = BTreeMap::new();
    let mut roots = Vec::new();
    let read = catalog.roots(catalog.all_names().await?, |root| root);
    for (name, root) in read.await? {
        match root {
            Ok(root) => roots.push(root),
            Err(error) if is_damage(&error) => {
                let suffers = BTreeSet::from([name.to_string()]);
                damages.insert(format!("snapshots/{name}"), (error.chain(), suffers));
            }
            Err(error) => return Err(error),
        }
    }
    let mut check = Check {
        store,
        segments: segments_of(&roots),
        roots,
        damages,
    };
    let sizes = check.sizes().await?;
    let used = check.segments(&sizes).await?;
    let mut checked = Checked {
        snapshots: check.roots.len() as u64,
        segments: check.segments.len() as u64,
        packs: used.len() as u64,
        runs: store.list("runs").await?.len() as u64,
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
        check.read(&used).await?;
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
    fn note(&mut self, object: String, what: &str, roots: &BTreeSet<usize>) {
        let names = roots.iter().filter_map(|root| self.roots.get(*root));
        let names: Vec<String> = names.map(|root| root.name().to_string()).collect();
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
            let roots = self.segments.get(&name).cloned().unwrap_or_default();
            let segment = match segment {
                Ok(segment) => segment,
                Err(error) if is_damage(&error) => {
                    self.note(object("segments", &name), &error.chain(), &roots);
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
                    None => self.note(object("packs", &pack), "it is missing", &roots),
                    Some(size) if *size < end => {
                        self.note(object("packs", &pack), "it is cut short", &roots);
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(used)
    }

    /// Reads every pack that is used.
    async fn read(&mut self, used: &HashSet<u64>) -> Result<()> {
        let mut bad: BTreeMap<Name, String> = BTreeMap::new();
        let store = self.store;
        let mut parts = pin!(objects(store, "packs"));
        while let Some(mut packs) = parts.try_next().await? {
            packs.retain(|(name, _)| used.contains(&short(name)));
            let looks = stream::iter(packs)
                .map(|(name, _)| async move {
                    let found = look_at(store, &name).await?;
                    Ok::<_, Error>(found.map(|what| (name, what)))
                })
                .buffer_unordered(PACKS);
            let found: Vec<_> = looks
                .try_filter_map(|found| std::future::ready(Ok(found)))
                .try_collect()
                .await?;
            bad.extend(found);
        }
        if bad.is_empty() {
            return Ok(());
        }
        // Who suffers is looked for only now: that is rare.
        for (name, roots) in self.segments.clone() {
            let Ok(segment) = segments::read(self.store, &name).await else {
                continue;
            };
            for pack in segment.packs() {
                if let Some(what) = bad.get(pack) {
                    self.note(object("packs", pack), what, &roots);
                }
            }
        }
        Ok(())
    }
}

/// What is wrong with a pack, every byte of it.
async fn look_at(store: &Store, name: &Name) -> Result<Option<String>> {
    let bytes = match store.get(&object("packs", name)).await {
        Err(error) if is_damage(&error) => return Ok(Some(error.chain())),
        bytes => bytes?,
    };
    let name = *name;
    blocking(move || {
        let Some((found, table)) = pack::table(&bytes) else {
            return Ok(Some("it is no pack".to_owned()));
        };
        if found != name {
            return Ok(Some("it is not the pack that was written".to_owned()));
        }
        for (digest, spot) in table {
            let start = spot.offset as usize;
            let end = usize::try_from(spot.end()).unwrap_or(usize::MAX);
            let opened = (start <= end && end <= bytes.len())
                .then(|| Stored::read(bytes.slice(start..end), spot).open())
                .flatten();
            if opened.is_none_or(|block| *Sha256::digest(&block) != digest) {
                return Ok(Some("a block in it is not what it should be".to_owned()));
            }
        }
        Ok(None)
    })
    .await
}
