//! An account in memory: snapshots appear late, replies are lost, limits refuse.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::{owned, volume};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{
    Creation, Deletion, Descriptions, InstanceInfo, NewSnapshots, Selector, Snapshot, SnapshotId,
    SnapshotMaker, SnapshotState, SnapshotsOf, VolumeInfo, VolumeSelector,
};

/// What happens to a call that makes snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is made and answered.
    Answered,
    /// It is made, and the answer is lost.
    AnswerLost,
    /// It does not arrive.
    RequestLost,
    /// A limit refuses it.
    Limited,
    /// It is refused for good.
    Refused,
}

struct Kept {
    snapshot: Snapshot,
    made: Instant,
    /// When it is shown, after it is made.
    shown: Duration,
}

pub(super) struct Account {
    pub(super) volumes: Vec<VolumeInfo>,
    kept: Mutex<Vec<Kept>>,
    pub(super) fates: Mutex<VecDeque<Fate>>,
    /// How long it takes at most until a snapshot is shown.
    pub(super) shows_within: Duration,
    /// How long snapshots are pending; how they end.
    pub(super) pends: Duration,
    pub(super) error: Option<&'static str>,
    /// Calls by name.
    pub(super) calls: Mutex<BTreeMap<&'static str, usize>>,
    random: Mutex<fastrand::Rng>,
}

impl Account {
    /// Two instances of two volumes, and a volume of none.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            volumes: vec![
                volume("vol-0a", &["i-01"], &[("Name", "a")]),
                volume("vol-0b", &["i-01"], &[("Backup", "yes")]),
                volume("vol-0c", &["i-02"], &[("Backup", "yes")]),
                volume("vol-0d", &["i-02"], &[("Backup", "yes")]),
                volume("vol-0e", &[], &[("Backup", "yes")]),
            ],
            kept: Mutex::default(),
            fates: Mutex::default(),
            shows_within: Duration::ZERO,
            pends: Duration::ZERO,
            error: None,
            calls: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    /// All snapshots, shown or not.
    pub(super) fn made(&self) -> Vec<Snapshot> {
        let kept = self.kept.lock();
        kept.iter().map(|kept| self.described(kept)).collect()
    }

    pub(super) fn add(&self, snapshot: Snapshot) {
        self.kept.lock().push(Kept {
            snapshot,
            made: Instant::now(),
            shown: Duration::ZERO,
        });
    }

    pub(super) fn count(&self, call: &'static str) -> usize {
        self.calls.lock().get(call).copied().unwrap_or(0)
    }

    /// A call takes some time, in which a run can be ended.
    async fn called(&self, call: &'static str) {
        *self.calls.lock().entry(call).or_default() += 1;
        let millis = self.random.lock().u64(1..50);
        sleep(Duration::from_millis(millis)).await;
    }

    fn described(&self, kept: &Kept) -> Snapshot {
        let mut snapshot = kept.snapshot.clone();
        if snapshot.state == Some(SnapshotState::Pending) && kept.made.elapsed() >= self.pends {
            snapshot.state = Some(match self.error {
                Some(_) => SnapshotState::Other("error".into()),
                None => SnapshotState::Completed,
            });
            snapshot.state_message = self.error.map(str::to_owned);
        }
        snapshot
    }

    fn shown(&self) -> Vec<Snapshot> {
        let kept = self.kept.lock();
        let shown = kept.iter().filter(|kept| kept.made.elapsed() >= kept.shown);
        shown.map(|kept| self.described(kept)).collect()
    }

    fn make(&self, request: &NewSnapshots) -> Vec<Snapshot> {
        let (of, copies): (Vec<_>, _) = match &request.of {
            SnapshotsOf::Volume(id) => {
                let of = self.volumes.iter().filter(|volume| volume.id == *id);
                (of.collect(), false)
            }
            SnapshotsOf::Instance {
                id,
                without,
                without_boot,
                copies_tags,
            } => {
                let attached = self.volumes.iter().filter(|v| v.instances.contains(id));
                let boot = usize::from(*without_boot);
                let of = attached.skip(boot).filter(|v| !without.contains(&v.id));
                (of.collect(), *copies_tags)
            }
        };
        let start = SystemTime::now();
        let mut made = Vec::new();
        for volume in of {
            let number = self.random.lock().u64(..);
            let mut snapshot = Snapshot::unknown(format!("snap-{number:x}").parse().unwrap());
            snapshot.volume_id = Some(volume.id.clone());
            snapshot.state = Some(SnapshotState::Pending);
            snapshot.start_time = Some(start);
            if copies {
                snapshot.tags = volume.tags.clone();
            }
            snapshot.tags.extend(request.tags.iter().cloned());
            let shown = self.shows_within.mul_f64(self.random.lock().f64());
            self.kept.lock().push(Kept {
                snapshot: snapshot.clone(),
                made: Instant::now(),
                shown,
            });
            made.push(snapshot);
        }
        made
    }
}

