//! `check`: whether every object that the manifests lead to exists and matches its name, and which snapshots are damaged if not.
//!
//! Manifests and segments are read whole. Without data, a check only asks whether packs exist and are long enough; a check with
//! data reads all of them, or a part of them by their names. The result is kept in the repository as [`LastCheck`]: damage
//! in the bytes of a pack stays on record until that pack is read again or no snapshot needs it.

mod data;
mod last;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::pin::pin;

use futures_util::stream::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::catalog::RepositoryCatalog;
use super::lease;
use super::listing::objects;
use super::manifest::{Manifest, ManifestName, manifest_object};
use super::pack::Name;
use super::presence::{self, MOST_HEADS, PackFault};
use super::segments::{self, object};
use super::store::Store;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
pub(super) use data::{Row, row};
pub(crate) use last::LastCheck;

/// Words that name the check that found some damage.
const KNOWN: &str = "found by the check of";

/// Which packs a check reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadData {
    /// None: whether they are there and long enough.
    None,
    /// Part N of M, counted from 1: which packs these are depends on their names alone.
    Part(u32, u32),
    /// All of them.
    All,
}

impl std::fmt::Display for ReadData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Part(part, of) => write!(f, "{part}/{of}"),
            Self::All => f.write_str("all"),
        }
    }
}

/// A damaged object, and the snapshots that need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Damage {
    /// The object.
    pub(crate) object: String,
    /// What is wrong with it.
    pub(crate) what: String,
    /// Whether only reading its bytes shows it.
    #[serde(default)]
    pub(crate) in_data: bool,
    /// The snapshots that cannot be read whole, by the names of their manifests.
    pub(crate) snapshots: Vec<String>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct RepositoryCheck {
    /// Snapshots there.
    pub(crate) snapshots: u64,
    /// Segments that they lead to.
    pub(crate) segments: u64,
    /// Packs that those lead to.
    pub(crate) packs: u64,
    /// Bytes of these packs.
    pub(crate) packed_bytes: u64,
    /// Which of these packs were read: `none`, `all`, or a part such as `3/30`.
    pub(crate) read: String,
    /// How many that were.
    pub(crate) read_packs: u64,
    /// Their bytes.
    pub(crate) read_bytes: u64,
    /// Segments and packs that no snapshot leads to: of unfinished runs, or garbage.
    pub(crate) unused: u64,
    /// Bytes of those.
    pub(crate) unused_bytes: u64,
    /// Runs that have not ended.
    pub(crate) runs: u64,
    /// What is damaged.
    pub(crate) damages: Vec<Damage>,
    /// The manifests among it that are not there: `latest/` or the last prune names them, and nothing says that they were removed.
    pub(crate) missing: Vec<String>,
    /// Where a repair looks.
    #[serde(skip)]
    pub(super) suspects: SuspectObjects,
}

/// Objects that a repair must not trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SuspectObjects {
    /// Packs that are missing, cut short or damaged.
    pub(super) packs: HashSet<Name>,
    /// Sound packs, and the wrong entries of segments about them.
    pub(super) lacks: HashMap<Name, HashSet<Row>>,
}

/// The prefix of a name, or of a block's digest, that identifies it: two of 2^21 packs share one in one of eight million
/// repositories, and then an unneeded object is kept.
pub(super) fn short(name: &Name) -> u64 {
    name.first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first))
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

pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Invalid)
}

/// Damaged objects by name: the damage, whether only its bytes show it, and the snapshots that need it.
type Damages = BTreeMap<String, (String, bool, BTreeSet<String>)>;

/// A running check.
struct Check<'a> {
    store: &'a Store,
    progress: &'a Progress,
    manifests: Vec<Manifest>,
    segments: BTreeMap<Name, BTreeSet<usize>>,
    damages: Damages,
    /// Which of the manifests lead to damage.
    suffering: BTreeSet<usize>,
    suspects: SuspectObjects,
}

/// A pack that the listing lacks.
struct UnlistedPack {
    end: u64,
    manifests: BTreeSet<usize>,
    lack: PackFault,
}

/// Reads every manifest and every segment, asks whether every pack is there and long enough, and reads the wanted packs: every
/// byte, and that each block of each snapshot is where its segment says. Keeps what it found in the repository if it may. `progress`
/// shows the phases.
///
/// # Errors
/// Why the repository cannot be read; `Corrupt` when the listing of packs lacks some that are there. Damage is no error.
pub(crate) async fn check(
    catalog: &RepositoryCatalog,
    read: ReadData,
    progress: &Progress,
) -> Result<RepositoryCheck> {
    let before = LastCheck::read(catalog.store()).await?;
    let (checked, last) = inspect(catalog, read, &before, progress).await?;
    last.write(catalog.store()).await;
    Ok(checked)
}

