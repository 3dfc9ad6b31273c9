//! Repositories in a hostile store, with writers stopped and killed at every request: see [`super::store::hostile`].

mod histories;
mod lists;
mod removed;
mod stopped;
mod sweeps;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::store::hostile::{HostileClient, HostileStore, Lies, StopPoint};
use super::*;
use crate::block::{
    BLOCK_SIZE, Block, BlockIndex, BlockSet, Change, Delta, Digest, Extent, Geometry, random_id,
};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::snapshot::{Snapshot, SnapshotId};
use crate::source::BlockSource;
use crate::target::{Base, ObserveRequest, Opening, SourceInfo, Stop, Target, Task, VolumeKey};

/// Blocks of a volume.
const BLOCKS: u32 = 8;
/// The default grace of a prune.
const GRACE: Duration = Duration::from_hours(7 * 24);
const DAY: Duration = Duration::from_hours(24);

/// The byte that fills each block of a volume; 0 is a hole.
type Content = [u8; BLOCKS as usize];

/// A snapshot to copy: number N of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Made {
    volume: u8,
    number: u32,
    content: Content,
}

/// A snapshot, and the next one of its volume.
const A: Made = Made {
    volume: 0,
    number: 1,
    content: [1, 2, 3, 4, 0, 0, 7, 8],
};
const B: Made = Made {
    volume: 0,
    number: 2,
    content: [1, 2, 13, 14, 15, 0, 7, 8],
};

impl Made {
    fn id(&self) -> SnapshotId {
        let text = format!("snap-{:04x}{:04x}", self.volume, self.number);
        text.parse().unwrap()
    }

    fn info(&self) -> SourceInfo {
        let volume = format!("vol-{:04x}", self.volume);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.number.into());
        SourceInfo {
            name: self.id().to_string(),
            geometry: geometry(),
            size: None,
            mark: None,
            volume_key: VolumeKey::of_volume(&volume),
            volume: Some(volume),
            encrypted: Some(false),
            snapshot: Some(Snapshot {
                start_time: Some(time),
                ..Snapshot::unknown(self.id())
            }),
            has_changes: true,
            damaged_in_source: 0,
        }
    }
}

fn geometry() -> Geometry {
    Geometry::new(u64::from(BLOCKS * BLOCK_SIZE)).unwrap()
}

/// The bytes of a block and their digest, each made once.
fn bytes(content: u8) -> (Bytes, Digest) {
    static MADE: parking_lot::Mutex<Option<Vec<(Bytes, Digest)>>> = parking_lot::Mutex::new(None);
    let mut made = MADE.lock();
    let made = made.get_or_insert_with(|| {
        let blocks = (0..=255).map(|content| {
            let bytes = Bytes::from(vec![content; BLOCK_SIZE as usize]);
            let digest = Sha256::digest(&bytes).into();
            (bytes, digest)
        });
        blocks.collect()
    });
    made[usize::from(content)].clone()
}

impl BlockSource for Made {
    fn geometry(&self) -> Geometry {
        geometry()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let block = match self.content[index.0 as usize] {
            0 => Block::Zero,
            content => {
                let (bytes, digest) = bytes(content);
                Block::Data(bytes, digest)
            }
        };
        std::future::ready(Ok(block)).boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let held = |index: &u32| self.content[*index as usize] != 0;
        let next = (from.0..BLOCKS).find(held);
        let next = next.map(|index| Extent::of(BlockIndex(index)));
        std::future::ready(Ok(next)).boxed()
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        self.content[index.0 as usize] == 0
    }

    fn prefetch(&self, _: &[BlockIndex]) -> usize {
        0
    }
}

/// The content of a snapshot of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// Every block could be read.
    Whole(Content),
    /// A block could not be read, or is marked as lost.
    Damaged,
}

/// One process that uses a repository.
#[derive(Clone)]
struct Process {
    client: HostileClient,
    store: Arc<Store>,
    /// Its state files.
    folder: Arc<TempDir>,
}

impl Process {
    fn new(store: &Arc<HostileStore>, lies: Lies) -> Self {
        let (client, store) = store.client(lies);
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self {
            client,
            store,
            folder,
        }
    }

    /// A process with an honest store.
    fn honest(store: &Arc<HostileStore>) -> Self {
        Self::new(store, Lies::default())
    }

    async fn catalog(&self) -> Result<RepositoryCatalog> {
        RepositoryCatalog::open(Arc::clone(&self.store)).await
    }

    async fn init(&self) {
        let made = RepositoryCatalog::init(Arc::clone(&self.store)).await;
        made.unwrap();
    }

    async fn target(&self, info: &SourceInfo, dedup: bool) -> Result<RepositoryTarget> {
        let catalog = self.catalog().await?;
        Ok(RepositoryTarget::new(
            catalog,
            dedup,
            info,
            self.folder.path(),
        ))
    }

