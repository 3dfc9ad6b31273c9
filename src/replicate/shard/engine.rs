//! The shard of a task, from the variables that engines of array jobs set. No value is guessed: an index without a count, an index
//! that is no member, and two engines that disagree are refused.

use super::{Shard, digits};
use crate::error::{Error, Kind, Remedy, Result};

/// An engine, and its variables.
struct ArrayEngine {
    name: &'static str,
    /// The task's number.
    index: &'static str,
    /// How many tasks there are.
    count: &'static str,
    /// The first and the last number, and the step between two; none: from 0 in steps of 1.
    range: Option<ArrayRange>,
}

struct ArrayRange {
    first: &'static str,
    step: &'static str,
    /// Absent where the engine does not set it.
    last: &'static str,
}

/// A count that a person sets, where the engine has none.
const GIVEN_COUNT: &str = "EBSFS_SHARDS";

const ENGINES: [ArrayEngine; 4] = [
    // https://docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html
    ArrayEngine {
        name: "AWS Batch",
        index: "AWS_BATCH_JOB_ARRAY_INDEX",
        count: "AWS_BATCH_JOB_ARRAY_SIZE",
        range: None,
    },
    // https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode
    ArrayEngine {
        name: "a Kubernetes Job",
        index: "JOB_COMPLETION_INDEX",
        count: GIVEN_COUNT,
        range: None,
    },
    // https://slurm.schedmd.com/job_array.html
    ArrayEngine {
        name: "Slurm",
        index: "SLURM_ARRAY_TASK_ID",
        count: "SLURM_ARRAY_TASK_COUNT",
        range: Some(ArrayRange {
            first: "SLURM_ARRAY_TASK_MIN",
            step: "SLURM_ARRAY_TASK_STEP",
            last: "SLURM_ARRAY_TASK_MAX",
        }),
    },
    // https://cloud.google.com/run/docs/container-contract#jobs-env-vars
    ArrayEngine {
        name: "Cloud Run",
        index: "CLOUD_RUN_TASK_INDEX",
        count: "CLOUD_RUN_TASK_COUNT",
        range: None,
    },
];

/// The shard of this process, from the variables of its engine.
///
/// # Errors
/// `Invalid` when no engine has set its variables, a part of them is missing or wrong, or two disagree.
pub(crate) fn shard_of_engine(variable: impl Fn(&str) -> Option<String>) -> Result<Shard> {
    let mut found: Option<(&ArrayEngine, Shard)> = None;
    for engine in &ENGINES {
        let Some(shard) = engine.shard(&variable)? else {
            continue;
        };
        if let Some((other, known)) = found.filter(|(_, known)| *known != shard) {
            return Err(invalid(format!(
                "cannot find the shard: {} ({}) says {known} and {} ({}) says {shard}",
                other.name, other.index, engine.name, engine.index
            )));
        }
        found = Some((engine, shard));
    }
    let Some((engine, shard)) = found else {
        let indices: Vec<&str> = ENGINES.iter().map(|engine| engine.index).collect();
        let what = format!(
            "cannot find the shard: this is no task of an array, for {} are not set",
            indices.join(", ")
        );
        return Err(invalid(what));
    };
    if let Some(given) = variable(GIVEN_COUNT)
        && digits(&given) != Some(shard.count().into())
    {
        return Err(invalid(format!(
            "cannot find the shard: {GIVEN_COUNT} is not {}, the count of {} ({})",
            shard.count(),
            engine.name,
            engine.count
        )));
    }
    Ok(shard)
}

fn invalid(what: String) -> Error {
    let remedy = Remedy::Do("give the shard as 0/4, a number from 0 and how many there are".into());
    Error::new(Kind::Invalid, what).with_remedy(remedy)
}

