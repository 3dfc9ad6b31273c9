//! The tree against a model of it, without a kernel: any sequence of lookups, forgets, listings and restarts.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use proptest::prelude::*;

use super::*;
use crate::block::{Block, BlockIndex, Extent, Geometry};
use crate::snapshot::SnapshotState;
use crate::source::{BlockSource, Changes};

/// A volume that holds nothing.
struct Hole(Geometry);

impl BlockSource for Hole {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn read_block(&self, _: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        ready(Ok(Block::Zero)).boxed()
    }

    fn next_extent(&self, _: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        ready(Ok(None)).boxed()
    }

    fn is_known_zero(&self, _: BlockIndex) -> bool {
        true
    }

    fn prefetch(&self, blocks: &[BlockIndex]) -> usize {
        blocks.len()
    }
}

/// An account whose snapshots all exist, some of them listed.
struct Account {
    listed: Mutex<Vec<Arc<Snapshot>>>,
}

const VOLUMES_OF_ACCOUNT: [&str; 3] = ["vol-1", "vol-2", "/dev/sda"];
const SNAPSHOTS_OF_ACCOUNT: u64 = 8;
/// A snapshot of this number has as many GiB, and one more.
const LARGEST_VHD: u64 = 2039;

fn snapshot(number: u64) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::unknown(format!("snap-{number:x}").parse().unwrap());
    snapshot.volume_id = VOLUMES_OF_ACCOUNT
        .iter()
        .cycle()
        .nth(number.try_into().unwrap())
        .map(|&name| name.to_owned());
    snapshot.state = Some(SnapshotState::Completed);
    // Two of a volume can have the same second.
    snapshot.start_time = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(number / 4));
    snapshot.volume_size = Some((number + 1) << 30);
    Arc::new(snapshot)
}

impl Catalog for Account {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>> {
        ready(Ok(self.listed.lock().clone())).boxed()
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        let found = (0..SNAPSHOTS_OF_ACCOUNT)
            .chain(LARGEST_VHD..=LARGEST_VHD + 1)
            .map(snapshot)
            .find(|of| of.id == *id);
        let opened = found.map(|found| {
            let geometry = Geometry::new(found.volume_size.unwrap_or_default())?;
            let source: Arc<dyn BlockSource> = Arc::new(Hole(geometry));
            Ok((Snapshot::clone(&found), source))
        });
        let missing = || Err(Error::new(Kind::NotFound, "no such snapshot"));
        ready(opened.unwrap_or_else(missing)).boxed()
    }

    fn delta<'a>(&'a self, _: &'a SnapshotId, _: &'a SnapshotId) -> BoxFuture<'a, Result<Changes>> {
        ready(Err(Error::new(Kind::Unrelated, "no delta"))).boxed()
    }
}

fn tree(listed: Vec<u64>) -> Tree {
    let listed = listed.into_iter().map(snapshot).collect();
    let ownership = Ownership {
        uid: 0,
        gid: 0,
        mode: 0o400,
    };
    let account = Account {
        listed: Mutex::new(listed),
    };
    let budget = ReadaheadBudget::new(1);
    let timeout = Duration::from_secs(1);
    Tree::new(
        Arc::new(account),
        ownership,
        budget,
        timeout,
        Provenance::default(),
    )
}

/// Waits for the tree, whose time-outs need a clock.
fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(work)
}

/// Lookups of each number that the kernel has not forgotten.
type Lookups = BTreeMap<u64, u64>;

/// Looks a path up as the kernel does, name by name: the entries on that path, all of them or none.
fn walk(tree: &Tree, known: &mut Lookups, path: &str) -> Result<Option<Vec<Attributes>>> {
    let mut found = Vec::new();
    let mut parent = names::ROOT;
    for name in path.split('/') {
        let Some(attributes) = wait(tree.lookup(parent, name))? else {
            return Ok(None);
        };
        parent = attributes.ino;
        *known.entry(parent).or_default() += 1;
        found.push(attributes);
    }
    Ok(Some(found))
}

