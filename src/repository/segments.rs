//! Segments read from the store: each once, the last few kept.

use std::num::NonZeroUsize;
use std::sync::Arc;

use futures_util::stream::{self, Stream, StreamExt};
use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use super::pack::Name;
use super::segment::Segment;
use super::store::Store;
use crate::block::hexadecimal;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;

/// Segments kept, of 3 MB each where all blocks are held: 256 GiB of volumes.
const KEPT: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Segments read at once where all are, of some 6 MB each.
const READS: usize = 4;

type Cell = Arc<OnceCell<Arc<Segment>>>;

/// The segments of a repository, by name.
#[derive(Debug)]
pub(super) struct Segments {
    store: Arc<Store>,
    kept: Mutex<LruCache<Name, Cell>>,
}

/// The name of the object that a pack or segment is.
pub(super) fn object(folder: &str, name: &Name) -> String {
    let hex = hexadecimal(name);
    format!("{folder}/{}/{hex}", hex.get(..2).unwrap_or_default())
}

impl Segments {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            kept: Mutex::new(LruCache::new(KEPT)),
        }
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// A segment, if it is in memory.
    pub(super) fn at_hand(&self, name: &Name) -> Option<Arc<Segment>> {
        self.kept.lock().get(name)?.get().cloned()
    }

    /// A segment, verified.
    pub(super) async fn load(&self, name: &Name) -> Result<Arc<Segment>> {
        let cell = Arc::clone(self.kept.lock().get_or_insert(*name, Cell::default));
        let read = || read(&self.store, name);
        cell.get_or_try_init(read).await.cloned()
    }
}

/// Reads many segments, in no order.
pub(super) fn read_all(
    store: &Store,
    names: impl IntoIterator<Item = Name>,
) -> impl Stream<Item = (Name, Result<Arc<Segment>>)> {
    stream::iter(names)
        .map(move |name| async move { (name, read(store, &name).await) })
        .buffer_unordered(READS)
}

/// Reads a segment and verifies it.
pub(super) async fn read(store: &Store, name: &Name) -> Result<Arc<Segment>> {
    let object = object("segments", name);
    let stored = store
        .get(&object)
        .await
        .map_err(|error| match error.kind() {
            // It is named: it must be there.
            Kind::NotFound => Error::with_source(Kind::Corrupt, "a segment is missing", error)
                .with_remedy(Remedy::MarkDamage),
            _ => error,
        })?;
    let wanted = *name;
    let damaged = Error::new(
        Kind::Corrupt,
        format!("{}/{object} is damaged", store.address()),
    )
    .with_remedy(Remedy::MarkDamage);
    blocking(move || {
        if *Sha256::digest(&stored) != wanted {
            return Err(damaged);
        }
        Segment::decode(&stored).map(Arc::new).ok_or(damaged)
    })
    .await
}
