//! Checks the filesystems of a disk, one by one, each in an overlay.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tracing::info;

use super::DrillJob;
use super::base::{MountedDisks, read_file};
use super::checks::{
    Finding, NextStep, OverlayState, btrfs_checked, ext_preened, ext_repaired, log_replayed,
    overlay_fault, vfat_checked, xfs_repaired,
};
use super::export::{Export, make_overlay, vanished};
use super::isolation::{Isolation, ProgramRole};
use super::program::{ProgramEnd, find_program, run_program};
use super::report::{CheckResult, DiskReport, PartitionReport, TABLE};
use super::scratch::Scratch;
use crate::drill::DrillDisk;
use crate::error::{Error, Kind, Result};
use crate::volumes::{DiskContent, DiskLayout, DiskPartition, HEAD, layout, sniff};

/// Checkers and their packages in Debian.
const E2FSCK: (&str, &str) = ("e2fsck", "e2fsprogs");
const XFS_REPAIR: (&str, &str) = ("xfs_repair", "xfsprogs");
const BTRFS: (&str, &str) = ("btrfs", "btrfs-progs");
const FSCK_VFAT: (&str, &str) = ("fsck.vfat", "dosfstools");

/// What a check needs besides its disk.
pub(super) struct Checker<'a> {
    pub(super) job: &'a DrillJob,
    pub(super) base: &'a MountedDisks,
    pub(super) scratch: &'a Scratch,
    pub(super) isolation: &'a Isolation,
}

/// A disk that is divided, for the check and for the boot.
pub(super) struct DividedDisk {
    pub(super) path: PathBuf,
    pub(super) layout: DiskLayout,
}

/// Finds the partitions of a disk.
///
/// # Errors
/// `Io` when it cannot be read.
pub(super) async fn divide(
    base: &MountedDisks,
    number: usize,
    disk: &DrillDisk,
) -> Result<DividedDisk> {
    let (path, size) = (base.disk(number)?, disk.blocks.geometry().size());
    let file = path.clone();
    let found = blocking(move || layout(&|offset, len| read_file(&file, offset, len), size)).await;
    let layout = found.map_err(|error| unread(disk, error))?;
    Ok(DividedDisk { path, layout })
}

