//! [`DeviceTarget`]: a block device, which nothing else may use meanwhile.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::holders::{obstacles, sector_size, sector_warning};
use super::identity::{Identity, device_mark, flush_all, identity, identity_of};
use super::raw::{self, Raw};
use crate::block::{BlockIndex, BlockSet, Delta, Digest, Extent, Geometry};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::source::{BlockSource, DiskSource, size_of};
use crate::sysfs::{BlockDevice, Sysfs};
use crate::target::{
    DeviceMark, Existence, Facts, LockPath, Mark, ObserveRequest, Opened, Opening, Published,
    Replica, Sink, SinkBody, SinkState, StatePaths, Target, TargetKind, UnfinishedState, Written,
    stem_in,
};

/// A block device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceTarget {
    /// As a person writes it.
    name: String,
    /// Its node, not a link to it.
    path: PathBuf,
    identity: Identity,
    stem: PathBuf,
    is_shared: bool,
}

/// What a checkpoint keeps of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DeviceState {
    /// After the last flush.
    mark: Option<DeviceMark>,
    /// Before the first write of the run that began.
    #[serde(default)]
    began: Option<DeviceMark>,
}

impl SinkBody for DeviceState {
    const KIND: &'static str = "device";
    const VERSION: u32 = 1;
}

impl DeviceTarget {
    /// The device at `path`, with its state files in `state_dir`. Nothing is written.
    ///
    /// # Errors
    /// `Invalid` when it is no block device; the system's error.
    pub(crate) fn new(path: &Path, state_dir: &Path) -> Result<Self> {
        let node = path
            .canonicalize()
            .map_err(|error| Error::of_file(path, "cannot find", error))?;
        let mut identity = identity(&node)?;
        let (name, by_path) = (path.display().to_string(), node.display().to_string());
        if identity.tokens.first() == Some(&by_path) && name != by_path {
            identity.tokens.insert(0, name.clone());
        }
        Ok(Self {
            name,
            path: node,
            stem: stem_in(state_dir, &identity.id),
            identity,
            is_shared: false,
        })
    }

    /// Marks the device as writable by other machines: its counters here prove nothing, so it has no mark.
    #[must_use]
    pub(crate) fn shared(mut self) -> Self {
        self.is_shared = true;
        self
    }

    /// Whether its counters prove anything, now and tomorrow.
    fn has_marks(&self) -> bool {
        self.identity.is_stable && !self.is_shared
    }

    /// Its mark, where that proves anything.
    fn mark_of(&self, file: &File) -> Option<Mark> {
        let mark = self.has_marks().then(|| device_mark(file)).flatten();
        mark.map(Mark::Device)
    }

    fn open_for_reading(&self) -> Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&self.path)
            .map_err(|error| Error::of_file(&self.path, "cannot look at", error))?;
        self.check_identity(&file)?;
        Ok(file)
    }

    /// O_EXCL on a block device without O_CREAT: EBUSY if it is mounted or held by anything (open(2)).
    fn open_for_writing(&self) -> Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL | libc::O_NOCTTY)
            .open(&self.path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::ResourceBusy => {
                    let mut holders = obstacles(&self.path);
                    if holders.is_empty() {
                        let hidden = "by a process, or mounted in another mount namespace";
                        holders.push(hidden.to_owned());
                    }
                    let holders = holders.join("; ");
                    let what = format!("cannot write {}: it is in use: {holders}", self.name);
                    Error::with_source(Kind::Io, what, error)
                }
                _ => Error::of_file(&self.path, "cannot write", error),
            })?;
        self.check_identity(&file)?;
        Ok(file)
    }

    /// Checks the identity of the open device, not of what its path names now.
    fn check_identity(&self, file: &File) -> Result<()> {
        if identity_of(&self.path, file)?.id == self.identity.id {
            return Ok(());
        }
        let name = &self.name;
        let what = format!("cannot use {name}: it is another device than when this run began");
        Err(Error::new(Kind::Invalid, what))
    }

    /// Whether the device makes zeroes by itself.
    fn unmaps(&self) -> bool {
        let node = std::fs::metadata(&self.path).ok();
        let node = node.and_then(|node| Sysfs::system().node(node.rdev()));
        let most = node.and_then(|node| node.disk().read("queue/write_zeroes_max_bytes"));
        most.is_some_and(|most| most != "0")
    }

    fn facts(&self, left: Option<&SinkState>) -> Result<Facts> {
        let file = self.open_for_reading()?;
        let mut tokens = self.identity.tokens.iter().cloned();
        let token = tokens.next().unwrap_or_else(|| self.name.clone());
        let mark = self.mark_of(&file);
        let no_identity = (!self.identity.is_stable).then(|| {
            format!(
                "{} has no WWN, serial number or UUID of its own: no record is kept, and every copy is a full one",
                self.name
            )
        });
        let sectors = sector_warning(&self.name, sector_size(&self.path));
        Ok(Facts {
            other_tokens: tokens.collect(),
            has_identity: self.identity.is_stable,
            fixed_size: Some(size_of(&self.path, &file)?),
            obstacles: obstacles(&self.path),
            warnings: no_identity.into_iter().chain(sectors).collect(),
            left: left_by(left, device_mark_of(mark.as_ref())),
            written_since: written_since(left, device_mark_of(mark.as_ref())),
            counts_zeroes: self.unmaps(),
            mark,
            ..Facts::of(token, Existence::There)
        })
    }
}

