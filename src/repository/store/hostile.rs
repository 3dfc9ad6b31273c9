//! [`HostileStore`]: a store in memory for tests that lies, forgets and delays; and its clients, which can be stopped and killed at
//! every request. Its clock is the one that tests pause.
//!
//! It has the faults of real stores and proxies: truncated, repeated, mixed and stale listings, loss of objects that they have
//! acknowledged, late visibility, lost replies, temporary refusals, wrong answers to conditions, ETags in capitals, a slow
//! PUT, other bytes than the requested range. A fault affects one request: an object that a HEAD or GET has shown stays.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::backend::{
    Backend, FaultAction, ListCursor, ListedKey, ObjectHead, StoreAnswer, StoreFault, StorePage,
    Upload,
};
use super::transfer::Transfer;
use super::{Address, Connection, Store};
use crate::block::hexadecimal;
use crate::error::{Error, Kind};

/// Longer than any test: a stopped client must not take its stop for silence of the store.
const NEVER: Duration = Duration::from_hours(24 * 3650);
/// How long a slow PUT takes: longer than a lease.
const HOURS: Duration = Duration::from_hours(3);
/// The most changes that a stale listing lacks.
const REMEMBERED: usize = 40;

#[derive(Clone)]
struct StoredObject {
    bytes: Bytes,
    modified: SystemTime,
    /// Requests do not see it before.
    shown: Instant,
}

#[derive(Default)]
struct StoredObjects {
    objects: BTreeMap<String, StoredObject>,
    /// The objects that the latest changes have replaced, the oldest change first.
    changes: Vec<(String, Option<StoredObject>)>,
}

impl StoredObjects {
    fn set(&mut self, key: &str, kept: Option<StoredObject>) {
        let before = match kept {
            Some(kept) => self.objects.insert(key.to_owned(), kept),
            None => self.objects.remove(key),
        };
        if self.changes.len() == REMEMBERED {
            self.changes.remove(0);
        }
        self.changes.push((key.to_owned(), before));
    }

    /// The objects as they were before the latest changes.
    fn before(&self, changes: usize) -> BTreeMap<String, StoredObject> {
        let mut objects = self.objects.clone();
        for (key, before) in self.changes.iter().rev().take(changes) {
            match before {
                Some(kept) => objects.insert(key.clone(), kept.clone()),
                None => objects.remove(key),
            };
        }
        objects
    }

    fn seen(&self, key: &str) -> Option<&StoredObject> {
        let kept = self.objects.get(key);
        kept.filter(|kept| kept.shown <= Instant::now())
    }
}

/// Objects in memory.
pub(in crate::repository) struct HostileStore {
    kept: Mutex<StoredObjects>,
    epoch: (Instant, SystemTime),
}

/// The lies that a client's store tells.
#[derive(Clone, Debug, Default)]
pub(in crate::repository) struct Lies {
    /// Lies per 1,000 chances.
    pub(in crate::repository) per_mille: u32,
    /// The folder whose listings may lack an entry in the middle.
    pub(in crate::repository) gaps_in: Option<&'static str>,
    /// Whether GETs of ranges answer other bytes too.
    pub(in crate::repository) wrong_ranges: bool,
    /// Whether the ETags do not depend on the bytes.
    pub(in crate::repository) opaque_etags: bool,
    /// The folder whose PUTs take hours.
    pub(in crate::repository) slow_in: Option<&'static str>,
}

