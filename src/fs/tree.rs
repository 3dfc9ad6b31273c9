//! What a mount shows: inodes, names, sizes, times. It knows no fuser.
//!
//! ```text
//! snapshots/snap-A/disk.raw        the volume at that instant
//! snapshots/snap-A/snapshot.json   what is known of it
//! volumes/vol-1/2026-06-30T12:00:00Z -> ../../snapshots/snap-A
//! ```
//! An inode is given out at the first sight of a name and stays for the life of the mount. A snapshot takes three in a
//! row: its folder, its image, its description.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::block::BLOCK_SIZE;
use crate::error::{Error, Kind, Result};
use crate::image::{Image, ReadaheadBudget};
use crate::source::{Catalog, Snapshot, SnapshotId};

const SNAPSHOTS: u64 = 2;
const VOLUMES: u64 = 3;

/// How long a listing of the account's snapshots is shown before it is asked for again.
const LISTING_LIFE: Duration = Duration::from_secs(60);

/// Who owns what a mount shows, and who may read it.
#[derive(Clone, Copy, Debug)]
pub struct Ownership {
    /// The owner's user id.
    pub uid: u32,
    /// The owner's group id.
    pub gid: u32,
    /// Permissions of files, without any write bit; a folder may be searched by whoever may read its files.
    pub mode: u16,
}

/// What kind of file an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Folder,
    Regular,
    Link,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) ino: u64,
    pub(super) kind: FileKind,
    pub(super) size: u64,
    /// Units of 512 bytes that are held.
    pub(super) blocks: u64,
    pub(super) mode: u16,
    pub(super) time: SystemTime,
}

/// One line of a folder.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) ino: u64,
    pub(super) kind: FileKind,
    pub(super) name: String,
}

#[derive(Clone)]
enum Node {
    Root,
    Snapshots,
    Volumes,
    Snapshot(Arc<Entry>),
    Disk(Arc<Entry>),
    Description(Arc<Entry>),
    Volume(String),
    Link { target: String, time: SystemTime },
}

/// A snapshot that has been seen.
struct Entry {
    id: SnapshotId,
    /// Its folder's inode.
    ino: u64,
    told: Mutex<Snapshot>,
    image: OnceCell<Arc<Image>>,
}

#[derive(Default)]
struct Nodes {
    /// Nodes by inode, from 1.
    list: Vec<Node>,
    snapshots: HashMap<SnapshotId, Arc<Entry>>,
    volumes: HashMap<String, u64>,
    links: HashMap<(String, String), u64>,
}

/// The tree of a mount.
pub struct Tree {
    catalog: Arc<dyn Catalog>,
    ownership: Ownership,
    readahead: Arc<ReadaheadBudget>,
    mounted: SystemTime,
    nodes: Mutex<Nodes>,
    listing: tokio::sync::Mutex<Option<(Instant, Arc<[Snapshot]>)>>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({:?})", self.ownership)
    }
}

impl Tree {
    /// The tree of a catalog. It makes no call before it is looked at.
    pub fn new(
        catalog: Arc<dyn Catalog>,
        ownership: Ownership,
        readahead: Arc<ReadaheadBudget>,
    ) -> Self {
        let list = vec![Node::Root, Node::Snapshots, Node::Volumes];
        Self {
            catalog,
            ownership,
            readahead,
            mounted: SystemTime::now(),
            nodes: Mutex::new(Nodes {
                list,
                ..Nodes::default()
            }),
            listing: tokio::sync::Mutex::new(None),
        }
    }

    /// Who owns the tree.
    pub(super) fn ownership(&self) -> Ownership {
        self.ownership
    }

    fn node(&self, ino: u64) -> Result<Node> {
        usize::try_from(ino)
            .ok()
            .and_then(|ino| self.nodes.lock().list.get(ino.checked_sub(1)?).cloned())
            .ok_or_else(|| Error::new(Kind::NotFound, format!("no inode {ino}")))
    }

