mod contract;
mod damaged;

use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::block::{BLOCK_SIZE, Block, Change, Digest, Extent, random_id};
use crate::files::folder_of;
use crate::progress::Progress;
use crate::repository::{Address, Connection, PruneRequest, Retention, prune};
use crate::snapshot::Snapshot;
use crate::target::{Base, Published, Stop, Task, UnfinishedState, VolumeKey};
use sha2::{Digest as _, Sha256};

const BLOCKS: u32 = 12;

/// A repository in a folder, and a state folder.
struct RepositoryFixture {
    folder: TempDir,
}

impl RepositoryFixture {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("repository").join(name)
    }

    fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    async fn catalog(&self) -> RepositoryCatalog {
        std::fs::create_dir_all(self.path("")).unwrap();
        std::fs::create_dir_all(self.state_dir()).unwrap();
        let address: Address = format!("file://{}", self.path("").display())
            .parse()
            .unwrap();
        let connection = Connection::new(Duration::from_secs(5));
        let store = Arc::new(Store::open(&address, &connection).unwrap());
        match RepositoryCatalog::open(Arc::clone(&store)).await {
            Err(error) if error.kind() == Kind::NotFound => {
                RepositoryCatalog::init(store).await.unwrap()
            }
            catalog => catalog.unwrap(),
        }
    }

    async fn target(&self, source: &SourceInfo) -> RepositoryTarget {
        RepositoryTarget::new(self.catalog().await, false, source, &self.state_dir())
    }

    async fn facts(&self, source: &SourceInfo, base: &Base, left: Option<&SinkState>) -> Facts {
        let ask = ObserveRequest {
            source,
            base,
            left,
            replica: None,
        };
        self.target(source).await.observe(&ask).await.unwrap()
    }

    /// All files of a folder of the repository.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let (mut found, mut folders) = (Vec::new(), vec![self.path(folder)]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.push(path),
                }
            }
        }
        found.retain(|path| !path.to_string_lossy().contains("-fence-"));
        found.sort();
        found
    }

    fn manifest(&self, snapshot: &str) -> PathBuf {
        let mut manifests = self.objects("snapshots").into_iter();
        manifests
            .find(|path| path.to_str().unwrap().ends_with(snapshot))
            .unwrap()
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The snapshot of a number, of the second of the number.
fn source(number: u32) -> SourceInfo {
    let id: SnapshotId = format!("snap-0{number}").parse().unwrap();
    let geometry = Geometry::new(u64::from(BLOCKS * BLOCK_SIZE)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(number));
    SourceInfo {
        name: id.to_string(),
        geometry,
        size: None,
        mark: None,
        volume: Some("vol-0a".into()),
        volume_key: VolumeKey::of_volume("vol-0a"),
        encrypted: Some(false),
        snapshot: Some(Snapshot {
            start_time: Some(time),
            ..Snapshot::unknown(id)
        }),
        has_changes: true,
        damaged_in_source: 0,
    }
}

fn bytes(content: u8) -> (Bytes, Digest) {
    let bytes = Bytes::from(vec![content; BLOCK_SIZE as usize]);
    let digest = Sha256::digest(&bytes).into();
    (bytes, digest)
}

fn task(target: &RepositoryTarget, source: &SourceInfo) -> Task {
    Task {
        run: random_id(),
        after: None,
        in_place: false,
        source: source.name.clone(),
        source_mark: None,
        volume: source.volume.clone(),
        base: None,
        target: target.id().into(),
        target_name: String::new(),
    }
}

/// Opens a run that writes these blocks.
async fn open(
    target: &RepositoryTarget,
    source: &SourceInfo,
    base: Option<&Replica>,
    blocks: &[(u32, u8)],
    resume: Option<&SinkState>,
) -> Result<Opened> {
    let mut plan = Delta::new(base.map(|_| source.geometry), source.geometry);
    for (index, _) in blocks {
        plan.insert(BlockIndex(*index), Change::Write);
    }
    let opening = Opening {
        task: &task(target, source),
        plan: &plan,
        done: 0,
        source,
        resume,
        base,
        mark: None,
        name: &|_| Ok(()),
        files: with_ending(&target.state().stem, ".sink"),
        restart: false,
        rate: 1000,
        stop: &Stop::never(),
    };
    target.open(opening).await
}

async fn publish(opened: &Opened, blocks: &[(u32, u8)], damaged: &[u32]) -> Result<Published> {
    let mut left_zero = BlockSet::new();
    damaged
        .iter()
        .for_each(|index| left_zero.insert(BlockIndex(*index)));
    let mut written = Vec::new();
    for (index, content) in blocks {
        let (bytes, digest) = bytes(*content);
        if damaged.contains(index) {
            written.push(Ok((BlockIndex(*index), None)));
            continue;
        }
        let index = BlockIndex(*index);
        opened.sink.write_block(index, bytes, digest).await?;
        written.push(Ok((index, Some(digest))));
    }
    opened.sink.flush().await?;
    let written = Box::new(written.into_iter());
    opened.sink.publish(written, &left_zero).await
}

async fn copy(
    place: &RepositoryFixture,
    number: u32,
    base: Option<&Replica>,
    blocks: &[(u32, u8)],
) {
    let source = source(number);
    let target = place.target(&source).await;
    let opened = open(&target, &source, base, blocks, None).await.unwrap();
    publish(&opened, blocks, &[]).await.unwrap();
}

/// The value in `contents` of a block that was damaged when it was copied.
const LOST: u8 = 255;

/// The first byte of each block of a snapshot.
async fn contents(place: &RepositoryFixture, number: u32) -> Vec<u8> {
    let reader = reader(place, number).await;
    let mut contents = Vec::new();
    for index in 0..BLOCKS {
        contents.push(match reader.read_block(BlockIndex(index)).await {
            Err(error) if error.kind() == Kind::Corrupt => LOST,
            Err(error) => panic!("{error:?}"),
            Ok(Block::Zero) => 0,
            Ok(Block::Data(bytes, _)) => {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                bytes[0]
            }
        });
    }
    contents
}

async fn reader(place: &RepositoryFixture, number: u32) -> Arc<dyn BlockSource> {
    let source = source(number);
    let target = place.target(&source).await;
    let reader = target.reader(Some(&source.name), source.geometry).await;
    reader.unwrap()
}

fn ids(facts: &Facts) -> Vec<String> {
    facts
        .replicas
        .iter()
        .map(|one| one.id.to_string())
        .collect()
}

#[tokio::test]
async fn replicas_of_the_volume_are_offered_newest_first_and_damaged_ones_are_skipped() {
    let place = RepositoryFixture::new();
    for number in 1..=3 {
        let content = u8::try_from(number).unwrap();
        copy(&place, number, None, &[(0, content), (5, content)]).await;
    }
    let next = source(4);
    let facts = place.facts(&next, &Base::Auto, None).await;
    assert_eq!(ids(&facts), ["snap-03", "snap-02", "snap-01"]);
    assert_eq!((&facts.holds, facts.warnings.len()), (&None, 0));
    let other = SourceInfo {
        volume: Some("vol-0b".into()),
        volume_key: VolumeKey::of_volume("vol-0b"),
        ..source(4)
    };
    assert!(
        place
            .facts(&other, &Base::Auto, None)
            .await
            .replicas
            .is_empty()
    );
    assert!(
        place
            .facts(&next, &Base::None, None)
            .await
            .replicas
            .is_empty()
    );

    flip(&place.manifest("snap-03"));
    let facts = place.facts(&next, &Base::Auto, None).await;
    assert_eq!(ids(&facts), ["snap-02", "snap-01"]);
    assert!(facts.warnings[0].contains("snap-03"), "{facts:?}");
    let named = Base::Snapshot("snap-03".parse().unwrap());
    let facts = place.facts(&next, &named, None).await;
    assert!(facts.replicas.is_empty() && facts.no_base.unwrap().contains("damaged"));
    let named = Base::Snapshot("snap-09".parse().unwrap());
    let facts = place.facts(&next, &named, None).await;
    assert!(facts.no_base.unwrap().contains("does not hold"));
    // A damaged snapshot is not held, and a copy makes it whole.
    let facts = place.facts(&source(3), &Base::Auto, None).await;
    assert_eq!(facts.holds, None);
    copy(&place, 3, None, &[(0, 3), (5, 3)]).await;
    let facts = place.facts(&source(3), &Base::Auto, None).await;
    assert_eq!(facts.holds, source(3).id());
    assert_eq!(contents(&place, 3).await[..6], [3, 0, 0, 0, 0, 3]);
}

#[tokio::test]
async fn a_run_is_proven_while_it_is_on_record_and_dropped_when_forgotten_or_of_another_source() {
    let place = RepositoryFixture::new();
    let (one, blocks) = (source(1), [(0, 1), (7, 1)]);
    let target = place.target(&one).await;
    let opened = open(&target, &one, None, &blocks, None).await.unwrap();
    let state = opened.state.clone();
    let left =
        async |source: &SourceInfo| place.facts(source, &Base::Auto, Some(&state)).await.left;
    assert_eq!(left(&one).await, UnfinishedState::Proven);
    assert_eq!(left(&source(2)).await, UnfinishedState::Absent);
    let published = publish(&opened, &blocks, &[]).await.unwrap();
    let name = format!("{}#snap-01", target.name());
    assert_eq!(published.snapshot, Some(name));
    assert_eq!(published.replica, one.id());
    // Published, and only the record on this machine is missing.
    assert!(place.objects("runs").is_empty());
    assert_eq!(left(&one).await, UnfinishedState::Proven);
    let again = open(&target, &one, None, &blocks, Some(&state))
        .await
        .unwrap();
    let none = BlockSet::new();
    let again = again.sink.publish(Box::new(std::iter::empty()), &none);
    assert_eq!(again.await.unwrap().replica, one.id());
    assert_eq!(contents(&place, 1).await[7], 1);

    let two = source(2);
    let opened = open(&target, &two, None, &blocks, None).await.unwrap();
    let state = opened.state.clone();
    let left =
        async |source: &SourceInfo| place.facts(source, &Base::Auto, Some(&state)).await.left;
    assert_eq!(left(&two).await, UnfinishedState::Proven);
    let runs = place.objects("runs");
    std::fs::remove_file(&runs[0]).unwrap();
    assert_eq!(left(&two).await, UnfinishedState::Absent);
    let refused = open(&target, &two, None, &blocks, Some(&state)).await;
    assert_eq!(refused.unwrap_err().remedy(), Some(&Remedy::Restart));
    // A resumed run whose parent has been damaged cannot be published.
    let opened = open(&target, &two, None, &blocks, None).await.unwrap();
    flip(&place.objects("segments")[0]);
    let facts = place.facts(&two, &Base::Auto, Some(&opened.state)).await;
    assert_eq!(facts.left, UnfinishedState::Absent);
}

#[tokio::test]
async fn a_discarded_run_leaves_nothing_and_holds_no_prune_back() {
    let place = RepositoryFixture::new();
    copy(&place, 1, None, &[(0, 1)]).await;
    let two = source(2);
    let target = place.target(&two).await;
    let opened = open(&target, &two, None, &[(3, 2)], None).await.unwrap();
    assert_eq!(place.objects("runs").len(), 1);
    let files = || std::fs::read_dir(place.state_dir()).unwrap().count();
    assert_eq!(files(), 2);
    // The same command of the next night, of the next snapshot: the same files.
    let next = place.target(&source(3)).await;
    assert_eq!(next.state(), target.state());
    assert_eq!(folder_of(&next.state().stem), place.state_dir());
    for _ in 0..2 {
        next.discard(&opened.state).await.unwrap();
        assert_eq!((place.objects("runs").len(), files()), (0, 0));
    }
    let catalog = place.catalog().await;
    let request = PruneRequest {
        retention: Retention::default(),
        grace: Duration::ZERO,
        dry_run: true,
        accept_missing: Vec::new(),
    };
    let pruned = prune(&catalog, &request, &Progress::default())
        .await
        .unwrap();
    assert!(pruned.runs.is_empty());
}

#[tokio::test]
async fn a_plan_whose_base_is_not_the_runs_is_refused() {
    let place = RepositoryFixture::new();
    copy(&place, 1, None, &[(0, 1)]).await;
    let two = source(2);
    let target = place.target(&two).await;
    let base = place.facts(&two, &Base::Auto, None).await.replicas;
    let opened = open(&target, &two, base.first(), &[(1, 2)], None)
        .await
        .unwrap();
    let refused = open(&target, &two, None, &[(1, 2)], Some(&opened.state)).await;
    assert_eq!(refused.unwrap_err().kind(), Kind::Corrupt);
}

#[tokio::test]
async fn the_dedup_index_stops_at_the_first_signal_though_another_run_holds_its_lock() {
    let place = RepositoryFixture::new();
    let one = source(1);
    let dedup =
        async || RepositoryTarget::new(place.catalog().await, true, &one, &place.state_dir());
    let target = dedup().await;
    open(&target, &one, None, &[(0, 1)], None).await.unwrap();
    let index = target.index.clone().unwrap();
    let lock = std::fs::File::open(with_ending(&index, "-lock")).unwrap();
    lock.lock().unwrap();
    let (stopper, stop) = watch::channel(false);
    let since = std::time::Instant::now();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stopper.send(true).unwrap();
        stopper.closed().await;
    });
    let catalog = place.catalog().await;
    let stopped = Index::update(&catalog, &index, &Stop::new(stop)).await;
    assert_eq!(stopped.unwrap_err().kind(), Kind::Stopped);
    assert!(since.elapsed() < Duration::from_secs(1));
    drop(lock);
    Index::update(&catalog, &index, &Stop::never())
        .await
        .unwrap();
    // One index for all volumes of the repository.
    let other = SourceInfo {
        volume: Some("vol-0b".into()),
        volume_key: VolumeKey::of_volume("vol-0b"),
        ..source(2)
    };
    let other = RepositoryTarget::new(place.catalog().await, true, &other, &place.state_dir());
    assert_eq!(other.index, target.index);
    assert_ne!(other.state(), target.state());
}
