//! `ebsfs files`: lists, prints and copies files of a snapshot, without root and without a mount.

mod changes;
mod list;
mod mount;
mod out;
mod stat;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use tracing::{info, warn};

use super::signals::{listen, only_read};
use super::source::{OpenedSource, SourceArgs, open};
use super::store::end_reading;
use crate::browse::{
    CopyOptions, CopyReport, FileView, FoundPath, FsRemarks, SessionLimits, copy_out,
};
use crate::cache::Cache;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::default_state_dir;
use crate::repository::Lease;
use crate::sync::Source;
use crate::target::Stop;

/// Blocks of the image, cached and in flight together.
const MEMORY: ByteSize = ByteSize::mib(128);

/// List, print and copy files of a snapshot, without root and without a mount
#[derive(Args, Debug)]
#[command(
    long_about = "List, print and copy files of a snapshot, an image or a device, without root and without a mount by the kernel: ext2, \
    ext3, ext4 (the journal is replayed in memory), FAT and NTFS. Only the blocks with metadata and the wanted files are fetched.\n\n\
    The filesystem is parsed by a process without rights: no files, no network, no credentials. Links are shown and not followed. \
    XFS and btrfs are mounted by `ebsfs attach`."
)]
pub(super) struct FilesArgs {
    #[command(subcommand)]
    command: FilesCommand,
}

#[derive(Debug, Subcommand)]
enum FilesCommand {
    Ls(Box<list::LsFilesArgs>),
    Tree(Box<list::TreeArgs>),
    Stat(Box<stat::StatArgs>),
    Cat(Box<CatArgs>),
    Cp(Box<CpArgs>),
    Find(Box<list::FindArgs>),
    Timeline(Box<list::TimelineArgs>),
    Changes(Box<changes::FileChangesArgs>),
    Mount(Box<mount::MountFilesArgs>),
}

/// What every command reads from.
#[derive(Args, Debug)]
pub(super) struct ViewArgs {
    /// Partition that is read: its number, or GROUP/VOLUME of LVM [default: the only one with a known filesystem, EFI system
    /// partitions left out]
    #[arg(long, value_name = "PARTITION")]
    partition: Option<String>,
    /// Directory for the records of devices [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    from: SourceArgs,
}

/// An open filesystem, and what it is read from.
pub(super) struct OpenView {
    view: FileView,
    source: Source,
    lease: Option<Lease>,
}

impl ViewArgs {
    /// Refuses options that would do nothing for these sources.
    fn check(&self, names: &[&str]) -> Result<()> {
        self.from.check(names.iter().copied())
    }

    async fn source(&self, name: &str, stop: &Stop) -> Result<OpenedSource> {
        let state_dir = self.state_dir.clone().unwrap_or_else(default_state_dir);
        open(&self.from.request(name, &state_dir), stop).await
    }

    /// Opens the filesystem of a source.
    async fn open(&self, name: &str, stop: &Stop) -> Result<OpenView> {
        let opened = self.source(name, stop).await?;
        let found = stop.unless(self.open_source(name, &opened)).await;
        match found {
            Ok(view) => Ok(OpenView {
                view,
                source: opened.source,
                lease: opened.lease,
            }),
            Err(error) => {
                end_reading(opened.lease).await;
                Err(error)
            }
        }
    }

    async fn open_source(&self, name: &str, opened: &OpenedSource) -> Result<FileView> {
        let cache = Cache::new(MEMORY, self.from.limits.max_in_flight)?;
        let blocks = Arc::new(cache.wrap(Arc::clone(&opened.source.blocks)));
        let mut view = FileView::start(blocks, SessionLimits::default()).await?;
        show(name, &view.layout().remarks);
        let remarks = view.open(self.partition.as_deref()).await?;
        show(&format!("{name}: {}", view.filesystem()), &remarks);
        Ok(view)
    }

    /// Runs work over the filesystem of a source.
    fn run<T>(
        &self,
        name: &str,
        work: impl AsyncFnOnce(&mut FileView, &Stop) -> Result<T>,
    ) -> Result<T> {
        self.check(&[name])?;
        let runtime = super::runtime()?;
        let done = runtime.block_on(async {
            let stop = listen()?;
            let mut open = self.open(name, &stop).await?;
            let done = work(&mut open.view, &stop).await;
            end_reading(open.lease).await;
            done
        });
        runtime.shutdown_timeout(Duration::from_millis(200));
        done
    }
}

/// Logs what there is to say of an image, or of the filesystem in it.
fn show(name: &str, remarks: &FsRemarks) {
    for note in &remarks.notes {
        info!("{name}: {}", super::plain(note));
    }
    for damage in &remarks.damage {
        warn!("{name}: {}", super::plain(damage));
    }
}

/// The bytes of a path on the command line.
fn path_bytes(path: &std::ffi::OsStr) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path)
}

/// Looks up a path.
async fn lookup(view: &mut FileView, path: &std::ffi::OsStr, stop: &Stop) -> Result<FoundPath> {
    stop.unless(view.lookup(path_bytes(path))).await
}