fn device_mark_of(mark: Option<&Mark>) -> Option<&DeviceMark> {
    match mark {
        Some(Mark::Device(mark)) => Some(mark),
        _ => None,
    }
}

/// Sectors written since the run with this state began.
fn written_since(state: Option<&SinkState>, now: Option<&DeviceMark>) -> Option<u64> {
    let state = state?.open::<DeviceState>().ok()?;
    now?.sectors_since(state.began.as_ref()?)
}

/// What an unfinished run has left on a device with this mark. A state of another version proves nothing.
fn left_by(state: Option<&SinkState>, mark: Option<&DeviceMark>) -> UnfinishedState {
    let Some(state) = state else {
        return UnfinishedState::Absent;
    };
    let last = state
        .open::<DeviceState>()
        .ok()
        .and_then(|state| state.mark);
    match mark.is_some() && last.as_ref() == mark {
        true => UnfinishedState::Proven,
        false => UnfinishedState::Unproven,
    }
}

/// The default path of a device if that names the same device, else `path`.
fn usual_path(node: &BlockDevice, path: Option<&Path>) -> Option<PathBuf> {
    let usual = node.path();
    let found = std::fs::metadata(&usual).ok().map(|found| found.rdev());
    if found.is_some() && found == node.rdev() {
        return Some(usual);
    }
    path.map(Path::to_owned)
}

impl Target for DeviceTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> &str {
        &self.identity.id
    }

    fn kind(&self) -> TargetKind {
        TargetKind::Device
    }

    fn state(&self) -> StatePaths {
        StatePaths {
            stem: self.stem.clone(),
        }
    }

    fn locks(&self) -> Result<Vec<LockPath>> {
        let metadata = std::fs::metadata(&self.path)
            .map_err(|error| Error::of_file(&self.path, "cannot look at", error))?;
        let own = Some(self.path.as_path());
        let Some(node) = Sysfs::system().node(metadata.rdev()) else {
            return Ok(own.map(|path| lock(path, false)).into_iter().collect());
        };
        let disk = node.disk();
        let is_partition = disk != node;
        let mut locks = Vec::new();
        // The whole disk first, as udev and systemd do (systemd.io, "Locking Block Device Access").
        if is_partition {
            locks.extend(usual_path(&disk, None).map(|path| lock(&path, true)));
        }
        locks.extend(usual_path(&node, own).map(|path| lock(&path, false)));
        // Partitions of one loop device share its file.
        locks.extend(node.backing_file().map(|file| lock(&file, is_partition)));
        Ok(locks)
    }

    fn mark(&self) -> Result<Option<Mark>> {
        Ok(self.mark_of(&self.open_for_reading()?))
    }

    fn observe<'a>(&'a self, ask: &'a ObserveRequest<'a>) -> BoxFuture<'a, Result<Facts>> {
        let (target, left) = (self.clone(), ask.left.cloned());
        blocking(move || target.facts(left.as_ref())).boxed()
    }

    fn adapt<'a>(
        &'a self,
        plan: Arc<Delta>,
        _base: Option<&'a Replica>,
    ) -> BoxFuture<'a, Result<Arc<Delta>>> {
        std::future::ready(Ok(super::over_anything(plan, true))).boxed()
    }

    fn open<'a>(&'a self, opening: Opening<'a>) -> BoxFuture<'a, Result<Opened>> {
        async move {
            opening.stop.check()?;
            let geometry = opening.plan.head();
            let (target, decided) = (self.clone(), opening.mark.cloned());
            let open = blocking(move || {
                let file = target.open_for_writing()?;
                fits(&target.name, size_of(&target.path, &file)?, geometry)?;
                if decided.is_some() && decided != target.mark_of(&file) {
                    return Err(super::changed(&target.name));
                }
                Ok(file)
            });
            let file = opening.stop.unless(open).await?;
            let mut sink = DeviceSink {
                raw: Raw::new(&self.path, file, geometry, raw::RawKind::Device),
                has_marks: self.has_marks(),
                began: None,
            };
            // The mark needs a flush of the page cache, which can take long.
            let now = opening.stop.unless(sink.mark()).await?;
            sink.began = match opening.resume {
                Some(state) => state.open::<DeviceState>()?.began,
                None => now.clone(),
            };
            let state = sink.state_with(now);
            (opening.name)(&state)?;
            Ok(Opened {
                sink: Arc::new(sink),
                state,
                zero_the_rest: false,
            })
        }
        .boxed()
    }

    fn reader<'a>(
        &'a self,
        _replica: Option<&'a str>,
        geometry: Geometry,
    ) -> BoxFuture<'a, Result<Arc<dyn BlockSource>>> {
        let target = self.clone();
        blocking(move || {
            let file = target.open_for_reading()?;
            fits(&target.name, size_of(&target.path, &file)?, geometry)?;
            let _ = flush_all(&file);
            read_past_cache(&target.path, geometry)
        })
        .boxed()
    }

    fn discard<'a>(&'a self, _left: &'a SinkState) -> BoxFuture<'a, Result<()>> {
        std::future::ready(Ok(())).boxed()
    }
}

