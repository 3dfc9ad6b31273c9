//! [`Nodes`]: the nodes that the kernel knows, by inode number, each with the count of lookups that it has not forgotten.
//! A node that the kernel forgets is dropped; its name gives it the same number again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::names::{
    self, CHANGES, File, FileTable, PAIR_FILES, ROOT, SNAPSHOT_FILES, SNAPSHOTS, VOLUMES,
    VolumeLink,
};
use super::partitions::PartitionNode;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::snapshot::{Snapshot, SnapshotId};

/// What an inode is.
#[derive(Clone)]
pub(super) enum Node {
    Root,
    Snapshots,
    Changes,
    Volumes,
    /// The folder of a snapshot or of a pair.
    Folder(Subject),
    /// A file in it.
    File(Subject, File),
    /// The links of one volume's snapshots.
    Volume(Arc<str>),
    Link(Arc<VolumeLink>),
    /// The folder of a snapshot's partitions.
    Partitions(Arc<TreeSnapshot>),
    Partition(Arc<PartitionNode>),
}

/// A snapshot in use.
pub(super) struct TreeSnapshot {
    pub(super) id: SnapshotId,
    /// The newest description, from a listing or an opening.
    pub(super) description: Mutex<Arc<Snapshot>>,
    /// Its image while a file is open.
    pub(super) image: tokio::sync::Mutex<Weak<Image>>,
}

/// The snapshot or pair that a folder shows.
#[derive(Clone)]
pub(super) struct Subject {
    /// The base of the changes; `None` for the folder of a snapshot.
    pub(super) base: Option<Arc<TreeSnapshot>>,
    /// The snapshot, or the head of the changes.
    pub(super) head: Arc<TreeSnapshot>,
}

impl Subject {
    /// The folder's inode number.
    pub(super) fn ino(&self) -> u64 {
        match &self.base {
            Some(base) => names::pair_inode(&base.id, &self.head.id),
            None => names::snapshot_inode(&self.head.id),
        }
    }

    fn table(&self) -> &'static FileTable {
        match self.base {
            Some(_) => PAIR_FILES,
            None => SNAPSHOT_FILES,
        }
    }

    /// The names in the folder, each with its inode number.
    pub(super) fn files(&self) -> impl Iterator<Item = (u64, &'static str, File)> {
        let folder = self.ino();
        let files = self.table().iter().enumerate();
        files.map(move |(number, (name, file))| (names::file_inode(folder, number), *name, *file))
    }

    /// The inode number of a file.
    fn file_ino(&self, file: File) -> u64 {
        let number = self.table().iter().position(|(_, known)| *known == file);
        // Each file of a node came from this table.
        names::file_inode(self.ino(), number.unwrap_or_default())
    }

    /// The folder, or the file that the number stands for.
    pub(super) fn node(self, ino: u64) -> Option<Node> {
        let Some(number) = names::file_number(ino) else {
            return Some(Node::Folder(self));
        };
        let (_, file) = *self.table().get(number)?;
        Some(Node::File(self, file))
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.base {
            Some(base) => write!(f, "{}..{}", base.id, self.head.id),
            None => self.head.id.fmt(f),
        }
    }
}

impl Node {
    /// The node's inode number.
    pub(super) fn ino(&self) -> u64 {
        match self {
            Self::Root => ROOT,
            Self::Snapshots => SNAPSHOTS,
            Self::Changes => CHANGES,
            Self::Volumes => VOLUMES,
            Self::Folder(subject) => subject.ino(),
            Self::File(subject, file) => subject.file_ino(*file),
            Self::Volume(volume) => names::volume_inode(volume),
            Self::Link(link) => link.ino,
            Self::Partitions(head) => names::partitions_inode(&head.id),
            Self::Partition(node) => node.ino(),
        }
    }

    /// The inode number of the folder that it is in; the mountpoint is its own.
    pub(super) fn parent(&self) -> u64 {
        match self {
            Self::Root | Self::Snapshots | Self::Changes | Self::Volumes => ROOT,
            Self::Folder(subject) if subject.base.is_some() => CHANGES,
            Self::Folder(_) => SNAPSHOTS,
            Self::File(subject, _) => subject.ino(),
            Self::Volume(_) => VOLUMES,
            Self::Link(link) => link.folder,
            Self::Partitions(head) => names::snapshot_inode(&head.id),
            Self::Partition(node) => names::partitions_inode(&node.head.id),
        }
    }