    /// What a name in a folder is; `None` for a name that means nothing there. A snapshot id always means something: one
    /// that does not exist is an error with its reason.
    pub(super) async fn lookup(&self, parent: u64, name: &str) -> Result<Option<Attributes>> {
        let ino = match self.node(parent)? {
            Node::Root if name == "snapshots" => SNAPSHOTS,
            Node::Root if name == "volumes" => VOLUMES,
            Node::Snapshots => {
                let Ok(id) = name.parse::<SnapshotId>() else {
                    return Ok(None);
                };
                self.entry(&id).await?.ino
            }
            Node::Snapshot(entry) if name == "disk.raw" => entry.ino + 1,
            Node::Snapshot(entry) if name == "snapshot.json" => entry.ino + 2,
            Node::Volumes | Node::Volume(_) => {
                let lines = self.lines(parent).await?;
                match lines.into_iter().find(|line| line.name == name) {
                    Some(line) => line.ino,
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        self.attributes(ino).await.map(Some)
    }

    /// What `stat` shows of an inode.
    pub(super) async fn attributes(&self, ino: u64) -> Result<Attributes> {
        let folder = |time| self.shape(ino, FileKind::Folder, 0, 0, time);
        Ok(match self.node(ino)? {
            Node::Root | Node::Snapshots | Node::Volumes | Node::Volume(_) => folder(self.mounted),
            Node::Snapshot(entry) => folder(self.time_of(&entry)),
            Node::Disk(entry) => {
                let size = entry.told.lock().volume_size;
                let size = match size {
                    Some(size) => size,
                    None => self.image_of(&entry).await?.size(),
                };
                let blocks = st_blocks(size, entry.told.lock().full_size);
                self.shape(ino, FileKind::Regular, size, blocks, self.time_of(&entry))
            }
            Node::Description(entry) => {
                let size = description(&entry).len() as u64;
                let time = self.time_of(&entry);
                self.shape(ino, FileKind::Regular, size, size.div_ceil(512), time)
            }
            Node::Link { target, time } => {
                self.shape(ino, FileKind::Link, target.len() as u64, 0, time)
            }
        })
    }

    fn shape(
        &self,
        ino: u64,
        kind: FileKind,
        size: u64,
        blocks: u64,
        time: SystemTime,
    ) -> Attributes {
        let read = self.ownership.mode & 0o444;
        let mode = match kind {
            FileKind::Folder => read | read >> 2,
            FileKind::Regular => read,
            FileKind::Link => 0o777,
        };
        Attributes {
            ino,
            kind,
            size,
            blocks,
            mode,
            time,
        }
    }

    fn time_of(&self, entry: &Entry) -> SystemTime {
        entry.told.lock().start_time.unwrap_or(self.mounted)
    }

    /// The names in a folder, without `.` and `..`.
    pub(super) async fn lines(&self, ino: u64) -> Result<Vec<Line>> {
        let line = |ino, kind, name: &str| Line {
            ino,
            kind,
            name: name.to_owned(),
        };
        Ok(match self.node(ino)? {
            Node::Root => vec![
                line(SNAPSHOTS, FileKind::Folder, "snapshots"),
                line(VOLUMES, FileKind::Folder, "volumes"),
            ],
            Node::Snapshots => {
                let listing = self.listing().await?;
                let mut nodes = self.nodes.lock();
                listing
                    .iter()
                    .map(|snapshot| {
                        let entry = nodes.see(snapshot);
                        line(entry.ino, FileKind::Folder, entry.id.as_str())
                    })
                    .collect()
            }
            Node::Volumes => {
                let listing = self.listing().await?;
                let mut volumes: Vec<&str> = listing
                    .iter()
                    .filter_map(|snapshot| snapshot.volume_id.as_deref())
                    .collect();
                volumes.sort_unstable();
                volumes.dedup();
                let mut nodes = self.nodes.lock();
                volumes
                    .into_iter()
                    .map(|volume| line(nodes.volume(volume), FileKind::Folder, volume))
                    .collect()
            }
            Node::Volume(volume) => {
                let listing = self.listing().await?;
                let mut nodes = self.nodes.lock();
                links(&volume, &listing)
                    .into_iter()
                    .map(|(name, target, time)| {
                        let ino = nodes.link(&volume, &name, target, time);
                        line(ino, FileKind::Link, &name)
                    })
                    .collect()
            }
            Node::Snapshot(entry) => vec![
                line(entry.ino + 1, FileKind::Regular, "disk.raw"),
                line(entry.ino + 2, FileKind::Regular, "snapshot.json"),
            ],
            _ => return Err(Error::new(Kind::Invalid, "not a folder")),
        })
    }

    /// Where a link leads.
    pub(super) fn link(&self, ino: u64) -> Result<String> {
        match self.node(ino)? {
            Node::Link { target, .. } => Ok(target),
            _ => Err(Error::new(Kind::Invalid, "not a link")),
        }
    }

    /// The image behind an inode, opened; `None` when the inode is no image.
    pub(super) async fn image(&self, ino: u64) -> Result<Option<Arc<Image>>> {
        match self.node(ino)? {
            Node::Disk(entry) => self.image_of(&entry).await.map(Some),
            _ => Ok(None),
        }
    }

    /// The image behind an inode, if it is open already: no waiting.
    pub(super) fn open_image(&self, ino: u64) -> Option<Arc<Image>> {
        match self.node(ino) {
            Ok(Node::Disk(entry)) => entry.image.get().cloned(),
            _ => None,
        }
    }

    /// The text of `snapshot.json`; `None` when the inode is no such file.
    pub(super) fn text(&self, ino: u64) -> Result<Option<String>> {
        match self.node(ino)? {
            Node::Description(entry) => Ok(Some(description(&entry))),
            _ => Ok(None),
        }
    }

    /// The extended attributes of a snapshot's image and folder: `user.ebs.*`, those that are known.
    pub(super) fn xattrs(&self, ino: u64) -> Result<Vec<(&'static str, String)>> {
        let (Node::Snapshot(entry) | Node::Disk(entry)) = self.node(ino)? else {
            return Ok(Vec::new());
        };
        let told = entry.told.lock();
        let start = told
            .start_time
            .map(|time| humantime::format_rfc3339_millis(time).to_string());
        let all = [
            ("user.ebs.snapshot_id", Some(told.id.to_string())),
            ("user.ebs.volume_id", told.volume_id.clone()),
            ("user.ebs.start_time", start),
            (
                "user.ebs.encrypted",
                told.encrypted.map(|yes| yes.to_string()),
            ),
        ];
        Ok(all
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect())
    }

    /// A snapshot that has been seen, or is now looked up: any id can be, listed or not.
    async fn entry(&self, id: &SnapshotId) -> Result<Arc<Entry>> {
        if let Some(entry) = self.nodes.lock().snapshots.get(id) {
            return Ok(Arc::clone(entry));
        }
        // Opening tells whether it exists, and what EC2 knows of it.
        let (snapshot, _) = self.catalog.open(id).await?;
        Ok(self.nodes.lock().see(&snapshot))
    }

    async fn image_of(&self, entry: &Entry) -> Result<Arc<Image>> {
        let image = entry.image.get_or_try_init(|| async {
            let (snapshot, source) = self.catalog.open(&entry.id).await?;
            *entry.told.lock() = snapshot;
            Ok(Arc::new(Image::new(source, Arc::clone(&self.readahead))))
        });
        image.await.cloned()
    }

    async fn listing(&self) -> Result<Arc<[Snapshot]>> {
        let mut listing = self.listing.lock().await;
        if let Some((asked, snapshots)) = &*listing
            && asked.elapsed() < LISTING_LIFE
        {
            return Ok(Arc::clone(snapshots));
        }
        let snapshots = self.catalog.list().await?;
        let snapshots: Arc<[Snapshot]> = snapshots.into();
        *listing = Some((Instant::now(), Arc::clone(&snapshots)));
        Ok(snapshots)
    }
}

impl Nodes {
    fn push(&mut self, node: Node) -> u64 {
        self.list.push(node);
        self.list.len() as u64
    }

    /// The entry of a snapshot, made at first sight; what is told of it now counts.
    fn see(&mut self, snapshot: &Snapshot) -> Arc<Entry> {
        if let Some(entry) = self.snapshots.get(&snapshot.id) {
            if snapshot.state.is_some() {
                *entry.told.lock() = snapshot.clone();
            }
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry {
            id: snapshot.id.clone(),
            ino: self.list.len() as u64 + 1,
            told: Mutex::new(snapshot.clone()),
            image: OnceCell::new(),
        });
        self.push(Node::Snapshot(Arc::clone(&entry)));
        self.push(Node::Disk(Arc::clone(&entry)));
        self.push(Node::Description(Arc::clone(&entry)));
        self.snapshots
            .insert(snapshot.id.clone(), Arc::clone(&entry));
        entry
    }

    fn volume(&mut self, volume: &str) -> u64 {
        if let Some(ino) = self.volumes.get(volume) {
            return *ino;
        }
        let ino = self.push(Node::Volume(volume.to_owned()));
        self.volumes.insert(volume.to_owned(), ino);
        ino
    }

    fn link(&mut self, volume: &str, name: &str, target: String, time: SystemTime) -> u64 {
        let key = (volume.to_owned(), name.to_owned());
        if let Some(ino) = self.links.get(&key) {
            return *ino;
        }
        let ino = self.push(Node::Link { target, time });
        self.links.insert(key, ino);
        ino
    }
}

/// Name, target and time of each snapshot of a volume, by its start time; two of one second get their ids behind it.
fn links(volume: &str, listing: &[Snapshot]) -> Vec<(String, String, SystemTime)> {
    let of_volume = || {
        listing
            .iter()
            .filter(|snapshot| snapshot.volume_id.as_deref() == Some(volume))
            .filter_map(|snapshot| {
                let time = snapshot.start_time?;
                Some((
                    humantime::format_rfc3339_seconds(time).to_string(),
                    snapshot,
                    time,
                ))
            })
    };
    let mut count: HashMap<String, usize> = HashMap::new();
    for (name, ..) in of_volume() {
        *count.entry(name).or_default() += 1;
    }
    of_volume()
        .map(|(name, snapshot, time)| {
            let target = format!("../../snapshots/{}", snapshot.id);
            let name = match count.get(&name) {
                Some(1) => name,
                _ => format!("{name}.{}", snapshot.id),
            };
            (name, target, time)
        })
        .collect()
}

fn description(entry: &Entry) -> String {
    let told = entry.told.lock();
    // Nothing in a Snapshot can fail to serialise.
    let mut text = serde_json::to_string_pretty(&*told).unwrap_or_default();
    text.push('\n');
    text
}

/// Units of 512 bytes held. Where it is not known how much is held, all but one block: programs that compare this with
/// the size then look for holes, and none takes the file for empty, as GNU tar does when it is 0.
fn st_blocks(size: u64, full_size: Option<u64>) -> u64 {
    let held = full_size.unwrap_or_else(|| {
        size.saturating_sub(u64::from(BLOCK_SIZE))
            .max(u64::from(BLOCK_SIZE))
    });
    held.min(size).div_ceil(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, volume: &str, seconds: u64) -> Snapshot {
        let mut snapshot = Snapshot::unknown(id.parse().unwrap());
        snapshot.volume_id = Some(volume.to_owned());
        snapshot.start_time =
            Some(SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 5));
        snapshot
    }

    #[test]
    fn links_of_one_second_are_told_apart_by_id() {
        let listing = [
            snapshot("snap-a", "vol-1", 7),
            snapshot("snap-b", "vol-1", 8),
            snapshot("snap-c", "vol-1", 8),
            snapshot("snap-d", "vol-2", 7),
        ];
        let names: Vec<_> = links("vol-1", &listing)
            .into_iter()
            .map(|(name, ..)| name)
            .collect();
        assert_eq!(
            names,
            [
                "1970-01-01T00:00:07Z",
                "1970-01-01T00:00:08Z.snap-b",
                "1970-01-01T00:00:08Z.snap-c"
            ]
        );
    }

    #[test]
    fn blocks_are_counted_in_512_bytes_and_never_0_when_unknown() {
        assert_eq!(st_blocks(1 << 30, Some(1 << 20)), 2048);
        assert_eq!(st_blocks(1 << 30, Some(0)), 0);
        let unknown = st_blocks(1 << 30, None);
        assert!(unknown > 0 && unknown < (1 << 30) / 512);
    }
}
