//! A filesystem of a snapshot, mounted by this machine's kernel: a private mount of the disk, a loop device of one partition, and a
//! mount of that. One process owns all of it, and all of it ends with the mount.
//!
//! ```text
//!  record    dead       what a killed process has left is unmounted and removed
//!  record    begin      the attachment is on record before it makes anything
//!  drill     MountedDisks   the disk as a private read-only mount: its partitions are files
//!  volumes   read_table, select   which partition
//!  driver    plan       a pure function: filesystem -> driver and options, or why not
//!  drill     Export     with an overlay: a qcow2 file over the partition takes what a replay writes
//!  loops     LoopDevice the file as a block device, with direct I/O if it is read only
//!  mounts    mount      mount(2), or ntfs-3g
//! ```
//!
//! # The end
//! After the mount the loop device is set to free itself with its last user, so `umount` of the folder ends everything: the loop
//! device closes the file, and the process removes the overlay, the private mount and the record. A killed process leaves a mount
//! whose reads fail; [`detach`] and the next [`attach`] unmount it and free its loop device, by the record.
//!
//! # Foreign disks
//! This machine's kernel parses the filesystem. That is what the user asks for; `nosuid`, `nodev` and `noexec` hold unless the job
//! says otherwise. Partition tables are read by [`crate::volumes`].

mod driver;
mod loops;
mod mounts;
mod record;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use crate::drill::{DrillDisk, Export, Isolation, MountedDisks, Scratch, make_overlay, read_file};
use crate::error::{Error, Kind, Result};
use crate::files::safe_parent;
use crate::fs::Unmounted;
use crate::target::Stop;
use crate::volumes::{VolumeView, WHOLE_DISK, read_table};
use loops::LoopDevice;
pub(crate) use mounts::AttachRights;
use mounts::{AttachMount, mount};
use record::AttachRecord;

/// Bytes that an overlay may take: a journal has at most some 1 GiB.
const OVERLAY_LIMIT: u64 = 16 << 30;
/// How often the loop device of an attachment is looked at: the kernel reports its end to nothing else.
const LOOK: Duration = Duration::from_millis(250);
/// How long a detach waits for the end of the process.
const END: Duration = Duration::from_secs(3);
/// Between two looks at it.
const END_LOOK: Duration = Duration::from_millis(20);

/// The parameters of an attachment.
#[derive(Debug)]
pub(crate) struct AttachJob {
    /// The disk.
    pub(crate) disk: DrillDisk,
    /// Which partition or volume; none: the only one with a filesystem.
    pub(crate) partition: Option<String>,
    /// The empty folder to mount at.
    pub(crate) dir: PathBuf,
    /// Whether an overlay takes writes, so that the journal is replayed.
    pub(crate) overlay: bool,
    /// The folder for the private mount and the overlay.
    pub(crate) scratch: PathBuf,
    /// How long a read of the disk may take, with its retries.
    pub(crate) read_timeout: Duration,
    /// What files on the filesystem may do.
    pub(crate) rights: AttachRights,
}

/// A filesystem that is attached. It serves until [`Attached::finish`].
#[derive(Debug)]
pub(crate) struct Attached {
    dir: PathBuf,
    /// What is mounted, in words.
    what: String,
    // Dropped in this order: each is made of the ones below.
    mount: AttachMount,
    device: LoopDevice,
    export: Option<Export>,
    disks: MountedDisks,
    scratch: Scratch,
    record: AttachRecord,
}

/// Attaches a filesystem.
///
/// # Errors
/// `Stopped`; `NotFound`, `Undecided` and `Invalid` for a partition that is not there, not clear or no filesystem; `Io` for
/// what this machine lacks.
pub(crate) async fn attach(job: AttachJob, stop: &Stop) -> Result<Attached> {
    // Before anything looks into the folder: a killed process can have left a mount there.
    let dir = crate::fs::absolute(&job.dir)?;
    let parent = safe_parent(&job.scratch)?;
    let mut record = blocking({
        let (dir, scratch) = (dir.clone(), parent.clone());
        move || AttachRecord::begin(&dir, &scratch)
    })
    .await?;
    crate::fs::check_mountpoint(&dir)?;
    let scratch = Scratch::make(&parent, false)?;
    record.save(|text| text.private = Some(scratch.path().to_owned()))?;
    // No program of the drill reads what is on the disk: the daemon of an overlay moves its bytes.
    let isolation = Isolation::none();
    let (name, size) = (job.disk.name.clone(), job.disk.blocks.geometry().size());
    let disks = MountedDisks::mount(&[job.disk], &scratch, &isolation, job.read_timeout)?;
    let whole = disks.disk(0)?;
    let view = choose((&name, size), &whole, job.partition.as_deref());
    let view = stop.unless(view).await?;
    let plan = driver::plan(&view, job.overlay)?;
    // The whole disk is a file beside the folder of its partitions.
    let source = match view.file.as_str() {
        WHOLE_DISK => whole,
        file => whole.with_file_name("partitions").join(file),
    };
    let export = match job.overlay {
        true => Some(
            stop.unless(export(&source, &view, &scratch, &isolation))
                .await?,
        ),
        false => None,
    };
    let backing = export.as_ref().map_or(source.as_path(), Export::path);
    let mut device = LoopDevice::make(backing, !job.overlay, |device| {
        record.save(|text| text.device = Some(device.to_owned()))
    })
    .await?;
    stop.check()?;
    let mount = AttachMount(mount(&plan, device.path(), &dir, job.rights).await?);
    record.save(|text| text.set_mount(&mount.0))?;
    device.free_with_last_user().await?;
    if export.is_none() {
        // The loop device holds the file. A process that is killed leaves no mount but that of the folder.
        disks.hide()?;
    }
    device.remember();
    Ok(Attached {
        what: format!("{} of {name} ({})", view.name, plan.filesystem),
        dir,
        mount,
        device,
        export,
        disks,
        scratch,
        record,
    })
}

