//! Where a target is, and where what is known of it is kept.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::block::Geometry;
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
use crate::sinks::{DeviceSink, FileSink, Part};
use crate::source::SnapshotId;
use crate::sync::{Checkpoint, Content, Lock, Mark, Mode, Record};

/// One target.
#[derive(Clone, Debug)]
pub(super) struct Place {
    path: PathBuf,
    kind: PlaceKind,
    id: String,
    /// What names of files begin with that tell of it.
    beside: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PlaceKind {
    Image,
    InPlace,
    Device,
}

impl Place {
    /// A target by its path. A device's files are in `state_dir`, an image's beside it.
    pub(super) fn of(path: &Path, state_dir: &Path, in_place: bool) -> Result<Self> {
        // A link to an image stays one: what it leads to is replaced.
        let found = path.canonicalize();
        let path = found.as_deref().unwrap_or(path);
        let metadata = std::fs::metadata(path);
        let wrong = |what: &str| Error::new(Kind::Invalid, format!("{} {what}", path.display()));
        let is_device = match &metadata {
            Ok(metadata) if metadata.is_dir() => {
                return Err(wrong("is a folder: name a file in it"));
            }
            Ok(metadata) if metadata.file_type().is_block_device() => true,
            Ok(metadata) if metadata.is_file() => false,
            Ok(_) => return Err(wrong("is neither a regular file nor a block device")),
            Err(_) if is_no_path(path) => {
                return Err(wrong("is no target yet: images and block devices are"));
            }
            Err(_) if path.starts_with("/dev") && !path.starts_with("/dev/shm") => {
                return Err(wrong("does not exist"));
            }
            Err(_) => false,
        };
        if is_device {
            let id = DeviceSink::identity(path)?;
            let digest = Sha256::digest(&id);
            let name: String = digest
                .iter()
                .take(16)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            return Ok(Self {
                path: path.to_owned(),
                kind: PlaceKind::Device,
                id,
                beside: state_dir.join(name).join("device"),
            });
        }
        if in_place && metadata.is_err() {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "{} does not exist: nothing to change in place",
                    path.display()
                ),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            kind: if in_place {
                PlaceKind::InPlace
            } else {
                PlaceKind::Image
            },
            id: FileSink::id_of(path)?,
            beside: path.to_owned(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn is_device(&self) -> bool {
        self.kind == PlaceKind::Device
    }

    /// Whether what is written shows at once, and so may be neither the one nor the other for a while.
    pub(super) fn is_in_place(&self) -> bool {
        self.kind != PlaceKind::Image
    }

    fn file(&self, ending: &str) -> PathBuf {
        let mut name = self.beside.as_os_str().to_owned();
        name.push(ending);
        name.into()
    }

    pub(super) fn record(&self) -> Record {
        let (target, is_device) = (self.path.clone(), self.is_device());
        Record::at(self.file(".ebsfs.json"), move || {
            if is_device {
                DeviceSink::written_so_far(&target).map(Value::from)
            } else {
                serde_json::to_value(Mark::of(&target)?).ok()
            }
        })
    }

    pub(super) fn checkpoint_path(&self) -> PathBuf {
        self.file(".ebsfs-checkpoint")
    }

    /// What an earlier run left.
    pub(super) fn checkpoint(&self) -> Result<Option<Checkpoint>> {
        Checkpoint::load(&self.checkpoint_path())
    }

    pub(super) fn part(&self) -> Part {
        Part::of(&self.path)
    }

    /// From now on this run alone looks at what is known of the target, and writes it.
    pub(super) fn lock(&self) -> Result<Lock> {
        self.prepare()?;
        Lock::take(&self.file(".ebsfs-lock"))
    }

    /// How it is written.
    pub(super) fn mode(&self) -> Mode {
        if self.is_in_place() {
            Mode::InPlace
        } else {
            Mode::Part
        }
    }

    /// Whether an image in place, or a device, is the one that a checkpoint speaks of.
    pub(super) fn is_as_left(&self, state: &Value) -> bool {
        self.is_device() || state.is_null() || self.part().is_same_image(state)
    }

    /// Makes the folder of a device's files.
    fn prepare(&self) -> Result<()> {
        if !self.is_device() {
            return Ok(());
        }
        let folder = self.beside.parent().unwrap_or(Path::new("/"));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| Error::of_file(folder, "cannot make (--state-dir)", error))
    }

    /// Opens what is changed where it is.
    pub(super) fn open_in_place(&self, geometry: Geometry) -> Result<Box<dyn Sink>> {
        Ok(match self.kind {
            PlaceKind::Device => {
                let sink = DeviceSink::open(&self.path, geometry)?;
                if sink.id() != self.id {
                    let what = format!("{} has become another device", self.path.display());
                    return Err(Error::new(Kind::Io, what));
                }
                Box::new(sink)
            }
            _ => Box::new(FileSink::in_place(&self.path, geometry)?),
        })
    }

    /// Whether something would be lost that ebsfs has not written: a device, or an image that nothing is known of.
    fn is_precious(&self) -> Result<bool> {
        let has_bytes = std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() > 0);
        Ok(self.is_device() || (has_bytes && self.record().content()? == Content::Unknown))
    }

    /// Asks before something is overwritten that ebsfs has not written.
    pub(super) fn confirm(&self, yes: bool) -> Result<()> {
        if yes || !self.is_precious()? {
            return Ok(());
        }
        let at = self.path.display();
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

    /// What to do when a run ended before its end.
    pub(super) fn explain(&self, error: Error) -> Error {
        if self.is_in_place() && matches!(error.kind(), Kind::NotFound | Kind::Denied) {
            let at = self.path.display();
            return error.context(format!(
                "{at} is not usable as it is, and its source cannot be read any more; bring it to another snapshot with \
                 ebsfs sync SNAPSHOT {at} --base auto"
            ));
        }
        error
    }
}

/// Whether it reads like something else than a path that is to be.
fn is_no_path(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.starts_with("ebs:") || text.contains("://") || text.parse::<SnapshotId>().is_ok()
}
