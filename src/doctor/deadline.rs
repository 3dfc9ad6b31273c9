//! [`within`]: a call with a deadline, so that one row does not take the time of all.

use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Error, Kind, Result};
use crate::time::in_words;

/// The result of a call, or `Unavailable` after `limit`.
pub(super) async fn within<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| {
        let what = format!("no result in {}", in_words(limit));
        Err(Error::new(Kind::Unavailable, what))
    };
    timeout(limit, call).await.unwrap_or_else(late)
}
