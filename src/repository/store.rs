//! [`Store`]: whole objects by name in a bucket or a folder. What is put is read back, what fails is tried again until its
//! deadline, and what fails for good is told in one line. This file and its own modules are the only ones with object_store
//! in them.

mod address;
mod reach;
mod said;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use futures_util::{StreamExt, TryStreamExt};
use md5::{Digest as _, Md5};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

pub use address::Address;
pub use reach::{BucketStyle, Connection};

use crate::block::hexadecimal;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::time::jittered;
pub(super) use reach::REQUEST_TIMEOUT;
use reach::reach;
use said::is_unknown_condition;

/// The most bytes of an object: a root of 64 TiB has less than 1 MB, a segment 5 MB, a pack 32 MiB.
const MOST_BYTES: u64 = 64 << 20;
/// Pauses between tries: doubled from the first to the longest, less a random part.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One line in this time says what is waited for, however many objects wait.
const WAIT_LOG_EVERY: Duration = Duration::from_secs(5);

/// An object that a listing tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name within the repository.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// The folders that objects are in.
const FOLDERS: [&str; 5] = ["packs", "segments", "snapshots", "runs", "removed"];

/// The objects of one repository.
pub struct Store {
    address: Address,
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    timeout: Duration,
    last_wait_log: Mutex<Option<Instant>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.address)
    }
}

/// Why an attempt did not succeed.
enum Trouble {
    Store(StoreError),
    /// The store has said yes and not kept it.
    Lost(String),
    /// What is there is nothing of a repository's.
    Wrong(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Store {
    /// Reaches a repository's bucket or folder; nothing is asked yet.
    ///
    /// # Errors
    /// `Invalid` when what is configured makes no sense; for a folder what the system says.
    pub fn open(address: &Address, connection: &Connection) -> Result<Self> {
        let inner = reach(address, connection)?;
        let prefix = Path::parse(&address.prefix)
            .map_err(|error| Error::with_source(Kind::Invalid, format!("{address}"), error))?;
        Ok(Self {
            address: address.clone(),
            inner,
            prefix,
            timeout: connection.timeout,
            last_wait_log: Mutex::new(None),
        })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), Path::join)
    }

    /// A whole object.
    ///
    /// # Errors
    /// `NotFound` when there is none; else why it cannot be had.
    pub async fn get(&self, name: &str) -> Result<Bytes> {
        let path = &self.path(name);
        let get = || async { self.whole(path).await };
        self.until("get", name, get).await
    }

    /// A whole object, unless it is larger than any of a repository's.
    async fn whole(&self, path: &Path) -> std::result::Result<Bytes, Trouble> {
        let got = self.inner.get(path).await?;
        if got.meta.size > MOST_BYTES {
            let what = format!(
                "it has {} bytes, more than any object of a repository",
                got.meta.size
            );
            return Err(Trouble::Wrong(what));
        }
        Ok(got.bytes().await?)
    }

    /// Part of an object.
    ///
    /// # Errors
    /// As for [`Store::get`]; `Corrupt` when it is shorter.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let path = &self.path(name);
        let len = range.end - range.start;
        let get = || async { Ok(self.inner.get_range(path, range.clone()).await?) };
        let bytes = self.until("get", name, get).await?;
        if bytes.len() as u64 != len {
            let what = format!("{}/{name} is shorter than it was", self.address);
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(bytes)
    }

    /// Puts an object, and reads back that it is there.
    ///
    /// # Errors
    /// `Corrupt` when the store says yes and does not keep it; else why it cannot be put.
    pub async fn put(&self, name: &str, pieces: &[Bytes]) -> Result<()> {
        let path = &self.path(name);
        let tag = &self.probable_tag(pieces).await?;
        let put = || async {
            let payload = PutPayload::from_iter(pieces.iter().cloned());
            self.inner.put(path, payload).await?;
            self.prove(path, pieces, tag.as_deref()).await
        };
        self.until("put", name, put).await
    }

    /// The ETag that most stores give what is put in one piece: its MD5. None for a folder of this machine.
    async fn probable_tag(&self, pieces: &[Bytes]) -> Result<Option<String>> {
        if self.address.is_folder() {
            return Ok(None);
        }
        let pieces = pieces.to_vec();
        let md5 = blocking(move || {
            let mut md5 = Md5::new();
            pieces.iter().for_each(|piece| md5.update(piece));
            Ok(md5.finalize())
        });
        Ok(Some(hexadecimal(&md5.await?)))
    }

    /// That an object is there with these bytes: by its ETag where that is their MD5, else by reading it.
    async fn prove(
        &self,
        path: &Path,
        pieces: &[Bytes],
        tag: Option<&str>,
    ) -> std::result::Result<(), Trouble> {
        let told = match self.inner.head(path).await {
            Err(StoreError::NotFound { .. }) => {
                return Err(Trouble::Lost("it is not there".into()));
            }
            told => told?,
        };
        let size = pieces.iter().map(Bytes::len).sum::<usize>() as u64;
        if told.size != size {
            let what = format!("it has {} bytes, not {size}", told.size);
            return Err(Trouble::Lost(what));
        }
        if tag.is_some() && told.e_tag.as_deref().map(|tag| tag.trim_matches('"')) == tag {
            return Ok(());
        }
        let mut kept = self.whole(path).await?;
        let is_same = |piece: &Bytes| {
            let is_same = kept.starts_with(piece);
            kept = kept.split_off(piece.len().min(kept.len()));
            is_same
        };
        if !pieces.iter().all(is_same) {
            return Err(Trouble::Lost("it holds other bytes".into()));
        }
        Ok(())
    }

