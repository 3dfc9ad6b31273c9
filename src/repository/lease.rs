//! Leases: `runs/ID` records a writer or reader of a repository, and is renewed while it lives. `prune` removes nothing that a
//! living one may need. That saves work; safety does not rest on it: a run that missed its renewals for half of the lease notices
//! that by CLOCK_BOOTTIME, and checks that all data of its manifest is there.
//!
//! Ages are the store's own times. The length of a pause of this process is measured by CLOCK_BOOTTIME, which advances while a
//! laptop sleeps or a virtual machine is suspended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::listing::{self, Fence};
use super::store::{Object, Store};
use crate::error::{Error, Kind, Result};

/// How long a lease holds without a renewal.
pub(crate) const LEASE: Duration = Duration::from_hours(1);
/// Renewals within that time: three before the half that a run may miss.
const RENEWALS: u32 = 6;
/// Bytes of a record that are read.
const MOST_BYTES: usize = 64 << 10;
/// Sweeps that a record names, of 50 bytes each.
const MOST_SWEEPS: usize = 1000;

/// The work of its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LeaseKind {
    /// Writes a snapshot.
    Sync,
    /// Repairs snapshots.
    Repair,
    /// Reads snapshots: a mount, a restore, a comparison.
    Read,
}

impl LeaseKind {
    /// The word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Repair => "repair",
            Self::Read => "read",
        }
    }
}

/// The record of a run or reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    kind: LeaseKind,
    /// The snapshot that is written, or what is read.
    what: String,
    host: String,
    user: String,
    pid: u32,
    /// Seconds that it holds without being renewed.
    lease_seconds: u64,
    /// When the store first wrote it, in seconds since 1970; none in the first record.
    started: Option<u64>,
    /// The sweeps that name no object that it relies on: it has compared them.
    #[serde(default)]
    sweeps: Vec<String>,
    /// Whether it was once not renewed for half of its lease.
    was_paused: bool,
    /// Whether it has ended, where its holder may not delete it.
    has_ended: bool,
}

impl LeaseRecord {
    fn new(kind: LeaseKind, what: &str, lease: Duration) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let uid = nix::unistd::Uid::effective();
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        Self {
            kind,
            what: what.into(),
            host: host.trim().into(),
            user: user.map_or_else(|| uid.to_string(), |user| user.name),
            pid: std::process::id(),
            lease_seconds: lease.as_secs().max(1),
            started: None,
            sweeps: Vec::new(),
            was_paused: false,
            has_ended: false,
        }
    }

    async fn put(&self, store: &Store, object: &str) -> Result<()> {
        // Nothing in it can fail to serialise.
        let json = serde_json::to_vec(self).unwrap_or_default();
        store.put_renewal(object, json.into()).await
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}

/// The name of a run's record.
pub(super) fn run_object(run: &str) -> String {
    format!("runs/{run}")
}

/// Reads the record of a run.
///
/// # Errors
/// `NotFound` when there is none, or it has ended; `Corrupt` when it is no record.
pub(super) async fn read(store: &Store, run: &str) -> Result<LeaseRecord> {
    let object = run_object(run);
    let bytes = store.get(&object).await?;
    let record = serde_json::from_slice(bytes.get(..MOST_BYTES).unwrap_or(&bytes));
    let record: LeaseRecord = record.map_err(|error| {
        let what = format!("{}/{object} is no record of a run", store.address());
        Error::with_source(Kind::Corrupt, what, error)
    })?;
    match record.has_ended {
        true => {
            let what = format!("the run {run} has ended");
            Err(Error::new(Kind::NotFound, what))
        }
        false => Ok(record),
    }
}

/// A lease that is held.
#[derive(Debug)]
pub(crate) struct Lease {
    store: Arc<Store>,
    object: String,
    state: Arc<LeaseState>,
    renewing: JoinHandle<()>,
}

#[derive(Debug)]
struct LeaseState {
    record: Mutex<LeaseRecord>,
    /// When it was last renewed, by CLOCK_BOOTTIME.
    renewed: Mutex<Duration>,
    was_paused: AtomicBool,
}

impl LeaseState {
    fn note_pause(&self) {
        let lease = self.record.lock().lease();
        if boot_time().saturating_sub(*self.renewed.lock()) > lease / 2 {
            self.was_paused.store(true, Ordering::Relaxed);
        }
    }

    async fn renew(&self, store: &Store, object: &str) -> Result<()> {
        self.note_pause();
        let now = boot_time();
        let record = {
            let mut record = self.record.lock();
            record.was_paused = self.was_paused.load(Ordering::Relaxed);
            record.clone()
        };
        record.put(store, object).await?;
        *self.renewed.lock() = now;
        Ok(())
    }
}

