//! The state of a job as a file: locked and saved by the process that runs the job, read without a lock by everything else.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::Deserialize;
use tracing::warn;

use super::division::last_of_others;
use super::{DrillLock, JobState, VERSION};
use crate::capture::Cycle;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{OwnFile, make_folder_of, open_lock, read_ours, read_own, replace};
use crate::replicate::shard::Shard;

/// How old the file may be while a copy reports its progress.
const NOTED: Duration = Duration::from_secs(5);

/// The state file of a job, locked while this lives: one process runs a job of a state directory.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    lock: File,
}

impl StateFile {
    /// Where the state of a job is, or of a shard by [`Shard::state_name`].
    pub(crate) fn path_of(state_dir: &Path, job: &str) -> PathBuf {
        state_dir.join(format!("job-{job}.json"))
    }

    /// Locks the state of a job. Makes the state directory where it is absent.
    ///
    /// # Errors
    /// `Busy` when another process runs the job; what the system says.
    pub(crate) fn lock(state_dir: &Path, job: &str) -> Result<Self> {
        let path = Self::path_of(state_dir, job);
        make_folder_of(&path)?;
        let lock = path.with_extension("lock");
        let file = open_lock(&lock);
        let file = file.map_err(|error| Error::of_file(&lock, "cannot lock", error))?;
        let locked = Self { path, lock: file };
        locked.lock_again(job)?;
        Ok(locked)
    }

    /// Locks the state after [`Self::unlock`].
    ///
    /// # Errors
    /// As for [`Self::lock`].
    fn lock_again(&self, job: &str) -> Result<()> {
        match self.lock.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                let what = format!("cannot run the job {job}: another process runs it");
                Err(Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater))
            }
            Err(TryLockError::Error(error)) => {
                Err(Error::of_file(&self.path, "cannot lock", error))
            }
        }
    }

    fn unlock(&self) -> Result<()> {
        let unlocked = self.lock.unlock();
        unlocked.map_err(|error| Error::of_file(&self.path, "cannot unlock", error))
    }

    /// What is remembered of the job. A file that is damaged, or of another version, is ignored with a warning: all of it can be found
    /// again.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn load(&self, job: &str) -> Result<JobState> {
        Ok(load(&self.path, job)?.unwrap_or_else(|| JobState::new(job)))
    }

    /// Replaces the file; the new one survives a crash when this returns.
    ///
    /// # Errors
    /// What the system says: then the old one stands.
    pub(crate) fn save(&self, state: &JobState) -> Result<()> {
        // Plain data: nothing in it can fail to serialise.
        let mut json = serde_json::to_vec_pretty(state).unwrap_or_default();
        json.push(b'\n');
        replace(&self.path, &json)
    }
}

/// What a job remembers while it runs: each change is saved at once.
#[derive(Debug)]
pub(crate) struct JobMemory {
    file: StateFile,
    remembered: Mutex<Remembered>,
}

#[derive(Debug)]
struct Remembered {
    state: JobState,
    /// When the file was written last; none: not by this process.
    saved: Option<Instant>,
    /// Whether the lock is given up: another process may write the file.
    is_released: bool,
}

impl JobMemory {
    /// Locks and loads the state of a job, or of a shard of it.
    ///
    /// # Errors
    /// As for [`StateFile::lock`] and [`StateFile::load`].
    pub(crate) fn open(state_dir: &Path, job: &str, shard: Shard) -> Result<Self> {
        let file = StateFile::lock(state_dir, &shard.state_name(job))?;
        let mut state = file.load(job)?;
        state.shard = (!shard.is_whole()).then(|| shard.to_string());
        if let Some(last) = last_of_others(state_dir, job, shard)? {
            state.forget_older(last);
        }
        let remembered = Mutex::new(Remembered {
            state,
            saved: None,
            is_released: false,
        });
        Ok(Self { file, remembered })
    }

