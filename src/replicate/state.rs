//! [`JobState`]: what a proxy remembers of a job, as one small file in the state directory. A lost file costs nothing but the history:
//! snapshots are found by their tags, and what targets hold is asked of the targets. A shard of a job has a state of its own, also for
//! each number of shards: a job that is divided another way continues as on a new machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::schedule::{CycleHistory, Schedule};
use super::shard::Shard;
use crate::capture::Cycle;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{make_folder_of, open_lock, read_ours, replace};
use crate::snapshot::SnapshotId;

/// Version of the file.
const VERSION: u32 = 1;

/// What is remembered of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// Version of the file.
    version: u32,
    /// The job's name.
    pub job: String,
    /// The part of the job, such as `0/4`; none: the whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// When its cycles are due, in words.
    #[serde(default)]
    pub schedule: Option<String>,
    /// The cycle that was started and does not have its snapshots yet.
    #[serde(default, with = "time_text")]
    pub under_way: Option<SystemTime>,
    /// Time of the last cycle that was started.
    #[serde(default, with = "time_text")]
    pub last: Option<SystemTime>,
    /// The last cycle that ended.
    #[serde(default)]
    pub last_run: Option<LastRun>,
    /// When the next cycle is due.
    #[serde(default, with = "time_text")]
    pub next_run: Option<SystemTime>,
    /// The volumes, by id.
    #[serde(default)]
    pub volumes: BTreeMap<String, VolumeState>,
    /// What was said once and is not said again: refused deletions.
    #[serde(default)]
    pub said: BTreeSet<String>,
    /// When each repository was last swept, by its address.
    #[serde(default)]
    pub swept: BTreeMap<String, String>,
}

/// How a cycle ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// The cycle, as its snapshots carry it.
    pub cycle: String,
    /// When it began on this machine.
    #[serde(with = "time_text")]
    pub started: Option<SystemTime>,
    /// When it ended.
    #[serde(with = "time_text")]
    pub ended: Option<SystemTime>,
    /// The failure that gives the exit code; none: all volumes were replicated.
    pub error: Option<StateError>,
    /// Bytes fetched.
    pub bytes: u64,
    /// Requests to EBS.
    pub requests: CycleRequests,
}

/// Requests to EBS, retries included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CycleRequests {
    /// GetSnapshotBlock.
    pub gets: u64,
    /// PutSnapshotBlock.
    pub puts: u64,
    /// ListSnapshotBlocks and ListChangedBlocks.
    pub lists: u64,
}

impl CycleRequests {
    /// What was added since an earlier count.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            gets: self.gets.saturating_sub(before.gets),
            puts: self.puts.saturating_sub(before.puts),
            lists: self.lists.saturating_sub(before.lists),
        }
    }
}

/// A failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateError {
    /// One line.
    pub message: String,
    /// The exit code of its kind.
    pub exit_code: u8,
    /// When it happened.
    #[serde(with = "time_text")]
    pub when: Option<SystemTime>,
}

/// What is remembered of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    /// Whether the last cycle selected it.
    pub is_selected: bool,
    /// The copy under way.
    #[serde(default)]
    pub under_way: Option<CopyUnderWay>,
    /// Snapshots that this machine has made or adopted for the job, and that it does not know as deleted.
    pub snapshots: BTreeSet<SnapshotId>,
    /// Its targets, by name.
    pub targets: BTreeMap<String, TargetState>,
}

/// A copy that has not ended: the next run continues it with the same snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyUnderWay {
    /// The cycle, as its snapshots carry it.
    pub cycle: String,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The instance that the volume was attached to.
    pub instance: Option<String>,
}

/// What is remembered of a target of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetState {
    /// The recovery point there; none before the first.
    pub recovery_point: Option<RecoveryPoint>,
    /// Why the last cycle failed; none: it did not.
    pub error: Option<StateError>,
}