impl Lease {
    /// Puts a new run or reader on record, and keeps it there. `known` are the sweeps that were compared with what it relies on.
    ///
    /// # Errors
    /// Why it cannot be put; `Denied` without permission.
    pub(super) async fn begin(
        store: Arc<Store>,
        kind: LeaseKind,
        run: &str,
        what: &str,
        lease: Duration,
        known: &[String],
    ) -> Result<Self> {
        let (object, began) = (run_object(run), boot_time());
        let mut record = LeaseRecord::new(kind, what, lease);
        // Those that the list lacks count as new ones.
        record.sweeps = known.iter().take(MOST_SWEEPS).cloned().collect();
        record.put(&store, &object).await?;
        record.started = Some(seconds(store.head(&object).await?.modified));
        Ok(Self::hold(store, object, record, began))
    }

    /// Continues with the run of a record.
    ///
    /// # Errors
    /// `NotFound` when there is no record, or it was ended or forgotten.
    pub(super) async fn resume(store: Arc<Store>, run: &str, lease: Duration) -> Result<Self> {
        let object = run_object(run);
        let began = boot_time();
        let before = read(&store, run).await?;
        let last = store.head(&object).await?.modified;
        let mut record = LeaseRecord {
            started: Some(before.started.unwrap_or(seconds(last))),
            sweeps: before.sweeps.clone(),
            ..LeaseRecord::new(before.kind, &before.what, lease)
        };
        record.put(&store, &object).await?;
        let now = store.head(&object).await?.modified;
        let pause = now.duration_since(last).unwrap_or_default();
        record.was_paused = before.was_paused || pause > before.lease() / 2;
        if record.was_paused {
            record.put(&store, &object).await?;
        }
        Ok(Self::hold(store, object, record, began))
    }

    fn hold(store: Arc<Store>, object: String, record: LeaseRecord, renewed: Duration) -> Self {
        let every = record.lease() / RENEWALS;
        let state = Arc::new(LeaseState {
            was_paused: AtomicBool::new(record.was_paused),
            record: Mutex::new(record),
            renewed: Mutex::new(renewed),
        });
        let renewing = tokio::spawn({
            let (store, object, state) = (Arc::clone(&store), object.clone(), Arc::clone(&state));
            async move {
                let mut times = interval(every);
                times.set_missed_tick_behavior(MissedTickBehavior::Delay);
                times.tick().await;
                loop {
                    times.tick().await;
                    match state.renew(&store, &object).await {
                        Ok(()) => debug!("renewed {object}"),
                        Err(error) => warn!("cannot renew a lease: {}", error.chain()),
                    }
                }
            }
        });
        Self {
            store,
            object,
            state,
            renewing,
        }
    }

    /// The run's id.
    pub(super) fn run(&self) -> &str {
        self.object.rsplit('/').next().unwrap_or_default()
    }

    /// The sweeps that name no object that the run relies on.
    pub(super) fn known_sweeps(&self) -> Vec<String> {
        self.state.record.lock().sweeps.clone()
    }

    /// Whether half of the lease went by once without a renewal: then a prune may have taken the run for dead.
    pub(super) fn was_paused(&self) -> bool {
        self.state.note_pause();
        self.state.was_paused.load(Ordering::Relaxed)
    }