impl ArrayEngine {
    /// The shard that this engine has set; none: the process is not its task.
    fn shard(&self, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Shard>> {
        let number = |name: &'static str| match variable(name) {
            None => Ok(None),
            Some(text) => digits(&text)
                .map(Some)
                .ok_or_else(|| invalid(format!("cannot find the shard: {name} is no number"))),
        };
        let needed = |name: &'static str| {
            number(name)?.ok_or_else(|| {
                invalid(format!(
                    "cannot find the shard: {} is set by {} and {name} is not",
                    self.index, self.name
                ))
            })
        };
        let Some(id) = number(self.index)? else {
            return Ok(None);
        };
        let count = needed(self.count)?;
        let index = match &self.range {
            None => Some(id),
            Some(range) => {
                let (first, step) = (needed(range.first)?, needed(range.step)?);
                let last = number(range.last)?;
                if last.is_some_and(|last| !is_even(first, last, step, count)) {
                    return Err(invalid(format!(
                        "cannot find the shard: the numbers of the array are no range of {count} in equal steps ({}, {}, {}, {})",
                        self.count, range.first, range.last, range.step
                    )));
                }
                position(id, first, step)
            }
        };
        let shard = index.and_then(|index| Shard::new(index, count).ok());
        match shard {
            Some(shard) => Ok(Some(shard)),
            // The count itself may be what is wrong.
            None => Err(match Shard::new(0, count) {
                Err(error) => invalid(format!(
                    "cannot find the shard: {}: {}",
                    self.count,
                    error.chain()
                )),
                Ok(_) => invalid(format!(
                    "cannot find the shard: {id} ({}) is no member of an array of {count} ({})",
                    self.index, self.count
                )),
            }),
        }
    }
}

/// Where a number is in a range, from 0.
fn position(id: u64, first: u64, step: u64) -> Option<u64> {
    let from_first = id.checked_sub(first)?;
    let is_member = from_first.checked_rem(step)? == 0;
    is_member.then(|| from_first / step)
}

