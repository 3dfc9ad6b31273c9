//! [`ImageTarget`]: a sparse image that appears whole or not at all; a raw one can also be changed where it is.

mod descriptor;
mod layout;
mod sink;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::statfs::{FsType, statfs};
use serde::{Deserialize, Serialize};

use super::holders;
use super::raw::{self, Raw};
use crate::block::{Delta, Geometry};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{self, FileMark, blocking, copy_data, folder_of, remove_if_there, with_ending};
use crate::formats::{ImageFormat, check_extent_name};
use crate::snapshot::SnapshotId;
use crate::source::BlockSource;
use crate::target::{
    Base, Existence, Facts, LockPath, Mark, ObserveRequest, Opened, Opening, Replica, SinkBody,
    SinkState, StatePaths, Target, TargetKind, UnfinishedState,
};
use descriptor::{VmdkDescriptor, check_descriptor, flat_file_of};
use layout::{BlockPacking, ImageLayout, ImageReading, read_image};
use sink::{ImageFile, ImageSink, NO_ATTRIBUTES, Replaced, set_attributes};

/// Filesystems that clone by reference: btrfs, XFS (by default since 2018), bcachefs (linux/magic.h).
const BY_REFERENCE: [i64; 3] = [0x9123_683e, 0x5846_5342, 0xca45_1a4e];

/// What the checkpoint keeps of an image: which file is written, and how it was after the last flush.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ImageState {
    mark: FileMark,
    /// Nanoseconds since 1970 of the time that the image gets when it is published, if it gets one.
    #[serde(default)]
    time_ns: Option<i64>,
    /// Where the next compressed block goes in the file; none without compression.
    #[serde(default)]
    end: Option<u64>,
}

impl SinkBody for ImageState {
    const KIND: &'static str = "image";
    const VERSION: u32 = 1;
}

/// An image on this machine; its format is the one that the ending of its name stands for.
#[derive(Debug)]
pub(crate) struct ImageTarget {
    /// The file that has the blocks.
    path: PathBuf,
    format: ImageFormat,
    /// The file of a VMDK that names `path`.
    descriptor: Option<PathBuf>,
    name: String,
    as_given: String,
    id: String,
    is_in_place: bool,
    /// Whether the blocks of a new qcow2 image are compressed.
    compresses: bool,
}

