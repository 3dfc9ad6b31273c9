//! Where a verb's result goes: stdout, or a file that appears whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::disk::with_ending;
use crate::error::{Error, Kind, Result};

/// Writes a result. A reader of stdout that has seen enough (`| head`) is no error.
pub(super) fn write(
    file: Option<&Path>,
    result: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let Some(file) = file else {
        let mut out = BufWriter::new(io::stdout().lock());
        return match result(&mut out).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => done.map_err(|error| Error::with_source(Kind::Io, "stdout", error)),
        };
    };
    let mut part = Part::create(file)?;
    result(&mut part).map_err(|error| unwritable(file, error))?;
    part.finish()
}

/// A file that is not there under its name before it is whole; dropped before that, nothing of it is left.
pub(super) struct Part {
    path: PathBuf,
    part: PathBuf,
    out: BufWriter<File>,
}

impl Part {
    /// Begins a file for its owner alone.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let part = with_ending(path, &format!(".{}.part", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(|error| unwritable(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            part,
            out: BufWriter::new(file),
        })
    }

    /// Gives it its name.
    pub(super) fn finish(mut self) -> Result<()> {
        let written = self.out.flush();
        written
            .and_then(|()| self.out.get_ref().sync_all())
            .and_then(|()| std::fs::rename(&self.part, &self.path))
            .map_err(|error| unwritable(&self.path, error))
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After its end there is none.
        let _ = std::fs::remove_file(&self.part);
    }
}

fn unwritable(path: &Path, error: io::Error) -> Error {
    Error::with_source(Kind::Io, format!("cannot write {}", path.display()), error)
}