    /// Ends it: deletes its record, or marks it as ended where this user may not delete.
    ///
    /// # Errors
    /// Why the store could not be reached.
    pub(crate) async fn end(self) -> Result<()> {
        self.renewing.abort();
        let record = self.state.record.lock().clone();
        end_record(&self.store, &self.object, Some(record)).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Removes the record of a run, if there is one.
pub(super) async fn end_run(store: &Store, run: &str) -> Result<()> {
    let record = match read(store, run).await {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        Err(error) if error.kind() == Kind::Corrupt => None,
        record => Some(record?),
    };
    end_record(store, &run_object(run), record).await
}

async fn end_record(store: &Store, object: &str, record: Option<LeaseRecord>) -> Result<()> {
    match (store.delete(object).await, record) {
        (Err(error), Some(record)) if error.kind() == Kind::Denied => {
            let ended = LeaseRecord {
                has_ended: true,
                ..record
            };
            ended.put(store, object).await
        }
        (done, _) => done.map(drop),
    }
}

/// A run or reader on record, as a prune sees it.
#[derive(Clone, Debug)]
pub(crate) struct RunOnRecord {
    /// Its id, the name of its record.
    pub(crate) id: String,
    /// What it does; none where the record cannot be read.
    pub(crate) kind: Option<LeaseKind>,
    /// The snapshot that is written, or what is read.
    pub(crate) what: String,
    /// The machine, user and process.
    pub(crate) holder: String,
    /// When it began.
    pub(crate) started: SystemTime,
    /// When it was last renewed.
    pub(crate) renewed: SystemTime,
    /// How long it holds after that.
    pub(crate) lease: Duration,
    /// Whether it has ended, and only its record could not be deleted.
    pub(crate) has_ended: bool,
}

impl RunOnRecord {
    /// Whether it may be alive at a time of the store's clock.
    pub(crate) fn is_alive(&self, now: SystemTime) -> bool {
        !self.has_ended && now < self.renewed + self.lease
    }

    /// How long its lease has been over at a time of the store's clock.
    pub(super) fn expired(&self, now: SystemTime) -> Duration {
        let since = now.duration_since(self.renewed + self.lease);
        since.unwrap_or_default()
    }

    fn of(object: &Object, record: Option<LeaseRecord>) -> Self {
        let id = object
            .name
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let renewed = object.modified;
        match record {
            Some(record) => {
                // The length that a record states is limited, so that no lease holds for ever.
                let lease = record.lease().min(24 * LEASE);
                let started = record.started.map(|started| {
                    SystemTime::UNIX_EPOCH + Duration::from_secs(started.min(1 << 40))
                });
                Self {
                    id,
                    kind: Some(record.kind),
                    what: record.what,
                    holder: format!("{}@{}, process {}", record.user, record.host, record.pid),
                    started: started.map_or(renewed, |started| started.min(renewed)),
                    renewed,
                    lease,
                    has_ended: record.has_ended,
                }
            }
            None => Self {
                id,
                kind: None,
                what: String::new(),
                holder: "unknown".into(),
                started: renewed,
                renewed,
                lease: LEASE,
                has_ended: false,
            },
        }
    }
}

/// The runs and readers on record that have not ended.
///
/// # Errors
/// `Corrupt` when the listing of them is not complete; else why they cannot be read.
pub(crate) async fn runs(store: &Store) -> Result<Vec<RunOnRecord>> {
    let (mut runs, _) = all(store, None).await?;
    runs.retain(|run| !run.has_ended);
    Ok(runs)
}

/// All runs and readers on record.
pub(super) async fn all(
    store: &Store,
    fence: Option<&Fence>,
) -> Result<(Vec<RunOnRecord>, listing::ListingExtras)> {
    let listed = listing::list(store, "runs", fence).await?;
    let mut runs = Vec::new();
    for object in listed.objects {
        let id = object.name.rsplit('/').next().unwrap_or_default();
        let bytes = match store.get(&run_object(id)).await {
            // It has ended meanwhile.
            Err(error) if error.kind() == Kind::NotFound => continue,
            bytes => bytes?,
        };
        let record = serde_json::from_slice(bytes.get(..MOST_BYTES).unwrap_or(&bytes)).ok();
        runs.push(RunOnRecord::of(&object, record));
    }
    Ok((runs, listed.ends))
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Time since this machine booted, suspended or not.
#[cfg(not(test))]
pub(super) fn boot_time() -> Duration {
    uptime()
}

/// The clock that tests pause, since the first call.
#[cfg(test)]
pub(super) fn boot_time() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    let start = *START;
    tokio::time::Instant::now()
        .into_std()
        .saturating_duration_since(start)
}

/// Time since this machine booted, suspended or not, to 10 ms: the first number of /proc/uptime.
fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_ascii_whitespace().next();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_for_its_lease_and_never_for_ever() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let object = Object {
            name: "runs/0a".into(),
            size: 1,
            modified: at(1_000_000),
        };
        let record = |lease_seconds| LeaseRecord {
            started: Some(999_000),
            lease_seconds,
            ..LeaseRecord::new(LeaseKind::Sync, "snap-0a", LEASE)
        };
        for (record, lease, started) in [
            (Some(record(60)), 60, 999_000),
            (Some(record(u64::MAX)), 86_400, 999_000),
            (None, 3600, 1_000_000),
        ] {
            let run = RunOnRecord::of(&object, record);
            assert_eq!(run.started, at(started));
            assert!(run.is_alive(at(1_000_000 + lease - 1)));
            assert!(!run.is_alive(at(1_000_000 + lease)));
            assert_eq!(
                run.expired(at(1_000_000 + lease + 9)),
                Duration::from_secs(9)
            );
        }
        let ended = LeaseRecord {
            has_ended: true,
            ..record(60)
        };
        assert!(!RunOnRecord::of(&object, Some(ended)).is_alive(at(0)));
    }

    #[test]
    fn the_machine_has_been_up_for_some_time() {
        assert!(uptime() > Duration::ZERO);
    }
}
