//! `ebsfs drill`: checks that the disks of a recovery point can be used, without touching them.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

use super::limits::bandwidth;
use super::output;
use super::plain;
use super::signals::{listen, only_read};
use super::source::{OpenedSource, SourceArgs, SourceRequest, open};
use super::store::{StoreOptions, addresses, check_repositories, end_reading};
use crate::drill::{
    BootJob, DiskBus, DrillDisk, DrillJob, DrillMachine, DrillReport, Firmware, MachineFacts,
    drill, enter_own_mounts,
};
use crate::error::{Error, Kind, Result};
use crate::files::{default_state_dir, temporary_folder};
use crate::repository::{Address, Bandwidth, Lease, MachineSet};
use crate::target::Stop;
use crate::time::rfc3339_millis;

/// Set in a drill that a job has started: the job lives as long as stdin is open.
pub(super) const ENDS_WITH_STDIN: &str = "EBSFS_DRILL_ENDS_WITH_STDIN";

/// Check the disks of a recovery point in overlays: replay journals, check filesystems, boot
#[derive(Args, Debug)]
#[command(
    long_about = "Check that the disks of a recovery point can be used. Each filesystem is checked by its own checker in an overlay, \
    which takes all writes: journals are replayed there, and the recovery point stays as it is.\n\n\
    Exit code 0: every filesystem is consistent, at once or after a replay of its journal. 8: one is damaged, also where its checker \
    could repair it. 11: one could not be checked, nothing could be checked, or the machine did not boot.\n\n\
    It needs qemu-img, qemu-storage-daemon and the checkers of the filesystems; --boot needs qemu-system-x86_64."
)]
pub(super) struct DrillArgs {
    /// Recovery point to check: all disks of an instance, REPOSITORY#INSTANCE or REPOSITORY#INSTANCE@TIME; or one disk: REPOSITORY#SNAPSHOT,
    /// a snapshot id, a raw image, a block device
    #[arg(value_name = "SET | SOURCE")]
    set: String,
    /// Folder for overlays; the drill makes a private one in it and removes it at its end [default: $TMPDIR, else /tmp]
    #[arg(long, value_name = "DIRECTORY")]
    scratch: Option<PathBuf>,
    /// Maximum bytes of the overlay of a disk, for example 4GiB
    #[arg(long, value_name = "SIZE", default_value = "16GiB")]
    overlay_limit: ByteSize,
    /// Time that a checker may give no sign of work, after which it is ended
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    silence: Duration,
    /// Let this machine's kernel mount an XFS to replay its log, in the overlay; needs root. Without it an XFS that was in use
    /// is not checked
    #[arg(long)]
    replay_xfs: bool,
    /// Maximum bytes per second to read from a repository, for example 10MiB [default: unlimited]
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth: Option<ByteSize>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
    /// Directory for the records of devices [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    boot: BootArgs,
    #[command(flatten)]
    from: SourceArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Boot")]
struct BootArgs {
    /// Start the disks in QEMU without a network, and wait for a text on the serial console
    #[arg(long)]
    boot: bool,
    /// Text on the console that shows that the machine is up
    #[arg(long, value_name = "TEXT", default_value = "login:", requires = "boot", value_parser = console_text)]
    wait_for: String,
    /// Time that the machine has for it; software emulation, without /dev/kvm, takes 10 to 50 times as long
    #[arg(long, value_name = "TIME", default_value = "10m", requires = "boot", value_parser = boot_timeout)]
    boot_timeout: Duration,
    /// Memory of the machine
    #[arg(long, value_name = "SIZE", default_value = "1GiB", requires = "boot", value_parser = guest_memory)]
    memory: ByteSize,
    /// Firmware that starts the disk; auto: as the instance did, else by the disk
    #[arg(long, value_enum, default_value_t = FirmwareArg::Auto, requires = "boot")]
    firmware: FirmwareArg,
    /// Bus of the disks: nvme as on Nitro instances; virtio or sata for systems without an NVMe driver
    #[arg(long, value_enum, default_value_t = BusArg::Nvme, requires = "boot")]
    bus: BusArg,
    /// Write what the console prints to FILE, 16 MiB at most
    #[arg(long, value_name = "FILE", requires = "boot")]
    console: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FirmwareArg {
    Auto,
    Bios,
    Uefi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BusArg {
    Nvme,
    Virtio,
    Sata,
}

fn console_text(text: &str) -> std::result::Result<String, String> {
    match text.len() {
        1..=1024 => Ok(text.to_owned()),
        _ => Err("must have 1 to 1,024 bytes".into()),
    }
}

fn boot_timeout(text: &str) -> std::result::Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time.is_zero() {
        true => Err("must be longer than 0s".into()),
        false => Ok(time),
    }
}

fn guest_memory(text: &str) -> std::result::Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    match size.as_u64() >= 16 << 20 {
        true => Ok(size),
        false => Err("must be at least 16MiB".into()),
    }
}

/// What was opened for a drill.
#[derive(Default)]
struct OpenedMachine {
    machine: DrillMachine,
    leases: Vec<Lease>,
}

impl OpenedMachine {
    fn push(&mut self, name: String, volume: Option<String>, opened: OpenedSource) {
        let info = opened.source.info;
        self.machine.disks.push(DrillDisk {
            name,
            volume: volume.or(info.volume),
            snapshot: info.snapshot.map(|snapshot| snapshot.id.to_string()),
            blocks: opened.source.blocks,
        });
        self.leases.extend(opened.lease);
    }
}

impl DrillArgs {
    pub(super) fn run(self) -> Result<()> {
        // Before the runtime starts its threads, which inherit it.
        let has_own_mounts = enter_own_mounts();
        if std::env::var_os(ENDS_WITH_STDIN).is_some() {
            std::thread::spawn(stop_after_stdin);
        }
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.drill(has_own_mounts));
        runtime.shutdown_timeout(Duration::from_millis(200));
        let report = done.map_err(only_read)?;
        self.print(&report)?;
        report.verdict()
    }

