//! [`ShownListing`]: the listing of the account's snapshots that a mount shows, and when it is renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::names;
use crate::error::Result;
use crate::snapshot::Snapshot;
use crate::source::Catalog;

/// How long a listing is shown before it is renewed.
const LISTING_LIFE: Duration = Duration::from_secs(60);

/// The snapshots of one listing.
pub(super) struct Listing {
    /// Oldest first.
    pub(super) snapshots: Vec<Arc<Snapshot>>,
    /// Positions in `snapshots` by inode number of the folder.
    by_inode: HashMap<u64, u32>,
}

impl Listing {
    fn new(snapshots: Vec<Arc<Snapshot>>) -> Self {
        let numbered = snapshots.iter().zip(0..);
        let by_inode = numbered
            .map(|(snapshot, place)| (names::snapshot_inode(&snapshot.id), place))
            .collect();
        Self {
            snapshots,
            by_inode,
        }
    }

    /// The snapshot whose folder has this inode number.
    pub(super) fn by_inode(&self, ino: u64) -> Option<&Arc<Snapshot>> {
        let place = *self.by_inode.get(&ino)?;
        self.snapshots.get(place as usize)
    }
}

/// The listing that is shown.
#[derive(Default)]
pub(super) struct ShownListing {
    /// With the time after which it is renewed.
    shown: Mutex<Option<(Instant, Arc<Listing>)>>,
    /// Held by the one caller that lists; holds the start of the listing under way, also across callers that stop waiting.
    asking: tokio::sync::Mutex<Option<Instant>>,
}

impl ShownListing {
    /// The listing that was shown last, however old.
    pub(super) fn last(&self) -> Option<Arc<Listing>> {
        let shown = self.shown.lock();
        shown.as_ref().map(|(_, listing)| Arc::clone(listing))
    }

    fn fresh(&self) -> Option<Arc<Listing>> {
        let shown = self.shown.lock();
        let (until, listing) = shown.as_ref()?;
        (Instant::now() < *until).then(|| Arc::clone(listing))
    }

    /// The listing, renewed if the last one is too old.
    ///
    /// # Errors
    /// Those of [`Catalog::list`].
    pub(super) async fn get(&self, catalog: &dyn Catalog) -> Result<Arc<Listing>> {
        if let Some(listing) = self.fresh() {
            return Ok(listing);
        }
        let mut asking = self.asking.lock().await;
        if let Some(listing) = self.fresh() {
            return Ok(listing);
        }
        let since = *asking.get_or_insert_with(Instant::now);
        let listed = catalog.list().await;
        *asking = None;
        let listing = Arc::new(Listing::new(listed?));
        // A listing that takes minutes is not renewed every minute.
        let until = Instant::now() + LISTING_LIFE.max(since.elapsed());
        *self.shown.lock() = Some((until, Arc::clone(&listing)));
        Ok(listing)
    }
}
