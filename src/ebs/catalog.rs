//! [`EbsCatalog`]: snapshots by what EC2 tells of them when it may be asked, and by the direct APIs alone when not.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::client::Client;
use super::delta::listing::DeltaListing;
use super::delta::source::{ChangedSource, Pair};
use super::listing::token_index::TokenIndex;
use super::listing::token_pages::TokenPages;
use super::snapshot::SnapshotSource;
use super::snapshot::block_map::BlockMap;
use super::snapshot::presence::StatedFacts;
use crate::block::{BLOCK_SIZE, Delta, Geometry};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Descriptions, Selector, Snapshot, SnapshotId, State, sort_by_time};
use crate::source::{BlockSource, Catalog, Changes};

/// How long EC2 may take to describe a snapshot that can be read without it.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Deltas listed in part that are kept to go on from, up to 32 MiB each.
const MOST_PENDING: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// How long it is left alone after it did not answer.
const DESCRIBE_AGAIN: Duration = Duration::from_secs(60);

/// The snapshots of one account and Region.
pub struct EbsCatalog {
    client: Arc<Client>,
    descriptions: Option<Arc<dyn Descriptions>>,
    select: Vec<Selector>,
    pages: Arc<TokenPages>,
    /// Completed snapshots by the last listing: what EC2 told once need not be asked again.
    described: Mutex<HashMap<SnapshotId, Snapshot>>,
    open: Mutex<HashMap<SnapshotId, OpenCell>>,
    deltas: Mutex<LruCache<(SnapshotId, SnapshotId), Arc<Pending>>>,
    ec2_silent_until: Mutex<Option<Instant>>,
}

/// Filled once, by whoever opens the snapshot first.
type OpenCell = Arc<OnceCell<(Snapshot, Arc<SnapshotSource>)>>;

/// A delta being listed, once for all that wait for it: by whoever came first, and by the next one when that one goes.
struct Pending {
    pair: Arc<Pair>,
    listing: DeltaListing,
    listed: OnceCell<(Arc<Delta>, Arc<ChangedSource>)>,
}

