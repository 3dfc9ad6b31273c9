//! [`boot`]: starts the disks of a machine in QEMU, over overlays and without a network, and waits for a text on its serial console.
//! Nothing but that text is believed: what runs in there is as foreign as the disks.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;
use tokio::time::timeout;
use tracing::info;

use super::DrillDisk;
use super::check::DividedDisk;
use super::export::{make_overlay, needed, overlay_node, vanished};
use super::isolation::{Isolation, ProgramRole};
use super::program::{BoundedOutput, RunningProgram, last_words};
use super::report::BootReport;
use super::scratch::Scratch;
use crate::error::{Error, Kind, Remedy, Result};
use crate::volumes::DiskPartition;

/// Bytes of the console that are written to a file.
const CONSOLE_LIMIT: u64 = 16 << 20;
/// Lines of the console in a report.
const LAST_LINES: usize = 20;
/// The emulator and its package in Debian.
const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
/// Firmware for UEFI, its variables, by the packages of Debian, Fedora and Arch.
const UEFI: &[(&str, &str)] = &[
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];

/// What starts a machine's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// The boot code of the first sector.
    Bios,
    /// The EFI system partition.
    Uefi,
}

/// How the machine sees its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskBus {
    /// As instances on Nitro do.
    Nvme,
    /// For systems without a driver for NVMe.
    Virtio,
    /// For systems without either.
    Sata,
}

/// The parameters of a boot.
#[derive(Clone, Debug)]
pub(crate) struct BootJob {
    /// The text on the console that ends it well.
    pub(crate) wait_for: String,
    /// How long it may take.
    pub(crate) timeout: Duration,
    /// Bytes of the machine's memory.
    pub(crate) memory: u64,
    /// What starts it; none: what the instance or the disk tells.
    pub(crate) firmware: Option<Firmware>,
    /// How it sees its disks.
    pub(crate) bus: DiskBus,
    /// Where the console's output goes besides the report.
    pub(crate) console: Option<PathBuf>,
}

/// What is known of the machine that the disks are of.
#[derive(Clone, Debug, Default)]
pub(crate) struct MachineFacts {
    /// `x86_64`, `arm64` and so on.
    pub(crate) architecture: Option<String>,
    /// The boot mode that it had: `legacy-bios`, `uefi`.
    pub(crate) current_boot_mode: Option<String>,
    /// The boot mode that its image asks for: `legacy-bios`, `uefi`, `uefi-preferred`.
    pub(crate) boot_mode: Option<String>,
}

/// Chooses the firmware: by the job, by the instance, else by whether the first disk has an EFI system partition and no boot code.
pub(super) fn firmware_of(
    asked: Option<Firmware>,
    machine: &MachineFacts,
    has_efi_system: bool,
    has_boot_code: bool,
) -> Firmware {
    let mode = machine
        .current_boot_mode
        .as_ref()
        .or(machine.boot_mode.as_ref());
    match (asked, mode.map(String::as_str)) {
        (Some(asked), _) => asked,
        (None, Some("uefi")) => Firmware::Uefi,
        (None, Some("legacy-bios")) => Firmware::Bios,
        // EC2 prefers UEFI for these.
        (None, Some("uefi-preferred")) if has_efi_system => Firmware::Uefi,
        (None, _) if has_efi_system && !has_boot_code => Firmware::Uefi,
        (None, _) => Firmware::Bios,
    }
}

