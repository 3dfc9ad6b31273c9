//! [`Stop`]: the first signal, as everything that takes long sees it.

use tokio::sync::watch;

use crate::error::{Error, Kind, Result};

/// Whether the run is to end at the next checkpoint.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop that comes when the channel's value becomes `true`.
    pub(crate) fn new(stop: watch::Receiver<bool>) -> Self {
        Self(stop)
    }

    /// A stop that never comes.
    pub fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// Whether it has come.
    pub(crate) fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// An error if it has come.
    ///
    /// # Errors
    /// `Stopped`.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_stopped() {
            return Err(Self::error());
        }
        Ok(())
    }

    /// Waits until it comes.
    pub(crate) async fn stopped(&self) {
        let mut stop = self.0.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs work until it ends or the stop comes. The work must be safe to drop at any await.
    ///
    /// # Errors
    /// The work's own, or `Stopped`.
    pub(crate) async fn unless<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.stopped() => Err(Self::error()),
        }
    }

    /// What a stopped run ends with.
    pub(crate) fn error() -> Error {
        Error::new(Kind::Stopped, "stopped: the same command resumes")
    }
}