impl HostileStore {
    /// An empty store.
    pub(in crate::repository) fn new() -> Arc<Self> {
        // Objects written before it are 30 years old.
        let epoch = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 30);
        Arc::new(Self {
            kept: Mutex::default(),
            epoch: (Instant::now(), epoch),
        })
    }

    /// A store with the same objects and the same clock.
    pub(in crate::repository) fn copy(&self) -> Arc<Self> {
        let kept = self.kept.lock();
        Arc::new(Self {
            kept: Mutex::new(StoredObjects {
                objects: kept.objects.clone(),
                changes: Vec::new(),
            }),
            epoch: self.epoch,
        })
    }

    fn now(&self) -> SystemTime {
        self.epoch.1 + (Instant::now() - self.epoch.0)
    }

    /// A process that uses this store, and the process's view of it.
    pub(in crate::repository) fn client(
        self: &Arc<Self>,
        lies: Lies,
    ) -> (HostileClient, Arc<Store>) {
        let client = HostileClient(Arc::new(watch::channel(Control::default()).0));
        let backend = HostileBackend {
            store: Arc::clone(self),
            client: client.clone(),
            requests: AtomicU64::new(0),
            lies,
            rng: Mutex::new(fastrand::Rng::with_seed(fastrand::u64(..))),
        };
        // Anything in s3:// is asked for checksums as well.
        let address: Address = "s3://bucket/repository".parse().expect("an address");
        let connection = Connection {
            in_flight: if backend.lies.slow_in.is_some() {
                1
            } else {
                16
            },
            ..Connection::new(Duration::from_secs(60))
        };
        let store = Store::of(&address, Box::new(backend), &connection);
        (client, Arc::new(store))
    }

    /// The names of the objects of a folder, without fences.
    pub(in crate::repository) fn names(&self, folder: &str) -> Vec<String> {
        let kept = self.kept.lock();
        let within = |key: &String| Some(key.strip_prefix("repository/")?.to_owned());
        let names = kept.objects.keys().filter_map(within);
        let is_in = |name: &String| name.starts_with(folder) && !name.contains("-fence-");
        names.filter(is_in).collect()
    }

    /// Loses an object.
    pub(in crate::repository) fn lose(&self, name: &str) {
        self.kept.lock().set(&format!("repository/{name}"), None);
    }

    /// Changes a byte of an object.
    pub(in crate::repository) fn damage(&self, name: &str) {
        let (key, mut kept) = (format!("repository/{name}"), self.kept.lock());
        let Some(old) = kept.objects.get(&key).cloned() else {
            return;
        };
        let mut bytes = old.bytes.to_vec();
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        let bytes = bytes.into();
        kept.set(&key, Some(StoredObject { bytes, ..old }));
    }
}

/// Where a client stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::repository) enum StopPoint {
    /// Before a request has any effect.
    Before,
    /// After its effect, before its reply.
    After,
}

#[derive(Clone, Copy, Debug, Default)]
struct Control {
    stop_at: Option<(u64, StopPoint)>,
    is_stopped: bool,
    requests: u64,
}

/// A process that can be stopped and killed.
#[derive(Clone)]
pub(in crate::repository) struct HostileClient(Arc<watch::Sender<Control>>);

impl HostileClient {
    /// Makes it stop at this request, counted from 0.
    pub(in crate::repository) fn stop_at(&self, request: u64, moment: StopPoint) {
        self.0
            .send_modify(|control| control.stop_at = Some((request, moment)));
    }

    /// Waits until it has stopped.
    pub(in crate::repository) async fn stopped(&self) {
        let mut state = self.0.subscribe();
        let _ = state.wait_for(|control| control.is_stopped).await;
    }

    /// Lets it continue.
    pub(in crate::repository) fn resume(&self) {
        self.0.send_modify(|control| {
            control.is_stopped = false;
            control.stop_at = None;
        });
    }

    /// Requests that it has sent.
    pub(in crate::repository) fn requests(&self) -> u64 {
        self.0.borrow().requests
    }

    async fn pass(&self, request: u64, moment: StopPoint) {
        self.0.send_if_modified(|control| {
            control.requests = control.requests.max(request + 1);
            let is_here = control.stop_at == Some((request, moment));
            control.is_stopped |= is_here;
            is_here
        });
        let mut state = self.0.subscribe();
        let _ = state.wait_for(|control| !control.is_stopped).await;
    }
}

/// The requests of one client.
struct HostileBackend {
    store: Arc<HostileStore>,
    client: HostileClient,
    requests: AtomicU64,
    lies: Lies,
    rng: Mutex<fastrand::Rng>,
}

