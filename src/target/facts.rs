//! [`Facts`]: the observed state of a target, as plain values.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{Mark, SinkState, VolumeKey};
use crate::block::Geometry;
use crate::snapshot::{Snapshot, SnapshotId};

/// What is known of the source of a sync.
#[derive(Clone, Debug)]
pub struct SourceInfo {
    /// What records call it: a snapshot's id, or the path of an image or device.
    pub name: String,
    /// Its volume as blocks are read.
    pub geometry: Geometry,
    /// Its bytes, if they are not those of a whole volume: an image of any length.
    pub size: Option<u64>,
    /// As it is now, if it is of this machine and can change.
    pub mark: Option<Mark>,
    /// The volume that it is of, if that is known and one.
    pub volume: Option<String>,
    /// The volume key that repositories keep it under.
    pub volume_key: VolumeKey,
    /// Whether it is encrypted where it is, if that is known.
    pub encrypted: Option<bool>,
    /// Its description by EC2 or the repository, if it is a snapshot.
    pub snapshot: Option<Snapshot>,
    /// Whether it can list what changed since another snapshot.
    pub has_changes: bool,
    /// Of an image or device: how many of its blocks are zero because a source further back was damaged, by its record. No list
    /// says which.
    pub damaged_in_source: u64,
}

impl SourceInfo {
    /// The snapshot's id, if it is one.
    pub(crate) fn id(&self) -> Option<SnapshotId> {
        self.snapshot.as_ref().map(|snapshot| snapshot.id.clone())
    }

    /// When its bytes were taken, if that is known.
    pub(crate) fn time(&self) -> Option<SystemTime> {
        self.snapshot.as_ref()?.start_time
    }

    /// Blocks of it that are zero because its own source was damaged and that no list names: of an EBS snapshot by its tag.
    pub(crate) fn damaged_blocks(&self) -> u64 {
        let snapshot = self.snapshot.as_ref();
        let tagged = snapshot.map_or(0, Snapshot::damaged_blocks);
        tagged.max(self.damaged_in_source)
    }

    /// Its tags.
    pub(crate) fn tags(&self) -> BTreeMap<String, String> {
        let snapshot = self.snapshot.as_ref();
        snapshot
            .map(|snapshot| snapshot.tags.clone())
            .unwrap_or_default()
    }
}

/// The base that the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Everything is copied.
    None,
    /// The snapshot that the target is proven to hold.
    Auto,
    /// This snapshot, which the target must hold.
    Snapshot(SnapshotId),
}

/// What [`super::Target::observe`] is asked.
#[derive(Debug)]
pub struct ObserveRequest<'a> {
    /// What is going to be copied.
    pub source: &'a SourceInfo,
    /// The requested base.
    pub base: &'a Base,
    /// What an unfinished run left, by its checkpoint.
    pub left: Option<&'a SinkState>,
    /// What the record names as the snapshot that was made there.
    pub replica: Option<&'a str>,
}

/// Whether something is at the target's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Existence {
    /// Nothing.
    Absent,
    /// An empty file.
    Empty,
    /// Bytes.
    There,
}

/// What an unfinished run has left, against its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnfinishedState {
    /// Nothing of it is there: another part, another image, a snapshot that EBS has given up.
    Absent,
    /// It is there, and its mark, or the kernel's count of sectors, proves that nothing else has written it since.
    Proven,
    /// It is there; its mark does not prove that nothing else has written it.
    Unproven,
}

/// A snapshot that a target keeps and that a delta can start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The snapshot of the source that it holds.
    pub source: SnapshotId,
    /// The snapshot there.
    pub id: SnapshotId,
    /// Bytes of its volume, if they are known.
    pub(crate) volume_bytes: Option<u64>,
    /// Whether it is encrypted, if that is known.
    pub(crate) encrypted: Option<bool>,
}

/// What can be seen of a target.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether something is there.
    pub(crate) existence: Existence,
    /// What a person must write to have it overwritten: a device's identity, else its path.
    pub(crate) token: String,
    /// Other tokens that name it as well.
    pub(crate) other_tokens: Vec<String>,
    /// Whether `token` is an identity that will be the same tomorrow: without one no record is kept.
    pub(crate) has_identity: bool,
    /// Bytes that it has and cannot change: a device's.
    pub(crate) fixed_size: Option<u64>,
    /// Bytes that are free for it; none where that is not known or does not matter.
    pub(crate) free: Option<u64>,
    /// Bytes that a clone of it takes: 0 where it is by reference.
    pub(crate) clone_bytes: u64,
    /// Its mark; none where nothing shows writes.
    pub(crate) mark: Option<Mark>,
    /// Whether an equal mark proves anything: not where the filesystem's clock is coarse or not its own.
    pub(crate) mark_proves: bool,
    /// Why it cannot be written now, each a sentence: it is mounted, read-only or in use.
    pub(crate) obstacles: Vec<String>,
    /// What the user should know; it stops nothing.
    pub warnings: Vec<String>,
    /// What an unfinished run has left; `Absent` where none was asked about.
    pub left: UnfinishedState,
    /// Sectors written to it since the unfinished run began, as the kernel counts; none where that is not known.
    pub(crate) written_since: Option<u64>,
    /// Whether zeroing counts as writing all of the sectors: not where a device cannot unmap, and only what is not zero is written.
    pub(crate) counts_zeroes: bool,
    /// Whether it has become the target already, so that only the record is missing.
    pub(crate) is_published: bool,
    /// The snapshot there that holds the source already, proven, where the target keeps several.
    pub holds: Option<SnapshotId>,
    /// Blocks of that snapshot that are zero because the source was damaged when it was copied.
    pub(crate) held_damaged: u64,
    /// Snapshots there that a delta can start from, proven, newest first, where the target keeps several.
    pub replicas: Vec<Replica>,
    /// Why the requested base cannot be one, where the target keeps several.
    pub(crate) no_base: Option<String>,
    /// Whether a new object there would be encrypted; none where that is not known.
    pub encrypts: Option<bool>,
    /// Whether it is only written whole: where a block is in it depends on which others are.
    pub(crate) takes_no_delta: bool,
    /// Whether an unfinished copy of another snapshot cannot become one of this.
    pub(crate) keeps_no_part: bool,
}

impl Facts {
    /// The default facts of a target with this token: an identity, no mark, nothing left, not encrypted.
    pub(crate) fn of(token: impl Into<String>, existence: Existence) -> Self {
        Self {
            existence,
            token: token.into(),
            other_tokens: Vec::new(),
            has_identity: true,
            fixed_size: None,
            free: None,
            clone_bytes: 0,
            mark: None,
            mark_proves: true,
            obstacles: Vec::new(),
            warnings: Vec::new(),
            left: UnfinishedState::Absent,
            written_since: None,
            counts_zeroes: false,
            is_published: false,
            holds: None,
            held_damaged: 0,
            replicas: Vec::new(),
            no_base: None,
            encrypts: Some(false),
            takes_no_delta: false,
            keeps_no_part: false,
        }
    }
}
