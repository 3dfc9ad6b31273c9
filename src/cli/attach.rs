//! `ebsfs attach` and `ebsfs detach`: a filesystem of a snapshot, mounted by this machine's kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::background;
use super::log;
use super::mount::MountSignals;
use super::notify::Notifier;
use super::signals::only_read;
use super::source::{OpenedSource, SourceArgs, SourceRequest, open};
use super::store::end_reading;
use crate::attach::{AttachJob, AttachRights, Attached, attach, check_root, detach};
use crate::drill::DrillDisk;
use crate::error::{Error, Kind, Result};
use crate::files::{default_state_dir, temporary_folder};
use crate::fs::Unmounted;
use crate::target::Stop;

/// How long users may take to close their files after a signal.
const CLOSING: Duration = Duration::from_secs(3);

/// Mount a filesystem of a snapshot with the drivers of this machine's kernel
#[derive(Args, Debug)]
#[command(
    long_about = "Mount one filesystem of a snapshot, read only, with the drivers of this machine's kernel: ext2, ext3, ext4, XFS, btrfs, \
    FAT, NTFS (ntfs3, else ntfs-3g) and others that the kernel has; also on linear volumes of LVM, without device-mapper. Blocks are \
    fetched when they are read. Needs root and a loop device.\n\n\
    Without --overlay no journal is replayed: the last changes before the snapshot can be missing. With --overlay the journal is replayed \
    into a temporary file, as after a power cut; it needs qemu-img and qemu-storage-daemon.\n\n\
    Stays in the foreground until umount, ebsfs detach, SIGINT, SIGTERM or SIGHUP, then removes all that it has made."
)]
pub(super) struct AttachArgs {
    /// Snapshot id; volume id or tag:KEY=VALUE for its newest completed snapshot; raw image or block device; or a snapshot of a
    /// repository, s3://BUCKET/PREFIX#SNAPSHOT
    #[arg(value_name = "SNAPSHOT")]
    source: String,
    /// Empty folder to mount at, after an optional partition: its number, name, label, UUID, file in partitions/, or GROUP/VOLUME of LVM
    /// [default: the only partition with a filesystem, EFI system partitions left out]
    #[arg(value_name = "DIRECTORY | PARTITION DIRECTORY", num_args = 1..=2, required = true)]
    place: Vec<OsString>,
    /// Replay the journal into a temporary file over the partition
    #[arg(long)]
    overlay: bool,
    /// Folder for the temporary files, in a private one that is removed at the end [default: $TMPDIR, else /tmp]
    #[arg(long, value_name = "DIRECTORY")]
    scratch: Option<PathBuf>,
    /// Return when the filesystem is mounted, and serve it in the background; the log then goes to --log-file or is lost
    #[arg(long)]
    pub(super) background: bool,
    /// Mount without noexec: programs on the filesystem can run
    #[arg(long)]
    exec: bool,
    /// Mount without nosuid: set-user-id and set-group-id bits have effect
    #[arg(long)]
    suid: bool,
    /// Mount without nodev: device nodes can be opened
    #[arg(long)]
    dev: bool,
    /// Directory for the records of devices [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    from: SourceArgs,
}

/// Unmount a filesystem that `ebsfs attach` has mounted, also one whose process was killed
#[derive(Args, Debug)]
pub(super) struct DetachArgs {
    /// Folder, as given to ebsfs attach
    directory: PathBuf,
    /// Detach it even while files are open; open files can be read until they are closed
    #[arg(long)]
    lazy: bool,
}

impl DetachArgs {
    pub(super) fn run(&self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(detach(&self.directory, self.lazy));
        runtime.shutdown_timeout(Duration::from_millis(200));
        if !done? && !self.lazy {
            log::say(&format!(
                "{} is unmounted, but another mount namespace or an open file still holds it",
                self.directory.display()
            ));
        }
        Ok(())
    }
}

impl AttachArgs {
    /// Checks that need no request.
    pub(super) fn check(&self) -> Result<()> {
        self.from.check([&*self.source])?;
        self.place()?;
        check_root("attach")
    }

    /// The partition, if one is named, and the folder.
    fn place(&self) -> Result<(Option<String>, &Path)> {
        match &self.place[..] {
            [partition, directory] => {
                let partition = partition.to_str().map(str::to_owned).ok_or_else(|| {
                    let shown = partition.to_string_lossy();
                    let what = format!("cannot find the partition {shown}: its name is no UTF-8");
                    Error::new(Kind::Invalid, what)
                })?;
                Ok((Some(partition), directory.as_ref()))
            }
            [directory] => Ok((None, directory.as_ref())),
            _ => Err(Error::new(
                Kind::Invalid,
                "cannot attach: no folder is named",
            )),
        }
    }

