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
type FlightTable = Arc<Mutex<HashMap<Key, Flight>>>;

/// A block on its way.
#[derive(Clone, Debug)]
struct Flight {
    answer: watch::Receiver<Answer>,
    wanted: Wanted,
    asked: Asks,
    since: Instant,
}

/// Who asks for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// A reader that waits.
    Now,
    /// Readahead.
    Ahead,
}

/// The blocks being fetched.
#[derive(Debug, Default)]
pub(super) struct Flights {
    table: FlightTable,
}

impl Flights {
    /// Whether a block is on its way.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.table.lock().contains_key(&key)
    }

    /// Whether the fetch of a block has less time left than a reader that comes now: it reads ahead, or began a while ago.
    pub(super) fn ends_before_a_reader(&self, key: Key) -> bool {
        let table = self.table.lock();
        table.get(&key).is_some_and(|flight| {
            flight.asked == Asks::Ahead || flight.since.elapsed() >= JOINED_LATE
        })
    }

    /// Joins the flight of a block, or starts one with `fetch` unless `cached` finds the block landed meanwhile.
    ///
    /// The flight runs as a task of its own: it continues without waiters. Joining happens in the call, waiting
    /// in the future, and a reader that joins a flight of readahead makes it wanted. A flight that failed answers all who
    /// joined it with the same error and leaves nothing behind.
    pub(super) fn join(
        &self,
        key: Key,
        asks: Asks,
        cached: impl FnOnce() -> Option<Block>,
        fetch: impl FnOnce(Wanted) -> BoxFuture<'static, Result<Block>>,
    ) -> BoxFuture<'static, Result<Block>> {
        let mut table = self.table.lock();
        if let Some(flight) = table.get(&key) {
            if asks == Asks::Now {
                flight.wanted.want();
            }
            return wait(flight.answer.clone()).boxed();
        }
        // A flight keeps its block before it leaves the table, so a block is never in neither for a moment.
        if let Some(block) = cached() {
            return ready(Ok(block)).boxed();
        }
        let (sender, answer) = watch::channel(None);
        let wanted = Wanted::default();
        let flight = Flight {
            answer: answer.clone(),
            wanted: wanted.clone(),
            asked: asks,
            since: Instant::now(),
        };
        table.insert(key, flight);
        drop(table);
        let landing = Landing {
            table: Arc::clone(&self.table),
            key,
        };
        let fetch = fetch(wanted);
        tokio::spawn(async move {
            let answer = fetch.await;
            drop(landing);
            sender.send_replace(Some(answer));
        });
        wait(answer).boxed()
    }
}

async fn wait(mut flight: watch::Receiver<Answer>) -> Result<Block> {
    match flight.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or_else(|| Err(closed())),
        Err(_) => Err(closed()),
    }
}

/// Takes the flight out of the table however it ends: landed, failed, or dropped when the process stops.
struct Landing {
    table: FlightTable,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}