impl Descriptions for Account {
    fn describe<'a>(&'a self, select: &'a [Selector]) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        async move {
            self.called("describe").await;
            let mut shown = self.shown();
            shown.retain(|snapshot| {
                select.iter().any(|select| match select {
                    Selector::Snapshot(id) => snapshot.id == *id,
                    Selector::Volume(id) => snapshot.volume_id.as_ref() == Some(id),
                    Selector::Tag { key, value } => snapshot.tags.get(key) == Some(value),
                })
            });
            Ok(shown)
        }
        .boxed()
    }

    fn encrypts_by_default(&self) -> BoxFuture<'_, Result<bool>> {
        std::future::ready(Ok(false)).boxed()
    }

    fn add_tags<'a>(
        &'a self,
        id: &'a SnapshotId,
        tags: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            self.called("tag").await;
            let mut kept = self.kept.lock();
            let found = kept
                .iter_mut()
                .find(|kept| kept.snapshot.id == *id && kept.made.elapsed() >= kept.shown);
            let Some(found) = found else {
                return Err(Error::new(Kind::NotFound, "not shown yet"));
            };
            found.snapshot.tags.extend(tags.iter().cloned());
            Ok(())
        }
        .boxed()
    }
}

impl SnapshotMaker for Account {
    fn may_create<'a>(&'a self, _request: &'a NewSnapshots) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn volumes<'a>(&'a self, select: &'a VolumeSelector) -> BoxFuture<'a, Result<Vec<VolumeInfo>>> {
        async move {
            self.called("volumes").await;
            let selected = self.volumes.iter().filter(|volume| match select {
                VolumeSelector::Volume(id) => volume.id == *id,
                VolumeSelector::Instance(id) => volume.instances.contains(id),
                VolumeSelector::Tag { key, value } => volume.tags.get(key) == Some(value),
            });
            Ok(selected.cloned().collect())
        }
        .boxed()
    }

    fn instances<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InstanceInfo>>> {
        async move {
            self.called("instances").await;
            let info = |id: &String| {
                let attached = self.volumes.iter().filter(|v| v.instances.contains(id));
                let volumes: Vec<_> = attached.map(|volume| volume.id.clone()).collect();
                InstanceInfo {
                    id: id.clone(),
                    boot_volume: volumes.first().cloned(),
                    volumes,
                }
            };
            Ok(ids.iter().map(info).collect())
        }
        .boxed()
    }

    fn create<'a>(&'a self, request: &'a NewSnapshots) -> BoxFuture<'a, Result<Creation>> {
        async move {
            self.called("create").await;
            let fate = self.fates.lock().pop_front().unwrap_or(Fate::Answered);
            let lost = || Creation::Unknown(Error::new(Kind::Unavailable, "no answer"));
            match fate {
                Fate::Limited => Ok(Creation::Limited(Error::new(Kind::Throttled, "limit"))),
                Fate::Refused => Err(Error::new(Kind::Denied, "refused")),
                Fate::RequestLost => Ok(lost()),
                Fate::AnswerLost => {
                    self.make(request);
                    Ok(lost())
                }
                Fate::Answered => {
                    let made = self.make(request);
                    // The run can be ended while the answer is in flight.
                    let millis = self.random.lock().u64(1..50);
                    sleep(Duration::from_millis(millis)).await;
                    Ok(Creation::Made(made))
                }
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, id: &'a SnapshotId) -> BoxFuture<'a, Result<Deletion>> {
        async move {
            self.called("delete").await;
            self.kept.lock().retain(|kept| kept.snapshot.id != *id);
            Ok(Deletion::Deleted)
        }
        .boxed()
    }
}

/// How many snapshots each volume has that are of this cycle.
pub(super) fn per_volume(account: &Account, cycle: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for snapshot in account.made() {
        if snapshot.tags.get(super::CYCLE_TAG).map(String::as_str) == Some(cycle) {
            *counts.entry(snapshot.volume_id.unwrap()).or_default() += 1;
        }
    }
    counts
}

/// The start times of the snapshots of these volumes.
pub(super) fn starts(account: &Account, volumes: &[&str]) -> BTreeSet<Option<SystemTime>> {
    let made = account.made().into_iter();
    let of = made.filter(|made| volumes.contains(&made.volume_id.as_deref().unwrap_or_default()));
    of.map(|snapshot| snapshot.start_time).collect()
}

/// A snapshot of someone else, with copied tags.
pub(super) fn foreign(number: u64, volume: &str, tags: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::unknown(format!("snap-f{number:x}").parse().unwrap());
    snapshot.volume_id = Some(volume.to_owned());
    snapshot.state = Some(SnapshotState::Completed);
    snapshot.start_time = Some(SystemTime::now());
    snapshot.tags = owned(tags);
    snapshot
}
