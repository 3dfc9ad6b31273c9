//! Where a target is, and where what is known of it is kept.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::remote::Remote;
use super::repository::Repository;
use crate::block::{Geometry, hexadecimal};
use crate::disk::{DiskSource, folder_of, make_folder_of, with_ending};
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
use crate::sinks::{DeviceSink, FileSink, Part, identity, mark_of};
use crate::source::SnapshotId;
use crate::sync::{self, Checkpoint, Content, Lock, Mode, Record};

/// One target.
#[derive(Clone, Debug)]
pub(super) struct Place {
    kind: PlaceKind,
    id: String,
    /// What names of files begin with that tell of it.
    beside: PathBuf,
}

#[derive(Clone, Debug)]
enum PlaceKind {
    /// An image that is replaced when the new one is whole.
    Image(PathBuf),
    /// An image that is changed itself.
    InPlace(PathBuf),
    Device(PathBuf),
    /// A new EBS snapshot.
    Snapshot(Arc<Remote>),
    /// A snapshot of a repository.
    Repository(Arc<Repository>),
}

impl Place {
    /// An image or a device. A device's files are in `state_dir`, an image's beside it.
    pub(super) fn of(path: &Path, state_dir: &Path, in_place: bool) -> Result<Self> {
        // A link to an image stays one: what it leads to is replaced.
        let found = path.canonicalize();
        if found.is_err() && path.is_symlink() {
            let what = format!("{} is a link that leads nowhere", path.display());
            return Err(Error::new(Kind::Invalid, what));
        }
        let path = found.as_deref().unwrap_or(path);
        let metadata = std::fs::metadata(path);
        let wrong = |what: &str| Error::new(Kind::Invalid, format!("{} {what}", path.display()));
        match &metadata {
            Ok(metadata) if metadata.is_dir() => {
                return Err(wrong("is a folder: name a file in it"));
            }
            Ok(metadata) if metadata.file_type().is_block_device() => {
                let id = identity(path)?;
                let beside = beside_in(state_dir, &id, "device");
                let kind = PlaceKind::Device(path.to_owned());
                return Ok(Self { kind, id, beside });
            }
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(wrong("is neither a regular file nor a block device")),
            Err(_) if is_no_path(path) => {
                return Err(wrong(
                    "is no target: images, block devices, ebs:[REGION] and s3://BUCKET/PREFIX are",
                ));
            }
            Err(_) if path.starts_with("/dev") && !path.starts_with("/dev/shm") => {
                return Err(Error::new(
                    Kind::NotFound,
                    format!("{} does not exist", path.display()),
                ));
            }
            Err(_) if in_place => {
                let what = format!(
                    "{} does not exist: nothing to change in place",
                    path.display()
                );
                return Err(Error::new(Kind::NotFound, what));
            }
            Err(_) => {}
        }
        let kind = if in_place {
            PlaceKind::InPlace(path.to_owned())
        } else {
            PlaceKind::Image(path.to_owned())
        };
        Ok(Self {
            kind,
            id: FileSink::id_of(path)?,
            beside: path.to_owned(),
        })
    }

    /// A new snapshot of `source`.
    pub(super) fn snapshot(remote: Remote, source: &str, state_dir: &Path) -> Self {
        let id = format!("{} of {source}", remote.id());
        Self {
            beside: beside_in(state_dir, &id, "snapshot"),
            kind: PlaceKind::Snapshot(Arc::new(remote)),
            id,
        }
    }

    /// A snapshot of `source` in a repository.
    pub(super) fn repository(repository: Repository, source: &str, state_dir: &Path) -> Self {
        let id = format!("repository {} of {source}", repository.id());
        Self {
            beside: beside_in(state_dir, &id, "repository"),
            kind: PlaceKind::Repository(Arc::new(repository)),
            id,
        }
    }

