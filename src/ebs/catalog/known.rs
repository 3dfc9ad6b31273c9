//! [`KnownSnapshots`]: EC2's descriptions of snapshots, when to ask again, and the one listing that all waiters share.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::error::{Error, Kind, Result};
use crate::snapshot::{
    Descriptions, ListingProgress, Selector, Snapshot, SnapshotId, SnapshotState, sort_by_time,
};

/// How long EC2 may take to describe a snapshot that can be read without it.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long EC2 is not asked after it refused or did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How long the listing that a mount started with serves its first reader.
const BEGUN_LIFE: Duration = Duration::from_secs(60);

/// The words of an error when the caller lacks the permission.
const MISSING: &str = "the permission ec2:DescribeSnapshots";

/// EC2's answer about one snapshot.
#[derive(Debug)]
pub(super) enum Description {
    /// Its description.
    Known(Arc<Snapshot>),
    /// EC2 was asked and does not know it.
    NotKnown,
    /// Why EC2 could not be asked.
    NotAsked(String),
}

/// Descriptions by id, each with the time of the request that brought it.
pub(super) struct KnownSnapshots(Arc<KnownState>);

struct KnownState {
    ec2: Option<Arc<dyn Descriptions>>,
    select: Vec<Selector>,
    known: Mutex<HashMap<SnapshotId, DatedDescription>>,
    /// Until when EC2 is not asked about single snapshots, and why.
    silence: Mutex<Option<(Instant, Error)>>,
    /// Opened without a description.
    missing: Mutex<BTreeSet<SnapshotId>>,
    asks_missing: AtomicBool,
    listing: Mutex<Option<SharedListing>>,
}

struct DatedDescription {
    asked: Instant,
    /// Whether it stays when a listing does not have it: it was asked for by its id.
    is_named: bool,
    snapshot: Arc<Snapshot>,
}

/// A listing that runs as a task: it continues when a waiter is dropped.
#[derive(Clone)]
struct SharedListing {
    state: watch::Receiver<ListingState>,
    task: AbortHandle,
    began: Instant,
    /// Whether its result is kept for the next caller: it started only to see a first reply.
    is_unseen: Arc<AtomicBool>,
}

impl SharedListing {
    /// Whether a new caller gets this one.
    fn serves(&self) -> bool {
        match &self.state.borrow().done {
            None => !self.task.is_finished(),
            Some(done) => {
                let is_recent = self.began.elapsed() < BEGUN_LIFE;
                self.is_unseen.swap(false, Ordering::Relaxed) && is_recent && done.is_ok()
            }
        }
    }
}

#[derive(Clone, Default)]
struct ListingState {
    progress: ListingProgress,
    /// Its end.
    done: Option<Result<Vec<Arc<Snapshot>>>>,
}

impl Drop for KnownSnapshots {
    fn drop(&mut self) {
        if let Some(listing) = &*self.0.listing.lock() {
            listing.task.abort();
        }
    }
}

impl KnownSnapshots {
    /// Makes no call. `select` is what a listing lists.
    pub(super) fn new(ec2: Option<Arc<dyn Descriptions>>, select: Vec<Selector>) -> Self {
        Self(Arc::new(KnownState {
            ec2,
            select,
            known: Mutex::default(),
            silence: Mutex::new(None),
            missing: Mutex::default(),
            asks_missing: AtomicBool::new(false),
            listing: Mutex::new(None),
        }))
    }

    /// What is selected.
    pub(super) fn select(&self) -> &[Selector] {
        &self.0.select
    }

    /// The snapshots named by their ids in the selection.
    fn named(&self) -> impl Iterator<Item = &SnapshotId> {
        self.0.select.iter().filter_map(|selector| match selector {
            Selector::Snapshot(id) => Some(id),
            _ => None,
        })
    }

    fn is_only_named(&self) -> bool {
        !self.0.select.is_empty() && self.named().count() == self.0.select.len()
    }

