//! A job that is divided another way than before: the states of its other divisions, and what they make stale.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use tracing::info;

use super::file::{job_and_shard, load};
use super::{CopyUnderWay, JobState};
use crate::capture::Cycle;
use crate::error::{Error, Result};
use crate::replicate::shard::Shard;

impl JobState {
    /// How many shards its job has.
    fn shard_count(&self) -> u32 {
        let shard = self.shard.as_ref();
        let shard = shard.and_then(|text| text.parse::<Shard>().ok());
        shard.unwrap_or(Shard::WHOLE).count()
    }

    /// Forgets what was under way before this time: the job was divided another way since then, and other shards have run later cycles.
    /// An older snapshot is not copied over theirs.
    pub(super) fn forget_older(&mut self, than: SystemTime) {
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
}

/// Leaves out the states of earlier divisions: of each job those stay whose division has started the last cycle.
pub(crate) fn present_divisions(mut states: Vec<JobState>) -> Vec<JobState> {
    let mut newest: BTreeMap<String, (Option<SystemTime>, u32)> = BTreeMap::new();
    for state in &states {
        let seen = (state.last, state.shard_count());
        let known = newest.entry(state.job.clone()).or_insert(seen);
        *known = seen.max(*known);
    }
    states.retain(|state| {
        let present = newest.get(&state.job).map(|(_, count)| *count);
        present == Some(state.shard_count())
    });
    states
}

/// When the last cycle was started of those that another number of shards has run.
///
/// # Errors
/// What the system says.
pub(super) fn last_of_others(
    state_dir: &Path,
    job: &str,
    shard: Shard,
) -> Result<Option<SystemTime>> {
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
    let name = name.strip_prefix("job-")?.strip_suffix(".json")?;
    let (its, shard) = job_and_shard(name)?;
    (its == job).then_some(shard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::replicate::state::JobMemory;
    use std::time::Duration;

    fn at(seconds: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
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
    fn of_each_job_the_states_of_the_last_division_stay() {
        let state = |job: &str, shard: &str, last: u64| {
            let mut state = JobState::new(job);
            state.shard = (shard != "0/1").then(|| shard.to_owned());
            state.last = at(last);
            state
        };
        for (states, present) in [
            (
                &[("web", "0/1", 5), ("db", "0/1", 3)][..],
                "web 0/1, db 0/1",
            ),
            (
                &[("web", "0/2", 5), ("web", "1/2", 9), ("web", "0/3", 7)],
                "web 0/2, web 1/2",
            ),
            (
                &[("web", "0/1", 5), ("web", "0/3", 7), ("web", "2/3", 1)],
                "web 0/3, web 2/3",
            ),
            (&[("web", "0/1", 8), ("web", "0/3", 7)], "web 0/1"),
        ] {
            let states = states
                .iter()
                .map(|(job, shard, last)| state(job, shard, *last));
            let found = present_divisions(states.collect());
            let found = found.iter().map(|state| {
                let shard = state.shard.as_deref().unwrap_or("0/1");
                format!("{} {shard}", state.job)
            });
            assert_eq!(found.collect::<Vec<_>>().join(", "), present);
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
                    since: None,
                    phase: None,
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
