//! The body and the client token of StartSnapshot.
//!
//! EBS answers a token that it knows with the snapshot that it started for it, if the body is the same, and refuses it if
//! not (<https://docs.aws.amazon.com/ebs/latest/userguide/ebs-direct-api-idempotency.html>). So the body derives from source,
//! target and job alone, and the token from the body and from the blocks that are written: the same command finds the snapshot
//! that it started, and only one that took the same blocks.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::block::{Change, Delta, hexadecimal};
use crate::ebs::NewSnapshot;
use crate::error::Result;
use crate::snapshot::SnapshotId;
use crate::target::SourceInfo;

use super::evidence::{PARENT_TAG, SIZE_TAG, SOURCE_TAG, VOLUME_TAG};
use super::{EbsJob, volume_of};

/// Characters of a description or of a tag's value (API_StartSnapshot, API_Tag).
const LONGEST_TEXT: usize = 255;
/// EBS gives up a snapshot that takes no block for this long. It is the maximum, so that a killed run can resume after a
/// weekend.
const TIMEOUT_MINUTES: u16 = 4320;
/// Hexadecimal digits of a token; all of it has at most 64 characters.
const TOKEN_DIGITS: usize = 56;

/// A text cut to what EBS takes.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

/// What StartSnapshot is asked for, still without its token. `parent` is the base's replica or the one that the job names.
///
/// # Errors
/// `Invalid` when the volume is larger than EBS takes.
pub(super) fn body(
    source: &SourceInfo,
    job: &EbsJob,
    parent: Option<&SnapshotId>,
    plan: &Delta,
) -> Result<NewSnapshot> {
    let size = source.size.unwrap_or(source.geometry.size());
    let gib = plan.head().rounded_to_gib()?.size() >> 30;
    let mut tags = vec![
        (SOURCE_TAG.to_owned(), cut(&source.name)),
        (SIZE_TAG.to_owned(), size.to_string()),
    ];
    if let Some(volume) = volume_of(source) {
        tags.push((VOLUME_TAG.to_owned(), cut(volume)));
    }
    if let Some(parent) = parent {
        tags.push((PARENT_TAG.to_owned(), parent.to_string()));
    }
    tags.extend(job.tags.iter().cloned());
    let description = job.description.clone();
    let description = description.unwrap_or_else(|| format!("ebsfs: replica of {}", source.name));
    Ok(NewSnapshot {
        volume_gib: u32::try_from(gib).unwrap_or(u32::MAX),
        parent: parent.cloned(),
        tags,
        description: cut(&description),
        // A child has its parent's key: sent with a parent it is refused.
        kms_key: job.kms_key.clone().filter(|_| parent.is_none()),
        client_token: String::new(),
        timeout_minutes: TIMEOUT_MINUTES,
    })
}

/// What the tokens of all attempts are derived from, besides the body.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Seed<'a> {
    /// What is copied.
    pub(super) source: &'a str,
    /// The target's id.
    pub(super) target: &'a str,
    /// The snapshot of the source that the delta starts from.
    pub(super) base: Option<&'a str>,
    /// A run that wants a snapshot of its own.
    pub(super) run: Option<&'a str>,
}

/// A digest of all that the token depends on but the attempt.
pub(super) fn seed(seed: &Seed<'_>, body: &NewSnapshot, plan: &Delta) -> String {
    let mut hasher = Sha256::new();
    // Plain data: it cannot fail to serialise.
    hasher.update(serde_json::to_vec(&(seed, body)).unwrap_or_default());
    // By its runs: two equal sets can be kept in two ways.
    for (extent, change) in plan.runs() {
        hasher.update(extent.start().0.to_le_bytes());
        hasher.update(extent.end().0.to_le_bytes());
        hasher.update([u8::from(change == Change::Zero)]);
    }
    hexadecimal(&hasher.finalize())
}

/// The client token of an attempt.
pub(super) fn token(seed: &str, attempt: u32) -> String {
    let digest = hexadecimal(&Sha256::digest(format!("{seed} {attempt}")));
    let digits: String = digest.chars().take(TOKEN_DIGITS).collect();
    format!("ebsfs-{digits}")
}