    pub(super) fn run(self) -> Result<()> {
        self.check()?;
        if background::is_child() {
            background::leave_session()?;
        }
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.serve());
        // A dropped reply answers EIO to a request that still waits.
        runtime.shutdown_timeout(Duration::from_millis(200));
        done.map_err(only_read)
    }

    async fn serve(&self) -> Result<()> {
        // From here on a signal ends the program in order.
        let mut signals = MountSignals::new()?;
        let (stop, stopped) = watch::channel(false);
        let stopped = Stop::new(stopped);
        let (partition, dir) = self.place()?;
        let mut opening = pin!(self.open(&stopped));
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened?,
                () = signals.next() => drop(stop.send_replace(true)),
            }
        };
        let lease = opened.lease;
        let disk = DrillDisk {
            name: self.source.clone(),
            volume: opened.source.info.volume,
            snapshot: None,
            blocks: opened.source.blocks,
        };
        let job = AttachJob {
            disk,
            partition,
            dir: dir.to_owned(),
            overlay: self.overlay,
            scratch: self.scratch.clone().unwrap_or_else(temporary_folder),
            read_timeout: self.from.limits.timeout,
            rights: AttachRights {
                exec: self.exec,
                suid: self.suid,
                dev: self.dev,
            },
        };
        // A mount that is being made is never dropped half made: what waits for blocks before it looks at `stopped`.
        let mut attaching = pin!(attach(job, &stopped));
        let attached = loop {
            tokio::select! {
                attached = &mut attaching => break attached,
                () = signals.next() => drop(stop.send_replace(true)),
            }
        };
        let done = match attached {
            Ok(attached) if stopped.is_stopped() => {
                let ended = match attached.unmount(true) {
                    Ok(_) => attached.finish().await,
                    Err(error) => Err(error),
                };
                ended.and_then(|()| stopped.check())
            }
            Ok(attached) => serve_until_end(attached, &mut signals).await,
            Err(error) => Err(error),
        };
        end_reading(lease).await;
        done
    }

    async fn open(&self, stop: &Stop) -> Result<OpenedSource> {
        let state_dir = self.state_dir.clone().unwrap_or_else(default_state_dir);
        let request = SourceRequest {
            limits: self.from.limits.mount_limits(),
            ..self.from.request(&self.source, &state_dir)
        };
        open(&request, stop).await
    }
}

/// Serves until the filesystem is unmounted, by this process after a signal or by another. A second signal detaches a busy one.
async fn serve_until_end(attached: Attached, signals: &mut MountSignals) -> Result<()> {
    let at = attached.dir().display().to_string();
    if background::is_child() {
        // If the parent process has ended, the mount has no user.
        if let Err(error) = background::ready() {
            attached.finish().await?;
            return Err(error);
        }
    } else {
        Notifier::from_environment().ready();
    }
    info!("attached {} at {at}", attached.what());
    tokio::select! {
        () = attached.ended() => {}
        () = signals.next() => {
            info!("unmounting {at}");
            if let Some(why) = unmount(&attached).await? {
                warn!("{at} {why}; a second signal detaches it and ends the process");
                tokio::select! {
                    () = attached.ended() => {}
                    () = signals.next() => {
                        warn!("detaching {at}");
                        block_in_place(|| attached.unmount(true))?;
                    }
                }
            }
        }
    }
    attached.finish().await?;
    info!("detached {at}");
    Ok(())
}

/// Unmounts as soon as files are closed; after [`CLOSING`] the reason why it is still mounted.
async fn unmount(attached: &Attached) -> Result<Option<String>> {
    let until = Instant::now() + CLOSING;
    loop {
        let at = attached.dir().display();
        match block_in_place(|| attached.unmount(false))? {
            Unmounted::Busy if Instant::now() < until => sleep(Duration::from_millis(50)).await,
            Unmounted::Busy => {
                let why = format!("is busy and stays mounted (fuser -vm {at} lists its users)");
                return Ok(Some(why));
            }
            Unmounted::Covered(path) => {
                let path = path.display();
                let why = format!(
                    "stays mounted: something else is mounted over it (umount {path} first)"
                );
                return Ok(Some(why));
            }
            Unmounted::Done | Unmounted::Absent => {
                let ended = timeout(CLOSING, attached.ended()).await;
                let why = "is unmounted here and still mounted or open elsewhere";
                return Ok(ended.is_err().then(|| why.to_owned()));
            }
        }
    }
}
