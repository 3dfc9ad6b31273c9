//! One fetch in flight for each block: a reader of a block in flight waits for that fetch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Key, closed};
use crate::block::Block;
use crate::error::Result;
use crate::source::Wanted;

/// A reader that joins a fetch later than this gets a fetch of its own when the first one reaches its deadline.
const JOINED_LATE: Duration = Duration::from_secs(1);

type Answer = Option<Result<Block>>;
type FetchTable = Arc<Mutex<HashMap<Key, PendingFetch>>>;

/// A block in flight.
#[derive(Clone, Debug)]
struct PendingFetch {
    answer: watch::Receiver<Answer>,
    wanted: Wanted,
    asked: FetchPriority,
    since: Instant,
}

/// Why a block is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FetchPriority {
    /// A reader that waits.
    Now,
    /// Readahead.
    Ahead,
}

/// The blocks being fetched.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    table: FetchTable,
}

impl Fetches {
    /// Whether a block is in flight.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.table.lock().contains_key(&key)
    }

    /// Whether the fetch of a block has less time left than a new reader: it is a prefetch, or started a while ago.
    pub(super) fn ends_before_a_reader(&self, key: Key) -> bool {
        let table = self.table.lock();
        table.get(&key).is_some_and(|pending| {
            pending.asked == FetchPriority::Ahead || pending.since.elapsed() >= JOINED_LATE
        })
    }

    /// Joins the fetch of a block, or starts one with `fetch` unless `cached` finds that the block has arrived meanwhile.
    ///
    /// The fetch runs as its own task: it continues without waiters. Joining happens in the call, waiting
    /// in the future, and a reader that joins a prefetch makes it wanted. A failed fetch answers all who
    /// joined it with the same error and leaves nothing behind.
    pub(super) fn join(
        &self,
        key: Key,
        asks: FetchPriority,
        cached: impl FnOnce() -> Option<Block>,
        fetch: impl FnOnce(Wanted) -> BoxFuture<'static, Result<Block>>,
    ) -> BoxFuture<'static, Result<Block>> {
        let mut table = self.table.lock();
        if let Some(pending) = table.get(&key) {
            if asks == FetchPriority::Now {
                pending.wanted.want();
            }
            return wait(pending.answer.clone()).boxed();
        }
        // A fetch caches its block before it leaves the table, so a block is always in at least one of the two.
        if let Some(block) = cached() {
            return ready(Ok(block)).boxed();
        }
        let (sender, answer) = watch::channel(None);
        let wanted = Wanted::default();
        let pending = PendingFetch {
            answer: answer.clone(),
            wanted: wanted.clone(),
            asked: asks,
            since: Instant::now(),
        };
        table.insert(key, pending);
        drop(table);
        let guard = FetchGuard {
            table: Arc::clone(&self.table),
            key,
        };
        let fetch = fetch(wanted);
        tokio::spawn(async move {
            let answer = fetch.await;
            drop(guard);
            sender.send_replace(Some(answer));
        });
        wait(answer).boxed()
    }
}

async fn wait(mut answer: watch::Receiver<Answer>) -> Result<Block> {
    match answer.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or_else(|| Err(closed())),
        Err(_) => Err(closed()),
    }
}

/// Removes the fetch from the table however it ends: arrived, failed, or dropped when the process stops.
struct FetchGuard {
    table: FetchTable,
    key: Key,
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}