    /// Gives up the lock, so that another process can run cycles of the job. Until [`Self::take_back`] nothing is saved.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn release(&self) -> Result<()> {
        let mut remembered = self.remembered.lock();
        remembered.is_released = true;
        self.file.unlock()
    }

    /// Locks the state again, and loads what another process has saved meanwhile.
    ///
    /// # Errors
    /// `Busy` while another process runs the job; what the system says.
    pub(crate) fn take_back(&self) -> Result<()> {
        let mut remembered = self.remembered.lock();
        let job = remembered.state.job.clone();
        self.file.lock_again(&job)?;
        remembered.state = JobState {
            shard: remembered.state.shard.clone(),
            ..self.file.load(&job)?
        };
        remembered.is_released = false;
        Ok(())
    }

    /// Locks the drills of the job; none: another process has locked them.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn lock_drills(&self) -> Result<Option<DrillLock>> {
        let path = self.file.path.with_extension("drill");
        let failed = |error| Error::of_file(&path, "cannot lock", error);
        let file = open_lock(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(DrillLock::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Changes what is remembered. A state that cannot be saved is a warning: a crash then costs a second snapshot, and no data.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut JobState) -> T) -> T {
        let mut remembered = self.remembered.lock();
        let result = change(&mut remembered.state);
        self.save(&mut remembered);
        result
    }

    /// Changes what only people read: it is saved with the next change, or when the file is older than [`NOTED`].
    pub(crate) fn update_lazily(&self, change: impl FnOnce(&mut JobState)) {
        let mut remembered = self.remembered.lock();
        change(&mut remembered.state);
        if remembered
            .saved
            .is_none_or(|saved| saved.elapsed() >= NOTED)
        {
            self.save(&mut remembered);
        }
    }

    fn save(&self, remembered: &mut Remembered) {
        if remembered.is_released {
            return;
        }
        remembered.state.saved = Some(SystemTime::now());
        remembered.saved = Some(Instant::now());
        if let Err(error) = self.file.save(&remembered.state) {
            warn!("cannot save the state of the job: {}", error.chain());
        }
    }

    /// Looks at what is remembered.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&JobState) -> T) -> T {
        look(&self.remembered.lock().state)
    }
}

/// The names of the states in a directory, of one job or of all, sorted: of whole jobs, and of shards by [`Shard::state_name`].
///
/// # Errors
/// What the system says; none where the directory does not exist.
pub(crate) fn state_names(state_dir: &Path, job: Option<&str>) -> Result<Vec<String>> {
    let failed = |error| Error::of_file(state_dir, "cannot read", error);
    let entries = match std::fs::read_dir(state_dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let file = entry.map_err(failed)?.file_name();
        let name = file.to_str().and_then(|file| {
            let name = file.strip_prefix("job-")?.strip_suffix(".json")?;
            let (its, _) = job_and_shard(name)?;
            job.is_none_or(|job| job == its).then(|| name.to_owned())
        });
        names.extend(name);
    }
    names.sort();
    Ok(names)
}

/// The job of the name of a state, and its shard.
pub(super) fn job_and_shard(name: &str) -> Option<(&str, Shard)> {
    let (job, shard) = match name.split_once('@') {
        None => (name, Shard::WHOLE),
        Some((job, part)) => (job, part.replace("-of-", "/").parse().ok()?),
    };
    let is_job = Cycle::new(job, SystemTime::UNIX_EPOCH).is_ok();
    is_job.then_some((job, shard))
}

/// Reads a state by its name for people, without its lock: the job may run.
///
/// # Errors
/// `NotFound` when there is none; `Denied` when it is another user's; `Corrupt` when it is damaged; `Invalid` when it is of a later
/// version or of another job; what the system says.
pub(crate) fn read_state(state_dir: &Path, name: &str) -> Result<JobState> {
    let wrong = |kind: Kind, why: &str| {
        let what = format!("cannot show the job {name:?}: {why}");
        Error::new(kind, what)
    };
    let Some((job, _)) = job_and_shard(name) else {
        return Err(wrong(Kind::Invalid, "it is no name of a job"));
    };
    let path = StateFile::path_of(state_dir, name);
    let shown = path.display();
    let bytes = match read_own(&path)? {
        OwnFile::Read(bytes) => bytes,
        OwnFile::Absent => {
            let why = format!("there is no such job: {shown} does not exist");
            let remedy =
                "a run of ebsfs replicate makes it, or --state-dir names another directory";
            return Err(wrong(Kind::NotFound, &why).with_remedy(Remedy::Do(remedy.into())));
        }
        OwnFile::Foreign(why) => {
            let remedy = Remedy::Do("run this as the user that runs the job".into());
            let why = format!("{shown} is not used: {why}");
            return Err(wrong(Kind::Denied, &why).with_remedy(remedy));
        }
    };
    let damaged = |error: serde_json::Error| {
        let why = format!("{shown} is damaged: {error}");
        let remedy = Remedy::Do("the next run of the job replaces it".into());
        wrong(Kind::Corrupt, &why).with_remedy(remedy)
    };
    let version: StateVersion = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version.version != VERSION {
        let version = version.version;
        let why =
            format!("{shown} is of version {version}, and this ebsfs reads version {VERSION}");
        let remedy = Remedy::Do("use the ebsfs that runs the job".into());
        return Err(wrong(Kind::Invalid, &why).with_remedy(remedy));
    }
    let state: JobState = serde_json::from_slice(&bytes).map_err(damaged)?;
    if state.job != job {
        let why = format!("{shown} is of the job {:?}", state.job);
        return Err(wrong(Kind::Invalid, &why));
    }
    Ok(state)
}