fn lock(path: &Path, waits: bool) -> LockPath {
    LockPath {
        path: path.to_owned(),
        waits,
    }
}

fn fits(name: &str, size: u64, geometry: Geometry) -> Result<()> {
    if size >= geometry.size() {
        return Ok(());
    }
    let what = format!(
        "cannot write {name}: it has {}, the volume {}",
        ByteSize::b(size),
        ByteSize::b(geometry.size())
    );
    Err(Error::new(Kind::Invalid, what))
}

fn read_past_cache(path: &Path, geometry: Geometry) -> Result<Arc<dyn BlockSource>> {
    Ok(Arc::new(DiskSource::open_past_cache(path, geometry)?))
}

/// A block device being written.
struct DeviceSink {
    raw: Raw,
    has_marks: bool,
    /// The mark before the first write of the run that began.
    began: Option<DeviceMark>,
}

impl DeviceSink {
    /// Its mark, once all that was written is on it.
    async fn mark(&self) -> Result<Option<DeviceMark>> {
        if !self.has_marks {
            return Ok(None);
        }
        let look = |file: &File| Ok(device_mark(file));
        self.raw.with("cannot look at", look).await
    }

    async fn state(&self) -> Result<SinkState> {
        Ok(self.state_with(self.mark().await?))
    }

    fn state_with(&self, mark: Option<DeviceMark>) -> SinkState {
        let began = self.began.clone();
        SinkState::of(&DeviceState { mark, began })
    }
}

impl Sink for DeviceSink {
    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        _digest: Digest,
    ) -> BoxFuture<'_, Result<()>> {
        self.raw.write_block(index, bytes).boxed()
    }

    fn write_zeroes(&self, extent: Extent) -> BoxFuture<'_, Result<()>> {
        self.raw.write_zeroes(extent).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<SinkState>> {
        async {
            self.raw.flush().await?;
            self.state().await
        }
        .boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        let (path, geometry) = (self.raw.path().to_owned(), self.raw.geometry());
        blocking(move || read_past_cache(&path, geometry).map(Some)).boxed()
    }

    fn publish<'a>(
        &'a self,
        _written: Written,
        _damaged: &'a BlockSet,
    ) -> BoxFuture<'a, Result<Published>> {
        async {
            self.raw.flush().await?;
            let before = self.mark().await?;
            tokio::time::sleep(super::TWO_TICKS).await;
            let after = self.mark().await?;
            let mark = after.filter(|after| before.as_ref() == Some(after));
            Ok(Published {
                mark: mark.map(Mark::Device),
                ..Published::default()
            })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
