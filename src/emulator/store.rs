//! Snapshots and volumes in the emulator's folder.
//!
//! ```text
//! volumes/vol-1.raw           an ordinary file, sparse or not, that anyone may write
//! volumes/vol-1.json          which snapshot was taken of it last, or how its bytes are computed
//! snapshots/snap-A.json       what EC2 reports of it
//! snapshots/snap-A.map        the blocks it holds: index, which snapshot wrote it, SHA-256
//! snapshots/snap-A.raw        the blocks that it wrote itself, each at its offset, sparse
//! ```
//! A snapshot is a complete view; blocks that it did not write itself are those of the snapshot that did. Two snapshots differ
//! in a block when different snapshots wrote it: the comparison is by writing, as AWS's is, and not by content.

mod computed;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::{SnapshotRecord, millis};
use super::synthetic;
use super::view::{StoredBlock, View};
use super::{ACCOUNT, BLOCK};
use computed::ChangingVolume;

const GIB: u64 = 1 << 30;

/// A snapshot: its record and its blocks.
#[derive(Debug)]
pub(super) struct StoredSnapshot {
    pub(super) record: SnapshotRecord,
    /// Empty for a synthetic one.
    pub(super) blocks: Arc<BTreeMap<u32, StoredBlock>>,
    held: std::sync::OnceLock<u64>,
}

impl StoredSnapshot {
    fn new(record: SnapshotRecord, blocks: BTreeMap<u32, StoredBlock>) -> Self {
        Self {
            record,
            blocks: Arc::new(blocks),
            held: std::sync::OnceLock::new(),
        }
    }

    /// How many blocks it holds.
    pub(super) fn held(&self) -> u64 {
        *self.held.get_or_init(|| match &self.record.synthetic {
            Some(synthetic) => synthetic.count_held(),
            None => self.blocks.len() as u64,
        })
    }

    /// Its blocks, to be read without the lock of the store.
    pub(super) fn view(&self) -> View {
        View::new(self.record.synthetic.clone(), Arc::clone(&self.blocks))
    }
}

/// The state of a volume in the folder.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct VolumeRecord {
    last_snapshot: Option<String>,
    /// Blocks written since then even if their bytes are the same.
    touched: Vec<u32>,
    /// The instance that it is attached to; empty for none, unset for the one that has all others.
    pub(super) instance: Option<String>,
    /// Its tags.
    pub(super) tags: BTreeMap<String, String>,
    /// Set where its bytes are computed, whatever its file holds.
    synthetic: Option<ChangingVolume>,
}

/// A snapshot to be made of a volume.
pub(super) struct SnapshotRequest<'a> {
    pub(super) volume: &'a str,
    pub(super) description: &'a str,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) now: SystemTime,
    /// When it is completed, or fails.
    pub(super) settles: SystemTime,
    /// When EC2 knows it.
    pub(super) shown: SystemTime,
    /// Why it fails; empty if it does not.
    pub(super) error: &'a str,
}

/// The folder.
#[derive(Debug)]
pub(super) struct EmulatorStore {
    folder: PathBuf,
    pub(super) snapshots: BTreeMap<String, StoredSnapshot>,
    next_number: u32,
}