/// Refuses what only root can do.
///
/// # Errors
/// `Denied` for any other user.
pub(crate) fn check_root(verb: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let what = format!("cannot {verb} a filesystem: only root may mount and unmount one");
    Err(Error::new(Kind::Denied, what))
}

/// The partition that is meant.
async fn choose(
    (name, size): (&str, u64),
    whole: &Path,
    wanted: Option<&str>,
) -> Result<VolumeView> {
    let file = whole.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        read_table(&|offset, len| read_file(&file, offset, len), size)
    });
    let failed = |error| Error::with_source(Kind::Io, format!("cannot read {name}"), error);
    let layout = read
        .await
        .map_err(|error| failed(std::io::Error::other(error)))?;
    let layout = layout.map_err(failed)?;
    for note in layout.damage.iter().chain(&layout.notes) {
        info!("{name}: {note}");
    }
    layout.select(wanted)
}

/// Shows an overlay of a file as a file that can be written.
async fn export(
    source: &Path,
    view: &VolumeView,
    scratch: &Scratch,
    isolation: &Isolation,
) -> Result<Export> {
    let overlay = scratch.path().join("overlay.qcow2");
    make_overlay(source, &overlay).await?;
    let range = (0, view.size());
    Export::start((source, &overlay), range, scratch, isolation, OVERLAY_LIMIT).await
}

impl Attached {
    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is mounted there, for the log.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Waits until the kernel has let go of the filesystem: it was unmounted, and its last file is closed.
    pub(crate) async fn ended(&self) {
        let freed = async {
            while self.device.is_ours() {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = freed => {}
            // The private mount ends when the loop device has closed its file.
            _ = self.disks.ended(), if self.export.is_none() => {}
        }
    }

    /// Unmounts the folder; `lazy` also while files are open.
    ///
    /// # Errors
    /// `Io` when the system refuses it for another reason than those of [`Unmounted`].
    pub(crate) fn unmount(&self, lazy: bool) -> Result<Unmounted> {
        crate::fs::unmount(&self.mount.0, lazy)
    }

    /// Removes all that the attachment has made, after [`Attached::ended`] or a lazy unmount.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn finish(self) -> Result<()> {
        drop(self.mount);
        if let Some(export) = self.export {
            export.stop().await;
        }
        self.disks.unmount().await?;
        drop(self.scratch);
        drop(self.record);
        Ok(())
    }
}

/// Unmounts an attachment at a folder, and waits up to 3 s until its process has removed everything. What a killed process has left is
/// removed here. `false`: another mount namespace or an open file still holds the filesystem; the process ends with it.
///
/// # Errors
/// `NotFound` when nothing is attached there; `Busy` while it is in use; what the system says.
pub(crate) async fn detach(dir: &Path, lazy: bool) -> Result<bool> {
    check_root("detach")?;
    let shown = dir.display();
    // The filesystem itself is not asked: it may not answer.
    let path = crate::fs::absolute(dir)?;
    let found = blocking({
        let path = path.clone();
        move || record::at(&path)
    });
    let Some(text) = found.await? else {
        let what = format!("cannot detach {shown}: ebsfs attach has mounted nothing there");
        return Err(Error::new(Kind::NotFound, what));
    };
    if let Some(identity) = text.mounted() {
        let unmounted = blocking(move || crate::fs::unmount(&identity, lazy)).await?;
        let reason = match unmounted {
            Unmounted::Done | Unmounted::Absent => None,
            Unmounted::Busy => Some(format!(
                "it is in use (fuser -vm {shown} lists its users); --lazy detaches it"
            )),
            Unmounted::Covered(path) => Some(format!(
                "something else is mounted over it: unmount that first (umount {})",
                path.display()
            )),
        };
        if let Some(reason) = reason {
            let what = format!("cannot detach {shown}: {reason}");
            return Err(Error::new(Kind::Busy, what));
        }
    }
    let until = Instant::now() + END;
    loop {
        let asked = text.clone();
        if !blocking(move || record::is_left(&asked)).await? {
            return Ok(true);
        }
        if lazy || Instant::now() > until {
            return Ok(false);
        }
        sleep(END_LOOK).await;
    }
}

/// Runs work that waits for the system on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::with_source(Kind::Io, "stopped", error)))
}
