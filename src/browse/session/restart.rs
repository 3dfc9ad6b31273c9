//! [`LastingSession`]: a parser that is started again after it ended, so that a hostile file makes only requests about itself fail.
//!
//! A request that ends the parser fails and is not sent again: further requests about the same file or name are refused. After
//! too many restarts within a period ([`RestartLimit`]) every request fails.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;
use tracing::info;

use super::super::wire::{BrokenFrame, FrameReader, FrameWriter, to_parser};
use super::super::{FsNode, FsRemarks};
use super::ParserSession;
use crate::error::{Error, Kind, Remedy, Result};

/// Most requests that are remembered because they ended a parser: at 10 restarts a minute, those of 6 hours.
const REFUSED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Names in a folder that ended the parser, after which the folder is refused: a hostile index can end it at every name.
const REFUSED_NAMES: u32 = 3;

/// How often a parser is started again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestartLimit {
    /// Most restarts within the period.
    pub(crate) count: usize,
    /// The length of the period.
    pub(crate) within: Duration,
}

/// The limit for a command, which ends: a hostile disk must not make it work for days.
const COMMAND_RESTARTS: RestartLimit = RestartLimit {
    count: 10,
    within: Duration::from_secs(24 * 3600),
};

/// The times of the restarts in the last period.
#[derive(Debug, Default)]
struct RestartBudget(VecDeque<Instant>);

impl RestartBudget {
    /// Takes one more restart. False if the limit is reached.
    fn take(&mut self, limit: RestartLimit, now: Instant) -> bool {
        while self.0.front().is_some_and(|at| now >= *at + limit.within) {
            self.0.pop_front();
        }
        let is_left = self.0.len() < limit.count;
        if is_left {
            self.0.push_back(now);
        }
        is_left
    }
}

/// A request about a file of the open filesystem: what it asks about, then which part of it.
#[derive(Debug)]
pub(in crate::browse) struct FsRequest {
    frame: FrameWriter,
    /// Length of the start of the body that names the file.
    subject: usize,
    /// The folder in which a name is looked up.
    folder: Option<u64>,
}

impl FsRequest {
    /// `name`: a name in the folder `id`, or a stream of the file `id`; empty for the file or folder itself.
    pub(in crate::browse) fn new(verb: u8, id: u64, name: &[u8]) -> Self {
        let mut frame = FrameWriter::new(verb);
        frame.u64(id);
        frame.bytes(name);
        let subject = frame.len();
        Self {
            frame,
            subject,
            folder: (verb == to_parser::FIND).then_some(id),
        }
    }

    /// Adds where the wanted part begins.
    pub(in crate::browse) fn at(mut self, at: u64) -> Self {
        self.frame.u64(at);
        self
    }

    /// Adds how long the wanted part is.
    pub(in crate::browse) fn up_to(mut self, len: u32) -> Self {
        self.frame.u32(len);
        self
    }

    fn subject(&self) -> Vec<u8> {
        let body = self.frame.body();
        body.get(..self.subject).unwrap_or(body).to_vec()
    }
}

/// A filesystem as the parser opened it.
#[derive(Clone, Debug)]
pub(in crate::browse) struct OpenedFs {
    /// `ext4`, `vfat`, `ntfs`.
    pub(in crate::browse) name: String,
    pub(in crate::browse) remarks: FsRemarks,
    /// Its root folder.
    pub(in crate::browse) root: FsNode,
}

/// Bytes of the image that hold the open filesystem, and what must be found there again.
#[derive(Clone, Debug)]
struct OpenRange {
    start: u64,
    size: u64,
    name: String,
    root: u64,
}

/// Starts a parser.
pub(in crate::browse) type SessionStart = Box<dyn Fn() -> Result<ParserSession> + Send + Sync>;

/// A parser, and its successors.
pub(in crate::browse) struct LastingSession {
    start: SessionStart,
    session: ParserSession,
    limit: RestartLimit,
    budget: RestartBudget,
    opened: Option<OpenRange>,
    /// Whether the present parser has it open.
    is_open: bool,
    refused: LruCache<Vec<u8>, ()>,
    /// Names of folders that ended the parser.
    refused_names: LruCache<u64, u32>,
    /// Why no request is sent any more.
    failed: Option<Error>,
}

impl LastingSession {
    /// Starts the first parser.
    ///
    /// # Errors
    /// Why it does not start.
    pub(in crate::browse) fn start(start: SessionStart) -> Result<Self> {
        Ok(Self {
            session: start()?,
            start,
            limit: COMMAND_RESTARTS,
            budget: RestartBudget::default(),
            opened: None,
            is_open: false,
            refused: LruCache::new(REFUSED),
            refused_names: LruCache::new(REFUSED),
            failed: None,
        })
    }

