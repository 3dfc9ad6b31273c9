//! [`Task`] and [`TargetRecord`]: what a run copies where, and what a target holds.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Mark;

/// What is copied where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Which run began it: checkpoint, record and digests of one target belong together by this.
    pub run: String,
    /// The run whose unfinished work in place this one has taken over.
    #[serde(default)]
    pub after: Option<String>,
    /// Whether the target itself is written. A run in place cannot resume one that was not, nor the reverse.
    pub in_place: bool,
    /// What the target becomes: a snapshot's id, or the path of an image.
    pub source: String,
    /// The source as it was, if it is an image or a device of this machine.
    pub source_mark: Option<Mark>,
    /// The volume that the source is of, if that is known.
    pub volume: Option<String>,
    /// What the target held before; none for a full copy.
    pub base: Option<String>,
    /// [`super::Target::id`].
    pub target: String,
    /// [`super::Target::name`], for people.
    pub target_name: String,
}

/// What a target holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Exactly this snapshot or image, but for the blocks that are listed as damaged.
    Holds(String),
    /// A mix of two contents: some blocks are of the base, some of the head. Not usable.
    Between {
        /// What it was; none when that is not known.
        base: Option<String>,
        /// What it is becoming.
        head: String,
    },
}

/// What a target holds, as the last run on it recorded that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The run that wrote it.
    pub(crate) run: String,
    /// [`super::Target::id`].
    pub(crate) target: String,
    /// What it holds.
    pub(crate) content: Content,
    /// The volume that the content is of, if that is known.
    pub(crate) volume: Option<String>,
    /// Bytes of that volume.
    pub(crate) volume_bytes: u64,
    /// Its mark after the last write; none while it is being written, or where nothing tells.
    pub(crate) mark: Option<Mark>,
    /// When the content was complete; of a target between two snapshots when its last usable content was.
    pub(crate) time: Option<SystemTime>,
    /// The snapshot that was made there, for a target that keeps several.
    #[serde(default)]
    pub(crate) replica: Option<String>,
    /// Runs of blocks (first, end) that are zero because their source is damaged.
    #[serde(default)]
    pub(crate) damaged: Vec<(u32, u32)>,
    /// How many more are zero because they are so in the source, whose own source was damaged. No list says which.
    #[serde(default)]
    pub(crate) damaged_in_source: u64,
    /// Whether it was read from version 1 of the format, which had no change time in its mark.
    #[serde(skip)]
    pub(crate) is_old_format: bool,
    /// What the run that ended it did, for people.
    #[serde(default)]
    pub(crate) report: Value,
}

impl TargetRecord {
    /// The snapshot or image that the target holds; none between two.
    pub(crate) fn held(&self) -> Option<&str> {
        match &self.content {
            Content::Holds(source) => Some(source),
            Content::Between { .. } => None,
        }
    }
}
