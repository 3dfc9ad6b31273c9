//! Names and inodes. An inode is given out at the first sight of a name and stays for the life of the mount; a folder of a
//! snapshot or of a pair and its files take a row of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::image::Image;
use crate::maps::Format;
use crate::snapshot::{Snapshot, SnapshotId, State};

pub(super) const SNAPSHOTS: u64 = 2;
pub(super) const CHANGES: u64 = 3;
pub(super) const VOLUMES: u64 = 4;

/// The volume id of snapshots that are copies or were made by the direct APIs: it is no volume.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Snapshot.html>
const NO_VOLUME: &str = "vol-ffffffff";

/// A file in the folder of a snapshot or of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum File {
    /// The volume, or what of it differs.
    Disk,
    /// What EC2 knows of a snapshot.
    Description,
    /// Which blocks are held, or differ.
    Map(Format),
    /// What a delta comes to.
    Summary,
    /// A picture of the map.
    Heatmap,
}

const SNAPSHOT_FILES: [(&str, File); 7] = [
    ("disk.raw", File::Disk),
    ("snapshot.json", File::Description),
    ("blocks.json", File::Map(Format::Json)),
    ("blocks.csv", File::Map(Format::Csv)),
    ("blocks.bmap", File::Map(Format::Bmap)),
    ("blocks.mapfile", File::Map(Format::Mapfile)),
    ("heatmap.svg", File::Heatmap),
];

const PAIR_FILES: [(&str, File); 7] = [
    ("delta.raw", File::Disk),
    ("summary.json", File::Summary),
    ("changes.json", File::Map(Format::Json)),
    ("changes.csv", File::Map(Format::Csv)),
    ("changes.bmap", File::Map(Format::Bmap)),
    ("changes.mapfile", File::Map(Format::Mapfile)),
    ("heatmap.svg", File::Heatmap),
];

/// What an inode is.
#[derive(Clone)]
pub(super) enum Node {
    Root,
    Snapshots,
    Changes,
    Volumes,
    /// The folder of a snapshot or of a pair.
    Folder(Arc<Subject>),
    /// A file in it.
    File(Arc<Subject>, File),
    /// The links of one volume's snapshots.
    Volume(String),
    Link {
        target: String,
        time: SystemTime,
    },
}

/// A snapshot that has been seen.
pub(super) struct Entry {
    pub(super) id: SnapshotId,
    /// The description of the listing or opening that showed it.
    pub(super) told: Mutex<Arc<Snapshot>>,
    pub(super) image: OnceCell<Arc<Image>>,
}

/// What a folder is about.
pub(super) struct Subject {
    /// The folder's inode; its files have the next ones.
    pub(super) ino: u64,
    /// What the changes start from; none for the folder of a snapshot.
    pub(super) base: Option<Arc<Entry>>,
    /// The snapshot, or what the changes lead to.
    pub(super) head: Arc<Entry>,
    /// Sizes of files that took a listing to be known.
    pub(super) sizes: Mutex<HashMap<File, u64>>,
}

