//! Overlays of disks, and [`Export`]: a range of an overlay as a file that checkers can write.
//!
//! An overlay is a qcow2 file with the disk behind it. `qemu-storage-daemon` shows a range of it by FUSE; it opens the disk read
//! only, and what is written goes to the qcow2 file alone. It needs no loop device and no module of the kernel but FUSE.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::isolation::{Isolation, ProgramRole};
use super::program::{
    BoundedOutput, RunningProgram, bytes_moved, find_program, last_words, run_program,
};
use super::scratch::{Scratch, detach, is_mounted};
use crate::error::{Error, Kind, Remedy, Result};

/// How long the daemon may take to show its file, and a call on that file.
const START: Duration = Duration::from_secs(60);
/// `qemu-img create` reads a header.
const CREATE: Duration = Duration::from_secs(60);
/// Programs and their packages in Debian.
const IMG: (&str, &str) = ("qemu-img", "qemu-utils");
const DAEMON: (&str, &str) = ("qemu-storage-daemon", "qemu-system-common");

/// The path of a program that the drill cannot do without.
///
/// # Errors
/// `Io` with the package that has it.
pub(super) fn needed((name, package): (&str, &str)) -> Result<PathBuf> {
    find_program(name).ok_or_else(|| {
        let what = format!("cannot run {name}: it is not installed");
        let remedy = Remedy::Do(format!("install {package} (Debian's name of the package)"));
        Error::new(Kind::Io, what).with_remedy(remedy)
    })
}

/// The error of a form of isolation whose programs have vanished.
pub(super) fn vanished(name: &str) -> Error {
    let what = format!("cannot run {name}: setpriv, unshare or prlimit is missing");
    let remedy = Remedy::Do("install util-linux".into());
    Error::new(Kind::Io, what).with_remedy(remedy)
}

/// Makes an overlay of a disk.
///
/// # Errors
/// `Io` without the program, and with what it says.
pub(crate) async fn make_overlay(disk: &Path, overlay: &Path) -> Result<()> {
    let program = needed(IMG)?;
    let mut words = vec![program.into_os_string()];
    let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    words.extend(options.map(OsString::from));
    words.extend([disk.as_os_str().to_owned(), overlay.as_os_str().to_owned()]);
    let end = run_program(IMG.0, &words, CREATE, || None).await?;
    if end.code != Some(0) {
        let what = format!("cannot make an overlay: {}", end.last_line());
        return Err(Error::new(Kind::Io, what));
    }
    let set =
        std::fs::set_permissions(overlay, std::os::unix::fs::PermissionsExt::from_mode(0o600));
    set.map_err(|error| Error::of_file(overlay, "cannot protect", error))
}

/// The node of an overlay over its disk, which is opened read only, in QEMU's words.
pub(super) fn overlay_node(name: &str, disk: &Path, overlay: &Path) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": name,
        "file": {"driver": "file", "filename": overlay},
        "backing": {
            "driver": "raw",
            "read-only": true,
            "file": {"driver": "file", "filename": disk, "read-only": true},
        },
    })
}

/// A range of an overlay, shown as a file. Dropping it ends the daemon and detaches the file.
#[derive(Debug)]
pub(crate) struct Export {
    daemon: RunningProgram,
    output: Arc<Mutex<BoundedOutput>>,
    path: PathBuf,
}

impl Export {
    /// Shows a range of an overlay as a file of the scratch folder, given to the user of parsers.
    ///
    /// # Errors
    /// `Io` without the program, and with what it says.
    pub(crate) async fn start(
        (disk, overlay): (&Path, &Path),
        (start, size): (u64, u64),
        scratch: &Scratch,
        isolation: &Isolation,
        file_limit: u64,
    ) -> Result<Self> {
        let program = needed(DAEMON)?;
        let name = format!("part-{:08x}.raw", fastrand::u32(..));
        let path = scratch.file(&name)?;
        let range = json!({
            "driver": "raw", "node-name": "range", "file": "overlay", "offset": start, "size": size,
        });
        let export = json!({
            "type": "fuse", "id": "export", "node-name": "range", "mountpoint": path, "writable": true,
        });
        let args = [
            "--blockdev".to_owned(),
            overlay_node("overlay", disk, overlay).to_string(),
            "--blockdev".to_owned(),
            range.to_string(),
            "--export".to_owned(),
            export.to_string(),
        ];
        let args = args.map(OsString::from);
        let words = isolation.wrap(ProgramRole::Mounter, &program, args, Some(file_limit));
        let words = words.ok_or_else(|| vanished(DAEMON.0))?;
        let mut daemon = RunningProgram::start(DAEMON.0, &words)?;
        let output = daemon.drain();
        let mut export = Self {
            daemon,
            output,
            path,
        };
        export.wait().await?;
        let (path, isolation) = (export.path.clone(), isolation.clone());
        export.call("give", move || isolation.give(&path)).await?;
        Ok(export)
    }

    async fn wait(&mut self) -> Result<()> {
        let until = Instant::now() + START;
        loop {
            if is_mounted(&self.path) {
                return Ok(());
            }
            let ended = self.daemon.child.try_wait();
            if !matches!(ended, Ok(None)) || Instant::now() > until {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        let why = last_words(&self.output).await;
        let why = why.unwrap_or_else(|| "no answer".to_owned());
        let what = format!("cannot show an overlay: {}: {why}", DAEMON.0);
        Err(Error::new(Kind::Io, what))
    }

    /// Does something with the file, which the daemon may never answer.
    ///
    /// # Errors
    /// `Io` with what the system says, or after [`START`].
    pub(super) async fn call<T: Send + 'static>(
        &self,
        verb: &str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = timeout(START, tokio::task::spawn_blocking(work)).await;
        let failed = |error| Error::of_file(&self.path, &format!("cannot {verb}"), error);
        match done {
            Ok(Ok(done)) => done.map_err(failed),
            Ok(Err(_)) | Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the daemon has moved: a checker that works moves some.
    pub(super) fn activity(&self) -> impl Fn() -> Option<u64> + use<> {
        let id = self.daemon.id();
        move || bytes_moved(id?)
    }

    /// Ends the daemon, which unmounts its file. Whether it still ran.
    pub(crate) async fn stop(mut self) -> bool {
        let ran = matches!(self.daemon.child.try_wait(), Ok(None));
        self.daemon.end().await;
        ran
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if is_mounted(&self.path) {
            detach(&self.path);
        }
    }
}
