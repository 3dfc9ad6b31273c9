//! [`Shard`]: which part of a job one process runs, where several machines run it. [`mod@engine`] finds it in what an engine of array
//! jobs sets.
//!
//! The *unit* is what a shard takes as a whole: an instance with all of its volumes, which one call snapshots, or a volume that is
//! attached to none. Units are assigned by rendezvous hashing: the shard with the highest hash of its number and the unit has it. So
//! shards agree without communication, and a further shard only takes units, about its own share, from the others.

mod engine;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind};

pub(crate) use engine::shard_of_engine;

/// The most shards of a job: the largest array of AWS Batch.
const MOST_SHARDS: u32 = 10_000;

/// A shard of a job: one of so many, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// The only one: the whole job.
    pub(crate) const WHOLE: Self = Self { index: 0, count: 1 };

    /// A shard by its number, from 0, and how many there are.
    ///
    /// # Errors
    /// `Invalid` when there are none or too many, or when it is not among them.
    pub(crate) fn new(index: u64, count: u64) -> Result<Self, Error> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        match (u32::try_from(index), u32::try_from(count)) {
            (_, Ok(0)) => invalid("cannot divide a job into 0 shards".into()),
            (_, Err(_)) => invalid(too_many(count)),
            (_, Ok(count)) if count > MOST_SHARDS => invalid(too_many(count.into())),
            (Ok(index), Ok(count)) if index < count => Ok(Self { index, count }),
            _ => invalid(format!(
                "cannot run shard {index} of {count}: shards are counted from 0 to {}",
                count - 1
            )),
        }
    }

    /// Its number, from 0.
    pub(crate) fn index(self) -> u32 {
        self.index
    }

    /// How many there are.
    pub(crate) fn count(self) -> u32 {
        self.count
    }

    /// Whether it is the whole job.
    pub(crate) fn is_whole(self) -> bool {
        self.count == 1
    }

    /// Whether this shard has a unit.
    pub(crate) fn has(self, unit: &str) -> bool {
        let own = weight(self.index, unit);
        // The lower number has it where two weights are equal.
        (0..self.count).all(|other| {
            let others = weight(other, unit);
            others < own || others == own && self.index <= other
        })
    }

    /// The name of the job's state files: a character that no name of a job has keeps those of shards apart from those of other jobs.
    pub(super) fn state_name(self, job: &str) -> String {
        match self.is_whole() {
            true => job.to_owned(),
            false => format!("{job}@{}-of-{}", self.index, self.count),
        }
    }
}

fn too_many(count: u64) -> String {
    format!("cannot divide a job into {count} shards: {MOST_SHARDS} are the most")
}

/// The weight of a shard for a unit. Never change it: shards of two versions would both take a unit, or neither would.
fn weight(index: u32, unit: &str) -> u64 {
    let digest = Sha256::digest(format!("{index}\n{unit}"));
    let first: [u8; 8] = digest.first_chunk().copied().unwrap_or_default();
    u64::from_be_bytes(first)
}

/// A number in digits alone.
fn digits(text: &str) -> Option<u64> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(index, count)| Some((digits(index)?, digits(count)?)));
        let Some((index, count)) = numbers else {
            let what = format!(
                "cannot use {text:?} as a shard: it must look like 0/4, a number from 0 and how many there are"
            );
            return Err(Error::new(Kind::Invalid, what));
        };
        Self::new(index, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicate::{Ec2Volumes, JobSource, ReplicateJob};

    fn shard(text: &str) -> Result<Shard, String> {
        text.parse().map_err(|error: Error| error.chain())
    }

    /// The one shard that has a unit.
    fn owner(unit: &str, count: u64) -> u32 {
        let all = (0..count).map(|index| Shard::new(index, count).unwrap());
        let owners: Vec<u32> = all
            .filter(|shard| shard.has(unit))
            .map(Shard::index)
            .collect();
        assert_eq!(owners.len(), 1, "{unit} of {count}: {owners:?}");
        owners[0]
    }

    #[test]
    fn a_shard_is_a_number_from_0_and_how_many_there_are() {
        for text in ["0/1", "0/4", "3/4", "9999/10000"] {
            assert_eq!(shard(text).unwrap().to_string(), text);
        }
        for (wrong, why) in [
            ("4/4", "counted from 0 to 3"),
            ("0/0", "0 shards"),
            ("0/10001", "10000 are the most"),
            ("0/99999999999", "10000 are the most"),
            ("99999999999/4", "counted from 0 to 3"),
            ("", "it must look like 0/4"),
            ("1", "it must look like 0/4"),
            ("+1/4", "it must look like 0/4"),
            ("-1/4", "it must look like 0/4"),
            ("1/4/2", "it must look like 0/4"),
            ("1/ 4", "it must look like 0/4"),
            ("99999999999999999999/4", "it must look like 0/4"),
        ] {
            let error = shard(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn each_unit_has_one_shard_and_a_new_version_has_the_same() {
        for (unit, owners) in [
            ("vol-0123456789abcdef0", [0, 0, 0, 0, 0]),
            ("vol-0fedcba9876543210", [0, 0, 2, 2, 2]),
            ("i-0123456789abcdef0", [0, 1, 2, 2, 4]),
            ("i-0fedcba9876543210", [0, 1, 1, 1, 1]),
        ] {
            let found: Vec<u32> = (1..=5).map(|count| owner(unit, count)).collect();
            assert_eq!(found, owners, "{unit}");
        }
    }

    #[test]
    fn shards_have_even_shares_and_a_further_one_only_takes_its_own() {
        let units: Vec<String> = (0..2000).map(|number| format!("i-{number:017x}")).collect();
        for count in [2, 3, 4, 7, 16] {
            let mut shares = vec![0_u64; count];
            let mut moved = 0;
            for unit in &units {
                let before = owner(unit, count as u64);
                let after = owner(unit, count as u64 + 1);
                shares[before as usize] += 1;
                if before != after {
                    assert_eq!(after as usize, count, "{unit} moved between old shards");
                    moved += 1;
                }
            }
            // Five standard deviations of a binomial distribution.
            let near = |found: u64, share: f64| {
                let expected = units.len() as f64 * share;
                (found as f64 - expected).abs() < 5.0 * (expected * (1.0 - share)).sqrt()
            };
            for share in &shares {
                assert!(near(*share, 1.0 / count as f64), "{shares:?}");
            }
            assert!(
                near(moved, 1.0 / (count as f64 + 1.0)),
                "{moved} of {count}"
            );
        }
    }

    #[test]
    fn the_state_of_a_shard_is_no_other_jobs() {
        assert_eq!(Shard::WHOLE.state_name("web"), "web");
        let third = shard("2/4").unwrap();
        assert_eq!(third.state_name("web"), "web@2-of-4");
        // A job may be named like most things, but not like that.
        let job = ReplicateJob::new(
            "web@2-of-4",
            JobSource::Ec2(Ec2Volumes::default()),
            Vec::new(),
        );
        assert!(job.check().unwrap_err().chain().contains("name of a job"));
    }
}
