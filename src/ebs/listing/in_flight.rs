//! Which listings are under way, so that readers of one range share one listing.

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::block::{BlockIndex, Extent};

/// The listings under way, and the range that each will probably cover.
#[derive(Debug, Default)]
pub(in crate::ebs) struct ListingsInFlight(Mutex<Vec<(Extent, watch::Receiver<()>)>>);

/// One listing under way. Dropping it wakes its waiters.
#[derive(Debug)]
pub(in crate::ebs) struct ListingGuard<'a> {
    listings: &'a ListingsInFlight,
    reach: Extent,
    _sender: watch::Sender<()>,
}

/// A listing of another caller that probably covers the block.
#[derive(Debug)]
pub(in crate::ebs) struct ListingWaiter(watch::Receiver<()>);

impl ListingWaiter {
    /// Waits until the listing ends, with or without success: the caller then checks again. False at the deadline.
    pub(in crate::ebs) async fn ended(mut self, deadline: Instant) -> bool {
        timeout_at(deadline, self.0.changed()).await.is_ok()
    }
}

impl ListingsInFlight {
    /// Starts a listing that reaches this far, unless one that covers `index` is under way.
    pub(in crate::ebs) fn join(
        &self,
        index: BlockIndex,
        reach: impl FnOnce() -> Extent,
    ) -> Result<ListingGuard<'_>, ListingWaiter> {
        let mut listings = self.0.lock();
        let covers = |reach: &Extent| reach.start() <= index && index < reach.end();
        if let Some((_, ended)) = listings.iter().find(|(reach, _)| covers(reach)) {
            return Err(ListingWaiter(ended.clone()));
        }
        let (sender, ended) = watch::channel(());
        let reach = reach();
        listings.push((reach, ended));
        Ok(ListingGuard {
            listings: self,
            reach,
            _sender: sender,
        })
    }
}

impl Drop for ListingGuard<'_> {
    fn drop(&mut self) {
        let mut listings = self.listings.0.lock();
        listings.retain(|(reach, _)| *reach != self.reach);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_caller_waits_for_the_listing_that_covers_its_block() {
        let listings = ListingsInFlight::default();
        let reach = || Extent::new(BlockIndex(10), BlockIndex(20)).unwrap();
        let guard = listings.join(BlockIndex(12), reach).unwrap();
        let later = Instant::now() + Duration::from_secs(9);
        let waiter = listings.join(BlockIndex(19), reach).unwrap_err();
        let next = || Extent::new(BlockIndex(20), BlockIndex(30)).unwrap();
        drop(listings.join(BlockIndex(20), next).unwrap());
        let mut waits = Box::pin(waiter.ended(later));
        assert!((&mut waits).now_or_never().is_none());
        let impatient = listings.join(BlockIndex(19), reach).unwrap_err();
        assert!(
            !impatient
                .ended(Instant::now() + Duration::from_secs(1))
                .await
        );
        drop(guard);
        assert!(waits.await);
        assert!(listings.join(BlockIndex(19), reach).is_ok());
    }
}