    fn job(&self, has_own_mounts: bool) -> DrillJob {
        let boot = self.boot.boot.then(|| BootJob {
            wait_for: self.boot.wait_for.clone(),
            timeout: self.boot.boot_timeout,
            memory: self.boot.memory.as_u64(),
            firmware: match self.boot.firmware {
                FirmwareArg::Auto => None,
                FirmwareArg::Bios => Some(Firmware::Bios),
                FirmwareArg::Uefi => Some(Firmware::Uefi),
            },
            bus: match self.boot.bus {
                BusArg::Nvme => DiskBus::Nvme,
                BusArg::Virtio => DiskBus::Virtio,
                BusArg::Sata => DiskBus::Sata,
            },
            console: self.boot.console.clone(),
        });
        DrillJob {
            scratch: self.scratch.clone().unwrap_or_else(temporary_folder),
            silence: self.silence,
            read_timeout: self.from.limits.timeout,
            overlay_limit: self.overlay_limit.as_u64(),
            replays_xfs: self.replay_xfs,
            has_own_mounts,
            boot,
        }
    }

    /// Refuses options that would do nothing for this source.
    fn check(&self) -> Result<()> {
        let places = addresses([&*self.set]);
        self.from.check([&*self.set])?;
        check_repositories(&[("--bandwidth", self.bandwidth.is_some())], &places)
    }

    async fn drill(&self, has_own_mounts: bool) -> Result<DrillReport> {
        self.check()?;
        let stop = listen()?;
        let mut opened = OpenedMachine::default();
        let bandwidth = self.bandwidth.map(|bandwidth| bandwidth.as_u64());
        let store = self
            .from
            .store(bandwidth.map_or_else(Bandwidth::default, Bandwidth::of));
        let found = match self.machine(&mut opened, &store, &stop).await {
            Ok(()) => drill(&self.job(has_own_mounts), &opened.machine, &stop).await,
            Err(error) => Err(error),
        };
        for lease in opened.leases {
            end_reading(Some(lease)).await;
        }
        found
    }