impl EmulatorStore {
    pub(super) fn load(folder: &Path) -> io::Result<Self> {
        let mut store = Self {
            folder: folder.to_owned(),
            snapshots: BTreeMap::new(),
            next_number: 1,
        };
        for file in fs::read_dir(folder.join("snapshots"))? {
            let path = file?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                let mut record: SnapshotRecord = serde_json::from_slice(&fs::read(&path)?)?;
                if let Some(started) = record
                    .started
                    .as_mut()
                    .filter(|_| record.settles_ms.is_none())
                {
                    started.put = digests(&path.with_extension("raw"))?;
                }
                let blocks = read_map(&path.with_extension("map"))?;
                store.next_number = store.next_number.max(record.number + 1);
                let id = record.id.clone();
                store
                    .snapshots
                    .insert(id, StoredSnapshot::new(record, blocks));
            }
        }
        Ok(store)
    }

    /// A snapshot that was not deleted.
    pub(super) fn get(&self, id: &str) -> Option<&StoredSnapshot> {
        self.snapshots
            .get(id)
            .filter(|snapshot| !snapshot.record.deleted)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut StoredSnapshot> {
        self.snapshots
            .get_mut(id)
            .filter(|snapshot| !snapshot.record.deleted)
    }

    fn path(&self, id: &str, ending: &str) -> PathBuf {
        self.folder.join("snapshots").join(format!("{id}.{ending}"))
    }

    /// The volumes: ids and sizes in bytes. A file whose name is no volume id is none.
    pub(super) fn volumes(&self) -> io::Result<Vec<(String, u64)>> {
        let mut volumes = Vec::new();
        for file in fs::read_dir(self.folder.join("volumes"))? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            if let Some(id) = name.strip_suffix(".raw").filter(|id| is_volume_id(id)) {
                volumes.push((id.to_owned(), file.metadata()?.len()));
            }
        }
        volumes.sort();
        Ok(volumes)
    }

    fn volume_path(&self, id: &str, ending: &str) -> PathBuf {
        self.folder.join("volumes").join(format!("{id}.{ending}"))
    }

    /// The stored state of a volume.
    pub(super) fn volume_record(&self, volume: &str) -> VolumeRecord {
        let kept = fs::read(self.volume_path(volume, "json")).ok();
        kept.and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    fn save_volume(&self, volume: &str, record: &VolumeRecord) -> io::Result<()> {
        fs::write(
            self.volume_path(volume, "json"),
            serde_json::to_vec(record)?,
        )
    }

    /// Changes EC2's description of a volume: the instance that it is attached to, its tags.
    pub(super) fn set_volume(&self, volume: &str, name: &str, value: &str) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        let volumes = self.volumes().map_err(failed)?;
        if !volumes.iter().any(|(id, _)| id == volume) {
            return Err(format!("there is no {volume}"));
        }
        let mut record = self.volume_record(volume);
        match (name, value.split_once('=')) {
            ("instance", _) => record.instance = Some(value.to_owned()),
            ("tag", Some((key, value))) => {
                record.tags.insert(key.to_owned(), value.to_owned());
            }
            _ => return Err(format!("a volume has no attribute {name}={value}")),
        }
        self.save_volume(volume, &record).map_err(failed)
    }

    /// Takes a snapshot of a volume's present state.
    pub(super) fn create(&mut self, making: SnapshotRequest<'_>) -> io::Result<SnapshotRecord> {
        let SnapshotRequest { volume, now, .. } = making;
        let file = File::open(self.volume_path(volume, "raw"))?;
        let mut state = self.volume_record(volume);
        let parent = state
            .last_snapshot
            .take()
            .filter(|id| self.snapshots.contains_key(id));
        let mut record = self.record(now);
        let before = parent.as_ref().and_then(|id| self.snapshots.get(id));
        record.volume_id = volume.to_owned();
        record.lineage = before.map_or(volume.to_owned(), |before| before.record.lineage.clone());
        record.parent = parent.clone();
        record.volume_gib =
            u32::try_from(file.metadata()?.len().div_ceil(GIB).max(1)).map_err(io::Error::other)?;
        record.state = match making.error {
            "" => "completed".into(),
            _ => "error".into(),
        };
        record.state_message = making.error.to_owned();
        record.settles_ms = Some(millis(making.settles));
        record.shown_ms = millis(making.shown);
        record.description = making.description.to_owned();
        record.tags = making.tags;
        if let Some(synthetic) = &mut state.synthetic {
            record.synthetic = Some(synthetic.take(&record.id));
            self.snapshots.insert(
                record.id.clone(),
                StoredSnapshot::new(record.clone(), BTreeMap::new()),
            );
            state.last_snapshot = Some(record.id.clone());
            self.save_volume(volume, &state)?;
            return Ok(record);
        }
        let own = private(true).open(self.path(&record.id, "raw"))?;
        let mut blocks = BTreeMap::new();
        for index in allocated(&file)? {
            let bytes = read_block(&file, index)?;
            let digest: [u8; 32] = Sha256::digest(&bytes).into();
            let same = before
                .and_then(|before| before.blocks.get(&index))
                .filter(|held| held.digest == digest && !state.touched.contains(&index));
            let held = match same {
                Some(held) => *held,
                None => {
                    own.write_all_at(&bytes, u64::from(index) * BLOCK as u64)?;
                    StoredBlock {
                        writer: record.number,
                        digest,
                    }
                }
            };
            blocks.insert(index, held);
        }
        self.add(record.clone(), blocks)?;
        state.last_snapshot = Some(record.id.clone());
        state.touched.clear();
        self.save_volume(volume, &state)?;
        Ok(record)
    }

    /// Files in `volumes/` that look like volumes and are none, because of their names.
    pub(super) fn misnamed(&self) -> io::Result<Vec<String>> {
        let files = fs::read_dir(self.folder.join("volumes"))?;
        let names = files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
        let names = names.filter(|name: &io::Result<String>| {
            let id = name
                .as_ref()
                .ok()
                .and_then(|name| name.strip_suffix(".raw"));
            name.is_err() || id.is_some_and(|id| !is_volume_id(id))
        });
        names.collect()
    }

    /// Marks a volume's block as written, so that the next snapshot lists it as changed whatever its bytes are.
    pub(super) fn touch(&self, volume: &str, index: u32) -> io::Result<()> {
        if !is_volume_id(volume) {
            return Err(io::Error::other(format!("{volume:?} is no volume id")));
        }
        if !self.volume_path(volume, "json").exists() {
            return Err(io::Error::other(format!("{volume} has no snapshot")));
        }
        let mut state = self.volume_record(volume);
        state.touched.push(index);
        self.save_volume(volume, &state)
    }

    /// A new record with defaults.
    pub(super) fn record(&mut self, now: SystemTime) -> SnapshotRecord {
        let number = self.next_number;
        self.next_number += 1;
        let id = format!(
            "snap-{:017x}",
            fastrand::u64(..) >> 4 | u64::from(number) << 60
        );
        SnapshotRecord::new(number, id, ACCOUNT, millis(now))
    }

    /// Adds a snapshot and keeps it in the folder.
    pub(super) fn add(
        &mut self,
        record: SnapshotRecord,
        blocks: BTreeMap<u32, StoredBlock>,
    ) -> io::Result<()> {
        write_map(&self.path(&record.id, "map"), &blocks)?;
        self.save(&record)?;
        self.snapshots
            .insert(record.id.clone(), StoredSnapshot::new(record, blocks));
        Ok(())
    }

    /// Keeps a changed record.
    pub(super) fn save(&self, record: &SnapshotRecord) -> io::Result<()> {
        if record.synthetic.is_some() {
            return Ok(());
        }
        fs::write(
            self.path(&record.id, "json"),
            serde_json::to_vec_pretty(record)?,
        )
    }

    /// Writes one block of a snapshot that is being made.
    pub(super) fn put(&self, id: &str, index: u32, bytes: &[u8]) -> io::Result<()> {
        private(false)
            .open(self.path(id, "raw"))?
            .write_all_at(bytes, u64::from(index) * BLOCK as u64)
    }

    /// Where a block's bytes are.
    pub(super) fn locate(&self, id: &str, index: u32) -> Option<BlockLocation> {
        let snapshot = self.get(id)?;
        if let Some(synthetic) = &snapshot.record.synthetic {
            let seed = synthetic.seed_of(index);
            return synthetic
                .is_held(index)
                .then_some(BlockLocation::Computed(seed, index));
        }
        let held = snapshot.blocks.get(&index)?;
        let writer = self
            .snapshots
            .values()
            .find(|snapshot| snapshot.record.number == held.writer)?;
        let path = self.path(&writer.record.id, "raw");
        Some(BlockLocation::Kept(path, index, held.digest))
    }
}