/// QEMU's words for the machine. The first disk is the one that it boots from.
pub(super) fn machine_args(
    job: &BootJob,
    disks: &[(PathBuf, PathBuf)],
    pflash: Option<&(PathBuf, PathBuf)>,
    has_kvm: bool,
    processors: usize,
) -> Vec<OsString> {
    let accelerators = if has_kvm { "kvm:tcg" } else { "tcg" };
    let mut args: Vec<String> = vec![
        "-nodefaults".into(),
        "-no-user-config".into(),
        "-machine".into(),
        format!("q35,accel={accelerators}"),
        "-cpu".into(),
        "max".into(),
        "-smp".into(),
        processors.to_string(),
        "-m".into(),
        format!("{}M", job.memory >> 20),
        "-nic".into(),
        "none".into(),
        "-vga".into(),
        "std".into(),
        "-display".into(),
        "none".into(),
        // A machine that starts again has not come up.
        "-no-reboot".into(),
        "-sandbox".into(),
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
        "-chardev".into(),
        "stdio,id=console,signal=off".into(),
        "-serial".into(),
        "chardev:console".into(),
    ];
    if let Some((code, variables)) = pflash {
        for (unit, file, read_only) in [(0, code, "on"), (1, variables, "off")] {
            let file = file.display().to_string().replace(',', ",,");
            let drive =
                format!("if=pflash,unit={unit},format=raw,readonly={read_only},file={file}");
            args.extend(["-drive".into(), drive]);
        }
    }
    if job.bus == DiskBus::Sata {
        args.extend(["-device".into(), "ahci,id=ahci".into()]);
    }
    for (number, (disk, overlay)) in disks.iter().enumerate() {
        let name = format!("disk{number}");
        args.extend([
            "-blockdev".into(),
            overlay_node(&name, disk, overlay).to_string(),
        ]);
        let mut device = json!({
            "driver": match job.bus {
                DiskBus::Nvme => "nvme",
                DiskBus::Virtio => "virtio-blk-pci",
                DiskBus::Sata => "ide-hd",
            },
            "drive": name,
            "serial": name,
            "bootindex": number,
        });
        if let Some(members) = device.as_object_mut().filter(|_| job.bus == DiskBus::Sata) {
            members.insert("bus".into(), format!("ahci.{number}").into());
        }
        args.extend(["-device".into(), device.to_string()]);
    }
    args.into_iter().map(OsString::from).collect()
}

/// Looks for a text in a stream of any length.
#[derive(Debug)]
pub(super) struct TextSearch {
    text: Vec<u8>,
    tail: Vec<u8>,
}

impl TextSearch {
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.as_bytes().to_vec(),
            tail: Vec::new(),
        }
    }

    /// Whether the text has come, with these bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let found = self
            .tail
            .windows(self.text.len().max(1))
            .any(|seen| seen == self.text);
        let more = self.tail.len().saturating_sub(self.text.len());
        self.tail.drain(..more);
        found
    }
}

/// The disks and the folder of a boot.
pub(super) struct BootResources<'a> {
    pub(super) disks: &'a [DrillDisk],
    pub(super) divided: &'a [DividedDisk],
    pub(super) scratch: &'a Scratch,
    pub(super) isolation: &'a Isolation,
    pub(super) overlay_limit: u64,
}

/// Refuses a boot that cannot succeed on this machine.
///
/// # Errors
/// `Io` when QEMU or its firmware is missing, or the file for the console cannot be made; `Invalid` for a machine that it cannot run here.
pub(super) fn check(job: &BootJob, machine: &MachineFacts) -> Result<()> {
    if let Some(other) = machine
        .architecture
        .as_ref()
        .filter(|name| *name != "x86_64")
    {
        let what =
            format!("cannot boot the instance: its architecture is {other}, the drill has x86_64");
        return Err(Error::new(Kind::Invalid, what));
    }
    needed(QEMU)?;
    if job.firmware == Some(Firmware::Uefi) {
        find_uefi()?;
    }
    if let Some(path) = &job.console {
        ConsoleFile::create(Some(path))?;
    }
    Ok(())
}

/// Starts the machine, waits for the text, and ends it.
///
/// # Errors
/// `Io` when QEMU or its firmware is missing, `Invalid` for a machine that it cannot run here.
pub(super) async fn boot(
    job: &BootJob,
    machine: &MachineFacts,
    place: &BootResources<'_>,
) -> Result<BootReport> {
    let program = needed(QEMU)?;
    let firmware = firmware_for(job, machine, place)?;
    let pflash = match firmware {
        Firmware::Bios => None,
        Firmware::Uefi => Some(uefi_files(place)?),
    };
    let kvm = place.isolation.reaches(Path::new("/dev/kvm"));
    let run = BootRun {
        job,
        place,
        program: &program,
        pflash: pflash.as_ref(),
        firmware,
    };
    let first = run.start(kvm).await?;
    if kvm.is_some() && is_broken_kvm(&first) {
        let why = first.reason.unwrap_or_default();
        info!("booting again without /dev/kvm: {why}");
        return run.start(None).await;
    }
    Ok(first)
}