    /// Opens all disks of the set, or the one source.
    async fn machine(
        &self,
        opened: &mut OpenedMachine,
        store: &StoreOptions,
        stop: &Stop,
    ) -> Result<()> {
        let select = match Address::looks_like(&self.set) {
            true => self.set.parse::<Address>()?.select,
            false => None,
        };
        let Some(select) = select.filter(|select| select.starts_with("i-")) else {
            let source = self.open(&self.set, store, stop).await?;
            let time = source.source.info.time();
            opened.machine.time = time.map(rfc3339_millis);
            opened.push(self.set.clone(), None, source);
            return Ok(());
        };
        let address: Address = self.set.parse()?;
        let set = stop
            .unless(async {
                let catalog = store.repository(&address, &self.from.aws).await?;
                catalog.find_set(&select).await
            })
            .await?;
        opened.machine = machine_of(&set);
        for disk in &set.disks {
            let name = disk.device.as_ref().unwrap_or(&disk.volume);
            let name = plain(name);
            let source = format!("{address}#{}", disk.snapshot);
            let source = self.open(&source, store, stop).await?;
            opened.push(name, Some(disk.volume.clone()), source);
        }
        Ok(())
    }

    async fn open(&self, name: &str, store: &StoreOptions, stop: &Stop) -> Result<OpenedSource> {
        let state_dir = self.state_dir.clone().unwrap_or_else(default_state_dir);
        let request = SourceRequest {
            store: store.clone(),
            ..self.from.request(name, &state_dir)
        };
        open(&request, stop).await
    }

    fn print(&self, report: &DrillReport) -> Result<()> {
        let text = match self.json {
            true => {
                let json = serde_json::to_string_pretty(report).map_err(|error| {
                    Error::with_source(Kind::Io, "cannot print the report", error)
                })?;
                format!("{json}\n")
            }
            false => {
                let mut text = table_of(report);
                if lacks_replay(report) && !self.replay_xfs {
                    text.push_str(
                        "--replay-xfs lets this machine's kernel replay the log of an XFS\n",
                    );
                }
                text
            }
        };
        output::write(None, |out| out.write_all(text.as_bytes()))
    }
}

/// Stops this process at the end of stdin. A signal at the death of the parent would come once for each of its threads, and the second
/// one ends a program before it has removed what it made.
fn stop_after_stdin() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    let _ = kill(getpid(), Signal::SIGTERM);
}

/// Whether an XFS was left out for its log alone.
fn lacks_replay(report: &DrillReport) -> bool {
    let mut all = report.disks.iter().flat_map(|disk| &disk.partitions);
    all.any(|found| found.filesystem == "xfs" && found.is_missed)
}

/// The machine of a set, without its disks.
fn machine_of(set: &MachineSet) -> DrillMachine {
    let instance = &set.inventory.instance;
    DrillMachine {
        instance: Some(set.instance.clone()),
        time: Some(rfc3339_millis(set.time)),
        left_out: set.left_out.clone(),
        facts: MachineFacts {
            architecture: instance.architecture.clone(),
            current_boot_mode: instance.current_boot_mode.clone(),
            boot_mode: instance.boot_mode.clone(),
        },
        disks: Vec::new(),
    }
}

/// The report as lines for people: a line for each filesystem, then the boot.
fn table_of(report: &DrillReport) -> String {
    let heads = [
        "DISK",
        "PARTITION",
        "FILESYSTEM",
        "RESULT",
        "SECONDS",
        "REASON",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for disk in &report.disks {
        for found in &disk.partitions {
            rows.push([
                disk.disk.clone(),
                match found.partition {
                    0 => "-".to_owned(),
                    number => number.to_string(),
                },
                found.filesystem.clone(),
                found.result.text().to_owned(),
                format!("{:.1}", found.seconds),
                found.reason.clone().unwrap_or_default(),
            ]);
        }
    }
    let mut text = super::table(&rows);
    for disk in &report.disks {
        for found in &disk.partitions {
            for line in &found.details {
                text.push_str(&format!("{} {}: {line}\n", disk.disk, found.partition));
            }
        }
    }
    for volume in &report.left_out {
        text.push_str(&format!(
            "{volume} was left out of the set: it is not checked\n"
        ));
    }
    if let Some(boot) = &report.boot {
        let how = format!(
            "{}, {}, {:.1} s",
            boot.firmware, boot.accelerator, boot.seconds
        );
        match &boot.reason {
            None => text.push_str(&format!("booted: {:?} came ({how})\n", boot.wait_for)),
            Some(reason) => {
                text.push_str(&format!("not booted: {reason} ({how})\n"));
                for line in &boot.console {
                    text.push_str(&format!("console: {line}\n"));
                }
            }
        }
    }
    text
}