    /// Sets another limit than [`COMMAND_RESTARTS`].
    pub(in crate::browse) fn restart_within(&mut self, limit: RestartLimit) {
        self.limit = limit;
    }

    /// Why no request is answered any more.
    pub(in crate::browse) fn failure(&self) -> Option<Error> {
        self.failed.clone()
    }

    /// Asks about the image as a whole. A parser that has ended is not started again for it.
    ///
    /// # Errors
    /// As for [`ParserSession::ask`].
    pub(in crate::browse) async fn ask_image<T>(
        &mut self,
        request: FrameWriter,
        read: impl FnOnce(&mut FrameReader<'_>) -> std::result::Result<T, BrokenFrame>,
    ) -> Result<T> {
        self.session.ask(request, read).await
    }

    /// Opens the filesystem in a range of the image.
    ///
    /// # Errors
    /// As for [`ParserSession::ask`].
    pub(in crate::browse) async fn open(&mut self, start: u64, size: u64) -> Result<OpenedFs> {
        let opened = self.open_now(start, size).await?;
        self.opened = Some(OpenRange {
            start,
            size,
            name: opened.name.clone(),
            root: opened.root.id,
        });
        self.is_open = true;
        Ok(opened)
    }

    async fn open_now(&mut self, start: u64, size: u64) -> Result<OpenedFs> {
        let mut request = FrameWriter::new(to_parser::OPEN);
        // A restarted parser was never asked for the layout, so it does not know the size.
        request.u64(self.session.image.size());
        request.u64(start);
        request.u64(size);
        let opened = self.session.ask(request, |reader| {
            let name = reader.text()?;
            let remarks = reader.remarks()?;
            let root = reader.node()?;
            Ok(OpenedFs {
                name,
                remarks,
                root,
            })
        });
        opened.await
    }

    /// Asks about a file of the open filesystem. A parser that has ended is started again first.
    ///
    /// # Errors
    /// As for [`ParserSession::ask`]; `Corrupt` when the request has ended a parser before, or too many parsers have ended.
    pub(in crate::browse) async fn ask<T>(
        &mut self,
        request: FsRequest,
        read: impl FnOnce(&mut FrameReader<'_>) -> std::result::Result<T, BrokenFrame>,
    ) -> Result<T> {
        let (subject, folder) = (request.subject(), request.folder);
        let names = folder.and_then(|folder| self.refused_names.get(&folder));
        if self.refused.get(&subject).is_some()
            || names.is_some_and(|names| *names >= REFUSED_NAMES)
        {
            let what = "cannot read the filesystem: the parser ended at this request before, so it is not sent again";
            return Err(Error::new(Kind::Corrupt, what));
        }
        self.revive().await?;
        let answer = self.session.ask(request.frame, read).await;
        if !self.session.is_alive() {
            self.refused.put(subject, ());
            if let Some(folder) = folder {
                *self.refused_names.get_or_insert_mut(folder, || 0) += 1;
            }
        }
        answer
    }

    /// Makes sure that a parser runs and has the filesystem open. If the image cannot be read, the parser stays, and the next
    /// request opens the filesystem without a restart.
    async fn revive(&mut self) -> Result<()> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let limit = self.limit;
        let Some(range) = self.opened.clone() else {
            return Ok(());
        };
        if !self.session.is_running() {
            if !self.budget.take(limit, Instant::now()) {
                return Err(self.give_up());
            }
            self.session = (self.start)()?;
            self.is_open = false;
            info!(
                "the parser of the filesystem ended and was started again ({} of {} times in {} s)",
                self.budget.0.len(),
                limit.count,
                limit.within.as_secs()
            );
        }
        if !self.is_open {
            let found = self.open_now(range.start, range.size).await?;
            if found.name != range.name || found.root.id != range.root {
                let what = "cannot read the filesystem: it is another one than before";
                return Err(Error::new(Kind::Corrupt, what));
            }
            self.is_open = true;
        }
        Ok(())
    }

    /// Makes this and all later requests fail.
    fn give_up(&mut self) -> Error {
        let limit = self.limit;
        let what = format!(
            "cannot read the filesystem any more: its parser ended {} times within {} s",
            limit.count + 1,
            limit.within.as_secs()
        );
        let remedy = "for a disk that you trust: ebsfs attach, as root";
        let error = Error::new(Kind::Corrupt, what).with_remedy(Remedy::Do(remedy.into()));
        self.failed = Some(error.clone());
        error
    }
}

#[cfg(test)]
mod tests;