/// Whether a line of QEMU's output says that it cannot allocate the memory of the guest.
fn lacks_memory(line: &str) -> bool {
    line.contains("cannot set up guest memory")
}

/// Whether the machine ended without a sign of life: in a machine that is virtual itself, `/dev/kvm` can be there and not work.
fn is_broken_kvm(report: &BootReport) -> bool {
    !report.booted && report.has_ended && report.console_bytes == 0 && !report.lacks_memory
}

/// One start of the machine.
struct BootRun<'a> {
    job: &'a BootJob,
    place: &'a BootResources<'a>,
    program: &'a Path,
    pflash: Option<&'a (PathBuf, PathBuf)>,
    firmware: Firmware,
}

impl BootRun<'_> {
    /// Starts the machine over new overlays, waits for the text, and ends it. `kvm`: whether it may use `/dev/kvm`, and by which group.
    async fn start(&self, kvm: Option<Option<u32>>) -> Result<BootReport> {
        let (job, place) = (self.job, self.place);
        let overlays = overlays(place).await?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let args = machine_args(
            job,
            &overlays,
            self.pflash,
            kvm.is_some(),
            processors.min(2),
        );
        let role = ProgramRole::Parser {
            group: kvm.flatten(),
        };
        let limit = Some(place.overlay_limit);
        let words = place.isolation.wrap(role, self.program, args, limit);
        let words = words.ok_or_else(|| vanished(QEMU.0))?;
        let mut console = ConsoleFile::create(job.console.as_deref())?;
        let began = Instant::now();
        info!("booting in {}", QEMU.0);
        let mut machine = RunningProgram::start(QEMU.0, &words)?;
        let out = machine.child.stdout.take();
        let errors = machine.drain();
        let waited = timeout(job.timeout, wait_for_text(job, out, &mut console)).await;
        let seconds = began.elapsed().as_secs_f64();
        // The machine is off, as in a power cut: its overlays are dropped.
        machine.end().await;
        let (has_ended, reason) = match waited {
            Ok(end) => (true, end?),
            Err(_) => {
                let reason = format!("{:?} did not come within {:?}", job.wait_for, job.timeout);
                (false, Some(reason))
            }
        };
        let reason = match reason {
            Some(reason) if console.written == 0 => match last_words(&errors).await {
                Some(line) => Some(format!("{reason}: {line}")),
                None => Some(reason),
            },
            reason => reason,
        };
        let lacks_memory =
            console.written == 0 && errors.lock().lines().iter().any(|line| lacks_memory(line));
        let has_fallen_back = |line: &String| line.contains("falling back to tcg");
        let is_tcg = kvm.is_none() || errors.lock().lines().iter().any(has_fallen_back);
        let lines = console.output.lines();
        let first = lines.len().saturating_sub(LAST_LINES);
        Ok(BootReport {
            booted: reason.is_none(),
            has_ended,
            lacks_memory,
            wait_for: job.wait_for.clone(),
            reason,
            firmware: match self.firmware {
                Firmware::Bios => "bios".into(),
                Firmware::Uefi => "uefi".into(),
            },
            accelerator: if is_tcg { "tcg".into() } else { "kvm".into() },
            seconds,
            console_bytes: console.written,
            console: lines.into_iter().skip(first).collect(),
        })
    }
}