impl std::fmt::Debug for EbsCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EbsCatalog({:?})", self.select)
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
            descriptions,
            select,
            pages: Arc::new(TokenPages::new()),
            described: Mutex::default(),
            open: Mutex::default(),
            deltas: Mutex::new(LruCache::new(MOST_PENDING)),
            ec2_silent_until: Mutex::new(None),
        }
    }

    /// The snapshots named by their ids in the selection.
    fn named(&self) -> impl Iterator<Item = &SnapshotId> {
        self.select.iter().filter_map(|selector| match selector {
            Selector::Snapshot(id) => Some(id),
            _ => None,
        })
    }

    async fn list_selected(&self) -> Result<Vec<Snapshot>> {
        let only_named = !self.select.is_empty() && self.named().count() == self.select.len();
        let described = match &self.descriptions {
            // What can be read without EC2 does not wait long for it.
            Some(descriptions) if only_named => {
                timeout(DESCRIBE_TIMEOUT, descriptions.describe(&self.select))
                    .await
                    .unwrap_or_else(|_| Err(silent()))
            }
            Some(descriptions) => descriptions.describe(&self.select).await,
            None => Err(Error::new(
                Kind::Invalid,
                "only snapshot ids can be selected: EC2 is not built into this program (cargo feature ec2)",
            )),
        };
        let mut snapshots = match described {
            Err(error) if only_named => {
                if self.descriptions.is_some() {
                    self.leave_ec2_alone();
                    warn!("listing by ids alone: {}", error.chain());
                }
                Vec::new()
            }
            described => described?,
        };
        *self.described.lock() = snapshots
            .iter()
            .filter(|snapshot| snapshot.state == Some(State::Completed))
            .map(|snapshot| (snapshot.id.clone(), snapshot.clone()))
            .collect();
        for id in self.named() {
            if !snapshots.iter().any(|snapshot| snapshot.id == *id) {
                snapshots.push(Snapshot::unknown(id.clone()));
            }
        }
        sort_by_time(&mut snapshots);
        Ok(snapshots)
    }

    /// What EC2 tells of one snapshot, if it does in good time.
    async fn describe(&self, id: &SnapshotId) -> Option<Snapshot> {
        if let Some(snapshot) = self.described.lock().get(id) {
            return Some(snapshot.clone());
        }
        let descriptions = self.descriptions.as_ref()?;
        let quiet = *self.ec2_silent_until.lock();
        if quiet.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let select = [Selector::Snapshot(id.clone())];
        let described = timeout(DESCRIBE_TIMEOUT, descriptions.describe(&select)).await;
        let error = match described.unwrap_or_else(|_| Err(silent())) {
            Ok(mut snapshots) => return snapshots.pop(),
            Err(error) if error.kind() == Kind::NotFound => return None,
            Err(error) => error,
        };
        self.leave_ec2_alone();
        warn!(
            "going on without EC2's description of {id}: {}",
            error.chain()
        );
        None
    }

    fn leave_ec2_alone(&self) {
        *self.ec2_silent_until.lock() = Some(Instant::now() + DESCRIBE_AGAIN);
    }

    async fn open_once(&self, id: &SnapshotId) -> Result<(Snapshot, Arc<SnapshotSource>)> {
        let described = self.describe(id).await;
        let exists = described.is_some();
        let mut snapshot = described.unwrap_or_else(|| Snapshot::unknown(id.clone()));
        snapshot.readable()?;
        let stated = StatedFacts {
            geometry: snapshot.volume_size.map(Geometry::new).transpose()?,
            held: stated_blocks(&snapshot),
            exists,
        };
        let map = BlockMap::new(
            id.clone(),
            Arc::clone(&self.client),
            TokenIndex::new(&self.pages),
            Arc::new(SystemTime::now),
            stated,
        );
        let geometry = map.geometry(self.client.deadline()).await?;
        snapshot.volume_size = Some(geometry.size());
        let client = Arc::clone(&self.client);
        let source = SnapshotSource::new(id.clone(), geometry, client, map);
        Ok((snapshot, Arc::new(source)))
    }

    /// A snapshot, opened once.
    async fn opened(&self, id: &SnapshotId) -> Result<(Snapshot, Arc<SnapshotSource>)> {
        let opening = Arc::clone(self.open.lock().entry(id.clone()).or_default());
        let opened = opening.get_or_try_init(|| self.open_once(id)).await;
        if opened.is_err() && opening.get().is_none() {
            // An id that cannot be opened is not remembered: anyone may look up any number of them.
            let mut open = self.open.lock();
            if open
                .get(id)
                .is_some_and(|entry| Arc::strong_count(entry) == 2)
            {
                open.remove(id);
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
        let (base_stated, base_source) = self.opened(base).await?;
        let (head_stated, head_source) = self.opened(head).await?;
        let key = (base.clone(), head.clone());
        let new = || {
            let (base_size, head_size) = (base_source.geometry(), head_source.geometry());
            let pair = Arc::new(Pair {
                client: Arc::clone(&self.client),
                base: base.clone(),
                head: head.clone(),
                base_size,
                head_size,
                stated_growth: stated_growth(&base_stated, &head_stated),
            });
            Arc::new(Pending {
                listing: DeltaListing::new(Arc::clone(&pair), Arc::clone(&self.pages)),
                pair,
                listed: OnceCell::new(),
            })
        };
        let pending = Arc::clone(self.deltas.lock().get_or_insert(key.clone(), new));
        let listed = pending.listed.get_or_try_init(|| async {
            let (delta, index) = pending.listing.run().await?;
            let pair = Arc::clone(&pending.pair);
            let changed = ChangedSource::new(head_source, pair, Arc::clone(&delta), index);
            Ok::<_, Error>((delta, Arc::new(changed)))
        });
        let listed = listed.await.cloned();
        let is_over = match &listed {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), Kind::Unavailable | Kind::Throttled),
        };
        // Whoever asks from now on lists anew: this one belongs to those who waited for it.
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

/// Blocks that EC2 states a snapshot holds: `FullSnapshotSizeInBytes` in whole blocks. Absent while pending; a 0 was seen for
/// snapshots that hold blocks.
fn stated_blocks(snapshot: &Snapshot) -> Option<u64> {
    let block = u64::from(BLOCK_SIZE);
    let size = snapshot.full_size?;
    (size > 0 && size % block == 0).then_some(size / block)
}

/// Blocks that the head holds more than the base, where EC2 states both and the volume did not shrink: what the base holds
/// beyond the head's end is not listed to its end.
fn stated_growth(base: &Snapshot, head: &Snapshot) -> Option<i64> {
    if base.volume_size > head.volume_size {
        return None;
    }
    let (base, head) = (stated_blocks(base)?, stated_blocks(head)?);
    Some(head.cast_signed() - base.cast_signed())
}

fn silent() -> Error {
    let what = format!("EC2 does not answer within {DESCRIBE_TIMEOUT:?}");
    Error::new(Kind::Unavailable, what)
}

impl Catalog for EbsCatalog {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Snapshot>>> {
        self.list_selected().boxed()
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        async move {
            let (snapshot, source) = self.opened(id).await?;
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