impl ImageTarget {
    /// The image at `path`, which is made or replaced, or with `is_in_place` changed itself. A link to an image stays one: what
    /// it leads to is replaced.
    ///
    /// # Errors
    /// `Invalid` when the path cannot be an image's, `NotFound` where there must be one and is none.
    pub(crate) fn new(path: &Path, is_in_place: bool) -> Result<Self> {
        let as_given = path.display().to_string();
        let wrong =
            |what: &str| Error::new(Kind::Invalid, format!("cannot write {as_given}: {what}"));
        let found = path.canonicalize();
        if found.is_err() && path.is_symlink() {
            return Err(wrong("it is a link that leads nowhere"));
        }
        let path = found.as_deref().unwrap_or(path);
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(wrong("it is a folder: name a file in it"));
            }
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(wrong("it is neither a regular file nor a block device")),
            Err(_) if is_no_path(path) => {
                return Err(wrong(
                    "it is no target: images, block devices, ebs:[REGION] and s3://BUCKET/PREFIX are",
                ));
            }
            Err(_) if is_in_place || is_device_name(path) => {
                let what = format!("cannot write {as_given}: it does not exist");
                return Err(Error::new(Kind::NotFound, what));
            }
            Err(_) => {}
        }
        let failed = |error| Error::of_file(path, "cannot find the folder of", error);
        let folder = folder_of(path).canonicalize().map_err(failed)?;
        let name = path
            .file_name()
            .ok_or_else(|| wrong("it is no file name"))?;
        let path = folder.join(name);
        let format = ImageFormat::of(&path);
        if is_in_place && format != ImageFormat::Raw {
            return Err(wrong("only a raw image is written in place"));
        }
        let name = path.display().to_string();
        let (path, descriptor) = match format {
            ImageFormat::Vmdk => {
                let flat = flat_file_of(&path);
                let named = flat.file_name().and_then(|name| name.to_str());
                let named = named.ok_or_else(|| wrong("its name is no UTF-8"))?;
                check_extent_name(named)
                    .map_err(|error| error.context(format!("cannot write {as_given}")))?;
                (flat, Some(path))
            }
            _ => (path, None),
        };
        // An image of another format under the same name is another object.
        let kind = match format {
            ImageFormat::Raw => "file",
            other => other.name(),
        };
        Ok(Self {
            id: format!("{kind}:{name}"),
            name,
            as_given,
            path,
            format,
            descriptor,
            is_in_place,
            compresses: false,
        })
    }

    /// The same, with compressed blocks if it is a new qcow2 image.
    pub(crate) fn compressed(self) -> Self {
        Self {
            compresses: true,
            ..self
        }
    }

    fn part(&self) -> PathBuf {
        with_ending(&self.path, ".ebsfs-part")
    }

    fn look(&self, ask: &ObserveRequest<'_>) -> Result<Facts> {
        let failed = |error| Error::of_file(&self.path, "cannot look at", error);
        let metadata = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let existence = match &metadata {
            None => Existence::Absent,
            Some(metadata) if metadata.len() == 0 && is_own(metadata) => Existence::Empty,
            Some(_) => Existence::There,
        };
        let mut facts = Facts::of(self.as_given.clone(), existence);
        facts.other_tokens.push(self.name.clone());
        if let Some(metadata) = &metadata {
            let mark = FileMark::flushed(&self.path).map_err(failed)?;
            facts.mark_proves = mark.proves_at(&self.path);
            facts.mark = Some(Mark::Image(mark));
            let held_by = holders::image_obstacles(&self.path);
            match self.is_in_place {
                true => facts.obstacles = held_by,
                // A process that has the old image open keeps it: the new one is another file.
                false => facts.warnings = held_by,
            }
            let is_cloned = !self.is_in_place && self.format != ImageFormat::Qcow2;
            if is_cloned && *ask.base != Base::None && !is_by_reference(&self.path) {
                facts.clone_bytes = metadata.blocks() * 512;
            }
        }
        facts.takes_no_delta = self.format == ImageFormat::Qcow2;
        // A part of another snapshot has other tables, or a footer in another place.
        facts.keeps_no_part = matches!(self.format, ImageFormat::Qcow2 | ImageFormat::Vhd);
        if let Some(path) = &self.descriptor {
            check_descriptor(path, &self.path)?;
        }
        if !self.is_in_place {
            let free = nix::sys::statvfs::statvfs(folder_of(&self.path));
            let free = free.map(|free| free.blocks_available() * free.fragment_size());
            facts.free = free.ok();
        }
        if let Some(left) = ask.left {
            facts.left = self.left(left, facts.mark.as_ref())?;
            facts.is_published = self.is_published(left, facts.mark.as_ref());
        }
        Ok(facts)
    }

    /// What an unfinished run has left.
    fn left(&self, state: &SinkState, now: Option<&Mark>) -> Result<UnfinishedState> {
        let Ok(ImageState { mark, .. }) = state.open() else {
            return Ok(UnfinishedState::Absent);
        };
        let against = |now: &FileMark| match (now == &mark, now.inode == mark.inode) {
            (true, _) if mark.proves_at(&self.path) => UnfinishedState::Proven,
            (_, true) => UnfinishedState::Unproven,
            (_, false) => UnfinishedState::Absent,
        };
        let image = match now {
            Some(Mark::Image(now)) => Some(now),
            _ => None,
        };
        if self.is_in_place {
            return Ok(image.map_or(UnfinishedState::Absent, against));
        }
        let part = self.part();
        let Some(file) = files::open_ours(&part, false)? else {
            return Ok(UnfinishedState::Absent);
        };
        let failed = |error| Error::of_file(&part, "cannot look at", error);
        file.sync_all().map_err(failed)?;
        Ok(against(&FileMark::of(&file).map_err(failed)?))
    }

    /// Whether the part has become the image. Rename, mode, attributes and time have changed its mark.
    fn is_published(&self, state: &SinkState, now: Option<&Mark>) -> bool {
        let (Ok(state), Some(Mark::Image(now))) = (state.open(), now) else {
            return false;
        };
        !self.is_in_place && is_renamed(&state, now) && !self.part().exists()
    }

    /// Creates a new part and replaces an old one. For a delta it is a clone of the image.
    async fn new_part(&self, opening: &Opening<'_>) -> Result<ImageSink> {
        let part = self.part();
        let failed = |error| Error::of_file(&part, "cannot write", error);
        self.check_image(opening)?;
        let layout = self.layout(opening)?;
        remove_if_there(&part)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&part)
            .map_err(failed)?;
        file.set_len(layout.file_size()).map_err(failed)?;
        let file = Arc::new(file);
        let filled = async {
            if let Some(base) = opening.plan.base() {
                let size = layout.clone_size(base);
                self.clone_into(&file, size, opening).await?;
            }
            write_tables(&layout, &part, &file).await
        };
        if let Err(error) = filled.await {
            // A partial clone is useless, and its bytes may be what fills the disk.
            remove_if_there(&part)?;
            return Err(error);
        }
        let replaced = Some(self.replaced()?);
        let sink = self.sink(&part, &file, &layout, replaced, opening)?;
        (opening.name)(&sink.state()?)?;
        Ok(sink)
    }

    /// The layout of the image that a plan makes.
    fn layout(&self, opening: &Opening<'_>) -> Result<ImageLayout> {
        // A run that is resumed goes on as it began.
        let packing = match opening.resume.map(SinkState::open::<ImageState>) {
            None if self.compresses => BlockPacking::From(None),
            Some(Ok(ImageState { end: Some(end), .. })) => BlockPacking::From(Some(end)),
            _ => BlockPacking::None,
        };
        let layout = ImageLayout::of(self.format, packing, opening.plan, opening.source);
        layout.map_err(|error| error.context(format!("cannot write {}", self.name)))
    }

    fn sink(
        &self,
        path: &Path,
        file: &File,
        layout: &ImageLayout,
        image: Option<Replaced>,
        opening: &Opening<'_>,
    ) -> Result<ImageSink> {
        let raw = self.raw(path, file, opening.plan.head())?;
        let descriptor = self.descriptor.as_ref().map(|path| VmdkDescriptor {
            path: path.clone(),
            flat: self.path.clone(),
            size: opening.plan.head().size(),
        });
        let file = ImageFile {
            format: self.format,
            size: layout.file_size(),
            descriptor,
        };
        let raw = raw.with_places(layout.places());
        Ok(ImageSink::new(raw, file, image, opening.source))
    }

    /// Clones the first `size` bytes of the image into a part. The image's mark must match the decision before and after.
    async fn clone_into(&self, part: &Arc<File>, size: u64, opening: &Opening<'_>) -> Result<()> {
        let failed = |error| Error::of_file(&self.path, "cannot clone", error);
        let old = Arc::new(File::open(&self.path).map_err(failed)?);
        self.check_mark(&old, opening)?;
        let (from, to, stop) = (Arc::clone(&old), Arc::clone(part), opening.stop.clone());
        let (image, path) = (self.path.clone(), self.part());
        blocking(move || copy_data(&from, &image, &to, &path, 0..size, &|| stop.check())).await?;
        let to = Arc::clone(part);
        blocking(move || {
            to.sync_all()
                .map_err(|error| Error::with_source(Kind::Io, "cannot flush the clone", error))
        })
        .await?;
        self.check_mark(&old, opening)
    }

    /// What a part is to replace, as it is now.
    fn replaced(&self) -> Result<Replaced> {
        let mark = match File::open(&self.path) {
            Ok(file) => FileMark::of(&file).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let mark = mark.map_err(|error| Error::of_file(&self.path, "cannot look at", error))?;
        Ok(Replaced {
            path: self.path.clone(),
            mark,
        })
    }

    /// The same check of the image that a part is to replace: an image made after the decision is not replaced.
    fn check_image(&self, opening: &Opening<'_>) -> Result<()> {
        match File::open(&self.path) {
            Ok(file) if opening.mark.is_some() => self.check_mark(&file, opening),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match opening.mark {
                None => Ok(()),
                Some(_) => Err(super::changed(&self.name)),
            },
            Ok(_) => Err(super::changed(&self.name)),
            Err(error) => Err(Error::of_file(&self.path, "cannot look at", error)),
        }
    }

    /// Whether the image is unchanged since the decision.
    fn check_mark(&self, file: &File, opening: &Opening<'_>) -> Result<()> {
        let failed = |error| Error::of_file(&self.path, "cannot look at", error);
        file.sync_all().map_err(failed)?;
        let now = Mark::Image(FileMark::of(file).map_err(failed)?);
        if opening.mark.is_none_or(|mark| *mark == now) {
            return Ok(());
        }
        Err(super::changed(&self.name))
    }

    fn raw(&self, path: &Path, file: &File, geometry: Geometry) -> Result<Raw> {
        let file = file
            .try_clone()
            .map_err(|error| Error::of_file(path, "cannot open", error))?;
        Ok(Raw::new(path, file, geometry, raw::RawKind::File))
    }

    async fn resumed(&self, opening: &Opening<'_>) -> Result<ImageSink> {
        let part = self.part();
        if self.is_in_place || !part.exists() {
            return self.in_place(opening);
        }
        self.check_image(opening)?;
        let Some(file) = files::open_ours(&part, true)? else {
            let what = format!("cannot use {}: it is not ours alone", part.display());
            return Err(Error::new(Kind::Denied, what).with_remedy(Remedy::Restart));
        };
        let failed = |error| Error::of_file(&part, "cannot write", error);
        let layout = self.layout(opening)?;
        sink::cut_to(&file, layout.file_size()).map_err(failed)?;
        let file = Arc::new(file);
        write_tables(&layout, &part, &file).await?;
        let replaced = Some(self.replaced()?);
        let sink = self.sink(&part, &file, &layout, replaced, opening)?;
        (opening.name)(&sink.state()?)?;
        Ok(sink)
    }

    /// The image itself.
    fn in_place(&self, opening: &Opening<'_>) -> Result<ImageSink> {
        let geometry = opening.plan.head();
        let failed = |error| Error::of_file(&self.path, "cannot write", error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)
            .map_err(failed)?;
        self.check_mark(&file, opening)?;
        if self.is_in_place {
            remove_if_there(&self.part())?;
        }
        let len = file.metadata().map_err(failed)?.len();
        let layout = self.layout(opening)?;
        let sink = self.sink(&self.path, &file, &layout, None, opening)?;
        (opening.name)(&sink.state()?)?;
        if self.is_in_place {
            // What is between two snapshots is neither.
            set_attributes(&file, &NO_ATTRIBUTES);
        }
        if len < geometry.size() {
            file.set_len(geometry.size()).map_err(failed)?;
        }
        Ok(sink)
    }
}

