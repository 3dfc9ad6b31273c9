//! Where a verb's result goes: stdout, or a file that appears whole or not at all.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
    let part = part_of(file);
    let written = write_part(&part, result).and_then(|()| std::fs::rename(&part, file));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&part);
        Error::with_source(Kind::Io, format!("cannot write {}", file.display()), error)
    })
}

fn write_part(
    part: &Path,
    result: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(part)?;
    let mut out = BufWriter::new(file);
    result(&mut out)?;
    out.into_inner()?.sync_all()
}

fn part_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    name.into()
}
