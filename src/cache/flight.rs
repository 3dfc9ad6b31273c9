//! One flight a block: whoever asks for a block that is being fetched waits for that fetch.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Key, closed};
use crate::block::Block;
use crate::error::Result;

type Answer = Option<Result<Block>>;
type Table = Arc<Mutex<HashMap<Key, watch::Receiver<Answer>>>>;

/// The blocks being fetched.
#[derive(Debug, Default)]
pub(super) struct Flights {
    table: Table,
}

impl Flights {
    /// Joins the flight of a block, or starts one with `fetch` unless `cached` finds the block landed meanwhile.
    ///
    /// The flight runs as a task of its own: it goes on when every waiter has gone. Joining happens in the call, waiting
    /// in the future. A flight that failed answers all who joined it with the same error and leaves nothing behind.
    pub(super) fn join(
        &self,
        key: Key,
        cached: impl FnOnce() -> Option<Block>,
        fetch: impl FnOnce() -> BoxFuture<'static, Result<Block>>,
    ) -> BoxFuture<'static, Result<Block>> {
        let mut table = self.table.lock();
        if let Some(flight) = table.get(&key) {
            return wait(flight.clone()).boxed();
        }
        // A flight keeps its block before it leaves the table, so a block is never in neither for a moment.
        if let Some(block) = cached() {
            return ready(Ok(block)).boxed();
        }
        let (sender, flight) = watch::channel(None);
        table.insert(key, flight.clone());
        drop(table);
        let landing = Landing {
            table: Arc::clone(&self.table),
            key,
        };
        let fetch = fetch();
        tokio::spawn(async move {
            let answer = fetch.await;
            drop(landing);
            sender.send_replace(Some(answer));
        });
        wait(flight).boxed()
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
    table: Table,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}
