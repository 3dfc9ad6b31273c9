//! `--background`: the program starts itself again as a child of its own session, and waits until that one says that the
//! mount answers. An error is printed by the child, whose exit code is passed on.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::log;
use crate::error::{Error, Kind, Result};

/// Set in the child. Its stdout is the pipe to say [`READY`] on.
const CHILD: &str = "EBSFS_BACKGROUND_CHILD";
const READY: &[u8] = b"ready\n";

/// Whether this process is the child.
pub(super) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Starts the child with these arguments and variables, and waits for it to be ready, or to fail. Returns its exit code, 0 when it is
/// ready; a child that fails prints its error itself.
///
/// # Errors
/// `Io` where no child can be started.
pub(super) fn start(arguments: &[OsString], variables: &[(&str, OsString)]) -> Result<u8> {
    let failed = |error| Error::with_source(Kind::Io, "cannot start in the background", error);
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        // A copy of the program that is called mount.ebsfs, and no link, would be the helper again.
        .arg0("ebsfs")
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut said).map_err(failed)?;
    }
    if said == READY {
        return Ok(0);
    }
    let status = child.wait().map_err(failed)?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    // It ends without a code when a signal kills it.
    Ok(code.unwrap_or(1))
}

/// Leaves the terminal's session, so that its end is not ours.
pub(super) fn leave_session() -> Result<()> {
    nix::unistd::setsid()
        .map(drop)
        .map_err(|error| Error::with_source(Kind::Io, "cannot leave the terminal", error))
}

/// Says that the mount answers and lets go of the caller's terminal and folder. Lines written to stderr from now on are
/// lost, unless there is a log file.
pub(super) fn ready() -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::with_source(Kind::Io, "cannot go into the background", error)
    };
    // The caller sees them before its command returns.
    log::flush();
    std::io::stdout().write_all(READY).map_err(failed)?;
    std::io::stdout().flush().map_err(failed)?;
    let null = OpenOptions::new().write(true).open("/dev/null");
    let null = null.map_err(failed)?;
    nix::unistd::dup2_stdout(&null).map_err(|error| failed(error.into()))?;
    log::leave_stderr()?;
    std::env::set_current_dir("/").map_err(failed)
}