    /// Whether two nodes of one number are the same thing.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Folder(one), Self::Folder(other)) => {
                let base = |subject: &Subject| subject.base.as_ref().map(|base| base.id.clone());
                one.head.id == other.head.id && base(one) == base(other)
            }
            (Self::Volume(one), Self::Volume(other)) => one == other,
            (Self::Link(one), Self::Link(other)) => {
                (one.folder, &one.name) == (other.folder, &other.name)
            }
            (Self::Partitions(one), Self::Partitions(other)) => one.id == other.id,
            (Self::Partition(one), Self::Partition(other)) => {
                (&one.head.id, &one.name) == (&other.head.id, &other.name)
            }
            _ => false,
        }
    }
}

/// A folder with its files, or a link, and the number of its lookups that the kernel has not forgotten.
struct CountedNode {
    node: Node,
    lookups: u64,
}

/// The nodes that the kernel knows.
#[derive(Default)]
pub(super) struct Nodes {
    /// A tree and no hash table: a million nodes take 60 MB, and no copy of all of them while it grows.
    by_ino: BTreeMap<u64, CountedNode>,
    /// The snapshots in use, by a node or by an open file.
    entries: HashMap<SnapshotId, Weak<TreeSnapshot>>,
    /// How many entries there were after the last sweep of dropped ones.
    swept: usize,
}

impl Nodes {
    /// The node of a number that the kernel knows, or of a fixed folder.
    pub(super) fn get(&self, ino: u64) -> Option<Node> {
        match ino {
            ROOT => return Some(Node::Root),
            SNAPSHOTS => return Some(Node::Snapshots),
            CHANGES => return Some(Node::Changes),
            VOLUMES => return Some(Node::Volumes),
            _ => {}
        }
        match &self.by_ino.get(&names::folder_inode(ino))?.node {
            Node::Folder(subject) => subject.clone().node(ino),
            node if names::file_number(ino).is_none() => Some(node.clone()),
            _ => None,
        }
    }

    /// Counts a lookup before its answer goes to the kernel.
    ///
    /// # Errors
    /// `Io` when the kernel knows another node by this number: a chance of 1 in 10^5 with a million nodes.
    pub(super) fn count(&mut self, node: &Node) -> Result<()> {
        let folder = match node {
            Node::Root | Node::Snapshots | Node::Changes | Node::Volumes => return Ok(()),
            Node::File(subject, _) => Node::Folder(subject.clone()),
            other => other.clone(),
        };
        let counted = self.by_ino.entry(folder.ino()).or_insert(CountedNode {
            node: folder.clone(),
            lookups: 0,
        });
        if !counted.node.is_same(&folder) {
            let what = "two names have the same inode number: unmount and mount again";
            return Err(Error::new(Kind::Io, what));
        }
        // After a new snapshot `latest` has another target under the same number.
        counted.node = folder;
        counted.lookups += 1;
        Ok(())
    }

    /// Subtracts lookups that the kernel forgets, and drops the node with its last one.
    pub(super) fn forget(&mut self, ino: u64, lookups: u64) {
        let folder = names::folder_inode(ino);
        let Some(counted) = self.by_ino.get_mut(&folder) else {
            return;
        };
        counted.lookups = counted.lookups.saturating_sub(lookups);
        if counted.lookups == 0 {
            self.by_ino.remove(&folder);
        }
    }

    /// How many nodes the kernel knows, besides the fixed folders.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_ino.len()
    }

    /// A snapshot in use.
    pub(super) fn entry(&self, id: &SnapshotId) -> Option<Arc<TreeSnapshot>> {
        self.entries.get(id)?.upgrade()
    }

    /// Marks a snapshot as in use. A description with a state replaces the one before.
    pub(super) fn use_entry(&mut self, snapshot: &Arc<Snapshot>) -> Arc<TreeSnapshot> {
        if let Some(entry) = self.entry(&snapshot.id) {
            if snapshot.state.is_some() {
                *entry.description.lock() = Arc::clone(snapshot);
            }
            return entry;
        }
        if self.entries.len() > 2 * self.swept + 64 {
            self.entries.retain(|_, entry| entry.strong_count() > 0);
            self.swept = self.entries.len();
        }
        let entry = Arc::new(TreeSnapshot {
            id: snapshot.id.clone(),
            description: Mutex::new(Arc::clone(snapshot)),
            image: tokio::sync::Mutex::default(),
        });
        let id = snapshot.id.clone();
        self.entries.insert(id, Arc::downgrade(&entry));
        entry
    }

    /// The snapshots in use.
    pub(super) fn entries(&self) -> impl Iterator<Item = Arc<TreeSnapshot>> {
        self.entries.values().filter_map(Weak::upgrade)
    }
}
