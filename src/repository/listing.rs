//! Listings that prove that they are complete. Each folder holds a pair of *fences*, objects that sort before and after all others:
//! a listing without both is cut short, of another place, or no listing at all. Each prune puts a new pair of a random id first, so
//! that a listing with that pair is newer than it.
//!
//! Objects that are not of a repository (folder markers, `.DS_Store`, `.nfs*`) are ignored.

use std::pin::pin;
use std::sync::Arc;

use futures_util::future::try_join_all;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use parking_lot::Mutex;

use super::header::from_hex;
use super::manifest::ManifestName;
use super::pack::Name;
use super::store::{Object, Store};
use crate::error::{Error, Kind, Result};

/// The folders that hold fences.
const FENCED: [&str; 8] = [
    "snapshots",
    "latest",
    "removed",
    "pins",
    "runs",
    "garbage",
    "packs",
    "segments",
];
/// Digits, hexadecimal ones too, and letters sort between the two.
const FIRST: &str = "0-fence-";
const LAST: &str = "zz-fence-";
/// What is in a fence: a store need not keep empty objects.
const CONTENT: &[u8] = b"A complete listing of this folder has this object.\n";
/// Names of foreign objects that a warning gives.
const NAMED: usize = 3;

/// A pair of fences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fence(String);

impl Fence {
    /// A pair that no listing has yet.
    pub(super) fn new() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)))
    }

    pub(super) fn names(&self, folder: &str) -> [String; 2] {
        [FIRST, LAST].map(|end| format!("{folder}/{end}{}", self.0))
    }

    /// Puts the pair into a folder.
    pub(super) async fn put(&self, store: &Store, folder: &str) -> Result<()> {
        let names = self.names(folder);
        let puts = names.iter().map(|name| async move {
            let content = [CONTENT.into()];
            store.put(name, &content).await
        });
        try_join_all(puts).await.map(drop)
    }

    /// Puts the pair into all folders.
    pub(super) async fn put_all(&self, store: &Store) -> Result<()> {
        let puts = FENCED.map(|folder| self.put(store, folder));
        try_join_all(puts).await.map(drop)
    }

    /// When the store wrote the pair of a folder, by its own clock.
    pub(super) async fn time(&self, store: &Store, folder: &str) -> Result<std::time::SystemTime> {
        let [_, last] = self.names(folder);
        Ok(store.head(&last).await?.modified)
    }
}

/// What an object of a folder is.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    First(String),
    Last(String),
    Ours,
    Foreign,
}

/// What an object is by its name within the repository.
fn found(folder: &str, name: &str) -> Role {
    let within = name
        .strip_prefix(folder)
        .and_then(|name| name.strip_prefix('/'));
    let Some(within) = within else {
        return Role::Foreign;
    };
    if let Some(id) = within.strip_prefix(FIRST) {
        return Role::First(id.to_owned());
    }
    if let Some(id) = within.strip_prefix(LAST) {
        return Role::Last(id.to_owned());
    }
    let is_word = |text: &str| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !text.is_empty() && text.bytes().all(is_letter)
    };
    let is_ours = match folder {
        "snapshots" | "pins" => within.parse::<ManifestName>().is_ok(),
        "removed" => within
            .rsplit_once('.')
            .is_some_and(|(name, run)| name.parse::<ManifestName>().is_ok() && is_word(run)),
        "packs" | "segments" => within.split_once('/').is_some_and(|(first, name)| {
            from_hex(name).is_some() && name.starts_with(first) && first.len() == 2
        }),
        _ => is_word(within),
    };
    if is_ours { Role::Ours } else { Role::Foreign }
}

/// Sorts the objects of a listing, page by page, and knows at its end whether it was complete.
#[derive(Debug)]
struct Proof<'a> {
    folder: &'a str,
    fence: Option<&'a Fence>,
    firsts: Vec<String>,
    lasts: Vec<String>,
    foreign: u64,
    named: Vec<String>,
}

impl<'a> Proof<'a> {
    fn new(folder: &'a str, fence: Option<&'a Fence>) -> Self {
        Self {
            folder,
            fence,
            firsts: Vec::new(),
            lasts: Vec::new(),
            foreign: 0,
            named: Vec::new(),
        }
    }

    /// The objects of a page that are the repository's, without fences.
    fn page(&mut self, page: Vec<Object>) -> Vec<Object> {
        let mut page = page;
        page.retain(|object| match found(self.folder, &object.name) {
            Role::Ours => true,
            Role::First(id) => {
                self.firsts.push(id);
                false
            }
            Role::Last(id) => {
                self.lasts.push(id);
                false
            }
            Role::Foreign => {
                self.foreign += 1;
                if self.named.len() < NAMED {
                    self.named.push(object.name.clone());
                }
                false
            }
        });
        page
    }