fn unread(disk: &DrillDisk, error: std::io::Error) -> Error {
    let what = format!("cannot read {}", disk.name);
    Error::with_source(Kind::Io, what, error)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

impl Checker<'_> {
    /// Checks all filesystems of a disk.
    ///
    /// # Errors
    /// `Io` when the disk cannot be read, or a program that all checks need is missing.
    pub(super) async fn disk(
        &self,
        number: usize,
        disk: &DrillDisk,
        divided: &DividedDisk,
    ) -> Result<DiskReport> {
        let mut partitions = Vec::new();
        partitions.extend(table_report(&divided.layout));
        let overlay = self.scratch.path().join(format!("check-{number}.qcow2"));
        for partition in &divided.layout.partitions {
            let report = self.partition(disk, divided, partition, &overlay).await?;
            info!(
                "{} partition {}: {} {}",
                disk.name,
                report.partition,
                report.filesystem,
                report.result.text()
            );
            partitions.push(report);
        }
        // The boot begins with the disk as it was.
        let _ = std::fs::remove_file(&overlay);
        Ok(DiskReport {
            disk: disk.name.clone(),
            volume: disk.volume.clone(),
            snapshot: disk.snapshot.clone(),
            size_bytes: disk.blocks.geometry().size(),
            table: divided.layout.table.name().to_owned(),
            partitions,
        })
    }

    async fn partition(
        &self,
        disk: &DrillDisk,
        divided: &DividedDisk,
        partition: &DiskPartition,
        overlay: &Path,
    ) -> Result<PartitionReport> {
        let began = Instant::now();
        let failed_before = self.base.failed_reads();
        let (file, start) = (divided.path.clone(), partition.start);
        let len = usize::try_from(partition.size).unwrap_or(HEAD).min(HEAD);
        let head = blocking(move || read_file(&file, start, len)).await;
        let content = sniff(&head.map_err(|error| unread(disk, error))?);
        let place = FilesystemRange {
            disk: &divided.path,
            overlay,
            range: (partition.start, partition.size),
        };
        let mut finding = self.content(&content, &place).await?;
        if self.base.failed_reads() > failed_before {
            let lines = finding.details;
            finding = Finding::missed("the disk could not be read; the log has the reason");
            finding.details = lines;
        }
        Ok(PartitionReport {
            partition: partition.number,
            start_bytes: partition.start,
            size_bytes: partition.size,
            filesystem: content.name().to_owned(),
            result: finding.result,
            reason: finding.reason,
            is_missed: finding.is_missed,
            details: finding.details,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    async fn content(&self, content: &DiskContent, place: &FilesystemRange<'_>) -> Result<Finding> {
        match content {
            DiskContent::Ext { needs_replay, .. } => self.ext(*needs_replay, place).await,
            DiskContent::Xfs => self.xfs(place).await,
            DiskContent::Btrfs { devices, .. } if *devices != 1 => {
                let reason = format!("it has {devices} devices");
                Ok(Finding::unknown(reason))
            }
            DiskContent::Btrfs { has_log, .. } => self.btrfs(*has_log, place).await,
            DiskContent::Vfat { dirty_at, is_dirty } => {
                self.vfat(*dirty_at, *is_dirty, place).await
            }
            DiskContent::Other(name) => {
                Ok(Finding::unknown(format!("the drill cannot check {name}")))
            }
            DiskContent::Empty => Ok(Finding::unknown("it holds zeroes")),
            DiskContent::Unknown => Ok(Finding::unknown("no filesystem that the drill knows")),
        }
    }

    async fn ext(&self, needs_replay: bool, place: &FilesystemRange<'_>) -> Result<Finding> {
        let Some(program) = find_program(E2FSCK.0) else {
            return Ok(missing(E2FSCK));
        };
        let export = self.export(place).await?;
        let end = self.check(&program, &["-f", "-p"], &export).await?;
        let finding = match ext_preened(&end, needs_replay) {
            NextStep::Done(finding) => finding,
            NextStep::Repair | NextStep::ReplayLog => {
                ext_repaired(&self.check(&program, &["-f", "-y"], &export).await?)
            }
        };
        self.end(export, place, finding).await
    }

    async fn xfs(&self, place: &FilesystemRange<'_>) -> Result<Finding> {
        let Some(program) = find_program(XFS_REPAIR.0) else {
            return Ok(missing(XFS_REPAIR));
        };
        let export = self.export(place).await?;
        let end = self.check(&program, &["-f", "-e"], &export).await?;
        let finding = match xfs_repaired(&end, false) {
            NextStep::Done(finding) => finding,
            NextStep::Repair | NextStep::ReplayLog => match self.replay_xfs(&export).await? {
                Some(finding) => finding,
                None => {
                    let end = self.check(&program, &["-f", "-e"], &export).await?;
                    match xfs_repaired(&end, true) {
                        NextStep::Done(finding) => finding,
                        // After a replay there is no other step.
                        _ => Finding::missed("its log could not be replayed"),
                    }
                }
            },
        };
        self.end(export, place, finding).await
    }

    /// Lets the kernel replay the log, if the job allows it; a finding: it did not.
    async fn replay_xfs(&self, export: &Export) -> Result<Option<Finding>> {
        if !self.job.replays_xfs || !self.isolation.is_root() {
            let why = match self.job.replays_xfs {
                true => "needs root",
                false => "was not allowed",
            };
            let reason =
                format!("its log has to be replayed by this machine's kernel, which {why}");
            return Ok(Some(Finding::missed(reason)));
        }
        let (Some(mount), Some(umount)) = (find_program("mount"), find_program("umount")) else {
            return Ok(Some(missing(("mount", "mount"))));
        };
        let name = format!("xfs-{:08x}", fastrand::u32(..));
        let point = self.scratch.folder(&name)?.into_os_string();
        let options = ["-t", "xfs", "-o", "loop,nouuid,nodev,nosuid,noexec", "--"];
        let mut args: Vec<OsString> = options.map(OsString::from).to_vec();
        args.extend([export.path().as_os_str().to_owned(), point.clone()]);
        let mounted = self
            .run("mount", &mount, args, ProgramRole::Mounter, export)
            .await?;
        if let Some(finding) = log_replayed(&mounted) {
            return Ok(Some(finding));
        }
        let args = vec!["--".into(), point];
        let ended = self
            .run("umount", &umount, args, ProgramRole::Mounter, export)
            .await?;
        if ended.code != Some(0) {
            let reason = format!("cannot unmount it: {}", ended.last_line());
            return Ok(Some(Finding::missed(reason)));
        }
        Ok(None)
    }

    async fn btrfs(&self, has_log: bool, place: &FilesystemRange<'_>) -> Result<Finding> {
        let Some(program) = find_program(BTRFS.0) else {
            return Ok(missing(BTRFS));
        };
        let export = self.export(place).await?;
        let end = self
            .check(&program, &["check", "--readonly"], &export)
            .await?;
        self.end(export, place, btrfs_checked(&end, has_log)).await
    }

    async fn vfat(
        &self,
        dirty_at: u64,
        is_dirty: bool,
        place: &FilesystemRange<'_>,
    ) -> Result<Finding> {
        let Some(program) = find_program(FSCK_VFAT.0) else {
            return Ok(missing(FSCK_VFAT));
        };
        let export = self.export(place).await?;
        if is_dirty {
            // A mounted one is marked so; the checker would count the mark as damage.
            let path = export.path().to_owned();
            let clear = move || {
                let file = std::fs::File::options().read(true).write(true).open(path)?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, dirty_at)?;
                file.write_all_at(&byte.map(|byte| byte & !1), dirty_at)
            };
            export.call("write", clear).await?;
        }
        let end = self.check(&program, &["-n"], &export).await?;
        self.end(export, place, vfat_checked(&end, is_dirty)).await
    }

    async fn export(&self, place: &FilesystemRange<'_>) -> Result<Export> {
        if !place.overlay.exists() {
            make_overlay(place.disk, place.overlay).await?;
        }
        let overlay = (place.disk, place.overlay);
        let limit = self.job.overlay_limit;
        Export::start(overlay, place.range, self.scratch, self.isolation, limit).await
    }

    /// Ends an export. What a checker found in an overlay that could not take its writes is no finding.
    async fn end(
        &self,
        export: Export,
        place: &FilesystemRange<'_>,
        found: Finding,
    ) -> Result<Finding> {
        let state = OverlayState {
            daemon_ran: export.stop().await,
            bytes: std::fs::metadata(place.overlay).map_or(0, |overlay| overlay.len()),
            limit: self.job.overlay_limit,
            free: self.scratch.free()?,
        };
        Ok(match overlay_fault(&state) {
            Some(reason) => Finding::missed(reason),
            None => found,
        })
    }

    /// Runs a checker on an exported range.
    async fn check(&self, program: &Path, options: &[&str], export: &Export) -> Result<ProgramEnd> {
        let mut args: Vec<OsString> = options.iter().map(OsString::from).collect();
        args.push(export.path().as_os_str().to_owned());
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let role = ProgramRole::Parser { group: None };
        self.run(&name, program, args, role, export).await
    }

    async fn run(
        &self,
        name: &str,
        program: &Path,
        args: Vec<OsString>,
        role: ProgramRole,
        export: &Export,
    ) -> Result<ProgramEnd> {
        let words = self.isolation.wrap(role, program, args, None);
        let words = words.ok_or_else(|| vanished(name))?;
        run_program(name, &words, self.job.silence, export.activity()).await
    }
}

/// Where a filesystem is.
struct FilesystemRange<'a> {
    disk: &'a Path,
    overlay: &'a Path,
    /// Start and size in bytes.
    range: (u64, u64),
}

fn missing((name, package): (&str, &str)) -> Finding {
    Finding::missed(format!("{name} is not installed (package {package})"))
}

/// A line for a table that is damaged, or worth a note.
fn table_report(layout: &DiskLayout) -> Option<PartitionReport> {
    let lines: Vec<String> = layout.damage.iter().chain(&layout.notes).cloned().collect();
    if lines.is_empty() {
        return None;
    }
    let result = match layout.damage.is_empty() {
        true => CheckResult::Clean,
        false => CheckResult::Damaged,
    };
    Some(PartitionReport {
        partition: 0,
        start_bytes: 0,
        size_bytes: 0,
        filesystem: TABLE.to_owned(),
        result,
        reason: lines.first().cloned(),
        is_missed: false,
        details: lines,
        seconds: 0.0,
    })
}
