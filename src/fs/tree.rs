//! What a mount shows: names, sizes, times, contents. It knows no fuser. Names and inode numbers are in [`names`], nodes that the
//! kernel knows in [`nodes`], maps and what is drawn of them in [`drawn`].
//!
//! ```text
//! snapshots/snap-A/disk.raw                     the volume at that instant
//! snapshots/snap-A/disk.vmdk, disk.vhd          the same in formats of other clouds
//! snapshots/snap-A/snapshot.json                what is known of it
//! snapshots/snap-A/blocks.*, heatmap.svg        what it holds
//! snapshots/snap-A/partitions/2-root.raw        a partition of it; snap-A does not list the folder
//! snapshots/snap-A/partitions/partitions.json   what is known of all of them
//! changes/snap-A..snap-B/delta.raw              B's bytes where it differs from A
//! changes/snap-A..snap-B/overlay.qcow2          the same, over the image of A
//! changes/snap-A..snap-B/changes.*, heatmap.svg where that is
//! changes/snap-A..snap-B/summary.json           how much that is
//! volumes/vol-1/2026-06-30T120000Z -> ../../snapshots/snap-A
//! volumes/vol-1/latest -> ../../snapshots/snap-A
//! ```

mod attributes;
mod contents;
mod drawn;
mod formatted;
mod listing;
mod names;
mod nodes;
mod partitions;
mod totals;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};
use crate::image::{Image, ReadaheadBudget};
use crate::maps::Map;
use crate::snapshot::{Snapshot, SnapshotId};
use crate::source::{Catalog, DeltaSource, held};

pub(crate) use attributes::Ownership;
pub(super) use attributes::{Attributes, FileKind, FolderEntry};
pub(super) use contents::Contents;
use contents::Rendered;
use drawn::{Drawings, Drawn};
use listing::{Listing, ShownListing};
pub(super) use names::NAME_MAX;
use names::{CHANGES, File, PARTITIONS, SNAPSHOTS, VOLUMES};
use nodes::{Node, Nodes, Subject, TreeSnapshot};
use partitions::KeptTables;
pub(crate) use totals::Provenance;

/// Most files whose size is remembered after a listing.
const MOST_SIZES: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
/// How much longer than a request work may take that several readers share: a call that fails by itself has a better reason.
const LISTING_GRACE: Duration = Duration::from_secs(1);

/// The tree of a mount.
pub(crate) struct Tree {
    catalog: Arc<dyn Catalog>,
    ownership: Ownership,
    readahead: Arc<ReadaheadBudget>,
    timeout: Duration,
    origin: Provenance,
    mounted: SystemTime,
    nodes: Mutex<Nodes>,
    drawings: Drawings,
    tables: KeptTables,
    sizes: Mutex<LruCache<u64, u64>>,
    listing: ShownListing,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({:?})", self.ownership)
    }
}

