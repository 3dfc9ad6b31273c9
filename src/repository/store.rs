//! [`Store`]: whole objects by name in a bucket or a folder.
//!
//! # Terms
//! *backend*: one kind of store ([`s3`], [`objects`] for Azure and Google, [`folder`]); it sends one request. *rules*: what a
//! bucket of S3 does with old versions, by its lifecycle and Object Lock ([`bucket`]); only `ebsfs doctor` reads them.
//! *proof*: what a store reports about an object after it was put ([`proof`], [`put`]). *silence*: no byte of a request or reply
//! moves ([`transfer`]).
//!
//! # How the parts fit
//! This file has the operations and their one loop: each is retried until it succeeds, fails finally, or makes no progress
//! until its deadline. [`refusal`] is the one table of what an error of a store means; [`listing`] refuses pages that make no
//! listing. These files alone use aws-sdk-s3 and object_store.

mod address;
mod backend;
mod bandwidth;
mod bucket;
mod connector;
mod folder;
mod foreign_text;
#[cfg(test)]
pub(super) mod hostile;
mod listing;
mod objects;
mod origin;
mod proof;
mod put;
mod reach;
mod refusal;
mod s3;
mod traffic;
mod transfer;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{Stream, try_unfold};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

pub(crate) use address::Address;
pub(crate) use bandwidth::Bandwidth;
pub(crate) use bucket::{BucketVersions, LifecycleEffects, ObjectLock};
pub(crate) use origin::{StoreCloud, StoreOrigin, store_origin};
pub(crate) use proof::ObjectProof;
pub use reach::{BucketStyle, Connection, S3Options};
pub(crate) use s3::url as s3_url;
pub(crate) use traffic::{OperationCounts, StoreTraffic};

use self::backend::{Backend, FaultAction, ListCursor, ObjectHead, StoreAnswer, StoreFault};
use self::listing::ListingCheck;
use self::transfer::{Latency, Transfer, UploadRate};
use crate::aws::Credentials;
use crate::error::{Error, Kind, Result};
use crate::time::jittered;

/// Pauses between tries: doubled from the first to the longest, less a random part.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One line in this time says what is waited for, however many objects wait.
const WAIT_LOG_EVERY: Duration = Duration::from_secs(5);
/// An attempt that gets so much further than all before it restarts the clock.
const PROGRESS: u64 = 64 << 10;

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name within the repository.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub(crate) modified: SystemTime,
}

/// What became of an object that was to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It does not exist any more.
    Done,
    /// Retention or a legal hold keeps it; with what the store says.
    Locked(String),
}

/// What is known of the line to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownLine {
    /// Bytes a second that all uploads together send, by the latest ones and the limit; none before the first of some size.
    pub upload_rate: Option<u64>,
    /// How long the store takes for a small answer.
    pub(crate) latency: Option<Duration>,
}

/// The objects of one repository.
pub struct Store {
    address: Address,
    backend: Box<dyn Backend>,
    timeout: Duration,
    rate: Arc<UploadRate>,
    latency: Latency,
    bandwidth: Bandwidth,
    traffic: StoreTraffic,
    /// One permit per request in flight.
    requests: Semaphore,
    /// Renewals of leases have a queue of their own: a pack can take longer than a lease on a slow line.
    renewals: Semaphore,
    /// One permit per read of blocks, taken before it queues for a request: a queued read is not taken for a slow one.
    reads: Semaphore,
    /// Whether the store's ETags are no MD5, so that its checksums are asked for.
    needs_checksums: AtomicBool,
    last_wait_log: Mutex<Option<Instant>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.address)
    }
}

impl Store {
    /// Reaches a repository's bucket or folder; no request is sent.
    ///
    /// # Errors
    /// `Invalid` when the configuration makes no sense.
    pub fn open(address: &Address, connection: &Connection) -> Result<Self> {
        let backend = reach::reach(address, connection)?;
        Ok(Self::of(address, backend, connection))
    }

