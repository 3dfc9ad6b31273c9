//! What a run did, for its record and for people.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::checkpoint::Task;

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was copied where.
    pub task: Task,
    /// When the run that ended it began.
    #[serde(serialize_with = "rfc3339")]
    pub started: SystemTime,
    /// When it ended.
    #[serde(serialize_with = "rfc3339")]
    pub ended: SystemTime,
    /// The EBS snapshot that was made, if that was the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Blocks of the plan that were to be written.
    pub blocks_written: u64,
    /// Blocks of the plan that were to be zeroed.
    pub blocks_zeroed: u64,
    /// SHA-256 over the SHA-256 of all blocks written, by index, as CompleteSnapshot's linear checksum.
    pub linear_sha256: String,
    /// Whether the target was read back and compared.
    pub verified: bool,
    /// SHA-256 of the whole image, holes included, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_sha256: Option<String>,
}

/// A time as people and other programs write it.
fn rfc3339<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_millis(*time))
}
