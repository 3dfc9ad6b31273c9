//! [`EbsCatalog`]: snapshots by EC2's descriptions where they are permitted ([`known`]), else by the direct APIs alone.

mod known;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::client::Client;
use super::delta::listing::{DeltaListing, ListedDelta};
use super::delta::source::{ChangedSource, Pair};
use super::listing::token_index::TokenIndex;
use super::listing::token_pages::TokenPages;
use super::snapshot::SnapshotSource;
use super::snapshot::block_map::BlockMap;
use super::snapshot::map_memory::MapMemory;
use super::snapshot::presence::StatedFacts;
use crate::block::{BLOCK_SIZE, Delta, Geometry};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Descriptions, Selector, Snapshot, SnapshotId};
use crate::source::{BlockSource, Catalog, Changes};

use known::{Description, KnownSnapshots};

/// Most partly listed deltas kept to be continued, up to 32 MiB each if blocks everywhere changed in 64 TiB.
const MOST_PENDING: NonZeroUsize = NonZeroUsize::new(2).unwrap();
/// Most opened snapshots kept while unused: each with an index of up to 4,096 pages.
const MOST_UNUSED: usize = 256;

/// The snapshots of one account and Region.
pub struct EbsCatalog {
    client: Arc<Client>,
    known: KnownSnapshots,
    pages: Arc<TokenPages>,
    maps: Arc<MapMemory>,
    open: Mutex<LruCache<SnapshotId, OpenCell>>,
    deltas: Mutex<LruCache<(SnapshotId, SnapshotId), Arc<Pending>>>,
}

/// Filled once, by the first caller that opens the snapshot.
type OpenCell = Arc<OnceCell<Arc<SnapshotSource>>>;

/// A delta being listed, once for all its waiters: by the first one, and by the next one when the first is dropped.
struct Pending {
    pair: Arc<Pair>,
    listing: DeltaListing,
    listed: OnceCell<(Arc<Delta>, Arc<ChangedSource>)>,
}

impl std::fmt::Debug for EbsCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EbsCatalog({:?})", self.known.select())
    }
}

impl EbsCatalog {
    /// A catalog of what `select` names, or of all own snapshots. It makes no call.
    pub fn new(
        client: Arc<Client>,
        descriptions: Option<Arc<dyn Descriptions>>,
        select: Vec<Selector>,
    ) -> Self {
        Self {
            client,
            known: KnownSnapshots::new(descriptions, select),
            pages: Arc::new(TokenPages::new()),
            maps: Arc::new(MapMemory::new()),
            open: Mutex::new(LruCache::unbounded()),
            deltas: Mutex::new(LruCache::new(MOST_PENDING)),
        }
    }

    /// Starts the listing and waits until it has ended, or, after `limit`, until its first reply has arrived.
    ///
    /// # Errors
    /// Why there is no listing; `Unavailable` when EC2 has not answered within `limit`.
    pub(crate) async fn begin_listing(&self, limit: Duration) -> Result<()> {
        self.known.begin(limit).await
    }

    async fn open_once(&self, id: &SnapshotId) -> Result<Arc<SnapshotSource>> {
        let (described, not_asked) = match self.known.describe(id).await {
            Description::Known(snapshot) => (Some(snapshot), None),
            Description::NotKnown => (None, None),
            Description::NotAsked(why) => (None, Some(why)),
        };
        let (mut volume_size, mut full_size) = (None, None);
        if let Some(snapshot) = &described {
            snapshot.readable()?;
            (volume_size, full_size) = (snapshot.volume_size, snapshot.full_size);
        }
        let stated = StatedFacts {
            geometry: volume_size.map(Geometry::new).transpose()?,
            held: full_size.and_then(stated_blocks),
            exists: described.is_some(),
        };
        let map = BlockMap::new(
            id.clone(),
            Arc::clone(&self.client),
            TokenIndex::new(&self.pages),
            Arc::new(SystemTime::now),
            stated,
            &self.maps,
        );
        let geometry = map.geometry(self.client.deadline()).await;
        let geometry = geometry.map_err(|error| match &not_asked {
            // The direct APIs answer a pending snapshot as one that does not exist.
            Some(why) if error.kind() == Kind::NotFound => error.context(format!(
                "cannot open {id}: it does not exist, or is still pending ({why})"
            )),
            _ => error,
        })?;
        if not_asked.is_some() {
            self.known.miss(id);
        }
        let client = Arc::clone(&self.client);
        let source = SnapshotSource::new(id.clone(), geometry, client, map);
        Ok(Arc::new(source))
    }

    /// What is known of an opened snapshot now.
    fn described(&self, id: &SnapshotId, source: &SnapshotSource) -> Snapshot {
        self.known.remind();
        let known = self.known.get(id);
        let mut snapshot = known.map_or_else(
            || Snapshot::unknown(id.clone()),
            |known| Snapshot::clone(&known),
        );
        snapshot.volume_size = Some(source.geometry().size());
        snapshot
    }