    /// Puts a small object unless there is one of this name that is sound; whether this one is there now.
    ///
    /// # Errors
    /// As for [`Store::put`].
    pub async fn put_new(
        &self,
        name: &str,
        bytes: &[u8],
        is_sound: impl Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let path = &self.path(name);
        let bytes = Bytes::copy_from_slice(bytes);
        let put = || async {
            // For stores that do not know the condition, and pass over it. What is not sound is nobody's: perhaps what
            // became of this very object.
            let mode = match self.there(path).await? {
                Some(there) if there == bytes || is_sound(&there) => return Ok(there == bytes),
                Some(_) => PutMode::Overwrite,
                None => PutMode::Create,
            };
            let payload = PutPayload::from(bytes.clone());
            let made = self.inner.put_opts(path, payload, mode.into());
            match made.await {
                Err(error) if is_unknown_condition(&error) => {
                    let payload = PutPayload::from(bytes.clone());
                    self.inner.put(path, payload).await?;
                }
                // Perhaps by this very request, whose answer was lost.
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {}
                made => drop(made?),
            }
            match self.there(path).await? {
                Some(there) if there == bytes || is_sound(&there) => Ok(there == bytes),
                Some(_) => Err(Trouble::Lost("it holds other bytes".into())),
                None => Err(Trouble::Lost("it is not there".into())),
            }
        };
        self.until("put", name, put).await
    }

    async fn there(&self, path: &Path) -> std::result::Result<Option<Bytes>, Trouble> {
        match self.inner.head(path).await {
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(_) => self.whole(path).await.map(Some),
        }
    }

    /// All objects whose names begin with a folder's.
    ///
    /// # Errors
    /// Why they cannot be listed.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>> {
        self.list_some(folder, usize::MAX).await
    }

    /// The same page by page.
    pub fn pages(&self, folder: &str) -> impl Stream<Item = Result<Vec<Object>>> + '_ {
        let folder = folder.to_owned();
        stream::once(async move { self.list(&folder).await })
    }

    /// So many objects of them, whichever, or all if they are fewer.
    ///
    /// # Errors
    /// As for [`Store::list`].
    pub async fn list_some(&self, folder: &str, most: usize) -> Result<Vec<Object>> {
        let path = &self.path(folder);
        let strip = self.prefix.as_ref().len() + usize::from(!self.prefix.as_ref().is_empty());
        let list = || async {
            let found = self.inner.list(Some(path)).map_ok(|meta| Object {
                name: meta
                    .location
                    .as_ref()
                    .get(strip..)
                    .unwrap_or_default()
                    .to_owned(),
                size: meta.size,
                modified: meta.last_modified.into(),
            });
            Ok(found.take(most).try_collect().await?)
        };
        self.until("list", folder, list).await
    }

    /// What is known of an object without its bytes.
    ///
    /// # Errors
    /// `NotFound` when there is none; else why nobody tells.
    pub async fn look(&self, name: &str) -> Result<Object> {
        let path = &self.path(name);
        let head = || async { Ok(self.inner.head(path).await?) };
        let told = self.until("look at", name, head).await?;
        Ok(Object {
            name: name.to_owned(),
            size: told.size,
            modified: told.last_modified.into(),
        })
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// Why it cannot be removed.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let path = &self.path(name);
        let delete = || async {
            match self.inner.delete(path).await {
                Err(StoreError::NotFound { .. }) => Ok(()),
                done => Ok(done?),
            }
        };
        self.until("delete", name, delete).await
    }

    /// Tries until it succeeds, fails for good, or the deadline passes.
    async fn until<T, F>(&self, verb: &str, name: &str, once: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Trouble>>,
    {
        let (since, mut pause, mut tries) = (Instant::now(), FIRST_PAUSE, 0);
        let deadline = since + self.timeout;
        loop {
            // A pack on a slow line takes its time; whether it is begun again is another thing.
            let until = match verb {
                "put" => deadline.max(Instant::now() + REQUEST_TIMEOUT),
                _ => deadline,
            };
            let error = match timeout_at(until, once()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(trouble)) => {
                    let (error, is_final) = self.judge(trouble, verb, name);
                    if is_final {
                        return Err(error);
                    }
                    error
                }
                Err(_) => self.error(Kind::Unavailable, verb, name, "no answer"),
            };
            tries += 1;
            if Instant::now() + pause >= deadline {
                let took = since.elapsed();
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

    /// Tells what is waited for.
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

    /// Removes what writers that were killed have left in a folder of this machine: files that are no objects yet.
    ///
    /// # Errors
    /// What the system says.
    pub fn sweep_unfinished(&self, until: SystemTime) -> Result<()> {
        let Some(root) = self.address.folder() else {
            return Ok(());
        };
        let failed = |path: &std::path::Path, error| Error::of_file(path, "cannot sweep", error);
        let mut folders: Vec<_> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(|error| failed(&folder, error))?,
            };
            for entry in entries {
                let entry = entry.map_err(|error| failed(&folder, error))?;
                let (path, name) = (entry.path(), entry.file_name());
                let is_unfinished = name.to_str().and_then(|name| name.rsplit_once('#'));
                let is_unfinished = is_unfinished
                    .is_some_and(|(_, number)| number.bytes().all(|digit| digit.is_ascii_digit()));
                // They go and come while others write.
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                if metadata.is_dir() {
                    folders.push(path);
                } else if is_unfinished
                    && metadata.modified().is_ok_and(|modified| modified < until)
                {
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        Ok(())
    }
}