    /// Where it is on this machine.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.kind {
            PlaceKind::Image(path) | PlaceKind::InPlace(path) | PlaceKind::Device(path) => {
                Some(path)
            }
            PlaceKind::Snapshot(_) | PlaceKind::Repository(_) => None,
        }
    }

    /// The repository that a snapshot is brought into.
    pub(super) fn vault(&self) -> Option<&Arc<Repository>> {
        match &self.kind {
            PlaceKind::Repository(repository) => Some(repository),
            _ => None,
        }
    }

    /// The account and Region that a snapshot is made in.
    pub(super) fn remote(&self) -> Option<&Arc<Remote>> {
        match &self.kind {
            PlaceKind::Snapshot(remote) => Some(remote),
            _ => None,
        }
    }

    /// As a person writes it.
    pub(super) fn shown(&self) -> String {
        match &self.kind {
            PlaceKind::Snapshot(remote) => format!("ebs:{}", remote.region()),
            PlaceKind::Repository(repository) => repository.shown(),
            _ => self
                .path()
                .map_or_else(String::new, |path| path.display().to_string()),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn is_device(&self) -> bool {
        matches!(self.kind, PlaceKind::Device(_))
    }

    /// Whether what is written shows at once, and so may be neither the one nor the other for a while.
    pub(super) fn is_in_place(&self) -> bool {
        self.mode() == Mode::InPlace
    }

    /// How it is written.
    pub(super) fn mode(&self) -> Mode {
        match self.kind {
            PlaceKind::Image(_) => Mode::Part,
            PlaceKind::InPlace(_) | PlaceKind::Device(_) => Mode::InPlace,
            PlaceKind::Snapshot(_) | PlaceKind::Repository(_) => Mode::New,
        }
    }

    fn file(&self, ending: &str) -> PathBuf {
        with_ending(&self.beside, ending)
    }

    pub(super) fn record(&self) -> Record {
        let path = self.path().map(Path::to_owned);
        Record::at(self.file(".ebsfs.json"), move || mark_of(path.as_deref()?))
    }

    pub(super) fn checkpoint_path(&self) -> PathBuf {
        self.file(".ebsfs-checkpoint")
    }

    /// What an earlier run left.
    pub(super) fn checkpoint(&self) -> Result<Option<Checkpoint>> {
        Checkpoint::load(&self.checkpoint_path())
    }

    pub(super) fn part(&self) -> Part {
        Part::of(self.path().unwrap_or(&self.beside))
    }

    /// From now on this run alone looks at what is known of the target, and writes it.
    pub(super) fn lock(&self) -> Result<Lock> {
        if !matches!(self.kind, PlaceKind::Image(_) | PlaceKind::InPlace(_)) {
            make_folder_of(&self.beside).map_err(|error| error.context("--state-dir"))?;
        }
        Lock::take(&self.file(".ebsfs-lock"))
    }

    /// Whether an image in place, or a device, is as an unfinished run left it: not written since by the marks, or at least
    /// with the blocks that are said to be done. What was zeroed is zeroed again then.
    pub(super) async fn is_as_left(&self, begun: &mut Checkpoint) -> Result<bool> {
        let Some(path) = self.path() else {
            return Ok(true);
        };
        let then = begun.state().get("mark").filter(|mark| !mark.is_null());
        if then.is_some() && then == mark_of(path).as_ref() {
            return Ok(true);
        }
        if !self.is_device() && !self.part().is_same_image(begun.state()) {
            return Ok(false);
        }
        begun.forget_zeroed();
        let Ok(back) = DiskSource::open_past_cache(path, begun.plan().head()) else {
            return Ok(false);
        };
        sync::is_as_kept(begun, &back).await
    }

    /// Opens what is changed where it is; nothing is changed before `name` has put that on record.
    pub(super) fn open_in_place(
        &self,
        geometry: Geometry,
        name: impl FnOnce(Value) -> Result<()>,
    ) -> Result<Arc<dyn Sink>> {
        match &self.kind {
            PlaceKind::Device(path) => {
                let sink = DeviceSink::open(path, geometry, |id, state| {
                    if id != self.id {
                        let what = format!("{} has become another device", path.display());
                        return Err(Error::new(Kind::Io, what));
                    }
                    name(state)
                });
                Ok(Arc::new(sink?))
            }
            PlaceKind::Image(path) | PlaceKind::InPlace(path) => {
                Ok(Arc::new(FileSink::in_place(path, geometry, name)?))
            }
            PlaceKind::Snapshot(_) | PlaceKind::Repository(_) => {
                Err(Error::new(Kind::Invalid, "a snapshot is made anew"))
            }
        }
    }

    /// What is in the way of a volume being written here, as far as that can be told before: an error if it cannot fit, a
    /// sentence if it may not.
    pub(super) fn room(&self, geometry: Geometry, bytes: u64) -> Result<Option<String>> {
        match &self.kind {
            PlaceKind::Device(path) => DeviceSink::check_size(path, geometry).map(|()| None),
            PlaceKind::Image(path) => {
                let told = nix::sys::statvfs::statvfs(folder_of(path));
                let free = told.map(|told| told.blocks_available() * told.fragment_size());
                Ok(free.ok().filter(|free| *free < bytes).map(|free| {
                    format!(
                        "{} are free there, up to {} are wanted: it may not fit",
                        ByteSize::b(free),
                        ByteSize::b(bytes)
                    )
                }))
            }
            PlaceKind::InPlace(_) | PlaceKind::Snapshot(_) | PlaceKind::Repository(_) => Ok(None),
        }
    }

    /// Whether something would be lost that ebsfs has not written: a device, or an image that nothing is known of.
    fn is_precious(&self) -> Result<bool> {
        let (PlaceKind::Image(path) | PlaceKind::InPlace(path)) = &self.kind else {
            return Ok(self.is_device());
        };
        let has_bytes = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
        Ok(has_bytes && self.record().content()? == Content::Unknown)
    }

    /// Asks before something is overwritten that ebsfs has not written.
    pub(super) fn confirm(&self, yes: bool) -> Result<()> {
        if yes || !self.is_precious()? {
            return Ok(());
        }
        let at = self.shown();
        let refused = |what: &str| Err(Error::new(Kind::Invalid, format!("{at} {what}")));
        if !std::io::stdin().is_terminal() {
            return refused("is to be overwritten: say --yes where nobody can be asked");
        }
        eprint!("overwrite {at} [y/N]? ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => refused("is not overwritten"),
        }
    }

    /// What must be said again to change it where it is.
    pub(super) fn in_place_option(&self) -> &'static str {
        if self.is_device() { "" } else { " --in-place" }
    }

    /// What to do when a run ended before its end.
    pub(super) fn explain(&self, error: Error) -> Error {
        if self.is_in_place() && matches!(error.kind(), Kind::NotFound | Kind::Denied) {
            let at = self.shown();
            return error.context(format!(
                "{at} is not usable as it is, and its source cannot be read any more; bring it to another snapshot with \
                 ebsfs sync SNAPSHOT {at} --base auto{}",
                self.in_place_option()
            ));
        }
        error
    }
}

/// What names of files begin with that tell of a target which has no folder of its own.
pub(super) fn beside_in(state_dir: &Path, id: &str, name: &str) -> PathBuf {
    let digest = hexadecimal(&Sha256::digest(id));
    state_dir
        .join(digest.get(..32).unwrap_or_default())
        .join(name)
}

/// Whether it reads like something else than a path that is to be.
fn is_no_path(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("://") || text.parse::<SnapshotId>().is_ok()
}