/// Whether this is a volume's id: `vol-` and hexadecimal digits in lower case, at most 64 characters.
pub(super) fn is_volume_id(text: &str) -> bool {
    let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let digits = text.strip_prefix("vol-").unwrap_or_default();
    !digits.is_empty() && text.len() <= 64 && digits.bytes().all(is_hex)
}

/// Where a block's bytes are, to be read without holding the store.
#[derive(Debug)]
pub(super) enum BlockLocation {
    Kept(PathBuf, u32, [u8; 32]),
    Computed(u64, u32),
}

impl BlockLocation {
    /// The block and its SHA-256.
    pub(super) fn read(&self) -> io::Result<(Bytes, [u8; 32])> {
        match self {
            Self::Kept(path, index, digest) => {
                Ok((read_block(&File::open(path)?, *index)?.into(), *digest))
            }
            Self::Computed(seed, index) => Ok(synthetic::read(*seed, *index)),
        }
    }
}

/// Blocks of which any part is allocated in the file.
fn allocated(file: &File) -> io::Result<Vec<u32>> {
    let mut blocks: Vec<u32> = Vec::new();
    let mut at = 0;
    loop {
        let data = match lseek(file, at, Whence::SeekData) {
            Ok(data) => data,
            Err(nix::errno::Errno::ENXIO) => return Ok(blocks),
            Err(error) => return Err(error.into()),
        };
        at = lseek(file, data, Whence::SeekHole)?;
        let block = |offset: i64| u32::try_from(offset / BLOCK as i64).map_err(io::Error::other);
        let first = block(data)?.max(blocks.last().map_or(0, |last| last + 1));
        blocks.extend(first..=block(at - 1)?);
    }
}

/// The blocks that were put into a snapshot's own file so far.
fn digests(path: &Path) -> io::Result<BTreeMap<u32, [u8; 32]>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        file => file?,
    };
    let mut digests = BTreeMap::new();
    for index in allocated(&file)? {
        digests.insert(index, Sha256::digest(read_block(&file, index)?).into());
    }
    Ok(digests)
}

/// One block of a file, zeroes beyond its end.
fn read_block(file: &File, index: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BLOCK];
    let start = u64::from(index) * BLOCK as u64;
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, start + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(bytes)
}

/// A file of a disk's bytes is for its owner alone.
fn private(empty: bool) -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(empty).mode(0o600);
    options
}

const ENTRY: usize = 40;

fn write_map(path: &Path, blocks: &BTreeMap<u32, StoredBlock>) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(blocks.len() * ENTRY);
    for (index, held) in blocks {
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(&held.writer.to_le_bytes());
        bytes.extend_from_slice(&held.digest);
    }
    fs::write(path, bytes)
}

fn read_map(path: &Path) -> io::Result<BTreeMap<u32, StoredBlock>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        bytes => bytes?,
    };
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
    Ok(bytes
        .chunks_exact(ENTRY)
        .filter_map(|entry| {
            let (index, rest) = entry.split_at_checked(4)?;
            let (writer, digest) = rest.split_at_checked(4)?;
            let held = StoredBlock {
                writer: number(writer),
                digest: digest.try_into().ok()?,
            };
            Some((number(index), held))
        })
        .collect())
}