fn lines(tree: &Tree, ino: u64) -> Vec<FolderEntry> {
    wait(tree.lines(ino)).unwrap()
}

/// What the kernel does.
#[derive(Clone, Debug)]
enum Step {
    LookUp(String),
    /// Forgets the lookups of the path, some of them or all.
    Forget(String, u64),
    ReadFolder(&'static str),
    Restart,
}

fn path() -> impl Strategy<Value = String> {
    let id = || (0..SNAPSHOTS_OF_ACCOUNT + 2).prop_map(|number| format!("snap-{number:x}"));
    let file = prop::sample::select(vec!["", "/disk.raw", "/snapshot.json", "/nothing"]);
    let folder = prop::sample::select(vec!["vol-1", "vol-2", "vol-3", ".", ".."]);
    let link = prop::sample::select(vec!["", "/latest", "/1970-01-01T000000Z"]);
    prop_oneof![
        (id(), file).prop_map(|(id, file)| format!("snapshots/{id}{file}")),
        (id(), id()).prop_map(|(base, head)| format!("changes/{base}..{head}")),
        (folder, link).prop_map(|(volume, link)| format!("volumes/{volume}{link}")),
        Just("snapshots/README".to_owned()),
        Just("snapshots/..".to_owned()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let folder = prop::sample::select(vec!["snapshots", "changes", "volumes"]);
    prop_oneof![
        4 => path().prop_map(Step::LookUp),
        2 => (path(), 1_u64..4).prop_map(|(path, lookups)| Step::Forget(path, lookups)),
        1 => folder.prop_map(Step::ReadFolder),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// One number for one path, in every mount, and no number for two; what the kernel forgets is dropped, what it knows answers.
    #[test]
    fn inode_numbers_are_stable_and_forgotten_nodes_are_dropped(
        listed in prop::collection::btree_set(0..SNAPSHOTS_OF_ACCOUNT, 0..8),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let start = || tree(listed.iter().copied().collect());
        let mut tree = start();
        // Of all mounts: the number of each path.
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        let mut known = Lookups::new();
        for step in steps {
            match step {
                Step::LookUp(path) => {
                    let Ok(Some(found)) = walk(&tree, &mut known, &path) else { continue };
                    for attributes in &found {
                        let again = wait(tree.attributes(attributes.ino)).unwrap();
                        prop_assert_eq!(again, *attributes);
                    }
                    let ino = found.last().unwrap().ino;
                    if !path.contains("/.") {
                        let before = numbers.insert(path.clone(), ino);
                        prop_assert!(before.is_none_or(|before| before == ino), "{}", path);
                    }
                }
                Step::Forget(path, lookups) => {
                    let Some(ino) = numbers.get(&path) else { continue };
                    let count = known.remove(ino).unwrap_or_default();
                    let lookups = lookups.min(count);
                    tree.forget(*ino, lookups);
                    known.insert(*ino, count - lookups);
                }
                Step::ReadFolder(folder) => {
                    let ino = walk(&tree, &mut known, folder).unwrap().unwrap()[0].ino;
                    for line in lines(&tree, ino) {
                        let path = format!("{folder}/{}", line.name);
                        let found = walk(&tree, &mut known, &path).unwrap().unwrap();
                        prop_assert_eq!(found.last().unwrap().ino, line.ino, "{}", path);
                        prop_assert_eq!(found.last().unwrap().kind, line.kind, "{}", path);
                        numbers.insert(path, line.ino);
                    }
                }
                Step::Restart => {
                    tree = start();
                    known.clear();
                }
            }
        }
        let mut of_number: BTreeMap<u64, &String> = BTreeMap::new();
        for (path, ino) in &numbers {
            let other = of_number.insert(*ino, path);
            prop_assert!(other.is_none(), "{} and {:?}", path, other);
        }
        for (ino, lookups) in &known {
            tree.forget(*ino, *lookups);
        }
        prop_assert_eq!(tree.nodes.lock().len(), 0, "all is forgotten");
    }
}

#[test]
fn a_handle_of_a_listed_snapshot_is_looked_up_after_it_was_forgotten() {
    let (first, mut known) = (tree(vec![1, 2]), Lookups::new());
    let found = walk(&first, &mut known, "snapshots/snap-1/disk.raw")
        .unwrap()
        .unwrap();
    // Another mount, which has looked nothing up: as after eviction.
    let second = tree(vec![1, 2]);
    for attributes in &found {
        let again = wait(second.lookup(attributes.ino, "."));
        let again = again.unwrap().unwrap();
        assert_eq!((again.ino, again.size), (attributes.ino, attributes.size));
    }
    let parent = wait(second.lookup(found[1].ino, ".."));
    assert_eq!(parent.unwrap().unwrap().ino, found[0].ino);
    // One that nothing lists is stale.
    let unlisted = walk(&first, &mut known, "snapshots/snap-7")
        .unwrap()
        .unwrap();
    let stale = wait(second.lookup(unlisted[1].ino, "."));
    assert_eq!(stale.unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn df_counts_the_volumes_of_listed_snapshots() {
    let tree = tree(vec![0, 3]);
    let totals = wait(tree.totals());
    assert_eq!((totals.bytes, totals.snapshots), (5 << 30, 2));
}

#[test]
fn a_link_that_the_kernel_still_knows_leads_where_it_was_last_looked_up() {
    let mut nodes = Nodes::default();
    let latest = |number| {
        let links = names::links("vol-1", &[snapshot(number)]);
        let link = links.into_iter().find(|link| link.name == names::LATEST);
        Node::Link(Arc::new(link.unwrap()))
    };
    let (old, new) = (latest(0), latest(3));
    assert_eq!(old.ino(), new.ino());
    for (node, target) in [(old, "snap-0"), (new, "snap-3")] {
        nodes.count(&node).unwrap();
        let Some(Node::Link(link)) = nodes.get(node.ino()) else {
            panic!("not a link");
        };
        assert_eq!(link.snapshot.as_str(), target);
    }
}

#[test]
fn a_vhd_is_shown_up_to_2040_gib_and_reads_as_the_image_with_a_footer() {
    let tree = tree(Vec::new());
    let mut known = Lookups::new();
    for (number, is_there) in [(LARGEST_VHD, true), (LARGEST_VHD + 1, false)] {
        let folder = format!("snapshots/snap-{number:x}");
        let found = walk(&tree, &mut known, &format!("{folder}/disk.vhd")).unwrap();
        assert_eq!(found.is_some(), is_there, "{folder}");
        let folder = walk(&tree, &mut known, &folder).unwrap().unwrap();
        let folder = folder.last().unwrap().ino;
        let listed = lines(&tree, folder)
            .iter()
            .any(|line| line.name == "disk.vhd");
        assert_eq!(listed, is_there);
        let Some(vhd) = found else {
            continue;
        };
        let (ino, size) = (vhd.last().unwrap().ino, vhd.last().unwrap().size);
        assert_eq!(size, (2040 << 30) + 512);
        let vhd = wait(tree.contents(ino)).unwrap();
        let end = wait(vhd.read_at((2040 << 30) - 4, 4096)).unwrap();
        assert_eq!(end.len(), 516);
        assert_eq!(end[..12], *b"\0\0\0\0conectix");
        // A volume of holes: the footer is all of the data.
        let seek = |offset, to_data| wait(vhd.seek(offset, to_data)).unwrap();
        assert_eq!(seek(0, true), Some(2040 << 30));
        assert_eq!(seek(0, false), Some(0));
        assert_eq!(seek(2040 << 30, false), Some(size));
        assert_eq!(seek(size, true), None);
    }
}
