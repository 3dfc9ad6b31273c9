//! A restore drill: shows that the disks of a recovery point can be used, and touches none of them.
//!
//! ```text
//!  base        the disks as files of a mount of ebsfs: the kernel refuses each write
//!  export      a qcow2 overlay over the disk; a range of it as a file (qemu-storage-daemon)
//!  check       the checker of the filesystem replays the journal and checks, in the overlay
//!  checks      pure functions: what its exit code and its lines mean
//!  boot        the disks in QEMU over other overlays: waits for a text on the console
//!  report      what was found; the verdict, which gives the exit code
//! ```
//!
//! # Foreign disks
//! What is on a disk can be made to attack the program that reads it. Partition tables and signatures are read here, by code with
//! limits. Everything further is read by programs with a user id of their own, without capabilities, network, environment and dumps of
//! memory ([`isolation`]); they end when ebsfs does. No filesystem is mounted by this machine's kernel, with one exception that a
//! person must allow: the log of an XFS, which no other program can replay.
//!
//! # Names
//! *Overlay*: a qcow2 file that takes all writes. *Clean*, *replayed*: consistent, at once or after a replay as after a power cut.
//! *Repaired*, *damaged*: inconsistent; both fail the drill. *Missed*: could have been checked and was not; that is never a pass.

mod base;
mod boot;
mod check;
mod checks;
mod export;
mod isolation;
mod program;
mod report;
mod scratch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::BootResources;
use check::{Checker, divide};

pub(crate) use base::{MountedDisks, read_file};
pub(crate) use boot::{BootJob, DiskBus, Firmware, MachineFacts};
pub(crate) use export::{Export, make_overlay};
pub(crate) use isolation::{Isolation, enter_own_mounts};
pub(crate) use program::{find_program, run_program};
pub(crate) use report::{BootReport, DRILL_VERSION, DiskReport, DrillReport};
pub(crate) use scratch::Scratch;

use crate::error::{Error, Kind, Remedy, Result};
use crate::source::BlockSource;
use crate::target::Stop;

/// Bytes that must be free where the overlays are.
const LEAST_FREE: u64 = 64 << 20;

/// The parameters of a drill.
#[derive(Clone, Debug)]
pub(crate) struct DrillJob {
    /// The folder for overlays and mountpoints; the drill makes one of its own in it.
    pub(crate) scratch: PathBuf,
    /// How long a checker may give no sign of work.
    pub(crate) silence: Duration,
    /// How long a read of a disk may take, with its retries.
    pub(crate) read_timeout: Duration,
    /// Bytes that the overlay of a disk may take.
    pub(crate) overlay_limit: u64,
    /// Whether this machine's kernel may mount an XFS to replay its log.
    pub(crate) replays_xfs: bool,
    /// Whether the process has mounts of its own: see [`enter_own_mounts`].
    pub(crate) has_own_mounts: bool,
    /// The start of the machine, if it is asked for.
    pub(crate) boot: Option<BootJob>,
}

/// A disk.
pub(crate) struct DrillDisk {
    /// What people call it: a device of the instance, or the source.
    pub(crate) name: String,
    /// The volume's id, if it is known.
    pub(crate) volume: Option<String>,
    /// The snapshot's id, if it is one.
    pub(crate) snapshot: Option<String>,
    /// Its bytes.
    pub(crate) blocks: Arc<dyn BlockSource>,
}

impl std::fmt::Debug for DrillDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DrillDisk({})", self.name)
    }
}

/// The disks of a drill, the one that boots first, and the machine that they are of.
#[derive(Debug, Default)]
pub(crate) struct DrillMachine {
    /// The instance, if it is one.
    pub(crate) instance: Option<String>,
    /// The instant of the disks, if it is known.
    pub(crate) time: Option<String>,
    /// Volumes of the instance that were left out of the set.
    pub(crate) left_out: Vec<String>,
    /// What its boot depends on.
    pub(crate) facts: MachineFacts,
    /// Its disks.
    pub(crate) disks: Vec<DrillDisk>,
}

/// Checks the disks, and boots them if the job says so. Nothing is written but in the scratch folder, which is removed at the end.
///
/// # Errors
/// `Stopped`; `Io` when a disk cannot be read, or a program that the whole drill needs is missing. What was found is no error: see
/// [`DrillReport::verdict`].
pub(crate) async fn drill(
    job: &DrillJob,
    machine: &DrillMachine,
    stop: &Stop,
) -> Result<DrillReport> {
    let began = Instant::now();
    // A check takes hours: what no boot can do is refused before.
    if let Some(boot) = &job.boot {
        boot::check(boot, &machine.facts)?;
    }
    let scratch = Scratch::make(&job.scratch, job.has_own_mounts)?;
    if scratch.free()? < LEAST_FREE {
        let what = format!(
            "cannot make overlays in {}: less than 64 MiB are free",
            job.scratch.display()
        );
        return Err(Error::new(Kind::NoSpace, what).with_remedy(Remedy::NameScratch));
    }
    let probed = Isolation::probe(job.has_own_mounts, &scratch);
    let isolation = stop.unless(probed).await?;
    let base = MountedDisks::mount(&machine.disks, &scratch, &isolation, job.read_timeout)?;
    let found = stop
        .unless(look(job, machine, &base, &scratch, &isolation))
        .await;
    base.unmount().await?;
    let (disks, boot) = found?;
    Ok(DrillReport {
        version: DRILL_VERSION,
        instance: machine.instance.clone(),
        time: machine.time.clone(),
        left_out: machine.left_out.clone(),
        isolation,
        disks,
        boot,
        seconds: began.elapsed().as_secs_f64(),
    })
}

async fn look(
    job: &DrillJob,
    machine: &DrillMachine,
    base: &MountedDisks,
    scratch: &Scratch,
    isolation: &Isolation,
) -> Result<(Vec<DiskReport>, Option<BootReport>)> {
    let checker = Checker {
        job,
        base,
        scratch,
        isolation,
    };
    let (mut reports, mut divided) = (Vec::new(), Vec::new());
    for (number, disk) in machine.disks.iter().enumerate() {
        let parts = divide(base, number, disk).await?;
        reports.push(checker.disk(number, disk, &parts).await?);
        divided.push(parts);
    }
    let Some(boot) = &job.boot else {
        return Ok((reports, None));
    };
    let place = BootResources {
        disks: &machine.disks,
        divided: &divided,
        scratch,
        isolation,
        overlay_limit: job.overlay_limit,
    };
    let booted = boot::boot(boot, &machine.facts, &place).await?;
    Ok((reports, Some(booted)))
}
