//! What a mount shows: names, sizes, times, contents. It knows no fuser. Inodes are in [`nodes`], maps and what is drawn of
//! them in [`drawn`].
//!
//! ```text
//! snapshots/snap-A/disk.raw                     the volume at that instant
//! snapshots/snap-A/snapshot.json                what is known of it
//! snapshots/snap-A/blocks.*, heatmap.svg        what it holds
//! changes/snap-A..snap-B/delta.raw              B's bytes where it differs from A
//! changes/snap-A..snap-B/changes.*, heatmap.svg where that is
//! changes/snap-A..snap-B/summary.json           how much that is
//! volumes/vol-1/2026-06-30T12:00:00Z -> ../../snapshots/snap-A
//! ```

mod contents;
mod drawn;
mod nodes;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::time::timeout;

use crate::block::BLOCK_SIZE;
use crate::error::{Error, Kind, Result};
use crate::image::{Image, ReadaheadBudget};
use crate::maps::Map;
use crate::snapshot::{Snapshot, SnapshotId};
use crate::source::{Catalog, DeltaSource, held};

pub(super) use contents::Contents;
use contents::Rendered;
use drawn::{Drawings, Drawn};
use nodes::{CHANGES, Entry, File, Node, Nodes, SNAPSHOTS, Subject, VOLUMES};

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
    /// Whether all of this stays as it is.
    pub(super) fixed: bool,
}

/// One line of a folder.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) ino: u64,
    pub(super) kind: FileKind,
    pub(super) name: String,
}

/// The listing of the account's snapshots that is shown, and when it was asked for.
#[derive(Default)]
struct ShownListing {
    /// With the time after which it is asked for again.
    shown: Option<(Instant, Arc<[Arc<Snapshot>]>)>,
    /// Since when the next one is waited for.
    waits: Option<Instant>,
}

/// The tree of a mount.
pub struct Tree {
    catalog: Arc<dyn Catalog>,
    ownership: Ownership,
    readahead: Arc<ReadaheadBudget>,
    timeout: Duration,
    mounted: SystemTime,
    nodes: Mutex<Nodes>,
    drawings: Drawings,
    listing: tokio::sync::Mutex<ShownListing>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({:?})", self.ownership)
    }
}

impl Tree {
    /// The tree of a catalog. It makes no call before it is looked at. Who waits for a long listing is told to ask again
    /// after `timeout`, in which all else has given up by itself.
    pub fn new(
        catalog: Arc<dyn Catalog>,
        ownership: Ownership,
        readahead: Arc<ReadaheadBudget>,
        timeout: Duration,
    ) -> Self {
        Self {
            catalog,
            ownership,
            readahead,
            timeout,
            mounted: SystemTime::now(),
            nodes: Mutex::new(Nodes::new()),
            drawings: Drawings::new(),
            listing: tokio::sync::Mutex::default(),
        }
    }

