//! [`PackNeeds`]: whether the packs that a snapshot needs are there and long enough, by one listing, or by HEADs where they are few.
//! A pack that a listing lacks gets a HEAD before it counts as missing.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tracing::warn;

use super::check::short;
use super::listing::objects;
use super::pack::Name;
use super::segment::Segment;
use super::segments::{self, object};
use super::store::Store;
use crate::error::{Error, Kind, Remedy, Result};

/// Up to this many packs get one HEAD each: that is cheaper than a listing of the whole repository.
const FEW: usize = 32;
/// The most HEADs for packs that a listing lacks.
pub(super) const MOST_HEADS: usize = 1000;
/// Concurrent HEADs.
const HEADS: usize = 16;

/// The fault of a pack that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PackFault {
    Missing,
    Short,
}

impl PackFault {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Missing => "it is missing",
            Self::Short => "it is cut short",
        }
    }
}

/// The packs that a segment leads to, and the end of what it needs of each.
pub(super) fn ends(segment: &Segment) -> BTreeMap<Name, u64> {
    let mut ends: BTreeMap<Name, u64> = BTreeMap::new();
    for (_, entry) in segment.entries() {
        let end = ends.entry(entry.pack).or_default();
        *end = entry.spot.end().max(*end);
    }
    ends
}

/// Sends a HEAD for each pack; returns those that are missing, or shorter than needed.
pub(super) async fn lacking(
    store: &Store,
    packs: impl IntoIterator<Item = (Name, u64)>,
) -> Result<Vec<(Name, PackFault)>> {
    let asked = stream::iter(packs).map(|(name, end)| async move {
        match store.head(&object("packs", &name)).await {
            Ok(found) if found.size >= end => Ok(None),
            Ok(_) => Ok(Some((name, PackFault::Short))),
            Err(error) if error.kind() == Kind::NotFound => Ok(Some((name, PackFault::Missing))),
            Err(error) => Err(error),
        }
    });
    let found = asked.buffered(HEADS);
    let found = found.try_filter_map(|found| std::future::ready(Ok(found)));
    found.try_collect().await
}

/// The error of a listing that lacks packs that are there.
pub(super) fn incomplete(store: &Store) -> Error {
    let what = format!(
        "cannot rely on {}: the listing of packs is incomplete",
        store.address()
    );
    Error::new(Kind::Corrupt, what).with_remedy(Remedy::TryLater)
}

/// The packs that a snapshot needs. In memory they are 16 bytes each: 32 MiB for 64 TiB.
#[derive(Debug, Default)]
pub(super) struct PackNeeds {
    /// All of them while they are few.
    few: BTreeMap<Name, u64>,
    all: HashMap<u64, u32>,
}

impl PackNeeds {
    pub(super) fn add(&mut self, segment: &Segment) {
        for (pack, end) in ends(segment) {
            let before = self.all.entry(short(&pack)).or_default();
            *before = u32::try_from(end).unwrap_or(u32::MAX).max(*before);
            if self.all.len() <= FEW {
                let before = self.few.entry(pack).or_default();
                *before = end.max(*before);
            }
        }
    }

    /// Checks that all packs are there. `segments` are those that were added, read again if the listing lacks a pack.
    ///
    /// # Errors
    /// `Corrupt` when a pack is missing or cut short; why the repository cannot be listed.
    pub(super) async fn prove(mut self, store: &Store, segments: Vec<Name>) -> Result<()> {
        if self.all.len() <= FEW {
            return refuse_lacking(store, &lacking(store, self.few).await?);
        }
        let mut parts = pin!(objects(store, "packs"));
        while let Some(found) = parts.try_next().await? {
            for (name, object) in found {
                let is_whole = |end: &u32| object.size >= u64::from(*end);
                if self.all.get(&short(&name)).is_some_and(is_whole) {
                    self.all.remove(&short(&name));
                }
            }
        }
        self.prove_unlisted(store, segments).await
    }

    /// Sends a HEAD for each pack that a listing lacked.
    async fn prove_unlisted(self, store: &Store, segments: Vec<Name>) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let mut asked: BTreeMap<Name, u64> = BTreeMap::new();
        let mut read = pin!(segments::read_all(store, segments));
        while let Some((_, segment)) = read.next().await {
            for (pack, end) in ends(&*segment?) {
                if self.all.contains_key(&short(&pack))
                    && (asked.len() < MOST_HEADS || asked.contains_key(&pack))
                {
                    let before = asked.entry(pack).or_default();
                    *before = end.max(*before);
                }
            }
        }
        let count = asked.len();
        refuse_lacking(store, &lacking(store, asked).await?)?;
        if count < self.all.len() {
            return Err(incomplete(store));
        }
        warn!("{}", incomplete(store).chain());
        Ok(())
    }
}

fn refuse_lacking(store: &Store, lacking: &[(Name, PackFault)]) -> Result<()> {
    let Some((name, lack)) = lacking.first() else {
        return Ok(());
    };
    let what = format!(
        "{}/{}: {}",
        store.address(),
        object("packs", name),
        lack.what()
    );
    let error = Error::new(Kind::Corrupt, what);
    Err(match lacking.len() {
        1 => error,
        count => error.context(format!("{count} packs are missing or cut short")),
    })
}

#[cfg(test)]
mod tests;