/// A snapshot that a target is proven to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// The snapshot of the source.
    pub snapshot: SnapshotId,
    /// The instant whose bytes it holds.
    #[serde(with = "time_text")]
    pub time: Option<SystemTime>,
    /// When it was complete in the repository that is the source, by the clock of the machine that wrote it; none where the source is
    /// EC2.
    #[serde(default, with = "time_text")]
    pub published: Option<SystemTime>,
    /// When it was complete at the target.
    #[serde(with = "time_text")]
    pub arrived: Option<SystemTime>,
    /// Blocks that are zero there because their source is damaged.
    #[serde(default)]
    pub damaged_blocks: u64,
}

impl StateError {
    /// An error as it is remembered.
    pub fn of(error: &Error, when: SystemTime) -> Self {
        Self {
            message: error.chain(),
            exit_code: error.kind().exit_code(),
            when: Some(when),
        }
    }
}

impl JobState {
    /// The state of a job that has never run here.
    pub fn new(job: &str) -> Self {
        Self {
            version: VERSION,
            job: job.to_owned(),
            shard: None,
            schedule: None,
            under_way: None,
            last: None,
            last_run: None,
            next_run: None,
            volumes: BTreeMap::new(),
            said: BTreeSet::new(),
            swept: BTreeMap::new(),
        }
    }

    /// What decides which cycle is next.
    pub fn history(&self) -> CycleHistory {
        CycleHistory {
            under_way: self.under_way,
            last: self.last,
        }
    }

    /// The snapshots of all volumes that this machine has made or adopted.
    pub fn recorded(&self) -> BTreeSet<SnapshotId> {
        let volumes = self.volumes.values();
        volumes
            .flat_map(|volume| volume.snapshots.iter().cloned())
            .collect()
    }

    /// Notes the schedule and when the next cycle is due.
    pub fn is_due_by(&mut self, schedule: Option<&Schedule>) {
        self.schedule = schedule.map(ToString::to_string);
        self.next_run = schedule.and_then(|schedule| schedule.next_due(SystemTime::now()));
    }

    /// Forgets what was under way before this time: the job was divided another way since then, and other shards have run later cycles.
    /// An older snapshot is not copied over theirs.
    fn forget_older(&mut self, than: SystemTime) {
        self.under_way = self.under_way.filter(|time| *time >= than);
        let is_old = |copy: &CopyUnderWay| {
            let cycle = copy.cycle.parse::<Cycle>();
            cycle.map_or(true, |cycle| cycle.time() < than)
        };
        for (id, volume) in &mut self.volumes {
            if let Some(copy) = volume.under_way.take_if(|copy| is_old(copy)) {
                info!(
                    "not continuing the copy of {id} of the cycle {}: the job was divided another way since then",
                    copy.cycle
                );
            }
        }
    }

    /// Whether this is the first time that something is reported.
    pub fn says(&mut self, what: &str) -> bool {
        self.said.insert(what.to_owned())
    }
}

/// The state file of a job, locked while this lives: one process runs a job of a state directory.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    _lock: File,
}

impl StateFile {
    /// Where the state of a job is, or of a shard by [`Shard::state_name`].
    pub fn path_of(state_dir: &Path, job: &str) -> PathBuf {
        state_dir.join(format!("job-{job}.json"))
    }

