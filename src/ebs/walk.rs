//! How either list call is walked: one page that says something, past empty pages and stale page tokens, its order
//! checked; and which listings are on their way, so that nobody asks for what is coming.
//!
//! Page tokens live for an hour and only lead past a page that says nothing. Everywhere else a listing goes on by index,
//! at the last block of the page before, its *anchor*: it must come again, so that a page that was dropped or doubled
//! between the two does not pass.

use std::future::Future;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::debug;

use super::client::{Failure, From, Listing};
use crate::block::{BlockIndex, Extent};
use crate::error::Error;

/// How often a page is begun anew because the token that leads on from an empty part of it is refused.
const RESTARTS: u32 = 100;

/// One of the list calls, on what it is made.
pub(super) trait Lists: Sync {
    /// What comes with each index.
    type Item: Send;

    /// One reply.
    fn list(
        &self,
        from: &From,
    ) -> impl Future<Output = Result<Listing<Self::Item>, Failure>> + Send;

    /// How many blocks there may be; none while nobody has told.
    fn end(&self) -> Option<u32>;
}

/// What a page says: between where it began and `end` there are these blocks and no others.
#[derive(Debug)]
pub(super) struct Told<T> {
    pub(super) blocks: Vec<(u32, T)>,
    /// The block after the last one that it speaks of.
    pub(super) end: u32,
    /// Whether the listing goes on there.
    pub(super) more: bool,
    /// When its tokens stop working.
    pub(super) expiry: Option<SystemTime>,
}

/// Why a page could not be had.
#[derive(Debug)]
pub(super) enum Fault {
    /// The listing contradicts itself: it cannot be trusted.
    Contradiction(String),
    /// Everything else.
    Failed(Error),
}

impl std::convert::From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.into())
    }
}

/// The way to a page that says something. It remembers how far it is: a walk whose future was dropped is gone on with.
pub(super) struct Walk<T> {
    start: u32,
    anchored: bool,
    from: From,
    blocks: Vec<(u32, T)>,
    expiry: Option<SystemTime>,
    restarts: u32,
}

impl<T> std::fmt::Debug for Walk<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Walk(from block {})", self.start)
    }
}

impl<T> Walk<T> {
    /// To what comes from block `start` on. With `anchored` that block must come first, and others after it.
    pub(super) fn new(start: u32, anchored: bool) -> Self {
        Self {
            start,
            anchored,
            from: From::Index(BlockIndex(start)),
            blocks: Vec::new(),
            expiry: None,
            restarts: 0,
        }
    }

    /// Lists until a page says something; none while nobody tells how large the volume is.
    pub(super) async fn page<L: Lists<Item = T>>(
        &mut self,
        lists: &L,
    ) -> Result<Option<Told<T>>, Fault> {
        loop {
            let listing = match lists.list(&self.from).await {
                // The page token is an hour old or foreign: from the beginning.
                Err(Failure::StaleToken(error))
                    if matches!(self.from, From::Page(_)) && self.restarts < RESTARTS =>
                {
                    debug!("{error}");
                    let restarts = self.restarts + 1;
                    *self = Self::new(self.start, self.anchored);
                    self.restarts = restarts;
                    continue;
                }
                listing => listing?,
            };
            let Some(end) = lists.end() else {
                return Ok(None);
            };
            if let Some(told) = self.take(listing, end)? {
                return Ok(Some(told));
            }
        }
    }