/// The same without keeping the result; `before` is that of the last check.
pub(super) async fn inspect(
    catalog: &RepositoryCatalog,
    read: ReadData,
    before: &LastCheck,
    progress: &Progress,
) -> Result<(RepositoryCheck, LastCheck)> {
    let store = &**catalog.store();
    let mut damages = Damages::new();
    let mut manifests = Vec::new();
    progress.begin("listing snapshots", 0);
    let listed = catalog.list_with_missing(None, None).await?;
    for name in &listed.missing {
        let suffers = BTreeSet::from([name.to_string()]);
        let what = "it is neither listed nor removed".to_owned();
        damages.insert(manifest_object(name), (what, false, suffers));
    }
    let names: Vec<ManifestName> = listed.named.into_iter().map(|(name, _)| name).collect();
    progress.begin(format!("reading {} manifests", names.len()), 0);
    let found = catalog.manifests(names, |manifest| manifest);
    for (name, manifest) in found.await? {
        match manifest {
            Ok(manifest) => manifests.push(manifest),
            Err(error) if is_damage(&error) => {
                let suffers = BTreeSet::from([name.to_string()]);
                damages.insert(manifest_object(&name), (error.chain(), false, suffers));
            }
            Err(error) => return Err(error),
        }
    }
    let mut check = Check {
        store,
        progress,
        segments: segments_of(&manifests),
        manifests,
        damages,
        suffering: BTreeSet::new(),
        suspects: SuspectObjects::default(),
    };
    let sizes = check.sizes().await?;
    let (used, doubts) = check.segments(&sizes, before, read).await?;
    check.settle(doubts).await?;
    let mut checked = RepositoryCheck {
        snapshots: check.manifests.len() as u64,
        segments: check.segments.len() as u64,
        packs: used.len() as u64,
        runs: lease::runs(store).await?.len() as u64,
        missing: listed.missing.iter().map(ToString::to_string).collect(),
        read: read.to_string(),
        ..RepositoryCheck::default()
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
    if read != ReadData::None {
        (checked.read_packs, checked.read_bytes) = check.read(used.len(), read).await?;
    }
    check.without_removed(catalog).await?;
    let damages = std::mem::take(&mut check.damages).into_iter();
    checked.damages = damages
        .map(|(object, (what, in_data, snapshots))| Damage {
            object,
            what,
            in_data,
            snapshots: snapshots.into_iter().collect(),
        })
        .collect();
    let lists = listed.damaged_lists.into_iter().map(|object| Damage {
        object,
        what: "it does not name the snapshots that must be there: one may be missing".into(),
        in_data: false,
        snapshots: Vec::new(),
    });
    checked.damages.extend(lists);
    checked.suspects = check.suspects;
    let suffering = check.suffering.iter();
    let suffering = suffering.filter_map(|number| check.manifests.get(*number));
    let last = LastCheck::of(&checked, suffering);
    Ok((checked, last))
}

impl Check<'_> {
    fn note(&mut self, object: String, what: &str, manifests: &BTreeSet<usize>) {
        self.note_as(object, what, false, manifests);
    }

    fn note_data(&mut self, object: String, what: &str, manifests: &BTreeSet<usize>) {
        self.note_as(object, what, true, manifests);
    }

    fn note_as(&mut self, object: String, what: &str, in_data: bool, manifests: &BTreeSet<usize>) {
        let names = manifests
            .iter()
            .filter_map(|manifest| self.manifests.get(*manifest));
        let names: Vec<String> = names.map(|manifest| manifest.name().to_string()).collect();
        let damage = self.damages.entry(object);
        let damage = damage.or_insert_with(|| (what.to_owned(), in_data, BTreeSet::new()));
        // A missing object replaces what was found in it before.
        if damage.1 && !in_data {
            (damage.0, damage.1) = (what.to_owned(), false);
        }
        damage.2.extend(names);
        self.suffering.extend(manifests);
    }

    /// Drops the damage of manifests that were removed or replaced while this check ran: a prune may delete what they
    /// lead to.
    async fn without_removed(&mut self, catalog: &RepositoryCatalog) -> Result<()> {
        let mut removed = BTreeSet::new();
        for number in &self.suffering {
            let Some(manifest) = self.manifests.get(*number) else {
                continue;
            };
            let is_removed = match catalog.manifest(&manifest.name()).await {
                Err(error) if error.kind() == Kind::NotFound => true,
                Err(error) if is_damage(&error) => false,
                there => there?.run != manifest.run,
            };
            if is_removed {
                removed.insert(*number);
            }
        }
        if removed.is_empty() {
            return Ok(());
        }
        self.suffering.retain(|number| !removed.contains(number));
        let manifests = removed
            .iter()
            .filter_map(|number| self.manifests.get(*number));
        let names: BTreeSet<String> = manifests.map(|one| one.name().to_string()).collect();
        self.damages.retain(|_, (_, _, suffering)| {
            suffering.retain(|name| !names.contains(name));
            !suffering.is_empty()
        });
        Ok(())
    }

    /// The bytes of each pack that is listed.
    async fn sizes(&self) -> Result<BTreeMap<u64, u64>> {
        let mut sizes = BTreeMap::new();
        self.progress.begin_units("listing packs", "packs", 0);
        let mut parts = pin!(objects(self.store, "packs"));
        while let Some(packs) = parts.try_next().await? {
            self.progress.step(packs.len() as u64);
            let packs = packs.iter();
            sizes.extend(packs.map(|(name, object)| (short(name), object.size)));
        }
        Ok(sizes)
    }

    /// Reads every segment; the packs that they lead to, and those of them that are in doubt by their listed sizes. Damage in
    /// data that the last check found is kept where this one does not read the data.
    async fn segments(
        &mut self,
        sizes: &BTreeMap<u64, u64>,
        before: &LastCheck,
        read: ReadData,
    ) -> Result<(HashSet<u64>, BTreeMap<Name, UnlistedPack>)> {
        let (mut used, mut doubts) = (HashSet::new(), BTreeMap::<Name, UnlistedPack>::new());
        let mut counts: HashMap<Name, u64> = HashMap::new();
        let store = self.store;
        let names: Vec<Name> = self.segments.keys().copied().collect();
        let known = |kind: &str, name: &Name| {
            let damage = before.has_damage_in_data().then(|| object(kind, name));
            let damage = before.in_data(&damage?)?;
            Some(match damage.what.contains(KNOWN) {
                true => damage.what.clone(),
                false => format!("{} ({KNOWN} {})", damage.what, before.when),
            })
        };
        let of = names.len() as u64;
        self.progress
            .begin_units("reading segments", "segments", of);
        let mut segments = pin!(segments::read_all(store, names));
        while let Some((name, segment)) = segments.next().await {
            self.progress.step(1);
            let manifests = self.segments.get(&name).cloned().unwrap_or_default();
            let segment = match segment {
                Ok(segment) => segment,
                Err(error) if is_damage(&error) => {
                    self.note(object("segments", &name), &error.chain(), &manifests);
                    continue;
                }
                Err(error) => return Err(error),
            };
            counts.insert(name, segment.len() as u64);
            if read != ReadData::All
                && let Some(what) = known("segments", &name)
            {
                self.note_data(object("segments", &name), &what, &manifests);
            }
            for (pack, end) in presence::ends(&segment) {
                used.insert(short(&pack));
                if !read.is_wanted(&pack)
                    && let Some(what) = known("packs", &pack)
                {
                    self.suspects.packs.insert(pack);
                    self.note_data(object("packs", &pack), &what, &manifests);
                }
                let lack = match sizes.get(&short(&pack)) {
                    None => PackFault::Missing,
                    Some(size) if *size < end => PackFault::Short,
                    Some(_) => continue,
                };
                let doubt = doubts.entry(pack).or_insert_with(|| UnlistedPack {
                    end,
                    manifests: BTreeSet::new(),
                    lack,
                });
                doubt.end = end.max(doubt.end);
                doubt.manifests.extend(&manifests);
            }
        }
        self.counts(&counts);
        Ok((used, doubts))
    }

    /// Compares the counts of manifests with the blocks of their segments.
    fn counts(&mut self, counts: &HashMap<Name, u64>) {
        let mut wrong = Vec::new();
        for (number, manifest) in self.manifests.iter().enumerate() {
            let actual = manifest.segments.iter().map(|of| counts.get(&of.name));
            let Some(actual) = actual.collect::<Option<Vec<_>>>() else {
                continue;
            };
            let stated = manifest.segments.iter().map(|of| u64::from(of.blocks));
            let is_right = stated.eq(actual.iter().copied().copied());
            let sum: u64 = actual.into_iter().sum();
            if !is_right || sum != manifest.blocks {
                let stated = manifest.blocks;
                let what =
                    format!("it says that it holds {stated} blocks, its segments hold {sum}");
                wrong.push((manifest_object(&manifest.name()), what, number));
            }
        }
        for (object, what, number) in wrong {
            self.note(object, &what, &BTreeSet::from([number]));
        }
    }

    /// Asks for the packs that the listing lacks by their names: an incomplete listing is no proof of damage.
    async fn settle(&mut self, doubts: BTreeMap<Name, UnlistedPack>) -> Result<()> {
        let asked = doubts.iter().take(MOST_HEADS);
        let asked: Vec<_> = asked.map(|(name, doubt)| (*name, doubt.end)).collect();
        let count = asked.len();
        if count > 0 {
            let what = format!("asking for {count} packs that the listing lacks");
            self.progress.begin(what, 0);
        }
        let lacking = presence::lacking(self.store, asked).await?;
        if lacking.len() < count {
            return Err(presence::incomplete(self.store));
        }
        let known: HashMap<Name, PackFault> = lacking.into_iter().collect();
        for (name, doubt) in doubts {
            let lack = known.get(&name).copied().unwrap_or(doubt.lack);
            self.suspects.packs.insert(name);
            self.note(object("packs", &name), lack.what(), &doubt.manifests);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
