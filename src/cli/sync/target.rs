//! Where a target is, and where what is known of it is kept.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::block::Geometry;
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
use crate::sinks::{DeviceSink, FileSink, Part};
use crate::sync::{Checkpoint, Record};

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
            Err(_) if path.starts_with("/dev") => return Err(wrong("does not exist")),
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
        let image = (!self.is_device()).then(|| self.path.clone());
        Record::at(self.file(".ebsfs.json"), image)
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

    /// Makes the folder of a device's files.
    pub(super) fn prepare(&self) -> Result<()> {
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
            PlaceKind::Device => Box::new(DeviceSink::open(&self.path, geometry)?),
            _ => Box::new(FileSink::in_place(&self.path, geometry)?),
        })
    }

    /// Asks before a device is overwritten.
    pub(super) fn confirm(&self, yes: bool) -> Result<()> {
        if !self.is_device() || yes {
            return Ok(());
        }
        let refused = |what: &str| Err(Error::new(Kind::Invalid, what.to_owned()));
        if !std::io::stdin().is_terminal() {
            return refused("a device is to be overwritten: say --yes where nobody can be asked");
        }
        eprint!("overwrite {} [y/N]? ", self.path.display());
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => refused("not overwritten"),
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