/// Print the bytes of a file, or of a named stream of it
#[derive(Args, Debug)]
pub(super) struct CatArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Path in the filesystem, for example /etc/fstab; FILE:STREAM for a named stream of NTFS
    path: std::ffi::OsString,
    #[command(flatten)]
    view: ViewArgs,
}

impl CatArgs {
    fn run(self) -> Result<()> {
        let done = self.view.run(&self.source, async |view, stop| {
            let found = stop
                .unless(view.lookup_data(path_bytes(&self.path)))
                .await?;
            out::cat(view, &found, stop).await
        });
        done.map_err(only_read)
    }
}

/// Copy a file, or a folder with all that is in it, to this machine
#[derive(Args, Debug)]
#[command(
    long_about = "Copy a file, or a folder with all that is in it, to this machine, with modes, times, links, holes and extended \
    attributes; as root with owners and devices too. What could not be kept is counted.\n\n\
    Named streams of NTFS become extended attributes user.NAME, or with --streams files NAME:STREAM. The log names a stream \
    that is too large for an attribute, and the exit code is 1.\n\n\
    Nothing is written outside of the destination, whatever the names and links of the filesystem are, and nothing is replaced without \
    --overwrite."
)]
pub(super) struct CpArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Path in the filesystem
    path: std::ffi::OsString,
    /// Folder to copy into, or the new name
    destination: PathBuf,
    /// Replace files that are there; folders are merged in any case
    #[arg(long)]
    overwrite: bool,
    /// Write each named stream of NTFS as a file NAME:STREAM beside its file, whatever its size
    #[arg(long)]
    streams: bool,
    #[command(flatten)]
    view: ViewArgs,
}

impl CpArgs {
    fn run(self) -> Result<()> {
        let done = self.view.run(&self.source, async |view, stop| {
            let found = lookup(view, &self.path, stop).await?;
            let options = CopyOptions {
                overwrite: self.overwrite,
                streams: self.streams,
            };
            let (path, node) = (found.path, found.node);
            Ok(copy_out(view, &path, node, &self.destination, options, stop).await)
        });
        let (report, done) = done?;
        let Err(error) = done else {
            return show_copy(&report);
        };
        if report == CopyReport::default() {
            return Err(error);
        }
        let shown = show_copy(&report);
        Err(match (error.kind(), shown) {
            (Kind::Stopped, Ok(())) => Error::new(
                Kind::Stopped,
                "stopped: what was copied is complete, the rest is missing",
            ),
            (Kind::Stopped, Err(failed)) => Error::new(
                Kind::Stopped,
                format!("stopped: {}; the rest is missing", failed.chain()),
            ),
            _ => error,
        })
    }
}

/// Says what was copied and what was not kept.
fn show_copy(report: &CopyReport) -> Result<()> {
    let CopyReport {
        files,
        folders,
        others,
        bytes,
        ..
    } = report;
    let bytes = ByteSize::b(*bytes);
    let streams = match report.streams {
        0 => String::new(),
        count => format!(", {count} streams"),
    };
    info!("copied {files} files, {folders} folders, {others} links and others{streams}: {bytes}");
    for (count, what) in [
        (
            report.owners_lost,
            "owners were not kept: only root can set them, and only if the destination stores owners",
        ),
        (
            report.modes_lost,
            "set-user-id and set-group-id bits were not kept",
        ),
        (
            report.permissions_lost,
            "modes were not kept: the destination does not hold them",
        ),
        (report.xattrs_lost, "extended attributes were not kept"),
        (report.streams_lost, "streams of NTFS were not kept"),
        (
            report.devices_lost,
            "devices were not made: only root can make them",
        ),
        (
            report.links_lost,
            "files with several names were copied more than once",
        ),
    ] {
        if count > 0 {
            warn!("{count} {what}");
        }
    }
    for problem in &report.problems {
        warn!("not copied: {problem}");
    }
    match report.failed {
        0 if report.streams_lost > 0 => {
            let count = report.streams_lost;
            let what = format!("cannot keep {count} streams of the files: see the lines above");
            Err(Error::new(Kind::Io, what).with_remedy(Remedy::StreamFiles))
        }
        0 => Ok(()),
        count => {
            let what = format!("cannot copy {count} of the files: see the lines above");
            let error = Error::new(Kind::Io, what);
            Err(match report.occupied {
                0 => error,
                _ => error.with_remedy(Remedy::ReplaceFiles),
            })
        }
    }
}

impl FilesArgs {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            FilesCommand::Ls(args) => args.run(),
            FilesCommand::Tree(args) => args.run(),
            FilesCommand::Stat(args) => args.run(),
            FilesCommand::Cat(args) => args.run(),
            FilesCommand::Cp(args) => args.run(),
            FilesCommand::Find(args) => args.run(),
            FilesCommand::Timeline(args) => args.run(),
            FilesCommand::Changes(args) => args.run(),
            FilesCommand::Mount(args) => args.run(),
        }
    }
}
