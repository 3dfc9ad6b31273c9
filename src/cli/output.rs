//! Where a verb's result goes: stdout, or a file that appears whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::files::OutputFile;

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
    let mut whole = OutputFile::create(file)?;
    result(&mut whole).map_err(|error| Error::of_file(file, "cannot write", error))?;
    whole.commit()
}