/// Whether a range has so many members.
fn is_even(first: u64, last: u64, step: u64, count: u64) -> bool {
    position(last, first, step).and_then(|index| index.checked_add(1)) == Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shard of an environment: `NAME=VALUE NAME=VALUE`.
    fn of(environment: &str) -> std::result::Result<String, String> {
        let found = shard_of_engine(|name| {
            let set = environment.split(' ').find_map(|set| {
                let (key, value) = set.split_once('=')?;
                (key == name).then_some(value)
            });
            set.map(str::to_owned)
        });
        found
            .map(|shard| shard.to_string())
            .map_err(|error| error.chain())
    }

    fn slurm(id: &str, count: &str, first: &str, last: &str, step: &str) -> String {
        format!(
            "SLURM_ARRAY_TASK_ID={id} SLURM_ARRAY_TASK_COUNT={count} SLURM_ARRAY_TASK_MIN={first} \
             SLURM_ARRAY_TASK_MAX={last} SLURM_ARRAY_TASK_STEP={step}"
        )
    }

    #[test]
    fn a_shard_is_what_its_engine_says() {
        let batch = "AWS_BATCH_JOB_ARRAY_INDEX=2 AWS_BATCH_JOB_ARRAY_SIZE=4";
        for (environment, shard) in [
            (batch.to_owned(), "2/4"),
            ("JOB_COMPLETION_INDEX=0 EBSFS_SHARDS=3".into(), "0/3"),
            ("CLOUD_RUN_TASK_INDEX=9 CLOUD_RUN_TASK_COUNT=10".into(), "9/10"),
            ("CLOUD_RUN_TASK_INDEX=0 CLOUD_RUN_TASK_COUNT=1".into(), "0/1"),
            (slurm("2", "4", "0", "3", "1"), "2/4"),
            (slurm("1", "4", "1", "4", "1"), "0/4"),
            // --array=3-9:2
            (slurm("7", "4", "3", "9", "2"), "2/4"),
            (slurm("5", "1", "5", "5", "1"), "0/1"),
            (
                "SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=2 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_STEP=1"
                    .into(),
                "1/2",
            ),
            // Two engines that agree, and a count that does.
            (format!("{batch} JOB_COMPLETION_INDEX=2 EBSFS_SHARDS=4"), "2/4"),
            (format!("{batch} EBSFS_SHARDS=4"), "2/4"),
        ] {
            assert_eq!(of(&environment).as_deref(), Ok(shard), "{environment}");
        }
    }

    #[test]
    fn what_is_missing_wrong_or_contradicted_is_refused_by_the_names_of_its_variables() {
        let batch = "AWS_BATCH_JOB_ARRAY_INDEX=2 AWS_BATCH_JOB_ARRAY_SIZE=4";
        for (environment, words) in [
            (
                String::new(),
                &[
                    "AWS_BATCH_JOB_ARRAY_INDEX",
                    "JOB_COMPLETION_INDEX",
                    "SLURM_ARRAY_TASK_ID",
                    "CLOUD_RUN_TASK_INDEX",
                ][..],
            ),
            ("EBSFS_SHARDS=4".into(), &["no task of an array"]),
            ("SLURM_ARRAY_TASK_COUNT=4".into(), &["no task of an array"]),
            // An index without a count.
            (
                "JOB_COMPLETION_INDEX=1".into(),
                &["JOB_COMPLETION_INDEX", "EBSFS_SHARDS"],
            ),
            (
                "AWS_BATCH_JOB_ARRAY_INDEX=1".into(),
                &["AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"],
            ),
            (
                "CLOUD_RUN_TASK_INDEX=1".into(),
                &["CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"],
            ),
            (
                "SLURM_ARRAY_TASK_ID=1".into(),
                &["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"],
            ),
            (
                "SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=4".into(),
                &["SLURM_ARRAY_TASK_MIN"],
            ),
            (
                "SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=4 SLURM_ARRAY_TASK_MIN=0".into(),
                &["SLURM_ARRAY_TASK_STEP"],
            ),
            // No numbers.
            (
                "JOB_COMPLETION_INDEX= EBSFS_SHARDS=3".into(),
                &["JOB_COMPLETION_INDEX is no number"],
            ),
            (
                "JOB_COMPLETION_INDEX=0 EBSFS_SHARDS=three".into(),
                &["EBSFS_SHARDS is no number"],
            ),
            (
                "AWS_BATCH_JOB_ARRAY_INDEX=-1 AWS_BATCH_JOB_ARRAY_SIZE=4".into(),
                &["AWS_BATCH_JOB_ARRAY_INDEX is no number"],
            ),
            // No members.
            (
                "AWS_BATCH_JOB_ARRAY_INDEX=4 AWS_BATCH_JOB_ARRAY_SIZE=4".into(),
                &["4 (AWS_BATCH_JOB_ARRAY_INDEX)", "AWS_BATCH_JOB_ARRAY_SIZE"],
            ),
            (
                "JOB_COMPLETION_INDEX=0 EBSFS_SHARDS=0".into(),
                &["EBSFS_SHARDS", "0 shards"],
            ),
            (
                "JOB_COMPLETION_INDEX=0 EBSFS_SHARDS=20000".into(),
                &["EBSFS_SHARDS", "20000"],
            ),
            (
                slurm("4", "4", "3", "9", "2"),
                &["4 (SLURM_ARRAY_TASK_ID) is no member"],
            ),
            (
                slurm("2", "4", "3", "9", "2"),
                &["2 (SLURM_ARRAY_TASK_ID) is no member"],
            ),
            (slurm("0", "4", "0", "3", "0"), &["no range"]),
            // --array=0,2,5
            (
                slurm("2", "3", "0", "5", "1"),
                &["no range", "SLURM_ARRAY_TASK_MAX"],
            ),
            // Disagreements.
            (
                format!("{batch} CLOUD_RUN_TASK_INDEX=2 CLOUD_RUN_TASK_COUNT=5"),
                &[
                    "AWS_BATCH_JOB_ARRAY_INDEX) says 2/4",
                    "CLOUD_RUN_TASK_INDEX) says 2/5",
                ],
            ),
            (
                format!("{batch} JOB_COMPLETION_INDEX=1 EBSFS_SHARDS=4"),
                &["says 2/4", "says 1/4"],
            ),
            (
                format!("{batch} EBSFS_SHARDS=5"),
                &["EBSFS_SHARDS is not 4", "AWS_BATCH_JOB_ARRAY_SIZE"],
            ),
            // A part of another engine's is no less wrong beside a whole one.
            (
                format!("{batch} CLOUD_RUN_TASK_INDEX=2"),
                &["CLOUD_RUN_TASK_COUNT"],
            ),
        ] {
            let error = of(&environment).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{environment}: {error}");
            }
            assert!(!error.contains('\n'));
        }
    }
}