/// Reads the console until the text comes (none), or the machine ends before (why).
async fn wait_for_text(
    job: &BootJob,
    out: Option<ChildStdout>,
    console: &mut ConsoleFile,
) -> Result<Option<String>> {
    let mut search = TextSearch::new(&job.wait_for);
    let mut buffer = vec![0; 64 << 10];
    let Some(mut out) = out else {
        return Ok(Some("it has no console".into()));
    };
    loop {
        let count = out.read(&mut buffer).await.unwrap_or(0);
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(Some(format!(
                "the machine ended before {:?} came",
                job.wait_for
            )));
        }
        console.push(bytes)?;
        if search.push(bytes) {
            return Ok(None);
        }
    }
}

/// The console's output: its ends for the report, and a file of limited size.
struct ConsoleFile {
    file: Option<(PathBuf, File)>,
    output: BoundedOutput,
    written: u64,
}

impl ConsoleFile {
    fn create(path: Option<&Path>) -> Result<Self> {
        let file = path.map(|path| {
            // What is there is replaced, unless it is a device or a folder.
            if std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
                let what = format!(
                    "cannot write the console to {}: it is no file",
                    path.display()
                );
                return Err(Error::new(Kind::Invalid, what));
            }
            Ok((path.to_owned(), crate::files::create_ours(path)?))
        });
        Ok(Self {
            file: file.transpose()?,
            output: BoundedOutput::default(),
            written: 0,
        })
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.push(bytes);
        let room = CONSOLE_LIMIT.saturating_sub(self.written);
        let kept = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        self.written += bytes.len() as u64;
        let (Some((path, file)), Some(kept)) = (&mut self.file, bytes.get(..kept)) else {
            return Ok(());
        };
        file.write_all(kept)
            .map_err(|error| Error::of_file(path, "cannot write", error))
    }
}

fn firmware_for(
    job: &BootJob,
    machine: &MachineFacts,
    place: &BootResources<'_>,
) -> Result<Firmware> {
    let (mut has_efi_system, mut has_boot_code) = (false, false);
    if let Some(root) = place.divided.first() {
        has_efi_system = root
            .layout
            .partitions
            .iter()
            .any(DiskPartition::is_efi_system);
        let sector = super::base::read_file(&root.path, 0, 440);
        let sector = sector.map_err(|error| Error::of_file(&root.path, "cannot read", error))?;
        has_boot_code = sector.iter().any(|byte| *byte != 0);
    }
    Ok(firmware_of(
        job.firmware,
        machine,
        has_efi_system,
        has_boot_code,
    ))
}

/// The files of the UEFI firmware: its code, and its variables.
fn find_uefi() -> Result<(&'static str, &'static str)> {
    let found = UEFI
        .iter()
        .find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
    let Some(found) = found else {
        let what = "cannot boot the disks: they need UEFI, whose firmware is not installed";
        let remedy = Remedy::Do("install ovmf (Debian's name of the package)".into());
        return Err(Error::new(Kind::Io, what).with_remedy(remedy));
    };
    Ok(*found)
}

/// The firmware, and a copy of its variables that the machine can write.
fn uefi_files(place: &BootResources<'_>) -> Result<(PathBuf, PathBuf)> {
    let (code, variables) = find_uefi()?;
    let copy = place.scratch.file("variables.fd")?;
    let copied = std::fs::read(variables).and_then(|bytes| std::fs::write(&copy, bytes));
    let given = copied.and_then(|()| place.isolation.give(&copy));
    given.map_err(|error| Error::of_file(&copy, "cannot make", error))?;
    Ok((code.into(), copy))
}

/// New overlays: the machine starts with its disks as the snapshot has them, not as a checker has left them.
async fn overlays(place: &BootResources<'_>) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for (number, divided) in place.divided.iter().enumerate().take(place.disks.len()) {
        let overlay = place.scratch.path().join(format!("boot-{number}.qcow2"));
        // That of an earlier start is not used again.
        crate::files::remove_if_there(&overlay)?;
        make_overlay(&divided.path, &overlay).await?;
        let given = place.isolation.give(&overlay);
        given.map_err(|error| Error::of_file(&overlay, "cannot change the owner of", error))?;
        found.push((divided.path.clone(), overlay));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