    /// Takes a reply over; what the page says, once it says something.
    fn take(&mut self, listing: Listing<T>, end: u32) -> Result<Option<Told<T>>, Fault> {
        for (index, item) in listing.blocks {
            let least = self.blocks.last().map_or(self.start, |(last, _)| last + 1);
            let checked = u32::try_from(index).ok();
            let Some(index) = checked.filter(|index| (least..end).contains(index)) else {
                return Err(Fault::Contradiction(format!(
                    "from block {} on there came block {index}, not one from {least} to {}",
                    self.start,
                    end - 1
                )));
            };
            self.blocks.push((index, item));
        }
        self.expiry = sooner(self.expiry, listing.expiry);
        // An empty page says nothing, nor does one that brings the anchor alone: only its own token leads past it.
        let more = match listing.next {
            Some(next) if self.blocks.len() <= usize::from(self.anchored) => {
                if matches!(&self.from, From::Page(token) if *token == next) {
                    let what = "the same page comes again and again".into();
                    return Err(Fault::Contradiction(what));
                }
                self.from = From::Page(next);
                return Ok(None);
            }
            next => next.is_some(),
        };
        if self.anchored
            && self
                .blocks
                .first()
                .is_none_or(|(first, _)| *first != self.start)
        {
            let what = format!("block {} was listed before and is now missing", self.start);
            return Err(Fault::Contradiction(what));
        }
        let end = match self.blocks.last() {
            Some((last, _)) if more => last + 1,
            _ => end,
        };
        Ok(Some(Told {
            blocks: std::mem::take(&mut self.blocks),
            end,
            more,
            expiry: self.expiry,
        }))
    }
}

/// The sooner of two times, if any is told.
pub(super) fn sooner(a: Option<SystemTime>, b: Option<SystemTime>) -> Option<SystemTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Listings on their way, and where they probably reach.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<Vec<(Extent, watch::Receiver<()>)>>);

/// A listing on its way. Dropping it wakes who waits for it.
#[derive(Debug)]
pub(super) struct Landing<'a> {
    under_way: &'a UnderWay,
    reach: Extent,
    _sender: watch::Sender<()>,
}

impl UnderWay {
    /// A listing that probably covers a block; its end is told by `changed` failing. If there is none, one with this reach
    /// sets out.
    pub(super) fn join(
        &self,
        index: BlockIndex,
        reach: impl FnOnce() -> Extent,
    ) -> Result<Landing<'_>, watch::Receiver<()>> {
        let mut listings = self.0.lock();
        let covers = |reach: &Extent| reach.start() <= index && index < reach.end();
        if let Some((_, landed)) = listings.iter().find(|(reach, _)| covers(reach)) {
            return Err(landed.clone());
        }
        let (sender, landed) = watch::channel(());
        let reach = reach();
        listings.push((reach, landed));
        Ok(Landing {
            under_way: self,
            reach,
            _sender: sender,
        })
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut listings = self.under_way.0.lock();
        listings.retain(|(reach, _)| *reach != self.reach);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::collections::VecDeque;

    /// Replies in order, and where each was asked from.
    struct Script(
        Mutex<VecDeque<Result<Listing<()>, Failure>>>,
        Mutex<Vec<String>>,
    );

    impl Script {
        fn new(replies: impl IntoIterator<Item = (Vec<i32>, Option<&'static str>)>) -> Self {
            let listing = |(blocks, next): (Vec<i32>, Option<&str>)| {
                Ok(Listing {
                    blocks: blocks.into_iter().map(|index| (index, ())).collect(),
                    expiry: None,
                    volume_size: None,
                    next: next.map(str::to_owned),
                })
            };
            let replies = replies.into_iter().map(listing).collect();
            Self(Mutex::new(replies), Mutex::default())
        }
    }

    impl Lists for Script {
        type Item = ();

        async fn list(&self, from: &From) -> Result<Listing<()>, Failure> {
            self.1.lock().push(format!("{from:?}"));
            self.0.lock().pop_front().unwrap()
        }

        fn end(&self) -> Option<u32> {
            Some(100)
        }
    }