    /// The selected snapshots, oldest first, by the listing that runs or a new one. A snapshot selected by its id is included
    /// whether EC2 can be asked or not.
    pub(super) async fn list(&self) -> Result<Vec<Arc<Snapshot>>> {
        let only_named = self.is_only_named();
        let listed = match self.0.silent() {
            // What can be read without EC2 does not wait for it.
            Some(_) if only_named => Ok(Vec::new()),
            _ if only_named => self.list_within(DESCRIBE_TIMEOUT).await,
            _ => self.listed().await,
        };
        let mut snapshots = match listed {
            Ok(snapshots) => snapshots,
            Err(error) if only_named => {
                if self.0.ec2.is_some() {
                    self.0.heed(&error);
                    warn!("listing by ids alone: {}", error.chain());
                }
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        for id in self.named() {
            if !snapshots.iter().any(|snapshot| snapshot.id == *id) {
                let known = self.0.get(id);
                snapshots.push(known.unwrap_or_else(|| Arc::new(Snapshot::unknown(id.clone()))));
            }
        }
        sort_by_time(&mut snapshots);
        Ok(snapshots)
    }

    /// The result of the listing, if it ends within `limit`; else what is waited for.
    async fn list_within(&self, limit: Duration) -> Result<Vec<Arc<Snapshot>>> {
        match timeout(limit, self.listed()).await {
            Ok(listed) => listed,
            Err(_) => Err(self.progress().waiting.unwrap_or_else(|| silent(limit))),
        }
    }

    async fn listed(&self) -> Result<Vec<Arc<Snapshot>>> {
        let mut listing = self.join()?;
        let ended = listing.state.wait_for(|state| state.done.is_some()).await;
        let done = ended.ok().and_then(|state| state.done.clone());
        done.unwrap_or_else(|| Err(Error::new(Kind::Unavailable, "the listing has stopped")))
    }

    /// Starts or joins the listing and waits until it ends, but no longer than `limit` when snapshots have been listed until
    /// then, or EC2 asks to slow down: the listing continues.
    ///
    /// # Errors
    /// Why there is no listing; `Unavailable` when nothing has come within `limit`.
    pub(super) async fn begin(&self, limit: Duration) -> Result<()> {
        let listed = timeout(limit, self.listed()).await;
        if let Some(listing) = &*self.0.listing.lock() {
            listing.is_unseen.store(true, Ordering::Relaxed);
        }
        if let Ok(listed) = listed {
            return listed.map(drop);
        }
        let progress = self.progress();
        let is_throttled = |error: &Error| error.kind() == Kind::Throttled;
        match progress.waiting {
            Some(error) if progress.snapshots == 0 && !is_throttled(&error) => Err(error),
            None if progress.snapshots == 0 => Err(silent(limit)),
            _ => {
                let listed = progress.snapshots;
                warn!(
                    "the snapshots are still being listed ({listed} so far): folders that show them answer EAGAIN until then"
                );
                Ok(())
            }
        }
    }

    /// How far the listing is that runs or ran last.
    fn progress(&self) -> ListingProgress {
        let listing = self.0.listing.lock();
        let state = listing.as_ref().map(|listing| listing.state.borrow());
        state
            .map(|state| state.progress.clone())
            .unwrap_or_default()
    }

    /// The listing that runs, one that was started and that no caller has had yet, or a new one.
    fn join(&self) -> Result<SharedListing> {
        let Some(ec2) = &self.0.ec2 else {
            let what = "only snapshot ids can be selected: EC2 is not built into this program (cargo feature ec2)";
            return Err(Error::new(Kind::Invalid, what));
        };
        let mut listing = self.0.listing.lock();
        if let Some(shared) = listing.as_ref().filter(|shared| shared.serves()) {
            return Ok(shared.clone());
        }
        let (sender, state) = watch::channel(ListingState::default());
        let (known, ec2) = (Arc::clone(&self.0), Arc::clone(ec2));
        let task = tokio::spawn(async move {
            let asked = Instant::now();
            let report = |progress: &ListingProgress| {
                sender.send_modify(|state| state.progress = progress.clone());
            };
            let listed = ec2.describe_reporting(&known.select, &report).await;
            let listed = listed.map(|snapshots| known.replace(asked, snapshots));
            sender.send_modify(|state| state.done = Some(listed));
        });
        let new = SharedListing {
            state,
            task: task.abort_handle(),
            began: Instant::now(),
            is_unseen: Arc::default(),
        };
        *listing = Some(new.clone());
        Ok(new)
    }

    /// What EC2 says of a snapshot that is to be opened: what is known, or its answer within [`DESCRIBE_TIMEOUT`].
    pub(super) async fn describe(&self, id: &SnapshotId) -> Description {
        let kept = self.0.get(id);
        if let Some(kept) = &kept
            && kept.state == Some(SnapshotState::Completed)
            && kept.readable().is_ok()
        {
            return Description::Known(Arc::clone(kept));
        }
        let asked = self.0.ask(std::slice::from_ref(id), DESCRIBE_TIMEOUT).await;
        match (asked, kept) {
            (Ok(()), _) => match self.0.get(id) {
                Some(known) => Description::Known(known),
                None => Description::NotKnown,
            },
            (Err(_), Some(kept)) => Description::Known(kept),
            (Err(why), None) => Description::NotAsked(why),
        }
    }

    /// The newest description; none when EC2 has not been asked, or does not know it.
    pub(super) fn get(&self, id: &SnapshotId) -> Option<Arc<Snapshot>> {
        self.0.get(id)
    }

    /// From now on the description of an opened snapshot is asked for when [`KnownSnapshots::remind`] is called.
    pub(super) fn miss(&self, id: &SnapshotId) {
        self.0.missing.lock().insert(id.clone());
    }

    /// Asks EC2 for missing descriptions, in a task, if there are any and it may be asked again.
    pub(super) fn remind(&self) {
        if self.0.missing.lock().is_empty() || self.0.silent().is_some() || self.0.ec2.is_none() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.0.asks_missing.swap(true, Ordering::AcqRel) {
            return;
        }
        let known = Arc::clone(&self.0);
        runtime.spawn(async move {
            let ids: Vec<_> = known.missing.lock().iter().cloned().collect();
            // An id that EC2 does not know is not asked for again.
            if known.ask(&ids, ASK_AGAIN).await.is_ok() {
                let mut missing = known.missing.lock();
                missing.retain(|id| !ids.contains(id));
            }
            known.asks_missing.store(false, Ordering::Release);
        });
    }
}

impl KnownState {
    fn get(&self, id: &SnapshotId) -> Option<Arc<Snapshot>> {
        let known = self.known.lock();
        known.get(id).map(|known| Arc::clone(&known.snapshot))
    }

    /// Keeps what was asked for at `asked`, where nothing newer is known; the newest descriptions of these snapshots.
    fn keep(
        &self,
        asked: Instant,
        is_named: bool,
        snapshots: impl IntoIterator<Item = Snapshot>,
    ) -> Vec<Arc<Snapshot>> {
        let mut known = self.known.lock();
        let keep = |snapshot: Snapshot| {
            let id = snapshot.id.clone();
            let new = || DatedDescription {
                asked,
                is_named,
                snapshot: Arc::new(snapshot),
            };
            match known.entry(id) {
                std::collections::hash_map::Entry::Occupied(mut kept) => {
                    let kept = kept.get_mut();
                    if asked >= kept.asked {
                        let was_named = kept.is_named;
                        *kept = new();
                        kept.is_named |= was_named;
                    }
                    Arc::clone(&kept.snapshot)
                }
                std::collections::hash_map::Entry::Vacant(free) => {
                    Arc::clone(&free.insert(new()).snapshot)
                }
            }
        };
        snapshots.into_iter().map(keep).collect()
    }

    /// Keeps a listing, and nothing older that it does not have and no one asked for by its id.
    fn replace(&self, asked: Instant, snapshots: Vec<Snapshot>) -> Vec<Arc<Snapshot>> {
        let listed = self.keep(asked, false, snapshots);
        let ids: std::collections::HashSet<&SnapshotId> = listed.iter().map(|of| &of.id).collect();
        let mut known = self.known.lock();
        known.retain(|id, of| of.is_named || of.asked >= asked || ids.contains(id));
        listed
    }

    /// Asks EC2 about snapshots by their ids and keeps what it says.
    ///
    /// # Errors
    /// Why it could not be asked, for people.
    async fn ask(&self, ids: &[SnapshotId], limit: Duration) -> std::result::Result<(), String> {
        let Some(ec2) = &self.ec2 else {
            return Err("EC2 is not built into this program".into());
        };
        if let Some(error) = self.silent() {
            return Err(reason(&error));
        }
        let select: Vec<_> = ids.iter().cloned().map(Selector::Snapshot).collect();
        let waiting = Mutex::new(None);
        let report = |progress: &ListingProgress| waiting.lock().clone_from(&progress.waiting);
        let asked = Instant::now();
        let described = timeout(limit, ec2.describe_reporting(&select, &report)).await;
        let described = described
            .unwrap_or_else(|_| Err(waiting.lock().take().unwrap_or_else(|| silent(limit))));
        match described {
            Ok(snapshots) => {
                self.keep(asked, true, snapshots);
                Ok(())
            }
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            Err(error) => {
                self.heed(&error);
                let of = match ids {
                    [id] => id.to_string(),
                    ids => format!("{} snapshots", ids.len()),
                };
                warn!(
                    "continuing without EC2's description of {of}: {}",
                    error.chain()
                );
                Err(reason(&error))
            }
        }
    }

    /// Stops asking EC2 for a time after a failure that the next call would repeat.
    fn heed(&self, error: &Error) {
        if silences(error.kind()) {
            *self.silence.lock() = Some((Instant::now() + ASK_AGAIN, error.clone()));
        }
    }

    /// Why EC2 is not asked now, if it is not.
    fn silent(&self) -> Option<Error> {
        let silence = self.silence.lock();
        let (until, error) = silence.as_ref()?;
        (Instant::now() < *until).then(|| error.clone())
    }
}

/// Whether the next call would fail like this one. A refused id or argument does not predict other calls.
fn silences(kind: Kind) -> bool {
    matches!(kind, Kind::Denied | Kind::Throttled | Kind::Unavailable)
}

/// Why EC2 could not be asked, in some words.
fn reason(error: &Error) -> String {
    let why = error.chain();
    let why = match error.kind() {
        Kind::Denied if why.contains(MISSING) => "needs ec2:DescribeSnapshots",
        Kind::Throttled => "it is throttled",
        Kind::Unavailable => "it does not answer",
        _ => &why,
    };
    format!("EC2 could not be asked: {why}")
}

fn silent(limit: Duration) -> Error {
    let what = format!("EC2 does not answer within {limit:?} (ec2:DescribeSnapshots)");
    Error::new(Kind::Unavailable, what)
}

#[cfg(test)]
mod tests;