    /// Copies a snapshot as a sync does: a delta since the newest one of its volume that `known` has, else all blocks.
    async fn sync(&self, made: &Made, dedup: bool, known: &[Made]) -> Result<()> {
        let info = made.info();
        let target = self.target(&info, dedup).await?;
        let ask = ObserveRequest {
            source: &info,
            base: if known.is_empty() {
                &Base::None
            } else {
                &Base::Auto
            },
            left: None,
            replica: None,
        };
        let facts = target.observe(&ask).await?;
        if facts.holds == info.id() {
            return Ok(());
        }
        let known = |id: &SnapshotId| known.iter().find(|known| known.id() == *id);
        let base = facts
            .replicas
            .iter()
            .find_map(|replica| Some((replica, known(&replica.id)?)));
        let mut plan = Delta::new(base.map(|_| info.geometry), info.geometry);
        for index in 0..BLOCKS {
            let at = index as usize;
            let before = base.map_or(0, |(_, base)| base.content[at]);
            match made.content[at] {
                content if content == before => {}
                0 => plan.insert(BlockIndex(index), Change::Zero),
                _ => plan.insert(BlockIndex(index), Change::Write),
            }
        }
        let replica = base.map(|(replica, _)| replica);
        let plan = target.adapt(Arc::new(plan), replica).await?;
        let opening = Opening {
            task: &Task {
                run: random_id(),
                after: None,
                in_place: false,
                source: info.name.clone(),
                source_mark: None,
                volume: info.volume.clone(),
                base: None,
                target: target.id().into(),
                target_name: String::new(),
            },
            plan: &plan,
            done: 0,
            source: &info,
            resume: None,
            base: replica,
            mark: None,
            name: &|_| Ok(()),
            files: self.folder.path().join("sink"),
            restart: false,
            rate: 1000,
            stop: &Stop::never(),
        };
        let opened = target.open(opening).await?;
        let mut written = Vec::new();
        for index in (0..BLOCKS).map(BlockIndex) {
            match (plan.change(index), made.content[index.0 as usize]) {
                (None, _) => {}
                (Some(_), 0) => written.push(Ok((index, None))),
                (Some(_), content) => {
                    let (bytes, digest) = bytes(content);
                    opened.sink.write_block(index, bytes, digest).await?;
                    written.push(Ok((index, Some(digest))));
                }
            }
        }
        opened.sink.flush().await?;
        let written = Box::new(written.into_iter());
        opened.sink.publish(written, &BlockSet::new()).await?;
        Ok(())
    }

    async fn prune(&self, grace: Duration, last: Option<usize>) -> Result<Pruned> {
        let request = PruneRequest {
            retention: Retention {
                last,
                ..Retention::default()
            },
            grace,
            dry_run: false,
            accept_missing: Vec::new(),
        };
        prune(&self.catalog().await?, &request, &Progress::default()).await
    }

    /// The names of the manifests, without those that their runs have withdrawn.
    async fn names(&self) -> Result<Vec<ManifestName>> {
        let catalog = self.catalog().await?;
        let read = catalog.manifests(catalog.names().await?, |manifest| manifest);
        Ok(read.await?.into_iter().map(|(name, _)| name).collect())
    }

    async fn name_of(&self, made: &Made) -> Result<ManifestName> {
        let names = self.names().await?;
        let found = names.into_iter().find(|name| name.snapshot == made.id());
        found.ok_or_else(|| Error::new(Kind::NotFound, "no such snapshot"))
    }

    async fn remove(&self, made: &Made) -> Result<()> {
        remove(&self.store, &self.name_of(made).await?)
            .await
            .map(drop)
    }

    /// The content of a snapshot.
    async fn read(&self, made: &Made) -> Result<Held> {
        let info = made.info();
        let target = self.target(&info, false).await?;
        let reader = match target.reader(Some(&info.name), info.geometry).await {
            // Its manifest was cut short, and the run was killed before it put it again.
            Err(error) if error.kind() == Kind::Corrupt => return Ok(Held::Damaged),
            reader => reader?,
        };
        let mut content = [0; BLOCKS as usize];
        for index in 0..BLOCKS {
            content[index as usize] = match reader.read_block(BlockIndex(index)).await {
                Ok(Block::Zero) => 0,
                Ok(Block::Data(bytes, _)) => bytes[0],
                Err(error) if error.kind() == Kind::Corrupt => return Ok(Held::Damaged),
                Err(error) => return Err(error),
            };
        }
        Ok(Held::Whole(content))
    }

    /// Checks the repository and reads every byte.
    async fn check(&self) -> Result<RepositoryCheck> {
        check(&self.catalog().await?, ReadData::All, &Progress::default()).await
    }

    /// Repairs what is damaged, with the help of a snapshot's source.
    async fn repair(&self, origin: Option<&Made>) -> Result<Repaired> {
        let catalog = self.catalog().await?;
        let progress = Progress::default();
        let checked = check(&catalog, ReadData::All, &progress).await?;
        let origin = origin.map(|made| RepairOrigin {
            name: made.id().to_string(),
            blocks: Arc::new(made.clone()),
            snapshot: made.info().snapshot,
            volume: made.info().volume,
        });
        repair(&catalog, &checked, origin.as_ref(), &progress).await
    }
}

/// Runs a test with a paused clock, which jumps to the next timer, and with a seed for its random numbers.
fn with_seed(seed: u64, test: impl Future<Output = ()>) {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(test);
}