    fn told(script: &Script, start: u32, anchored: bool) -> Result<(Vec<u32>, u32, bool), String> {
        let mut walk = Walk::new(start, anchored);
        let page = walk.page(script).now_or_never().unwrap();
        match page {
            Ok(told) => {
                let told = told.unwrap();
                let blocks = told.blocks.iter().map(|(index, ())| *index).collect();
                Ok((blocks, told.end, told.more))
            }
            Err(Fault::Contradiction(what)) => Err(what),
            Err(Fault::Failed(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_page_speaks_up_to_its_last_block_and_the_last_page_to_the_end() {
        let script = Script::new([(vec![3, 7], Some("t"))]);
        assert_eq!(told(&script, 0, false), Ok((vec![3, 7], 8, true)));
        let script = Script::new([(vec![], None)]);
        assert_eq!(told(&script, 9, false), Ok((vec![], 100, false)));
    }

    #[test]
    fn empty_pages_and_a_page_of_the_anchor_alone_are_passed_by_their_tokens() {
        let script = Script::new([
            (vec![], Some("a")),
            (vec![5], Some("b")),
            (vec![], Some("c")),
            (vec![6, 9], Some("d")),
        ]);
        assert_eq!(told(&script, 5, true), Ok((vec![5, 6, 9], 10, true)));
        let asked = script.1.lock();
        assert_eq!(asked.len(), 4);
        assert!(
            asked[0].contains("Index") && asked[3].contains('c'),
            "{asked:?}"
        );
    }

    #[test]
    fn a_walk_that_nobody_waited_for_goes_on_where_it_was() {
        let script = Script::new([(vec![], Some("a")), (vec![], Some("b")), (vec![7], None)]);
        let mut walk = Walk::new(0, false);
        let stalled = Stalled(&script, Mutex::new(2));
        assert!(walk.page(&stalled).now_or_never().is_none());
        let told = walk.page(&script).now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(told.blocks, [(7, ())]);
        assert!(script.1.lock()[2].contains('b'), "{:?}", script.1.lock());
    }

    /// Answers so often, and then never.
    struct Stalled<'a>(&'a Script, Mutex<u32>);

    impl Lists for Stalled<'_> {
        type Item = ();

        async fn list(&self, from: &From) -> Result<Listing<()>, Failure> {
            let left = self.1.lock().checked_sub(1);
            let Some(left) = left else {
                return std::future::pending().await;
            };
            *self.1.lock() = left;
            self.0.list(from).await
        }

        fn end(&self) -> Option<u32> {
            self.0.end()
        }
    }

    #[test]
    fn a_token_that_is_refused_begins_the_page_anew_but_not_for_ever() {
        let stale = || {
            let error = Error::new(crate::error::Kind::Invalid, "INVALID_PAGE_TOKEN");
            Err(Failure::StaleToken(error))
        };
        let script = Script::new([(vec![5], Some("a")), (vec![5, 6], None)]);
        script.0.lock().insert(1, stale());
        assert_eq!(told(&script, 5, true), Ok((vec![5, 6], 100, false)));
        let script = Script::new((0..200).map(|_| (vec![], Some("a"))));
        for n in 0..200 {
            script.0.lock().insert(2 * n + 1, stale());
        }
        let mut walk = Walk::new(5, false);
        let page = walk.page(&script).now_or_never().unwrap();
        assert!(matches!(page, Err(Fault::Failed(_))), "{page:?}");
    }

    #[test]
    fn what_contradicts_itself_is_told() {
        let of = |blocks: &[i32], anchored| {
            told(&Script::new([(blocks.to_vec(), None)]), 5, anchored).unwrap_err()
        };
        assert!(of(&[4], false).contains("block 4"));
        assert!(of(&[7, 7], false).contains("from 8 to 99"));
        assert!(of(&[100], false).contains("block 100"));
        assert!(of(&[-1], false).contains("block -1"));
        assert!(of(&[6], true).contains("block 5 was listed"));
        let again = Script::new([(vec![], Some("a")), (vec![], Some("a"))]);
        assert!(
            told(&again, 0, false)
                .unwrap_err()
                .contains("again and again")
        );
    }

    #[test]
    fn a_listing_on_its_way_is_found_and_its_end_is_told() {
        let under_way = UnderWay::default();
        let reach = || Extent::new(BlockIndex(10), BlockIndex(20)).unwrap();
        let landing = under_way.join(BlockIndex(12), reach).unwrap();
        let mut landed = under_way.join(BlockIndex(19), reach).unwrap_err();
        drop(under_way.join(BlockIndex(20), reach).unwrap());
        let mut waits = Box::pin(landed.changed());
        assert!((&mut waits).now_or_never().is_none());
        drop(landing);
        assert!((&mut waits).now_or_never().is_some());
        assert!(under_way.join(BlockIndex(19), reach).is_ok());
    }
}
