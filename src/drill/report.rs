//! [`DrillReport`]: what a drill found, with a version; [`DrillReport::verdict`], which gives the exit code.

use serde::{Serialize, Serializer};

use super::isolation::Isolation;
use crate::error::{Error, Kind, Remedy, Result};

/// The version of the JSON of [`DrillReport`]; `docs/drill.md` describes it.
pub(crate) const DRILL_VERSION: u32 = 1;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CheckResult {
    /// It is consistent.
    Clean,
    /// Its journal was replayed, as after a power cut; then it was consistent.
    Replayed,
    /// It was inconsistent, and its checker could repair it: in the overlay alone.
    Repaired,
    /// It is inconsistent, and its checker could not repair it.
    Damaged,
    /// Nothing is known of it.
    NotChecked,
}

impl CheckResult {
    /// What people read.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Replayed => "replayed",
            Self::Repaired => "repaired",
            Self::Damaged => "damaged",
            Self::NotChecked => "not checked",
        }
    }
}

/// What was found in a partition.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PartitionReport {
    /// Its number in the table; 0: the disk has none, or the table itself is damaged.
    pub(crate) partition: u32,
    /// Bytes from the start of the disk.
    pub(crate) start_bytes: u64,
    /// Its bytes.
    pub(crate) size_bytes: u64,
    /// `ext4`, `xfs`, `btrfs`, `vfat`, `swap`, `lvm` and so on; `empty`, `unknown`; `table` for the table itself.
    pub(crate) filesystem: String,
    /// What became of it.
    pub(crate) result: CheckResult,
    /// Why it was not checked, or what the result needs to be understood.
    pub(crate) reason: Option<String>,
    /// Whether this program can check such a filesystem and did not.
    pub(crate) is_missed: bool,
    /// What the checker reported: lines.
    pub(crate) details: Vec<String>,
    /// How long it took, in seconds.
    #[serde(serialize_with = "rounded")]
    pub(crate) seconds: f64,
}

/// What was found on a disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DiskReport {
    /// What people call it: a device of the instance, or the source.
    pub(crate) disk: String,
    /// The volume's id, if it is known.
    pub(crate) volume: Option<String>,
    /// The snapshot's id, if it is one.
    pub(crate) snapshot: Option<String>,
    /// Its bytes.
    pub(crate) size_bytes: u64,
    /// `gpt`, `mbr`, or `none`.
    pub(crate) table: String,
    /// Its partitions, in order.
    pub(crate) partitions: Vec<PartitionReport>,
}

/// How the start of the machine went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct BootReport {
    /// Whether the text came.
    pub(crate) booted: bool,
    /// Whether the machine ended by itself, or its text came: it was not ended by the time-out.
    #[serde(skip)]
    pub(crate) has_ended: bool,
    /// Whether this machine has too little memory for the guest, which was never started.
    #[serde(skip)]
    pub(crate) lacks_memory: bool,
    /// The text.
    pub(crate) wait_for: String,
    /// Why it did not boot.
    pub(crate) reason: Option<String>,
    /// `bios` or `uefi`.
    pub(crate) firmware: String,
    /// `kvm` or `tcg`, which is QEMU's software emulation.
    pub(crate) accelerator: String,
    /// How long it took, in seconds.
    #[serde(serialize_with = "rounded")]
    pub(crate) seconds: f64,
    /// Bytes that the console printed.
    pub(crate) console_bytes: u64,
    /// The last lines of the console.
    pub(crate) console: Vec<String>,
}

/// What a drill found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DrillReport {
    /// [`DRILL_VERSION`].
    pub(crate) version: u32,
    /// The instance, if the drill was of one.
    pub(crate) instance: Option<String>,
    /// The instant of its disks, if it is known.
    pub(crate) time: Option<String>,
    /// Volumes of the instance that were left out of the set.
    pub(crate) left_out: Vec<String>,
    /// How the programs were isolated.
    pub(crate) isolation: Isolation,
    /// The disks, in device order.
    pub(crate) disks: Vec<DiskReport>,
    /// How the start of the machine went, if it was asked for.
    pub(crate) boot: Option<BootReport>,
    /// How long all of it took, in seconds.
    #[serde(serialize_with = "rounded")]
    pub(crate) seconds: f64,
}

fn rounded<S: Serializer>(seconds: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 1000.0).round() / 1000.0)
}

/// What stands for the filesystem of a line about the partition table.
pub(super) const TABLE: &str = "table";

