//! `ebsfs status`: to which point in time the volumes of jobs can be restored. It reads the states of jobs and the records of their
//! images and devices, and asks nothing outside this machine.

mod text;

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;

use super::target::existing_target;
use super::{output, remedy};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::default_state_dir;
use crate::replicate::{
    DrillState, JobState, JobStatus, LocalContent, PointState, STATUS_VERSION, StatusRequest,
    is_shared, present_divisions, read, read_state, state_names,
};
use crate::sync;
use crate::time::rfc3339_millis;

/// Show to which point in time the volumes of replication jobs can be restored
#[derive(Args, Debug)]
#[command(
    long_about = "Show to which point in time the volumes of replication jobs can be restored: for each volume and target the recovery \
    point, its age and state, what is under way, the last run, and the cost of the month.\n\n\
    Reads the state directory only. Nothing is asked of AWS, and the job may run.\n\n\
    Exit code 0: each volume has a current recovery point on each target and the last run did not fail. 11: a person must decide, or \
    a drill failed. 13: a recovery point is missing, late or not usable, a run failed, or a drill is overdue or came to no result. docs/status.md describes states and JSON."
)]
pub(super) struct StatusArgs {
    /// Name of a job, or path of its job file (with `/` or `.toml`) [default: all jobs of the state directory]
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Oldest age of a recovery point that is not late, for example 30m [default: the second due time after
    /// it, by the schedule of the job; none for a job without a schedule or with `from`]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Directory with the state of the jobs
    /// [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

impl StatusArgs {
    pub(super) fn run(self) -> Result<()> {
        let state_dir = self.state_dir.clone().unwrap_or_else(default_state_dir);
        let job = self.job.as_deref().map(name_of).transpose()?;
        let mut names = state_names(&state_dir, job.as_deref())?;
        if names.is_empty() {
            // Its absence is reported by the name.
            names.extend(job);
        }
        let now = SystemTime::now();
        let (mut states, mut errors) = (Vec::new(), Vec::new());
        if names.is_empty() {
            let what = format!(
                "cannot show jobs: {} has no state of a job",
                state_dir.display()
            );
            let remedy = Remedy::Do("--state-dir names another directory".into());
            errors.push(Error::new(Kind::NotFound, what).with_remedy(remedy));
        }
        for name in names {
            match read_state(&state_dir, &name) {
                Ok(state) => states.push(state),
                Err(error) => errors.push(error),
            }
        }
        let mut jobs = Vec::new();
        for state in present_divisions(states) {
            let local = local_contents(&state, &state_dir);
            let request = StatusRequest {
                now,
                max_age: self.max_age,
                local: &local,
            };
            jobs.push(JobStatus::of(&state, &request));
        }
        self.print(&jobs, &errors, now)?;
        errors.extend(jobs.iter().filter_map(problem));
        remedy::all_of(errors)
    }

    fn print(&self, jobs: &[JobStatus], errors: &[Error], now: SystemTime) -> Result<()> {
        if !self.json {
            let each: Vec<String> = jobs.iter().map(|job| text::of(job, now)).collect();
            return output::write(None, |out| out.write_all(each.join("\n").as_bytes()));
        }
        let failed =
            |error: &Error| json!({"error": error.chain(), "exit_code": error.kind().exit_code()});
        let jobs = jobs.iter().map(|job| {
            let mut value = serde_json::to_value(job).unwrap_or_default();
            if let Some(members) = value.as_object_mut() {
                let code = job.verdict().map_or(0, Kind::exit_code);
                members.insert("exit_code".into(), code.into());
            }
            value
        });
        let all = json!({
            "version": STATUS_VERSION,
            "time": rfc3339_millis(now),
            "jobs": jobs.collect::<Vec<_>>(),
            "failures": errors.iter().map(failed).collect::<Vec<_>>(),
        });
        output::write(None, |out| writeln!(out, "{all:#}"))
    }
}

/// The name of a job that is named, or whose file is.
fn name_of(job: &str) -> Result<String> {
    let path = Path::new(job);
    let is_file = job.contains('/') || job.ends_with(".toml");
    match is_file {
        true => Ok(read(path)?.name),
        false => Ok(job.to_owned()),
    }
}

/// What the images and devices of a job hold, by their records.
pub(super) fn local_contents(state: &JobState, state_dir: &Path) -> BTreeMap<String, LocalContent> {
    let volumes = state.volumes.values();
    let targets = volumes.flat_map(|volume| &volume.targets);
    // What holds nothing yet has no record to read.
    let held = targets.filter(|(_, target)| target.recovery_point.is_some());
    let local = held.filter(|(name, _)| !is_shared(name));
    local
        .map(|(name, _)| (name.clone(), local_content(name, state_dir)))
        .collect()
}

pub(super) fn local_content(name: &str, state_dir: &Path) -> LocalContent {
    let found = existing_target(name, state_dir);
    let recorded = found.and_then(|target| sync::recorded(&*target));
    match recorded {
        Ok(Some(content)) => LocalContent::Recorded(content),
        Ok(None) => {
            let metadata = std::fs::metadata(name);
            let is_device = metadata.is_ok_and(|found| found.file_type().is_block_device());
            LocalContent::Unrecorded { is_device }
        }
        Err(error) => LocalContent::Absent(error.chain()),
    }
}

/// What is wrong with a job.
fn problem(job: &JobStatus) -> Option<Error> {
    let kind = job.verdict()?;
    let shard = job.shard.as_ref();
    let shard = shard.map(|shard| format!(", shard {shard}"));
    let name = format!("{}{}", job.job, shard.unwrap_or_default());
    let all = job.points().count();
    let mut why: Vec<String> = PointState::ALL
        .iter()
        .filter(|state| **state != PointState::Current)
        .map(|state| (job.count(*state), state.name()))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    if job.lacks_volumes() {
        why.push("it has no volume yet".to_owned());
    }
    if job.exit_code() != 0 {
        why.push(format!(
            "its last run ended with exit code {}",
            job.exit_code()
        ));
    }
    for (count, name) in [
        (job.drills_in(DrillState::Failed), "failed"),
        (job.drills_in(DrillState::NotDone), "came to no result"),
    ] {
        if count > 0 {
            why.push(format!("drills that {name}: {count}"));
        }
    }
    if job.overdue_drills() > 0 {
        why.push(format!("drills that are overdue: {}", job.overdue_drills()));
    }
    let what = format!(
        "cannot rely on the {all} recovery {} of the job {name}: {}",
        if all == 1 { "point" } else { "points" },
        why.join(", ")
    );
    let remedy = Remedy::Do(format!(
        "`ebsfs status {}` shows the volumes and targets",
        job.job
    ));
    Some(Error::new(kind, what).with_remedy(remedy))
}