impl HostileBackend {
    fn lies_now(&self) -> bool {
        self.rng.lock().u32(..1000) < self.lies.per_mille
    }

    fn pick(&self, end: usize) -> usize {
        self.rng.lock().usize(..end.max(1))
    }

    fn unavailable(&self, verb: &str, key: &str) -> StoreFault {
        let error = self.error(Kind::Unavailable, verb, key, "503 SlowDown");
        StoreFault::new(FaultAction::Retry, error)
    }

    fn absent(&self, verb: &str, key: &str) -> StoreFault {
        let error = self.error(Kind::NotFound, verb, key, "404 NoSuchKey");
        StoreFault::new(FaultAction::Absent, error)
    }

    /// One request: it takes some time, has an effect, and its reply can be lost.
    async fn request<T>(
        &self,
        verb: &str,
        key: &str,
        effect: impl FnOnce(&mut StoredObjects) -> StoreAnswer<T>,
    ) -> StoreAnswer<T> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.client.pass(number, StopPoint::Before).await;
        let pause = Duration::from_millis(1 + self.pick(30) as u64);
        sleep(pause).await;
        if self.lies_now() {
            return Err(self.unavailable(verb, key));
        }
        let answer = effect(&mut self.store.kept.lock());
        self.client.pass(number, StopPoint::After).await;
        match self.lies_now() {
            true => Err(self.unavailable(verb, key)),
            false => answer,
        }
    }

    /// The entries that a listing of a prefix shows.
    fn listed(&self, kept: &StoredObjects, prefix: &str) -> Vec<ListedKey> {
        let age = if self.lies_now() {
            self.pick(REMEMBERED)
        } else {
            0
        };
        let now = Instant::now();
        let objects = kept.before(age).into_iter();
        let objects = objects.filter(|(key, kept)| key.starts_with(prefix) && kept.shown <= now);
        let mut keys: Vec<ListedKey> = objects
            .map(|(key, kept)| ListedKey {
                key,
                size: kept.bytes.len() as u64,
                modified: kept.modified,
            })
            .collect();
        let may_gap = self
            .lies
            .gaps_in
            .is_some_and(|folder| prefix.ends_with(&format!("/{folder}/")));
        if may_gap && self.lies_now() {
            let gap = self.pick(keys.len());
            if keys
                .get(gap)
                .is_some_and(|listed| !listed.key.contains("-fence-"))
            {
                keys.remove(gap);
            }
        }
        keys
    }

    /// A page of a listing, which may end too early, begin again, or hold what is somewhere else.
    fn page_of(&self, keys: &[ListedKey], from: &ListCursor) -> StorePage {
        let after = match from {
            ListCursor::Start => 0,
            ListCursor::Token(after) | ListCursor::After(after) => {
                keys.partition_point(|listed| listed.key <= *after)
            }
        };
        let size = 2 + self.pick(40);
        let page: Vec<ListedKey> = keys.iter().skip(after).take(size).cloned().collect();
        let is_last = after + page.len() >= keys.len();
        let last = page.last().map(|last| last.key.clone());
        let next = last.filter(|_| !is_last).map(ListCursor::Token);
        if !self.lies_now() {
            return StorePage { keys: page, next };
        }
        match self.pick(4) {
            0 => StorePage {
                keys: page,
                next: None,
            },
            1 => StorePage {
                keys: Vec::new(),
                next: None,
            },
            2 => StorePage {
                keys: page,
                next: Some(ListCursor::Start),
            },
            _ => {
                let strange = page.into_iter().map(|listed| ListedKey {
                    key: listed.key.replace("repository/", "elsewhere/"),
                    ..listed
                });
                StorePage {
                    keys: strange.collect(),
                    next,
                }
            }
        }
    }
}