    fn of(address: &Address, backend: Box<dyn Backend>, connection: &Connection) -> Self {
        Self {
            address: address.clone(),
            backend,
            timeout: connection.timeout,
            rate: Arc::default(),
            latency: Latency::default(),
            bandwidth: connection.bandwidth.clone(),
            traffic: connection.traffic.clone(),
            requests: Semaphore::new(connection.in_flight.max(1)),
            renewals: Semaphore::new(1),
            reads: Semaphore::new(connection.bandwidth.replies(connection.in_flight.max(1))),
            needs_checksums: AtomicBool::new(false),
            last_wait_log: Mutex::new(None),
        }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The version of ListObjects that the last listing was answered by; none where the store has no versions of it, or none was
    /// listed.
    pub(crate) fn listing_version(&self) -> Option<u8> {
        self.backend.listing_version()
    }

    /// What is known of the line.
    pub fn line(&self) -> KnownLine {
        let rates = self.rate.of_all().into_iter();
        KnownLine {
            upload_rate: rates.chain(self.bandwidth.bytes_a_second()).min(),
            latency: self.latency.get(),
        }
    }

    /// A permit for a read of blocks.
    pub(super) async fn read_place(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.reads.acquire().await.ok()
    }

    fn key(&self, name: &str) -> String {
        match &*self.address.prefix {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    /// A whole object.
    ///
    /// # Errors
    /// `NotFound` when there is none; else why it cannot be read.
    pub async fn get(&self, name: &str) -> Result<Bytes> {
        let key = &self.key(name);
        let got = self.until("get", key, |transfer| async move {
            self.backend.get(key, None, &transfer).await
        });
        let bytes = got.await?;
        self.traffic.read(bytes.len());
        Ok(bytes)
    }

    /// Part of an object.
    ///
    /// # Errors
    /// As for [`Store::get`]; `Corrupt` when the object is shorter.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let key = &self.key(name);
        let len = range.end - range.start;
        let get = |transfer| {
            let range = range.clone();
            async move { self.backend.get(key, Some(range), &transfer).await }
        };
        let bytes = self.until("get", key, get).await?;
        self.traffic.read(bytes.len());
        if bytes.len() as u64 != len {
            let what = format!("it has {} bytes there, not {len}", bytes.len());
            return Err(self.backend.error(Kind::Corrupt, "get", key, &what));
        }
        Ok(bytes)
    }

    /// The objects of a folder page by page, sorted by name, in a bounded part of memory.
    ///
    /// # Errors
    /// The stream ends with the first error: why they cannot be listed; `Corrupt` when the replies make no listing.
    pub fn pages<'a>(&'a self, folder: &str) -> impl Stream<Item = Result<Vec<Object>>> + use<'a> {
        let prefix = format!("{}/", self.key(folder));
        let strip = self.key("").len();
        let start = (ListingCheck::new(prefix.clone()), Some(ListCursor::Start));
        try_unfold(start, move |(mut check, from)| {
            let prefix = prefix.clone();
            async move {
                let Some(from) = from else {
                    return Ok(None);
                };
                let (key, cursor) = (&prefix, &from);
                let page = self.until("list", key, |transfer| async move {
                    self.backend.page(key, cursor, &transfer).await
                });
                let page = page.await?;
                check.take(&from, &page).map_err(|what| {
                    let what = format!("the reply is not a listing: {what}");
                    self.backend.error(Kind::Corrupt, "list", key, &what)
                })?;
                let objects = page.keys.into_iter().map(|listed| Object {
                    name: listed.key.get(strip..).unwrap_or_default().to_owned(),
                    size: listed.size,
                    modified: listed.modified,
                });
                Ok(Some((objects.collect(), (check, page.next))))
            }
        })
    }

    /// What the store knows of an object without its bytes.
    ///
    /// # Errors
    /// `NotFound` when there is none; else why the store does not say.
    pub async fn head(&self, name: &str) -> Result<Object> {
        let key = &self.key(name);
        let head = self.until("look at", key, |transfer| async move {
            self.backend.head(key, false, &transfer).await
        });
        let ObjectHead { size, modified, .. } = head.await?;
        let (Some(size), Some(modified)) = (size, modified) else {
            let what = "the reply has no size or no time";
            return Err(self.backend.error(Kind::Corrupt, "look at", key, what));
        };
        Ok(Object {
            name: name.to_owned(),
            size,
            modified,
        })
    }