impl DrillReport {
    /// Whether the drill was passed. Every filesystem that was checked is consistent, none that this program can check was
    /// missed, something was checked or booted, and the machine booted if it was to.
    ///
    /// # Errors
    /// `Corrupt` when a filesystem is damaged, also where it could be repaired; `Undecided` for everything else.
    pub(crate) fn verdict(&self) -> Result<()> {
        let all = || {
            let disks = self.disks.iter();
            disks.flat_map(|disk| disk.partitions.iter().map(move |found| (disk, found)))
        };
        let names = |is_it: &dyn Fn(&PartitionReport) -> bool| {
            let found = all().filter(|(_, found)| is_it(found));
            let names: Vec<String> = found.map(|(disk, found)| named(disk, found)).collect();
            names
        };
        let damaged =
            names(&|found| matches!(found.result, CheckResult::Damaged | CheckResult::Repaired));
        if !damaged.is_empty() {
            let what = format!(
                "cannot rely on the recovery point: the drill found damage: {}",
                damaged.join(", ")
            );
            let remedy = "drill an earlier one, of an instance as REPOSITORY#INSTANCE@TIME";
            return Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::Do(remedy.into())));
        }
        if let Some(boot) = self.boot.as_ref().filter(|boot| !boot.booted) {
            let why = boot.reason.as_deref().unwrap_or("unknown");
            let what = format!("cannot boot the disks: {why}");
            if boot.lacks_memory {
                return Err(Error::new(Kind::Io, what).with_remedy(Remedy::GuestMemory));
            }
            return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::KeepConsole));
        }
        let missed = names(&|found| found.is_missed);
        if !missed.is_empty() {
            let what = format!("cannot check {}", missed.join(", "));
            let remedy = Remedy::Do("the report names the reasons".into());
            return Err(Error::new(Kind::Undecided, what).with_remedy(remedy));
        }
        // A sound table says nothing of filesystems.
        let is_checked = all()
            .any(|(_, found)| found.filesystem != TABLE && found.result != CheckResult::NotChecked);
        if !is_checked && self.boot.is_none() {
            let what = "cannot check the disks: no filesystem that the drill knows is on them";
            return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::BootDisks));
        }
        Ok(())
    }
}

fn named(disk: &DiskReport, found: &PartitionReport) -> String {
    match found.partition {
        0 => format!("{} ({})", disk.disk, found.filesystem),
        number => format!("{} partition {number} ({})", disk.disk, found.filesystem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(results: &[(CheckResult, bool)], booted: Option<bool>) -> DrillReport {
        let partitions = results.iter().map(|(result, is_missed)| PartitionReport {
            partition: 1,
            start_bytes: 0,
            size_bytes: 1,
            filesystem: "ext4".into(),
            result: *result,
            reason: None,
            is_missed: *is_missed,
            details: Vec::new(),
            seconds: 0.0,
        });
        DrillReport {
            version: DRILL_VERSION,
            instance: None,
            time: None,
            left_out: Vec::new(),
            isolation: Isolation::none(),
            disks: vec![DiskReport {
                disk: "/dev/xvda".into(),
                volume: None,
                snapshot: None,
                size_bytes: 1,
                table: "gpt".into(),
                partitions: partitions.collect(),
            }],
            boot: booted.map(|booted| BootReport {
                booted,
                has_ended: booted,
                lacks_memory: false,
                wait_for: "login:".into(),
                reason: (!booted).then(|| "no text".into()),
                firmware: "bios".into(),
                accelerator: "tcg".into(),
                seconds: 0.0,
                console_bytes: 0,
                console: Vec::new(),
            }),
            seconds: 0.0,
        }
    }

    #[test]
    fn a_drill_is_passed_only_when_all_that_can_be_checked_was_and_is_consistent() {
        use CheckResult::{Clean, Damaged, NotChecked, Repaired, Replayed};
        let undecided = Some(Kind::Undecided);
        for (results, booted, kind) in [
            (&[(Clean, false)][..], None, None),
            (&[(Clean, false), (Replayed, false)], Some(true), None),
            // LVM beside a filesystem that is clean.
            (&[(Clean, false), (NotChecked, false)], None, None),
            (&[(NotChecked, false)], None, undecided),
            (&[], None, undecided),
            (&[(NotChecked, false)], Some(true), None),
            (&[(Clean, false), (NotChecked, true)], None, undecided),
            (&[(Clean, false), (NotChecked, true)], Some(true), undecided),
            (&[(Clean, false)], Some(false), undecided),
            (
                &[(Clean, false), (Repaired, false)],
                None,
                Some(Kind::Corrupt),
            ),
            (
                &[(Damaged, false), (NotChecked, true)],
                Some(false),
                Some(Kind::Corrupt),
            ),
        ] {
            let verdict = report(results, booted).verdict();
            let found = verdict.err().map(|error| error.kind());
            assert_eq!(found, kind, "{results:?} {booted:?}");
        }
    }

    #[test]
    fn a_sound_table_is_no_filesystem_that_was_checked() {
        let mut found = report(
            &[
                (CheckResult::Clean, false),
                (CheckResult::NotChecked, false),
            ],
            None,
        );
        found.disks[0].partitions[0].filesystem = TABLE.to_owned();
        assert_eq!(found.verdict().unwrap_err().kind(), Kind::Undecided);
        found.disks[0].partitions[1].result = CheckResult::Clean;
        assert!(found.verdict().is_ok());
    }

    #[test]
    fn too_little_memory_is_an_error_of_this_machine_and_not_of_the_disks() {
        let mut found = report(&[(CheckResult::Clean, false)], Some(false));
        found.boot.as_mut().unwrap().lacks_memory = true;
        assert_eq!(found.verdict().unwrap_err().kind(), Kind::Io);
        // Damage is what counts.
        found.disks[0].partitions[0].result = CheckResult::Damaged;
        assert_eq!(found.verdict().unwrap_err().kind(), Kind::Corrupt);
    }
}