/// What every version of the file has.
#[derive(Deserialize)]
struct StateVersion {
    version: u32,
}

/// What is remembered of the job in a file; none where there is no usable one.
///
/// # Errors
/// What the system says.
pub(super) fn load(path: &Path, job: &str) -> Result<Option<JobState>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use crate::replicate::state::{RecoveryPoint, StateError, TargetState};

    fn at(seconds: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn a_released_state_can_be_written_by_another_process_until_it_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let open = || JobMemory::open(folder.path(), "web", Shard::WHOLE);
        let set = |memory: &JobMemory, seconds| memory.update(|state| state.last = at(seconds));
        let last = |memory: &JobMemory| memory.look(|state| state.last);
        let first = open().unwrap();
        set(&first, 1);
        assert_eq!(open().unwrap_err().kind(), Kind::Busy);
        first.release().unwrap();
        let second = open().unwrap();
        assert_eq!(last(&second), at(1));
        set(&second, 2);
        // It must not write over what the other one has saved.
        set(&first, 3);
        assert_eq!(first.take_back().unwrap_err().kind(), Kind::Busy);
        drop(second);
        first.take_back().unwrap();
        assert_eq!(last(&first), at(2));
        assert_eq!(open().unwrap_err().kind(), Kind::Busy);
        set(&first, 4);
        drop(first);
        let third = open().unwrap();
        assert_eq!(last(&third), at(4));
        // Drills have a lock of their own.
        let held = third.lock_drills().unwrap();
        assert!(held.is_some() && third.lock_drills().unwrap().is_none());
        drop(held);
        assert!(third.lock_drills().unwrap().is_some());
        assert_eq!(state_names(folder.path(), None).unwrap(), ["web"]);
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
            late_at: None,
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
    fn a_note_is_saved_with_the_next_change_or_after_some_seconds() {
        let folder = tempfile::tempdir().unwrap();
        let memory = JobMemory::open(folder.path(), "web", Shard::WHOLE).unwrap();
        let phase = || read_state(folder.path(), "web").unwrap().next_run;
        memory.update_lazily(|state| state.next_run = at(1));
        assert_eq!(phase(), at(1), "the first one is saved at once");
        memory.update_lazily(|state| state.next_run = at(2));
        assert_eq!(phase(), at(1));
        memory.update(|state| state.last = at(3));
        assert_eq!(phase(), at(2));
        let saved = read_state(folder.path(), "web").unwrap().saved.unwrap();
        assert!(saved.elapsed().unwrap() < Duration::from_secs(60));
    }

    #[test]
    fn a_state_that_cannot_be_shown_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| StateFile::path_of(folder.path(), name);
        let state = |name: &str| serde_json::to_vec(&JobState::new(name)).unwrap();
        replace(&at("good"), &state("good")).unwrap();
        replace(&at("other"), &state("good")).unwrap();
        replace(&at("later"), br#"{"version": 9, "jobs": {}}"#).unwrap();
        replace(&at("cut"), state("cut").split_at(20).0).unwrap();
        replace(&at("empty"), b"").unwrap();
        replace(&at("shared"), &state("shared")).unwrap();
        std::fs::set_permissions(at("shared"), PermissionsExt::from_mode(0o666)).unwrap();
        symlink(at("good"), at("link")).unwrap();
        for (name, kind, words) in [
            ("absent", Kind::NotFound, "there is no such job"),
            ("other", Kind::Invalid, "is of the job \"good\""),
            ("later", Kind::Invalid, "is of version 9"),
            ("cut", Kind::Corrupt, "is damaged"),
            ("empty", Kind::Corrupt, "is damaged"),
            ("shared", Kind::Denied, "other users can write it"),
            ("link", Kind::Denied, "it is a link"),
            ("../web", Kind::Invalid, "no name of a job"),
        ] {
            let error = read_state(folder.path(), name).unwrap_err();
            assert_eq!(error.kind(), kind, "{name}: {error:?}");
            assert!(error.chain().contains(words), "{name}: {error:?}");
            assert!(!error.chain().contains('\n'), "{name}");
        }
        assert_eq!(read_state(folder.path(), "good").unwrap().job, "good");
        replace(&at("good@1-of-2"), &state("good")).unwrap();
        assert_eq!(
            read_state(folder.path(), "good@1-of-2").unwrap().job,
            "good"
        );
        let names = state_names(folder.path(), Some("good")).unwrap();
        assert_eq!(names, ["good", "good@1-of-2"]);
        let names = state_names(folder.path(), None).unwrap();
        let expected = [
            "cut",
            "empty",
            "good",
            "good@1-of-2",
            "later",
            "link",
            "other",
            "shared",
        ];
        assert_eq!(names, expected);
        assert!(state_names(&at("absent"), None).unwrap().is_empty());
    }
}