    /// A snapshot, opened once.
    async fn opened(&self, id: &SnapshotId) -> Result<Arc<SnapshotSource>> {
        let opening = {
            let mut open = self.open.lock();
            let opening = Arc::clone(open.get_or_insert(id.clone(), OpenCell::default));
            drop_unused(&mut open);
            opening
        };
        let opened = opening.get_or_try_init(|| self.open_once(id)).await;
        if opened.is_err() && opening.get().is_none() {
            // An id that cannot be opened is not remembered: anyone may look up any number of them.
            let mut open = self.open.lock();
            if open
                .peek(id)
                .is_some_and(|entry| Arc::strong_count(entry) == 2)
            {
                open.pop(id);
            }
        }
        opened.cloned()
    }

    async fn list_delta(
        &self,
        base: &SnapshotId,
        head: &SnapshotId,
    ) -> Result<(Arc<Delta>, Arc<ChangedSource>)> {
        // One after the other: the first that cannot be read is the one to name.
        let base_source = self.opened(base).await?;
        let head_source = self.opened(head).await?;
        let key = (base.clone(), head.clone());
        let new = || {
            let (base_size, head_size) = (base_source.geometry(), head_source.geometry());
            let pair = Arc::new(Pair {
                client: Arc::clone(&self.client),
                base: base.clone(),
                head: head.clone(),
                base_size,
                head_size,
                stated_growth: stated_growth(
                    &self.described(base, &base_source),
                    &self.described(head, &head_source),
                ),
            });
            Arc::new(Pending {
                listing: DeltaListing::new(Arc::clone(&pair), Arc::clone(&self.pages)),
                pair,
                listed: OnceCell::new(),
            })
        };
        let pending = Arc::clone(self.deltas.lock().get_or_insert(key.clone(), new));
        let listed = pending.listed.get_or_try_init(|| async {
            let ListedDelta {
                delta,
                index,
                is_disputed,
            } = pending.listing.run().await?;
            let pair = Arc::clone(&pending.pair);
            if is_disputed {
                zeroed_blocks_are_holes(&pair, &delta, &head_source).await?;
            }
            let changed = ChangedSource::new(head_source, pair, Arc::clone(&delta), index);
            Ok::<_, Error>((delta, Arc::new(changed)))
        });
        let listed = listed.await.cloned();
        let is_over = match &listed {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), Kind::Unavailable | Kind::Throttled),
        };
        // The next caller lists again: this one belongs to those who waited for it.
        let mut deltas = self.deltas.lock();
        if is_over
            && deltas
                .peek(&key)
                .is_some_and(|kept| Arc::ptr_eq(kept, &pending))
        {
            deltas.pop(&key);
        }
        listed
    }
}

/// Drops unused opened snapshots beyond [`MOST_UNUSED`]. One whose listings contradicted themselves stays: its error lasts as
/// long as the catalog.
fn drop_unused(open: &mut LruCache<SnapshotId, OpenCell>) {
    if open.len() <= MOST_UNUSED {
        return;
    }
    let is_unused = |cell: &OpenCell| {
        let source = cell.get().filter(|source| !source.is_corrupt());
        Arc::strong_count(cell) == 1 && source.is_some_and(|source| Arc::strong_count(source) == 1)
    };
    let unused = open.iter().filter(|(_, cell)| is_unused(cell));
    // From the most to the least recently used.
    let old: Vec<SnapshotId> = unused.skip(MOST_UNUSED).map(|(id, _)| id.clone()).collect();
    for id in old {
        open.pop(&id);
    }
}

/// Compares a delta with the head's own listing where EC2's counts dispute it: a block that is zeroed by the one and held by
/// the other would be lost.
async fn zeroed_blocks_are_holes(pair: &Pair, delta: &Delta, head: &SnapshotSource) -> Result<()> {
    for zeroed in delta.zero().runs() {
        let held = head.next_extent(zeroed.start()).await?;
        if let Some(held) = held.filter(|held| held.start() < zeroed.end()) {
            let what = format!(
                "block {} is zeroed here and held by {}",
                held.start(),
                pair.head
            );
            return Err(pair.corrupt(&what));
        }
    }
    Ok(())
}

/// Blocks that EC2 states a snapshot holds, from its `FullSnapshotSizeInBytes`. A 0 was seen for snapshots that hold blocks.
fn stated_blocks(full_size: u64) -> Option<u64> {
    let block = u64::from(BLOCK_SIZE);
    (full_size > 0 && full_size.is_multiple_of(block)).then_some(full_size / block)
}

/// Blocks that the head holds more than the base, where EC2 states both and the volume did not shrink: what the base holds
/// beyond the head's end is not listed to its end.
fn stated_growth(base: &Snapshot, head: &Snapshot) -> Option<i64> {
    if base.volume_size > head.volume_size {
        return None;
    }
    let base = stated_blocks(base.full_size?)?;
    let head = stated_blocks(head.full_size?)?;
    Some(head.cast_signed() - base.cast_signed())
}

impl Catalog for EbsCatalog {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>> {
        self.known.list().boxed()
    }

    fn known(&self, id: &SnapshotId) -> Option<Arc<Snapshot>> {
        self.known.remind();
        self.known.get(id)
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        async move {
            let source = self.opened(id).await?;
            let snapshot = self.described(id, &source);
            Ok((snapshot, source as Arc<dyn BlockSource>))
        }
        .boxed()
    }

    fn delta<'a>(
        &'a self,
        base: &'a SnapshotId,
        head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Changes>> {
        async move {
            let (delta, source) = self.list_delta(base, head).await?;
            Ok((delta, source as Arc<dyn BlockSource>))
        }
        .boxed()
    }
}