    /// Deletes an object, if it exists.
    ///
    /// # Errors
    /// `Denied` at once where a permission is missing; else why it cannot be deleted.
    pub async fn delete(&self, name: &str) -> Result<Deleted> {
        let key = &self.key(name);
        self.until("delete", key, |transfer| async move {
            match self.backend.delete(key, &transfer).await {
                Err(fault) if fault.next == FaultAction::Locked => {
                    Ok(Deleted::Locked(fault.error.to_string()))
                }
                done => done.map(|()| Deleted::Done),
            }
        })
        .await
    }

    /// Tries in turn with all other requests.
    async fn until<T, F>(
        &self,
        verb: &'static str,
        key: &str,
        once: impl Fn(Arc<Transfer>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = StoreAnswer<T>>,
    {
        self.until_in(&self.requests, verb, key, once).await
    }

    /// Tries until it succeeds, fails for good, or made no progress for the time-out; each time in its turn in a queue.
    async fn until_in<T, F>(
        &self,
        queue: &Semaphore,
        verb: &'static str,
        key: &str,
        once: impl Fn(Arc<Transfer>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = StoreAnswer<T>>,
    {
        let begun = Instant::now();
        let (mut since, mut furthest) = (begun, 0);
        let (mut pause, mut tries, mut refusals, mut was_skewed) = (FIRST_PAUSE, 0, 0, false);
        loop {
            let ready = self.backend.ready().await;
            let queued = Instant::now();
            // Never closed.
            let place = queue.acquire().await.ok();
            let mut waited = queued.elapsed();
            let used = self.backend.generation();
            let transfer = Transfer::new(&self.rate, &self.bandwidth);
            self.traffic.attempt(verb, tries > 0);
            let done = match ready {
                Err(fault) => Err(fault),
                Ok(()) => {
                    let silence = self.backend.silence(self.timeout);
                    let done = transfer.unless_silent(silence, once(Arc::clone(&transfer)));
                    done.await.unwrap_or_else(|| {
                        self.backend.forget_idle();
                        let what = format!("no byte moved for {silence:?}");
                        let error = self.backend.error(Kind::Unavailable, verb, key, &what);
                        Err(StoreFault::new(FaultAction::Retry, error))
                    })
                }
            };
            drop(place);
            let StoreFault { error, next } = match done {
                Ok(done) => {
                    self.latency.sample(&transfer);
                    return Ok(done);
                }
                Err(fault) => fault,
            };
            // Neither the queue nor a limit is the store's fault.
            waited += transfer.waited_in_all();
            since += waited;
            let is_worth = match next {
                FaultAction::Retry => true,
                FaultAction::Skewed => !std::mem::replace(&mut was_skewed, true),
                FaultAction::Refused => {
                    refusals += 1;
                    refusals <= Credentials::MAX_REFUSALS && self.backend.refused(used)
                }
                FaultAction::Final
                | FaultAction::Absent
                | FaultAction::Exists
                | FaultAction::NoCondition
                | FaultAction::Locked => false,
            };
            if !is_worth {
                return Err(error);
            }
            tries += 1;
            if transfer.total() >= furthest + PROGRESS {
                (since, furthest) = (Instant::now(), transfer.total());
            }
            let deadline = since + self.timeout;
            if Instant::now() + pause >= deadline {
                let took = begun.elapsed();
                return Err(error.context(format!("gave up after {tries} attempts in {took:.1?}")));
            }
            if tries > 1 {
                self.log_wait(&error, deadline);
            }
            debug!("again in {pause:.1?}: {}", error.chain());
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Says what is waited for.
    fn log_wait(&self, error: &Error, deadline: Instant) {
        let now = Instant::now();
        let mut last = self.last_wait_log.lock();
        if last.is_none_or(|last| now >= last + WAIT_LOG_EVERY) {
            *last = Some(now);
            warn!(
                "waiting, up to {:.0?} more: {}",
                deadline - now,
                error.chain()
            );
        }
    }

    /// Removes what killed writers have left in a folder of this machine: files that are no objects yet.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn sweep_unfinished(&self, until: SystemTime) -> Result<()> {
        match self.address.folder() {
            Some(root) => folder::sweep_unfinished(root, until),
            None => Ok(()),
        }
    }
}