impl Subject {
    /// The names in the folder, each with its inode.
    pub(super) fn files(&self) -> impl Iterator<Item = (u64, &'static str, File)> {
        let files = match self.base {
            Some(_) => &PAIR_FILES,
            None => &SNAPSHOT_FILES,
        };
        (self.ino + 1..)
            .zip(files)
            .map(|(ino, (name, file))| (ino, *name, *file))
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

/// All that has been seen.
pub(super) struct Nodes {
    /// Nodes by inode, from 1.
    list: Vec<Node>,
    snapshots: HashMap<SnapshotId, Arc<Subject>>,
    pairs: HashMap<(SnapshotId, SnapshotId), Arc<Subject>>,
    volumes: HashMap<String, u64>,
    links: HashMap<(String, String), u64>,
}

impl Nodes {
    pub(super) fn new() -> Self {
        Self {
            list: vec![Node::Root, Node::Snapshots, Node::Changes, Node::Volumes],
            snapshots: HashMap::new(),
            pairs: HashMap::new(),
            volumes: HashMap::new(),
            links: HashMap::new(),
        }
    }

    pub(super) fn get(&self, ino: u64) -> Option<Node> {
        let at = usize::try_from(ino.checked_sub(1)?).ok()?;
        self.list.get(at).cloned()
    }

    fn push(&mut self, node: Node) -> u64 {
        self.list.push(node);
        self.list.len() as u64
    }

    /// The folder of a snapshot that has been seen.
    pub(super) fn snapshot(&self, id: &SnapshotId) -> Option<Arc<Subject>> {
        self.snapshots.get(id).cloned()
    }

    /// The folder of a snapshot, made at first sight; what is told of it now counts.
    pub(super) fn see(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Subject> {
        if let Some(subject) = self.snapshots.get(&snapshot.id) {
            if snapshot.state.is_some() {
                *subject.head.told.lock() = Arc::clone(snapshot);
            }
            return Arc::clone(subject);
        }
        let entry = Arc::new(Entry {
            id: snapshot.id.clone(),
            told: Mutex::new(Arc::clone(snapshot)),
            image: OnceCell::new(),
        });
        let subject = self.folder(None, entry);
        self.snapshots
            .insert(snapshot.id.clone(), Arc::clone(&subject));
        subject
    }

    /// The folder of a pair, made at first sight.
    pub(super) fn pair(&mut self, base: &Arc<Entry>, head: &Arc<Entry>) -> Arc<Subject> {
        let key = (base.id.clone(), head.id.clone());
        if let Some(subject) = self.pairs.get(&key) {
            return Arc::clone(subject);
        }
        let subject = self.folder(Some(Arc::clone(base)), Arc::clone(head));
        self.pairs.insert(key, Arc::clone(&subject));
        subject
    }

    fn folder(&mut self, base: Option<Arc<Entry>>, head: Arc<Entry>) -> Arc<Subject> {
        let subject = Arc::new(Subject {
            ino: self.list.len() as u64 + 1,
            base,
            head,
            sizes: Mutex::default(),
        });
        self.push(Node::Folder(Arc::clone(&subject)));
        for (_, _, file) in subject.files() {
            self.push(Node::File(Arc::clone(&subject), file));
        }
        subject
    }

    pub(super) fn volume(&mut self, volume: &str) -> u64 {
        if let Some(ino) = self.volumes.get(volume) {
            return *ino;
        }
        let ino = self.push(Node::Volume(volume.to_owned()));
        self.volumes.insert(volume.to_owned(), ino);
        ino
    }

    pub(super) fn link(
        &mut self,
        volume: &str,
        name: &str,
        target: String,
        time: SystemTime,
    ) -> u64 {
        let key = (volume.to_owned(), name.to_owned());
        if let Some(ino) = self.links.get(&key) {
            return *ino;
        }
        let ino = self.push(Node::Link { target, time });
        self.links.insert(key, ino);
        ino
    }
}

/// The two snapshots that a name in `changes/` names.
pub(super) fn pair_of(name: &str) -> Option<(SnapshotId, SnapshotId)> {
    let (base, head) = name.split_once("..")?;
    Some((base.parse().ok()?, head.parse().ok()?))
}

/// The snapshots of each volume that follow each other in time, those that can be read; the listing is oldest first.
pub(super) fn neighbours(listing: &[Arc<Snapshot>]) -> Vec<(&Arc<Snapshot>, &Arc<Snapshot>)> {
    let mut last: HashMap<&str, &Arc<Snapshot>> = HashMap::new();
    let mut found = Vec::new();
    for snapshot in listing {
        let volume = snapshot.volume_id.as_deref();
        let Some(volume) = volume.filter(|volume| *volume != NO_VOLUME) else {
            continue;
        };
        if snapshot.state == Some(State::Completed)
            && let Some(before) = last.insert(volume, snapshot)
        {
            found.push((before, snapshot));
        }
    }
    found
}

/// Name, target and time of each snapshot of a volume, by its start time; two of one second get their ids behind it.
pub(super) fn links(volume: &str, listing: &[Arc<Snapshot>]) -> Vec<(String, String, SystemTime)> {
    let of_volume = || {
        listing
            .iter()
            .filter(|snapshot| snapshot.volume_id.as_deref() == Some(volume))
            .filter_map(|snapshot| {
                let time = snapshot.start_time?;
                Some((crate::time::rfc3339_seconds(time), snapshot, time))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn snapshot(id: &str, volume: &str, seconds: u64) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::unknown(id.parse().unwrap());
        snapshot.volume_id = Some(volume.to_owned());
        snapshot.state = Some(State::Completed);
        snapshot.start_time =
            Some(SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 5));
        Arc::new(snapshot)
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
    fn neighbours_are_of_one_volume_and_readable_and_copies_have_none() {
        let mut pending = snapshot("snap-d", "vol-1", 9);
        Arc::make_mut(&mut pending).state = Some(State::Pending);
        let listing = [
            snapshot("snap-a", "vol-1", 7),
            snapshot("snap-b", "vol-2", 7),
            snapshot("snap-c", "vol-1", 8),
            pending,
            snapshot("snap-e", "vol-1", 10),
            snapshot("snap-f", NO_VOLUME, 11),
            snapshot("snap-9", NO_VOLUME, 12),
        ];
        let pairs: Vec<_> = neighbours(&listing)
            .into_iter()
            .map(|(a, b)| (a.id.as_str(), b.id.as_str()))
            .collect();
        assert_eq!(pairs, [("snap-a", "snap-c"), ("snap-c", "snap-e")]);
    }

    #[test]
    fn a_pair_is_two_ids() {
        let (base, head) = pair_of("snap-0a..snap-0b").unwrap();
        assert_eq!((base.as_str(), head.as_str()), ("snap-0a", "snap-0b"));
        for wrong in [
            "",
            "..",
            "snap-0a",
            "snap-0a..",
            "snap-0a...snap-0b",
            "snap-0a..x",
        ] {
            assert!(pair_of(wrong).is_none(), "{wrong}");
        }
    }
}