    /// Locks the state of a job. Makes the state directory where it is absent.
    ///
    /// # Errors
    /// `Busy` when another process runs the job; what the system says.
    pub fn lock(state_dir: &Path, job: &str) -> Result<Self> {
        let path = Self::path_of(state_dir, job);
        make_folder_of(&path)?;
        let lock = path.with_extension("lock");
        let failed = |error| Error::of_file(&lock, "cannot lock", error);
        let file = open_lock(&lock).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _lock: file }),
            Err(TryLockError::WouldBlock) => {
                let what = format!("cannot run the job {job}: another process runs it");
                Err(Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// What is remembered of the job. A file that is damaged, or of another version, is ignored with a warning: all of it can be found
    /// again.
    ///
    /// # Errors
    /// What the system says.
    pub fn load(&self, job: &str) -> Result<JobState> {
        Ok(load(&self.path, job)?.unwrap_or_else(|| JobState::new(job)))
    }

    /// Replaces the file; the new one survives a crash when this returns.
    ///
    /// # Errors
    /// What the system says: then the old one stands.
    pub fn save(&self, state: &JobState) -> Result<()> {
        // Plain data: nothing in it can fail to serialise.
        let mut json = serde_json::to_vec_pretty(state).unwrap_or_default();
        json.push(b'\n');
        replace(&self.path, &json)
    }
}

/// What a job remembers while it runs: each change is saved at once.
#[derive(Debug)]
pub struct JobMemory {
    file: StateFile,
    state: Mutex<JobState>,
}

impl JobMemory {
    /// Locks and loads the state of a job, or of a shard of it.
    ///
    /// # Errors
    /// As for [`StateFile::lock`] and [`StateFile::load`].
    pub fn open(state_dir: &Path, job: &str, shard: Shard) -> Result<Self> {
        let file = StateFile::lock(state_dir, &shard.state_name(job))?;
        let mut state = file.load(job)?;
        state.shard = (!shard.is_whole()).then(|| shard.to_string());
        if let Some(last) = last_of_others(state_dir, job, shard)? {
            state.forget_older(last);
        }
        let state = Mutex::new(state);
        Ok(Self { file, state })
    }

    /// Changes what is remembered. A state that cannot be saved is a warning: a crash then costs a second snapshot, and no data.
    pub fn update<T>(&self, change: impl FnOnce(&mut JobState) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        if let Err(error) = self.file.save(&state) {
            warn!("cannot save the state of the job: {}", error.chain());
        }
        result
    }

    /// Looks at what is remembered.
    pub fn look<T>(&self, look: impl FnOnce(&JobState) -> T) -> T {
        look(&self.state.lock())
    }
}

/// When the last cycle was started of those that another number of shards has run.
///
/// # Errors
/// What the system says.
fn last_of_others(state_dir: &Path, job: &str, shard: Shard) -> Result<Option<SystemTime>> {
    let failed = |error| Error::of_file(state_dir, "cannot list", error);
    let mut last = None;
    for entry in std::fs::read_dir(state_dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let other = entry
            .file_name()
            .to_str()
            .and_then(|name| shard_of_file(name, job));
        if other.is_some_and(|other| other.count() != shard.count()) {
            last = last.max(load(&entry.path(), job)?.and_then(|state| state.last));
        }
    }
    Ok(last)
}

/// The shard of a job whose state a file holds.
fn shard_of_file(name: &str, job: &str) -> Option<Shard> {
    let rest = name.strip_prefix("job-")?.strip_prefix(job)?;
    match rest.strip_suffix(".json")? {
        "" => Some(Shard::WHOLE),
        part => part.strip_prefix('@')?.replace("-of-", "/").parse().ok(),
    }
}

/// What is remembered of the job in a file; none where there is no usable one.
///
/// # Errors
/// What the system says.
fn load(path: &Path, job: &str) -> Result<Option<JobState>> {
    let Some(bytes) = read_ours(path)? else {
        return Ok(None);
    };
    let ignored = |why: String| {
        warn!("ignoring the state {}: {why}", path.display());
        Ok(None)
    };
    match serde_json::from_slice::<JobState>(&bytes) {
        Err(error) => ignored(error.to_string()),
        Ok(state) if state.version != VERSION => {
            ignored(format!("it is of version {}, not {VERSION}", state.version))
        }
        Ok(state) if state.job != job => ignored(format!("it is of the job {}", state.job)),
        Ok(state) => Ok(Some(state)),
    }
}

/// Times as text.
mod time_text {
    use std::time::SystemTime;

    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(crate::time::rfc3339_millis).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let parsed = text.map(|text| humantime::parse_rfc3339(&text));
        parsed.transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn at(seconds: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn a_state_is_private_and_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state");
        let file = StateFile::lock(&directory, "web").unwrap();
        assert_eq!(file.load("web").unwrap(), JobState::new("web"));
        let mut state = JobState::new("web");
        state.last = at(1_782_820_800);
        state.under_way = at(1_782_820_800);
        let recovery_point = RecoveryPoint {
            snapshot: "snap-0a".parse().unwrap(),
            time: at(1),
            published: at(2),
            arrived: None,
            damaged_blocks: 0,
        };
        let target = TargetState {
            recovery_point: Some(recovery_point),
            error: Some(StateError::of(
                &Error::new(Kind::Io, "why"),
                SystemTime::UNIX_EPOCH,
            )),
        };
        let volume = state.volumes.entry("vol-0a".into()).or_default();
        volume.targets.insert("/srv/a.raw".into(), target);
        volume.snapshots.insert("snap-0a".parse().unwrap());
        assert!(state.says("denied") && !state.says("denied"));
        file.save(&state).unwrap();
        assert_eq!(file.load("web").unwrap(), state);
        assert_eq!(state.recorded().len(), 1);
        let path = StateFile::path_of(&directory, "web");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(state.history().under_way, at(1_782_820_800));
    }

    #[test]
    fn a_damaged_state_or_one_of_another_job_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::lock(folder.path(), "web").unwrap();
        let path = StateFile::path_of(folder.path(), "web");
        let other = serde_json::to_vec(&JobState::new("other")).unwrap();
        let newer = br#"{"version": 9, "job": "web"}"#;
        for bytes in [&b"{"[..], b"", &other, newer] {
            replace(&path, bytes).unwrap();
            assert_eq!(file.load("web").unwrap(), JobState::new("web"));
        }
    }

    #[test]
    fn one_process_at_a_time_runs_a_job() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFile::lock(folder.path(), "web").unwrap();
        let second = StateFile::lock(folder.path(), "web").unwrap_err();
        assert_eq!(second.kind(), Kind::Busy);
        assert!(StateFile::lock(folder.path(), "other").is_ok());
        drop(first);
        assert!(StateFile::lock(folder.path(), "web").is_ok());
    }

    #[test]
    fn a_file_is_of_one_shard_of_one_job() {
        for (name, shard) in [
            ("job-web.json", Some("0/1")),
            ("job-web@2-of-4.json", Some("2/4")),
            ("job-web@2-of-4.lock", None),
            ("job-web@4-of-4.json", None),
            ("job-web.json.0123.tmp", None),
            ("job-web-2.json", None),
            ("job-web.a.json", None),
            ("web.json", None),
        ] {
            let found = shard_of_file(name, "web").map(|shard| shard.to_string());
            assert_eq!(found.as_deref(), shard, "{name}");
        }
    }

    #[test]
    fn shards_run_side_by_side_and_forget_copies_that_another_division_has_overtaken() {
        let folder = tempfile::tempdir().unwrap();
        let open = |shard: &str| JobMemory::open(folder.path(), "web", shard.parse().unwrap());
        let cycle = |seconds| Cycle::new("web", at(seconds).unwrap()).unwrap().to_string();
        // Each has a volume of a cycle of its own under way.
        let begin = |shard: &str, seconds: u64| {
            let memory = open(shard).unwrap();
            memory.update(|state| {
                state.last = at(seconds);
                state.under_way = at(seconds);
                let copy = CopyUnderWay {
                    cycle: cycle(seconds),
                    snapshot: "snap-0a".parse().unwrap(),
                    instance: None,
                };
                state.volumes.entry("vol-0a".into()).or_default().under_way = Some(copy);
            });
            memory
        };
        let is_under_way = |memory: &JobMemory| {
            memory.look(|state| {
                let copies = state.volumes.values().filter(|one| one.under_way.is_some());
                assert_eq!(copies.count() > 0, state.under_way.is_some());
                state.under_way.is_some()
            })
        };
        let first = begin("0/2", 1000);
        let second = begin("1/2", 5000);
        assert_eq!(open("0/2").unwrap_err().kind(), Kind::Busy);
        drop((first, second));
        // Another shard of the same division is no reason to forget anything.
        assert!(is_under_way(&open("0/2").unwrap()));
        drop(begin("0/3", 2000));
        assert!(!is_under_way(&open("0/2").unwrap()));
        assert!(
            is_under_way(&open("1/2").unwrap()),
            "it is of a later cycle"
        );
        // The whole job, and back.
        drop(begin("0/1", 9000));
        assert!(!is_under_way(&open("1/2").unwrap()));
        assert!(!is_under_way(&open("0/3").unwrap()));
        assert!(is_under_way(&open("0/1").unwrap()));
        assert_eq!(
            open("0/3")
                .unwrap()
                .look(|state| state.shard.clone())
                .as_deref(),
            Some("0/3")
        );
    }
}