    /// Who owns the tree.
    pub(super) fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// How long a request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    fn node(&self, ino: u64) -> Result<Node> {
        let node = self.nodes.lock().get(ino);
        node.ok_or_else(|| Error::new(Kind::NotFound, format!("no inode {ino}")))
    }

    /// What a name in a folder is; `None` for a name that means nothing there. A snapshot id always means something: one
    /// that does not exist is an error with its reason.
    pub(super) async fn lookup(&self, parent: u64, name: &str) -> Result<Option<Attributes>> {
        let parent_node = self.node(parent)?;
        let ino = match &parent_node {
            Node::Root if name == "snapshots" => SNAPSHOTS,
            Node::Root if name == "changes" => CHANGES,
            Node::Root if name == "volumes" => VOLUMES,
            Node::Snapshots => {
                let Ok(id) = name.parse::<SnapshotId>() else {
                    return Ok(None);
                };
                self.snapshot(&id).await?.ino
            }
            Node::Changes => {
                let Some((base, head)) = nodes::pair_of(name) else {
                    return Ok(None);
                };
                let (base, head) = (self.snapshot(&base).await?, self.snapshot(&head).await?);
                self.nodes.lock().pair(&base.head, &head.head).ino
            }
            Node::Folder(subject) => match subject.files().find(|(_, known, _)| *known == name) {
                Some((ino, ..)) => ino,
                None => return Ok(None),
            },
            Node::Volumes => {
                // Without the lines: an account has thousands of volumes, and each is looked up.
                let listing = self.listing().await?;
                let is_it = |of: &Arc<Snapshot>| of.volume_id.as_deref() == Some(name);
                if !listing.iter().any(is_it) {
                    return Ok(None);
                }
                self.nodes.lock().volume(name)
            }
            Node::Volume(_) => {
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
        let shape = |kind, size, held: u64, time, fixed| {
            let read = self.ownership.mode & 0o444;
            Attributes {
                ino,
                kind,
                size,
                blocks: held.div_ceil(512),
                mode: match kind {
                    FileKind::Folder => read | read >> 2,
                    FileKind::Regular => read,
                    FileKind::Link => 0o777,
                },
                time,
                fixed,
            }
        };
        let folder = |time| shape(FileKind::Folder, 0, 0, time, false);
        let regular = |size, held, time, fixed| shape(FileKind::Regular, size, held, time, fixed);
        Ok(match self.node(ino)? {
            Node::Root | Node::Snapshots | Node::Changes | Node::Volumes | Node::Volume(_) => {
                folder(self.mounted)
            }
            Node::Folder(subject) => folder(self.time_of(&subject.head)),
            Node::File(subject, File::Description) => {
                let size = description(&self.known(&subject.head)).len() as u64;
                regular(size, size, self.time_of(&subject.head), false)
            }
            Node::File(subject, file) => {
                let (size, held) = match file {
                    File::Disk => self.disk_size(&subject).await?,
                    file => {
                        let size = self.listed_size(&subject, file).await?;
                        (size, size)
                    }
                };
                // Its time is known later where EC2 could not be asked.
                let known = self.known(&subject.head);
                let fixed = known.start_time.is_some();
                let time = known.start_time.unwrap_or(self.mounted);
                regular(size, held, time, fixed)
            }
            Node::Link { target, time } => {
                shape(FileKind::Link, target.len() as u64, 0, time, false)
            }
        })
    }

    /// Bytes of an image, and how many of them are held.
    async fn disk_size(&self, subject: &Subject) -> Result<(u64, u64)> {
        let entry = &subject.head;
        let known = self.known(entry);
        let size = match known.volume_size {
            Some(size) => size,
            None => self.image_of(entry).await?.size(),
        };
        if subject.base.is_none() {
            return Ok((size, held_bytes(size, known.full_size)));
        }
        Ok((size, self.listed_size(subject, File::Disk).await?))
    }

    /// Bytes that only a listing tells: all of a file that is drawn, what a delta's image holds.
    async fn listed_size(&self, subject: &Subject, file: File) -> Result<u64> {
        let known = subject.sizes.lock().get(&file).copied();
        if let Some(size) = known {
            return Ok(size);
        }
        let size = match file {
            File::Disk => self.drawn(subject).await?.held(),
            file => self.rendered(subject, file).await?.size(),
        };
        subject.sizes.lock().insert(file, size);
        Ok(size)
    }

    fn time_of(&self, entry: &Entry) -> SystemTime {
        self.known(entry).start_time.unwrap_or(self.mounted)
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
                line(CHANGES, FileKind::Folder, "changes"),
                line(VOLUMES, FileKind::Folder, "volumes"),
            ],
            Node::Snapshots => {
                let listing = self.listing().await?;
                let mut nodes = self.nodes.lock();
                listing
                    .iter()
                    .map(|snapshot| {
                        let subject = nodes.see(snapshot);
                        line(subject.ino, FileKind::Folder, snapshot.id.as_str())
                    })
                    .collect()
            }
            Node::Changes => {
                let listing = self.listing().await?;
                let mut nodes = self.nodes.lock();
                nodes::neighbours(&listing)
                    .into_iter()
                    .map(|(base, head)| {
                        let (base, head) = (nodes.see(base), nodes.see(head));
                        let pair = nodes.pair(&base.head, &head.head);
                        line(pair.ino, FileKind::Folder, &pair.to_string())
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
                nodes::links(&volume, &listing)
                    .into_iter()
                    .map(|(name, target, time)| {
                        let ino = nodes.link(&volume, &name, target, time);
                        line(ino, FileKind::Link, &name)
                    })
                    .collect()
            }
            Node::Folder(subject) => subject
                .files()
                .map(|(ino, name, _)| line(ino, FileKind::Regular, name))
                .collect(),
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

    /// What a file reads as: no waiting once it is open.
    pub(super) async fn contents(&self, ino: u64) -> Result<Contents> {
        let Node::File(subject, file) = self.node(ino)? else {
            return Err(Error::new(Kind::Invalid, "not a file"));
        };
        Ok(match (file, &subject.base) {
            (File::Disk, None) => Contents::Image(self.image_of(&subject.head).await?),
            (File::Disk, Some(_)) => {
                let image = self.drawn(&subject).await?.image();
                let image = image.ok_or_else(|| Error::new(Kind::Invalid, "no image"))?;
                Contents::Image(image)
            }
            (File::Description, _) => {
                Contents::Description(description(&self.known(&subject.head)))
            }
            _ => Contents::Rendered(self.rendered(&subject, file).await?),
        })
    }

    /// The extended attributes of a snapshot's image and folder: `user.ebs.*`, those that are known.
    pub(super) fn xattrs(&self, ino: u64) -> Result<Vec<(&'static str, String)>> {
        let subject = match self.node(ino)? {
            Node::Folder(subject) | Node::File(subject, File::Disk) if subject.base.is_none() => {
                subject
            }
            _ => return Ok(Vec::new()),
        };
        let all = self.known(&subject.head).attributes();
        Ok(all
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect())
    }

    /// The folder of a snapshot that has been seen, or is now looked up: any id can be, listed or not.
    async fn snapshot(&self, id: &SnapshotId) -> Result<Arc<Subject>> {
        if let Some(subject) = self.nodes.lock().snapshot(id) {
            return Ok(subject);
        }
        // Opening tells whether it exists, and what EC2 knows of it.
        let (snapshot, _) = self.catalog.open(id).await?;
        Ok(self.nodes.lock().see(&Arc::new(snapshot)))
    }

    async fn image_of(&self, entry: &Entry) -> Result<Arc<Image>> {
        let image = entry.image.get_or_try_init(|| async {
            let (snapshot, source) = self.catalog.open(&entry.id).await?;
            // A description is never replaced by none.
            let mut told = entry.told.lock();
            if snapshot.state.is_some() || told.state.is_none() {
                *told = Arc::new(snapshot);
            }
            drop(told);
            Ok(Arc::new(Image::new(source, Arc::clone(&self.readahead))))
        });
        image.await.cloned()
    }

    /// The map of a folder, by the one listing that all its files share.
    async fn drawn(&self, subject: &Subject) -> Result<Arc<Drawn>> {
        let drawn = self.drawings.of(subject.ino, self.list(subject));
        self.in_time(subject, drawn).await
    }

    async fn rendered(&self, subject: &Subject, file: File) -> Result<Rendered> {
        let drawn = self.drawings.of(subject.ino, self.list(subject));
        let rendered = async { self.drawings.render(&*drawn.await?, file).await };
        self.in_time(subject, rendered).await
    }

    /// Waits for what is done once for all, no longer than a reader may wait.
    async fn in_time<T>(
        &self,
        subject: &Subject,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // A call that fails by itself has a better reason, at its own deadline.
        match timeout(self.timeout + Duration::from_secs(1), work).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(
                Kind::Pending,
                format!("{subject} is still being listed: whoever asks again goes on with it"),
            )),
        }
    }

    async fn list(&self, subject: &Subject) -> Result<Arc<Drawn>> {
        let head = &subject.head.id;
        let Some(base) = &subject.base else {
            let (_, source) = self.catalog.open(head).await?;
            let held = Arc::new(held(&*source).await?);
            let map = Map::Blocks(source.geometry(), held);
            return Ok(Drawn::new(map, (None, head.to_string()), None));
        };
        let (delta, source) = self.catalog.delta(&base.id, head).await?;
        let source = DeltaSource::new(Arc::clone(&delta), source);
        let image = Image::new(Arc::new(source), Arc::clone(&self.readahead));
        let names = (Some(base.id.to_string()), head.to_string());
        Ok(Drawn::new(
            Map::Changes(delta),
            names,
            Some(Arc::new(image)),
        ))
    }

    /// The account's snapshots. A reader waits no longer than for anything else: the listing continues, and the next reader
    /// joins it.
    async fn listing(&self) -> Result<Arc<[Arc<Snapshot>]>> {
        let listed = timeout(self.timeout + Duration::from_secs(1), self.listed()).await;
        listed.unwrap_or_else(|_| {
            let what = "the snapshots are still being listed: try again, the listing continues";
            Err(Error::new(Kind::Pending, what))
        })
    }

    async fn listed(&self) -> Result<Arc<[Arc<Snapshot>]>> {
        let mut listing = self.listing.lock().await;
        if let Some((until, snapshots)) = &listing.shown
            && Instant::now() < *until
        {
            return Ok(Arc::clone(snapshots));
        }
        let since = *listing.waits.get_or_insert_with(Instant::now);
        let listed = self.catalog.list().await;
        listing.waits = None;
        let snapshots: Arc<[Arc<Snapshot>]> = listed?.into();
        // One that takes minutes is not made again every minute.
        let until = Instant::now() + LISTING_LIFE.max(since.elapsed());
        listing.shown = Some((until, Arc::clone(&snapshots)));
        Ok(snapshots)
    }

    /// The newest that is known of a snapshot.
    fn known(&self, entry: &Entry) -> Arc<Snapshot> {
        let known = self.catalog.known(&entry.id);
        known.unwrap_or_else(|| Arc::clone(&entry.told.lock()))
    }
}

fn description(snapshot: &Snapshot) -> String {
    // Nothing in a Snapshot can fail to serialise.
    let mut text = serde_json::to_string_pretty(snapshot).unwrap_or_default();
    text.push('\n');
    text
}

/// Bytes held. Where it is not known how many, all but one block: programs that compare this with the size then look for
/// holes, and none takes the file for empty, as GNU tar does when it is 0.
fn held_bytes(size: u64, full_size: Option<u64>) -> u64 {
    let held = full_size.unwrap_or_else(|| {
        size.saturating_sub(u64::from(BLOCK_SIZE))
            .max(u64::from(BLOCK_SIZE))
    });
    held.min(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_held_are_never_0_when_unknown() {
        assert_eq!(held_bytes(1 << 30, Some(1 << 20)), 1 << 20);
        assert_eq!(held_bytes(1 << 30, Some(0)), 0);
        let unknown = held_bytes(1 << 30, None);
        assert!(unknown > 0 && unknown < 1 << 30);
    }
}