    fn end(self, store: &Store) -> Result<ListingExtras> {
        let missing = [("first", &self.firsts), ("last", &self.lasts)]
            .into_iter()
            .find(|(_, ids)| match self.fence {
                Some(fence) => !ids.contains(&fence.0),
                None => ids.is_empty(),
            });
        if let Some((which, ids)) = missing {
            let why = match ids.is_empty() {
                true => "it is cut short, or of another place",
                false => "it is older than the fence",
            };
            let what = format!(
                "cannot use the listing of {}/{}: the {which} fence is not in it, so that {why}",
                store.address(),
                self.folder
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        let others = |id: &&String| self.fence.is_some_and(|fence| fence.0 != **id);
        let old = self.firsts.iter().filter(others);
        Ok(ListingExtras {
            old_fences: old.map(|id| Fence(id.clone())).collect(),
            foreign: Foreign {
                count: self.foreign,
                named: self.named,
            },
        })
    }
}

/// Objects that are not of a repository.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreign {
    pub(super) count: u64,
    pub(super) named: Vec<String>,
}

/// The other objects of a complete listing.
#[derive(Debug)]
pub(super) struct ListingExtras {
    /// Pairs of earlier prunes, where a pair of this one was asked for.
    pub(super) old_fences: Vec<Fence>,
    pub(super) foreign: Foreign,
}

/// A complete listing.
#[derive(Debug)]
pub(super) struct FencedListing {
    /// The repository's own objects, in the store's order.
    pub(super) objects: Vec<Object>,
    pub(super) ends: ListingExtras,
}

/// Lists a folder, all at once; with `fence` the listing must have that very pair.
///
/// # Errors
/// `Corrupt` when the listing is not complete; else why the store does not list.
pub(super) async fn list(
    store: &Store,
    folder: &str,
    fence: Option<&Fence>,
) -> Result<FencedListing> {
    let mut objects = Vec::new();
    let ends = for_each_page(store, folder, fence, |page| {
        objects.extend(page);
        Ok(())
    })
    .await?;
    Ok(FencedListing { objects, ends })
}

/// Lists a folder of any size page by page. The pages given to `take` are a complete listing only when this ends without an
/// error.
///
/// # Errors
/// As for [`list`]; the error of `take`.
pub(super) async fn for_each_page(
    store: &Store,
    folder: &str,
    fence: Option<&Fence>,
    mut take: impl FnMut(Vec<Object>) -> Result<()>,
) -> Result<ListingExtras> {
    let mut proof = Proof::new(folder, fence);
    let mut pages = pin!(store.pages(folder));
    while let Some(page) = pages.try_next().await? {
        take(proof.page(page))?;
    }
    proof.end(store)
}

/// The objects of `packs/` or `segments/` by name, page by page. They are a complete listing only when the stream ends without an
/// error.
pub(super) fn objects<'a>(
    store: &'a Store,
    folder: &'a str,
) -> impl Stream<Item = Result<Vec<(Name, Object)>>> + 'a {
    let proof = Arc::new(Mutex::new(Proof::new(folder, None)));
    let last = Arc::clone(&proof);
    let pages = store.pages(folder).map_ok(move |page| {
        let named = proof.lock().page(page).into_iter();
        let named = named.filter_map(|object| {
            let name = from_hex(object.name.rsplit('/').next()?)?;
            Some((name, object))
        });
        named.collect()
    });
    let end = async move {
        let proof = std::mem::replace(&mut *last.lock(), Proof::new(folder, None));
        proof.end(store).map(|_| Vec::new())
    };
    pages.chain(stream::once(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_a_fence_or_of_the_repository_or_foreign() {
        let name = "20270115T080000000Z.vol-0a.snap-0b";
        let hex = "ab".repeat(32);
        for (folder, within, ours) in [
            ("snapshots", name.to_owned(), true),
            ("snapshots", String::new(), false),
            ("snapshots", ".DS_Store".into(), false),
            ("snapshots", format!("/{name}"), false),
            ("snapshots", format!("@eaDir/{name}"), false),
            ("removed", format!("{name}.0123"), true),
            ("removed", name.to_owned(), false),
            ("runs", "0123abcd".into(), true),
            ("runs", ".nfs0001".into(), false),
            ("packs", format!("ab/{hex}"), true),
            ("packs", format!("aa/{hex}"), false),
            ("packs", format!("ab/{hex}#1"), false),
        ] {
            let is_ours = found(folder, &format!("{folder}/{within}")) == Role::Ours;
            assert_eq!(is_ours, ours, "{folder} {within}");
        }
        assert_eq!(found("runs", "removed/0123"), Role::Foreign);
        let id = "00000000000000aa";
        assert_eq!(
            found("runs", &format!("runs/0-fence-{id}")),
            Role::First(id.into())
        );
    }

    #[test]
    fn fences_sort_before_and_after_all_that_a_folder_holds() {
        let fence = Fence::new();
        for folder in FENCED {
            let [first, last] = fence.names(folder);
            for byte in (b'0'..=b'9').chain(b'a'..=b'f') {
                let digit = char::from(byte);
                let name = format!("{folder}/{digit}{digit}");
                assert!(first < name && name < last, "{name}");
            }
        }
    }
}