#[async_trait::async_trait]
impl Backend for HostileBackend {
    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<Bytes> {
        transfer.received(1);
        let is_wrong = range.is_some() && self.lies.wrong_ranges && self.lies_now();
        let get = self.request("get", key, |kept| {
            let kept = kept.seen(key).ok_or_else(|| self.absent("get", key))?;
            let Some(range) = range else {
                return Ok(kept.bytes.clone());
            };
            let whole = kept.bytes.len();
            let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(whole);
            let (start, end) = (at(range.start), at(range.end));
            let back = if is_wrong { self.pick(start + 1) } else { 0 };
            Ok(kept.bytes.slice(start - back..end - back))
        });
        get.await
    }

    async fn put(
        &self,
        key: &str,
        upload: &Upload,
        create: bool,
        _: &Arc<Transfer>,
    ) -> StoreAnswer<()> {
        let modified = self.store.now();
        let slow = self.lies.slow_in;
        if slow.is_some_and(|folder| key.contains(&format!("/{folder}/"))) {
            sleep(HOURS).await;
        }
        if self.lies_now() {
            sleep(Duration::from_secs(self.pick(100) as u64)).await;
        }
        let put = self.request("put", key, |kept| {
            let conflict = create && self.lies_now();
            if conflict || create && kept.seen(key).is_some() {
                let error = self.error(Kind::Invalid, "put", key, "412 PreconditionFailed");
                return Err(StoreFault::new(FaultAction::Exists, error));
            }
            let mut bytes = Vec::new();
            upload
                .pieces
                .iter()
                .for_each(|piece| bytes.extend_from_slice(piece));
            let is_new = !kept.objects.contains_key(key);
            let mut shown = Instant::now();
            if self.lies_now() {
                match self.pick(3) {
                    // Acknowledged, then lost.
                    0 => return Ok(()),
                    // Visible only later.
                    1 if is_new => shown += Duration::from_secs(self.pick(10) as u64),
                    2 if is_new => bytes.truncate(bytes.len() / 2),
                    _ => {}
                }
            }
            kept.set(
                key,
                Some(StoredObject {
                    bytes: bytes.into(),
                    modified,
                    shown,
                }),
            );
            Ok(())
        });
        put.await
    }

    async fn head(&self, key: &str, checksums: bool, _: &Arc<Transfer>) -> StoreAnswer<ObjectHead> {
        let is_odd = self.lies_now();
        let head = self.request("look at", key, |kept| {
            let kept = kept.seen(key).ok_or_else(|| self.absent("look at", key))?;
            let md5 = hexadecimal(&Md5::digest(&kept.bytes));
            let etag = match self.pick(2) {
                0 if is_odd => format!("\"{}\"", md5.to_ascii_uppercase()),
                1 if is_odd => "\"0123-1\"".to_owned(),
                _ if self.lies.opaque_etags => "\"0123-1\"".to_owned(),
                _ => format!("\"{md5}\""),
            };
            let _ = checksums;
            Ok(ObjectHead {
                size: Some(kept.bytes.len() as u64),
                modified: Some(kept.modified),
                etag: Some(etag),
                checksums: Vec::new(),
            })
        });
        head.await
    }

    async fn page(
        &self,
        prefix: &str,
        from: &ListCursor,
        _: &Arc<Transfer>,
    ) -> StoreAnswer<StorePage> {
        let page = self.request("list", prefix, |kept| {
            if self.lies_now() {
                let error = self.error(Kind::Corrupt, "list", prefix, "the reply is HTML");
                return Err(StoreFault::new(FaultAction::Final, error));
            }
            Ok(self.page_of(&self.listed(kept, prefix), from))
        });
        page.await
    }

    async fn delete(&self, key: &str, _: &Arc<Transfer>) -> StoreAnswer<()> {
        let delete = self.request("delete", key, |kept| {
            kept.set(key, None);
            Ok(())
        });
        delete.await
    }

    fn error(&self, kind: Kind, verb: &str, key: &str, what: &str) -> Error {
        Error::new(kind, format!("cannot {verb} {key}: {what}"))
    }

    fn silence(&self, _: Duration) -> Duration {
        NEVER
    }
}