impl Target for ImageTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn kind(&self) -> TargetKind {
        match self.is_in_place {
            true => TargetKind::ImageInPlace,
            false => TargetKind::Image,
        }
    }

    fn is_raw(&self) -> bool {
        self.format == ImageFormat::Raw
    }

    fn state(&self) -> StatePaths {
        StatePaths {
            stem: self.path.clone(),
        }
    }

    fn locks(&self) -> Result<Vec<LockPath>> {
        let inode = self.path.exists().then(|| LockPath {
            path: self.path.clone(),
            waits: false,
        });
        Ok(inode.into_iter().collect())
    }

    fn mark(&self) -> Result<Option<Mark>> {
        match FileMark::flushed(&self.path) {
            Ok(mark) => Ok(Some(Mark::Image(mark))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::of_file(&self.path, "cannot look at", error)),
        }
    }

    fn observe<'a>(&'a self, ask: &'a ObserveRequest<'a>) -> BoxFuture<'a, Result<Facts>> {
        std::future::ready(self.look(ask)).boxed()
    }

    fn adapt<'a>(
        &'a self,
        plan: Arc<Delta>,
        _base: Option<&'a Replica>,
    ) -> BoxFuture<'a, Result<Arc<Delta>>> {
        std::future::ready(Ok(super::over_anything(plan, self.is_in_place))).boxed()
    }

    fn open<'a>(&'a self, opening: Opening<'a>) -> BoxFuture<'a, Result<Opened>> {
        async move {
            let sink = match (opening.resume, self.is_in_place) {
                (Some(_), _) => self.resumed(&opening).await?,
                (None, true) => self.in_place(&opening)?,
                (None, false) => self.new_part(&opening).await?,
            };
            Ok(Opened {
                state: sink.state()?,
                sink: Arc::new(sink),
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
        read_image(self.format, ImageReading::Strict, &self.path, geometry).boxed()
    }

    fn repair(&self) -> Result<()> {
        let Some(path) = &self.descriptor else {
            return Ok(());
        };
        let failed = |error| Error::of_file(&self.path, "cannot look at", error);
        let descriptor = VmdkDescriptor {
            path: path.clone(),
            flat: self.path.clone(),
            size: std::fs::metadata(&self.path).map_err(failed)?.len(),
        };
        descriptor.write()
    }

    fn discard<'a>(&'a self, _left: &'a SinkState) -> BoxFuture<'a, Result<()>> {
        std::future::ready(remove_if_there(&self.part())).boxed()
    }
}

/// Writes what the file has besides the volume, on a thread that may wait.
async fn write_tables(layout: &ImageLayout, path: &Path, file: &Arc<File>) -> Result<()> {
    let (layout, path, file) = (layout.clone(), path.to_owned(), Arc::clone(file));
    blocking(move || layout.write_tables(&path, &file)).await
}

/// Whether a file is the one of this state after it was published: its number alone may be another file's by now.
fn is_renamed(then: &ImageState, now: &FileMark) -> bool {
    let is_its_time = |time: i64| time == now.modified_ns;
    let modified_ns = match then.time_ns.is_some_and(is_its_time) {
        true => now.modified_ns,
        false => then.mark.modified_ns,
    };
    let then = FileMark {
        changed_ns: now.changed_ns,
        modified_ns,
        ..then.mark.clone()
    };
    then == *now
}

/// Whether a file is of our own user.
fn is_own(metadata: &std::fs::Metadata) -> bool {
    metadata.uid() == nix::unistd::geteuid().as_raw()
}

/// Whether a copy of a file within its folder takes no room.
fn is_by_reference(path: &Path) -> bool {
    let FsType(kind) = match statfs(folder_of(path)) {
        Ok(found) => found.filesystem_type(),
        Err(_) => return false,
    };
    BY_REFERENCE.contains(&kind)
}

/// Whether a name is a URL or a snapshot id rather than the path of a new image.
fn is_no_path(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("://") || text.parse::<SnapshotId>().is_ok()
}

/// Whether an absent file there would be a device that is not attached.
fn is_device_name(path: &Path) -> bool {
    path.starts_with("/dev") && !path.starts_with("/dev/shm")
}
