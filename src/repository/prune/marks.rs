//! Marks: the objects that no manifest needs (`garbage/ID`), and those that a prune is about to delete (`garbage/ID-sweep`).
//! Their ages are the store's times of these objects.
//!
//! Both are lists of names ([`lines`]).

use std::collections::HashSet;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt};

use super::before;
use super::needed::Needed;
use super::sweep::SweptObject;
use crate::block::random_id;
use crate::error::{Error, Kind, Remedy, Result};
use crate::repository::check::short;
use crate::repository::header::from_hex;
use crate::repository::lines;
use crate::repository::listing::{self, Fence};
use crate::repository::store::{Object, Store};

/// Names in an object, of 81 bytes at most: some 8 MB.
const MOST_NAMES: usize = 100_000;
const SWEEP: &str = "-sweep";
/// How long marks stay after the grace: no run can then still read them.
const AFTER_GRACE: Duration = Duration::from_hours(7 * 24);
/// Objects read at once, of 8 MB at most.
const READS: usize = 4;

/// The first bytes of the names; none when the list is damaged.
fn decode(bytes: &[u8]) -> Option<Vec<u64>> {
    let short_of = |line: &str| Some(short(&from_hex(line.rsplit('/').next()?)?));
    lines::decode(bytes)?.map(short_of).collect()
}

async fn put(store: &Store, names: &[String], ending: &str) -> Result<Vec<String>> {
    let mut put = Vec::new();
    for part in names.chunks(MOST_NAMES) {
        let object = format!("garbage/{}{ending}", random_id());
        store.put(&object, &[lines::encode(part).into()]).await?;
        put.push(object);
    }
    Ok(put)
}

/// Marks these objects.
pub(super) async fn put_marks(store: &Store, names: &[String]) -> Result<()> {
    put(store, names, "").await.map(drop)
}

/// Records that these objects are about to be deleted; returns the objects of the record.
pub(super) async fn put_sweep(store: &Store, doomed: &[SweptObject]) -> Result<Vec<String>> {
    let names: Vec<String> = doomed.iter().map(|doomed| doomed.name.clone()).collect();
    put(store, &names, SWEEP).await
}

/// Removes needed names from the objects of a sweep, so that runs may rely on them. `doomed` are the names that [`put_sweep`]
/// wrote.
pub(super) async fn put_spared(
    store: &Store,
    sweeps: &[String],
    doomed: &[SweptObject],
    needed: &Needed,
) -> Result<()> {
    for (sweep, part) in sweeps.iter().zip(doomed.chunks(MOST_NAMES)) {
        let left = part.iter().filter(|one| !one.is_needed(needed));
        let left: Vec<&str> = left.map(|one| &*one.name).collect();
        if left.len() < part.len() {
            store.put(sweep, &[lines::encode(left).into()]).await?;
        }
    }
    Ok(())
}

/// The error of a sweep that cannot be read: it may name anything.
fn damaged(store: &Store, object: &Object) -> Error {
    let what = format!("{}/{} is damaged", store.address(), object.name);
    let remedy = "remove that object when no prune is running";
    Error::new(Kind::Corrupt, what).with_remedy(Remedy::Do(remedy.into()))
}

/// Whether an object of `garbage/` is a sweep.
pub(in crate::repository) fn is_sweep(object: &Object) -> bool {
    object.name.ends_with(SWEEP)
}

/// The names in these sweeps or marks.
///
/// # Errors
/// `Corrupt` when a sweep is damaged; else why the store cannot be read.
pub(in crate::repository) async fn read(
    store: &Store,
    objects: impl IntoIterator<Item = Object>,
) -> Result<HashSet<u64>> {
    let mut names = HashSet::new();
    let reads = stream::iter(objects).map(async |object| {
        let bytes = store.get(&object.name).await;
        (object, bytes)
    });
    let mut reads = pin!(reads.buffer_unordered(READS));
    while let Some((object, bytes)) = reads.next().await {
        match bytes {
            // Another prune has removed it meanwhile.
            Err(error) if error.kind() == Kind::NotFound => {}
            bytes => match decode(&bytes?) {
                Some(some) => names.extend(some),
                None if is_sweep(&object) => return Err(damaged(store, &object)),
                // It marks no object.
                None => {}
            },
        }
    }
    Ok(names)
}

/// The names that were marked before a time.
pub(super) async fn marked_before(
    store: &Store,
    fence: Option<&Fence>,
    time: SystemTime,
) -> Result<HashSet<u64>> {
    let listed = listing::list(store, "garbage", fence).await?.objects;
    let marks = listed.into_iter();
    let marks = marks.filter(|object| !is_sweep(object) && object.modified <= time);
    read(store, marks).await
}

/// The names in sweeps other than those of `known`, by a listing that is newer than this call.
pub(in crate::repository) async fn new_sweeps(
    store: &Store,
    known: &[String],
) -> Result<HashSet<u64>> {
    let list = async || {
        let fence = Fence::new();
        fence.put(store, "garbage").await?;
        listing::list(store, "garbage", Some(&fence)).await
    };
    let listed = match list().await {
        // A prune has removed the fence of a run that was paused for a day.
        Err(error) if error.kind() == Kind::Corrupt => list().await?,
        listed => listed?,
    };
    let sweeps = listed.objects.into_iter();
    let sweeps = sweeps.filter(|object| is_sweep(object) && !known.contains(&object.name));
    read(store, sweeps).await
}

/// Marks that no prune and no run needs any more: each is much older than the grace, and a newer one has the same names.
pub(super) async fn old(store: &Store, now: SystemTime, grace: Duration) -> Result<Vec<String>> {
    let listed = listing::list(store, "garbage", None).await?.objects;
    let until = before(before(now, grace), AFTER_GRACE);
    let old = listed.into_iter().filter(|object| object.modified < until);
    Ok(old.map(|object| object.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::hexadecimal;

    #[test]
    fn marks_are_read_as_written_and_damaged_ones_mark_nothing() {
        let hex = |byte: u8| hexadecimal(&[byte; 32]);
        let names = [
            format!("packs/07/{}", hex(7)),
            format!("segments/09/{}", hex(9)),
        ];
        let bytes = lines::encode(&names);
        assert_eq!(decode(&bytes).unwrap(), [short(&[7; 32]), short(&[9; 32])]);
        assert_eq!(decode(&bytes[1..]), None);
        assert_eq!(decode(&lines::encode(["packs/x"])), None);
    }
}