impl Tree {
    /// The tree of a catalog. It makes no request before its first lookup. A reader that waits for a listing gets an error one
    /// second after `timeout`; every other request fails by itself within `timeout`.
    pub(crate) fn new(
        catalog: Arc<dyn Catalog>,
        ownership: Ownership,
        readahead: Arc<ReadaheadBudget>,
        timeout: Duration,
        origin: Provenance,
    ) -> Self {
        Self {
            catalog,
            ownership,
            readahead,
            timeout,
            origin,
            mounted: SystemTime::now(),
            nodes: Mutex::default(),
            drawings: Drawings::new(),
            tables: KeptTables::new(),
            sizes: Mutex::new(LruCache::new(MOST_SIZES)),
            listing: ShownListing::default(),
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

    /// The node of an inode number. By an NFS handle the kernel can ask for a number that it has forgotten: that of a listed
    /// snapshot is found in the listing.
    async fn node(&self, ino: u64) -> Result<Node> {
        let known = self.nodes.lock().get(ino);
        if let Some(node) = known {
            return Ok(node);
        }
        let listing = self.listing().await?;
        let node = listing.by_inode(names::folder_inode(ino)).and_then(|of| {
            let head = self.nodes.lock().use_entry(of);
            Subject { base: None, head }.node(ino)
        });
        node.ok_or_else(|| Error::new(Kind::NotFound, format!("no inode {ino}")))
    }

    /// The inode number of the folder that an inode is in.
    pub(super) async fn parent(&self, ino: u64) -> Result<u64> {
        Ok(self.node(ino).await?.parent())
    }

    /// What a name in a folder is; `None` for a name that means nothing there. A snapshot id always means something: one
    /// that does not exist is an error with its reason. The answer counts as a lookup until [`Tree::forget`].
    pub(super) async fn lookup(&self, parent: u64, name: &str) -> Result<Option<Attributes>> {
        let folder = self.node(parent).await?;
        let found = match name {
            "." => Some(folder),
            ".." => Some(self.node(folder.parent()).await?),
            name => self.child(&folder, name).await?,
        };
        let Some(node) = found else {
            return Ok(None);
        };
        let attributes = self.attributes_of(&node).await?;
        self.nodes.lock().count(&node)?;
        Ok(Some(attributes))
    }

    async fn child(&self, folder: &Node, name: &str) -> Result<Option<Node>> {
        Ok(match folder {
            Node::Root => match name {
                "snapshots" => Some(Node::Snapshots),
                "changes" => Some(Node::Changes),
                "volumes" => Some(Node::Volumes),
                _ => None,
            },
            Node::Snapshots => match name.parse::<SnapshotId>() {
                Ok(id) => {
                    let head = self.entry(&id).await?;
                    Some(Node::Folder(Subject { base: None, head }))
                }
                Err(_) => None,
            },
            Node::Changes => match names::pair_of(name) {
                Some((base, head)) => {
                    let (base, head) = (self.entry(&base).await?, self.entry(&head).await?);
                    let base = Some(base);
                    Some(Node::Folder(Subject { base, head }))
                }
                None => None,
            },
            Node::Folder(Subject { base: None, head }) if name == PARTITIONS => {
                Some(Node::Partitions(Arc::clone(head)))
            }
            Node::Partitions(head) => self.partition(head, name).await?,
            Node::Folder(subject) => {
                let file = subject.files().find(|(_, known, _)| *known == name);
                match file {
                    Some((_, _, file)) if self.is_there(subject, file).await? => {
                        Some(Node::File(subject.clone(), file))
                    }
                    _ => None,
                }
            }
            Node::Volumes => {
                let listing = self.listing().await?;
                let volumes = names::volumes(&listing.snapshots);
                let found = volumes.binary_search(&name).is_ok();
                found.then(|| Node::Volume(name.into()))
            }
            Node::Volume(volume) => {
                let listing = self.listing().await?;
                let mut links = names::links(volume, &listing.snapshots).into_iter();
                let link = links.find(|link| link.name == name);
                link.map(|link| Node::Link(Arc::new(link)))
            }
            Node::File(..) | Node::Link(_) | Node::Partition(_) => None,
        })
    }

    /// Subtracts the lookups of an inode that the kernel forgets.
    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        self.nodes.lock().forget(ino, lookups);
    }

    /// What `stat` shows of an inode.
    pub(super) async fn attributes(&self, ino: u64) -> Result<Attributes> {
        let node = self.node(ino).await?;
        self.attributes_of(&node).await
    }

    async fn attributes_of(&self, node: &Node) -> Result<Attributes> {
        let ino = node.ino();
        let regular =
            |sizes, time, fixed| Attributes::regular(ino, self.ownership, sizes, time, fixed);
        Ok(match node {
            Node::Root | Node::Snapshots | Node::Changes | Node::Volumes | Node::Volume(_) => {
                Attributes::folder(ino, self.ownership, self.mounted)
            }
            Node::Folder(subject) => {
                Attributes::folder(ino, self.ownership, self.time_of(&subject.head))
            }
            Node::File(subject, File::Description) => {
                let size = description(&self.known(&subject.head)).len() as u64;
                regular((size, size), self.time_of(&subject.head), false)
            }
            Node::File(subject, file) => {
                let sizes = match file {
                    File::Disk => self.disk_size(subject, ino).await?,
                    File::Vmdk | File::Vhd => self.formatted_size(subject, *file).await?,
                    file => {
                        let size = self.listed_size(subject, *file, ino).await?;
                        (size, size)
                    }
                };
                // Without EC2 the time is not known yet, and may be known later.
                let start = self.known(&subject.head).start_time;
                regular(sizes, start.unwrap_or(self.mounted), start.is_some())
            }
            Node::Link(link) => Attributes::link(ino, &link.target(), link.time),
            Node::Partitions(head) => Attributes::folder(ino, self.ownership, self.time_of(head)),
            Node::Partition(node) => self.partition_attributes(node),
        })
    }

    /// Bytes of an image, and how many of them are held.
    async fn disk_size(&self, subject: &Subject, ino: u64) -> Result<(u64, u64)> {
        let entry = &subject.head;
        let known = self.known(entry);
        let size = match known.volume_size {
            Some(size) => size,
            None => self.image_of(entry).await?.size(),
        };
        if subject.base.is_none() {
            return Ok((size, attributes::held_bytes(size, known.full_size)));
        }
        Ok((size, self.listed_size(subject, File::Disk, ino).await?))
    }

    /// Bytes that need a listing: the size of a drawn file, or the bytes that a delta's image holds.
    async fn listed_size(&self, subject: &Subject, file: File, ino: u64) -> Result<u64> {
        let known = self.sizes.lock().get(&ino).copied();
        if let Some(size) = known {
            return Ok(size);
        }
        let size = match file {
            File::Disk => self.drawn(subject).await?.held(),
            File::Overlay => self.overlay(subject).await?.size(),
            file => self.rendered(subject, file).await?.size(),
        };
        self.sizes.lock().put(ino, size);
        Ok(size)
    }

    fn time_of(&self, entry: &TreeSnapshot) -> SystemTime {
        self.known(entry).start_time.unwrap_or(self.mounted)
    }

    /// The names in a folder, without `.` and `..`.
    pub(super) async fn lines(&self, ino: u64) -> Result<Vec<FolderEntry>> {
        let folder = |ino, name: &str| FolderEntry::new(ino, FileKind::Folder, name);
        Ok(match self.node(ino).await? {
            Node::Root => vec![
                folder(SNAPSHOTS, "snapshots"),
                folder(CHANGES, "changes"),
                folder(VOLUMES, "volumes"),
            ],
            Node::Snapshots => {
                let listing = self.listing().await?;
                let ids = listing.snapshots.iter().map(|snapshot| &snapshot.id);
                ids.map(|id| folder(names::snapshot_inode(id), id.as_str()))
                    .collect()
            }
            Node::Changes => {
                let listing = self.listing().await?;
                let pairs = names::neighbours(&listing.snapshots).into_iter();
                let ids = pairs.map(|(base, head)| (&base.id, &head.id));
                ids.map(|(base, head)| {
                    folder(names::pair_inode(base, head), &format!("{base}..{head}"))
                })
                .collect()
            }
            Node::Volumes => {
                let listing = self.listing().await?;
                let volumes = names::volumes(&listing.snapshots).into_iter();
                volumes
                    .map(|volume| folder(names::volume_inode(volume), volume))
                    .collect()
            }
            Node::Volume(volume) => {
                let listing = self.listing().await?;
                let links = names::links(&volume, &listing.snapshots).into_iter();
                links
                    .map(|link| FolderEntry::new(link.ino, FileKind::Link, &link.name))
                    .collect()
            }
            Node::Folder(subject) => subject
                .files()
                .filter(|(.., file)| self.is_listed(&subject, *file))
                .map(|(ino, name, _)| FolderEntry::new(ino, FileKind::Regular, name))
                .collect(),
            Node::Partitions(head) => self.partition_lines(&head).await?,
            Node::File(..) | Node::Link(_) | Node::Partition(_) => {
                return Err(Error::new(Kind::Invalid, "not a folder"));
            }
        })
    }

    /// Where a link leads.
    pub(super) fn link(&self, ino: u64) -> Result<String> {
        match self.nodes.lock().get(ino) {
            Some(Node::Link(link)) => Ok(link.target()),
            _ => Err(Error::new(Kind::Invalid, "not a link")),
        }
    }

    /// The contents of a file. It waits for the listing that they need; reads then wait for blocks only.
    pub(super) async fn contents(&self, ino: u64) -> Result<Contents> {
        let (subject, file) = match self.node(ino).await? {
            Node::File(subject, file) => (subject, file),
            Node::Partition(node) => return self.partition_contents(&node).await,
            _ => return Err(Error::new(Kind::Invalid, "not a file")),
        };
        Ok(match (file, &subject.base) {
            (File::Disk, None) => Contents::Image(self.image_of(&subject.head).await?),
            (File::Disk, Some(_)) => {
                let image = self.drawn(&subject).await?.image();
                let image = image.ok_or_else(|| Error::new(Kind::Invalid, "no image"))?;
                Contents::Image(image)
            }
            (File::Vhd, None) => Contents::Formatted(self.vhd_file(&subject).await?),
            (File::Vmdk, None) => Contents::Rendered(self.vmdk_file(&subject).await?),
            (File::Overlay, Some(_)) => Contents::Formatted(self.overlay(&subject).await?),
            (File::Description, _) => {
                Contents::Description(description(&self.known(&subject.head)))
            }
            _ => Contents::Rendered(self.rendered(&subject, file).await?),
        })
    }

    /// The known extended attributes `user.ebs.*` of a snapshot's image and folder.
    pub(super) fn xattrs(&self, ino: u64) -> Vec<(&'static str, String)> {
        let head = match self.nodes.lock().get(ino) {
            Some(Node::Folder(subject) | Node::File(subject, File::Disk))
                if subject.base.is_none() =>
            {
                subject.head
            }
            Some(Node::Partition(node)) if node.is_image() => Arc::clone(&node.head),
            _ => return Vec::new(),
        };
        let all = self.known(&head).attributes();
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// A snapshot that is in use, listed, or opened now; any id can be opened, listed or not.
    async fn entry(&self, id: &SnapshotId) -> Result<Arc<TreeSnapshot>> {
        let in_use = self.nodes.lock().entry(id);
        if let Some(entry) = in_use {
            return Ok(entry);
        }
        let listing = self.listing.last();
        let listed = listing.and_then(|listing| {
            let found = listing.by_inode(names::snapshot_inode(id));
            found.filter(|of| of.id == *id).cloned()
        });
        let snapshot = match listed {
            Some(snapshot) => snapshot,
            // Opening proves that it exists, and gets its description from EC2.
            None => Arc::new(self.catalog.open(id).await?.0),
        };
        Ok(self.nodes.lock().use_entry(&snapshot))
    }

    /// The image of a snapshot: one for all its open files.
    async fn image_of(&self, entry: &TreeSnapshot) -> Result<Arc<Image>> {
        let mut image = entry.image.lock().await;
        if let Some(image) = image.upgrade() {
            return Ok(image);
        }
        let (snapshot, source) = self.catalog.open(&entry.id).await?;
        {
            // An empty description never replaces another one.
            let mut description = entry.description.lock();
            if snapshot.state.is_some() || description.state.is_none() {
                *description = Arc::new(snapshot);
            }
        }
        let opened = Arc::new(Image::new(source, Arc::clone(&self.readahead)));
        *image = Arc::downgrade(&opened);
        Ok(opened)
    }

    /// The map of a folder, by the one listing that all its files share.
    async fn drawn(&self, subject: &Subject) -> Result<Arc<Drawn>> {
        let drawn = self.drawings.of(subject.ino(), self.list(subject));
        self.in_time(subject, drawn).await
    }

    async fn rendered(&self, subject: &Subject, file: File) -> Result<Rendered> {
        let drawn = self.drawings.of(subject.ino(), self.list(subject));
        let rendered = async { self.drawings.render(&*drawn.await?, file).await };
        self.in_time(subject, rendered).await
    }

    /// Waits for work that several readers share, no longer than one reader may wait.
    async fn in_time<T>(
        &self,
        subject: &Subject,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match timeout(self.timeout + LISTING_GRACE, work).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(
                Kind::Pending,
                format!("{subject} is still being listed: try again, the listing continues"),
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

    /// The account's snapshots. A reader waits no longer than for any other request; the listing continues, and the next reader
    /// joins it.
    async fn listing(&self) -> Result<Arc<Listing>> {
        let listed = self.listing.get(&*self.catalog);
        let listed = timeout(self.timeout + LISTING_GRACE, listed).await;
        listed.unwrap_or_else(|_| {
            let what = "the snapshots are still being listed: try again, the listing continues";
            Err(Error::new(Kind::Pending, what))
        })
    }

    /// The newest known description of a snapshot.
    fn known(&self, entry: &TreeSnapshot) -> Arc<Snapshot> {
        let known = self.catalog.known(&entry.id);
        known.unwrap_or_else(|| Arc::clone(&entry.description.lock()))
    }
}

fn description(snapshot: &Snapshot) -> String {
    // Nothing in a Snapshot can fail to serialise.
    let mut text = serde_json::to_string_pretty(snapshot).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
