//! The packs and segments that no manifest needs: found, marked, deleted.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::{Denied, Needed, Pruned, before, marks};
use crate::error::{Error, Kind, Remedy, Result};
use crate::progress::Progress;
use crate::repository::catalog::RepositoryCatalog;
use crate::repository::check::short;
use crate::repository::header::from_hex;
use crate::repository::lease::boot_time;
use crate::repository::listing::{self, Fence};
use crate::repository::store::{Deleted, Object, Store};

/// Objects deleted at once.
const DELETES: usize = 16;

/// An object that is about to be deleted.
#[derive(Clone, Debug)]
pub(super) struct SweptObject {
    pub(super) name: String,
    folder: &'static str,
    short: u64,
    bytes: u64,
}

impl SweptObject {
    pub(super) fn is_needed(&self, needed: &Needed) -> bool {
        needed.within(self.folder).contains(&self.short)
    }
}

/// An object that no manifest needs.
#[derive(Clone, Debug)]
struct Unneeded {
    object: SweptObject,
    /// Whether an earlier prune marked it a grace ago.
    is_ripe: bool,
    /// Whether it was written a grace ago.
    is_old: bool,
    /// Whether a living run may have written it.
    is_kept: bool,
}

/// The unneeded objects that a prune found.
#[derive(Debug)]
pub(super) struct Sweep {
    ripe_before: SystemTime,
    kept_since: Option<SystemTime>,
    unneeded: Vec<Unneeded>,
    /// Fences of earlier prunes, with their folders.
    pub(super) old_fences: Vec<(&'static str, Fence)>,
}

impl Sweep {
    pub(super) fn new(ripe_before: SystemTime, kept_since: Option<SystemTime>) -> Self {
        Self {
            ripe_before,
            kept_since,
            unneeded: Vec::new(),
            old_fences: Vec::new(),
        }
    }

    /// Lists packs and segments, and keeps those that are not needed.
    pub(super) async fn find(
        &mut self,
        catalog: &RepositoryCatalog,
        fence: Option<&Fence>,
        needed: &Needed,
        grace: Duration,
        now: SystemTime,
        progress: &Progress,
    ) -> Result<()> {
        let store = catalog.store();
        let marked = marks::marked_before(store, fence, self.ripe_before).await?;
        for folder in ["segments", "packs"] {
            let used = needed.within(folder);
            let ends = listing::for_each_page(store, folder, fence, |page| {
                for object in page {
                    progress.step(1);
                    self.see(folder, object, used, &marked, before(now, grace));
                }
                Ok(())
            })
            .await?;
            catalog.warn_of(&ends.foreign);
            self.old_fences
                .extend(ends.old_fences.into_iter().map(|fence| (folder, fence)));
        }
        Ok(())
    }

    fn see(
        &mut self,
        folder: &'static str,
        object: Object,
        used: &HashSet<u64>,
        marked: &HashSet<u64>,
        old: SystemTime,
    ) {
        let name = object.name.rsplit('/').next().and_then(from_hex);
        let Some(short) = name
            .as_ref()
            .map(short)
            .filter(|short| !used.contains(short))
        else {
            return;
        };
        self.unneeded.push(Unneeded {
            is_ripe: marked.contains(&short),
            is_old: object.modified < old,
            is_kept: self
                .kept_since
                .is_some_and(|since| object.modified >= since),
            object: SweptObject {
                name: object.name,
                folder,
                short,
                bytes: object.size,
            },
        });
    }

    /// Whether an object would be deleted if no run were alive.
    fn is_due(unneeded: &Unneeded, is_immediate: bool) -> bool {
        unneeded.is_ripe || (is_immediate && unneeded.is_old)
    }

    /// The objects to delete now.
    pub(super) fn doomed(&self, is_immediate: bool) -> Vec<SweptObject> {
        let due = self.unneeded.iter();
        let due = due.filter(|one| Self::is_due(one, is_immediate) && !one.is_kept);
        due.map(|one| one.object.clone()).collect()
    }

    /// Counts what is due and what waits.
    pub(super) fn report(&self, pruned: &mut Pruned, is_immediate: bool, is_short: bool) {
        let living = pruned.runs.iter().any(|run| run.is_alive);
        for one in &self.unneeded {
            if Self::is_due(one, is_immediate) && !one.is_kept {
                pruned.swept += 1;
                pruned.swept_bytes += one.object.bytes;
                continue;
            }
            pruned.waiting += 1;
            pruned.waiting_bytes += one.object.bytes;
            // Only a run or reader on record keeps it.
            if one.is_ripe || (is_short && one.is_old) {
                pruned.held += 1;
                pruned.is_held_by_living = living;
            }
        }
    }

    /// Marks all that was found.
    pub(super) async fn mark(&self, store: &Store) -> Result<()> {
        let names = self.unneeded.iter().map(|one| one.object.name.clone());
        marks::put_marks(store, &names.collect::<Vec<_>>()).await
    }
}

/// Leaves out needed objects, and corrects the counts.
pub(super) fn spare(doomed: &mut Vec<SweptObject>, needed: &Needed, pruned: &mut Pruned) {
    doomed.retain(|one| {
        let is_needed = one.is_needed(needed);
        if is_needed {
            pruned.swept -= 1;
            pruned.swept_bytes -= one.bytes;
        }
        !is_needed
    });
}

/// Deletes objects, and subtracts those that were not deleted from the counts.
pub(super) async fn delete(
    store: &Store,
    doomed: Vec<SweptObject>,
    deadline: Duration,
    pruned: &mut Pruned,
    progress: &Progress,
) -> Result<()> {
    let names = doomed.into_iter().map(|one| (one.name, one.bytes));
    let kept = delete_named(store, names.collect(), deadline, pruned, progress).await?;
    pruned.swept -= kept.0;
    pruned.swept_bytes -= kept.1;
    Ok(())
}

/// Deletes objects that are not counted.
pub(super) async fn delete_all(
    store: &Store,
    names: Vec<String>,
    deadline: Duration,
    pruned: &mut Pruned,
    progress: &Progress,
) -> Result<()> {
    let names = names.into_iter().map(|name| (name, 0));
    delete_named(store, names.collect(), deadline, pruned, progress)
        .await
        .map(drop)
}

/// Deletes objects; returns how many, of how many bytes, were not deleted. Without the permission the first refusal ends it.
async fn delete_named(
    store: &Store,
    names: Vec<(String, u64)>,
    deadline: Duration,
    pruned: &mut Pruned,
    progress: &Progress,
) -> Result<(u64, u64)> {
    let mut kept = (0, 0);
    for (number, some) in names.chunks(DELETES).enumerate() {
        if boot_time() > deadline {
            let what = "cannot delete what no snapshot needs: too long ago that was found out";
            return Err(Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater));
        }
        let done = join_all(some.iter().map(|(name, _)| store.delete(name))).await;
        progress.step(some.len() as u64);
        for (done, (_, bytes)) in done.into_iter().zip(some) {
            match done {
                Ok(Deleted::Done) => continue,
                Ok(Deleted::Locked(why)) => {
                    pruned.locked += 1;
                    pruned.locked_why.get_or_insert(why);
                }
                Err(error) if error.kind() == Kind::Denied => {
                    pruned.denied.get_or_insert(Denied(error));
                }
                Err(error) => return Err(error),
            }
            kept.0 += 1;
            kept.1 += bytes;
        }
        if pruned.denied.is_some() {
            let rest = names.iter().skip((number + 1) * DELETES);
            kept = rest.fold(kept, |(count, sum), (_, bytes)| (count + 1, sum + bytes));
            break;
        }
    }
    Ok(kept)
}
