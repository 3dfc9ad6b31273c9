//! `ebsfs restore`: restores all disks of an instance at one instant, from a repository, to images, devices or new EBS snapshots.

mod places;

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tracing::{info, warn};

use super::output;
use super::plain;
use super::progress::Shown;
use super::reading::ReadArgs;
use super::signals::listen;
use super::source::{OpenedSource, ToEbs};
use super::store::end_reading;
use super::sync::words;
use super::target::{ToArgs, connect, local_target};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::replace;
use crate::repository::{Address, MachineSet, SetDisk};
use crate::sync::{self, Context, Ended, PlanReport, Progress, SyncJob, TargetOutcome, Ui};
use crate::target::{Stop, Target};
use crate::time::rfc3339_millis;
use places::{DeviceMapping, assign, device_mapping, select};

/// The version of the JSON that `--json` prints.
const JSON_VERSION: u32 = 1;
/// The inventory in the folder.
const INVENTORY: &str = "instance.json";
/// Characters of a device's name in the name of its image.
const MOST_NAME: usize = 32;

/// Restore all disks of an instance at one instant, in device order, from a repository
#[derive(Args, Debug)]
#[command(
    long_about = "Restore all disks of an instance at one instant from a repository: to raw images in a folder (0-xvda.raw is the \
    disk that it boots from, 1-xvdb.raw the next one, instance.json the machine around them), to block devices, or to new EBS \
    snapshots.\n\n\
    The set must have been added (ebsfs repository instances --add). The same command again resumes where it was stopped. An \
    image appears whole or not at all, and one that holds something else is never overwritten. Devices and new snapshots are written \
    by the rules of ebsfs sync; nothing is written before all of them are accepted."
)]
pub(super) struct RestoreArgs {
    /// Set to restore: s3://BUCKET/PREFIX#INSTANCE (az://, gs://, file:///FOLDER) for the newest, #INSTANCE@TIME for the last one until then
    #[arg(value_name = "REPOSITORY#INSTANCE[@TIME]")]
    set: String,
    /// Folder for the images, made if it does not exist; or `ebs:`, ebs:REGION: a new EBS snapshot of each disk
    #[arg(
        long,
        value_name = "DIRECTORY | ebs:REGION",
        required_unless_present = "device"
    )]
    to: Option<String>,
    /// Write the disk NAME, EC2's name of its device or the volume's id, to this block device; repeat for each disk
    #[arg(long, value_name = "NAME=DEVICE", value_parser = device_mapping, conflicts_with = "to")]
    device: Vec<DeviceMapping>,
    /// Restore only this disk, EC2's name of its device or the volume's id; repeat for several
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Overwrite this device, whose content is unknown; repeat for several. TOKEN is what the refusal prints: a device's WWN, serial
    /// number or UUID, else the path as given
    #[arg(long, value_name = "TOKEN", requires = "device")]
    overwrite: Vec<String>,
    /// Allow unencrypted new EBS snapshots of encrypted volumes
    #[arg(long)]
    allow_plaintext: bool,
    /// Write the inventory of the set to FILE; a folder gets it as instance.json
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    /// Read each whole image or device back, past the page cache, and compare it with what was copied
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    new_snapshots: ToArgs,
    #[command(flatten)]
    reading: ReadArgs,
}

/// Shows no plans: each disk is a copy of its own.
struct NoPlans;

impl Ui for NoPlans {
    fn plans(&self, _plans: &[PlanReport]) -> Result<()> {
        Ok(())
    }

    /// Only what was named is overwritten: no question is left.
    fn confirm(&self, _target: &str) -> Result<()> {
        Ok(())
    }
}

/// Where a disk goes.
#[derive(Debug)]
enum RestoreTarget {
    /// An image, whose name appears when it is whole.
    Image(PathBuf),
    /// A device that is there.
    Device(PathBuf),
    /// A new EBS snapshot.
    NewSnapshot(String),
}

impl RestoreTarget {
    /// As a person writes it.
    fn name(&self) -> String {
        match self {
            Self::Image(path) | Self::Device(path) => path.display().to_string(),
            Self::NewSnapshot(place) => place.clone(),
        }
    }
}

/// A disk that is restored.
struct RestoredDisk {
    disk: SetDisk,
    place: RestoreTarget,
}

/// The result of a disk.
type DiskOutcome = (SetDisk, TargetOutcome);

impl RestoreArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.restore());
        runtime.shutdown_timeout(Duration::from_millis(200));
        let (set, outcomes) = done?;
        self.print(&set, &outcomes)?;
        let outcomes: Vec<TargetOutcome> = outcomes.into_iter().map(|(_, one)| one).collect();
        words::result(&outcomes)
    }

    async fn restore(&self) -> Result<(MachineSet, Vec<DiskOutcome>)> {
        let address: Address = self.set.parse()?;
        let select = address.select.clone().ok_or_else(|| {
            let what =
                format!("cannot restore {address}: it names no instance; use {address}#INSTANCE");
            Error::new(Kind::Invalid, what)
        })?;
        self.reading.check(Some(&self.set))?;
        let stop = listen()?;
        let set = {
            let catalog = self.reading.repository(&address);
            let found = async { catalog.await?.find_set(&select).await };
            stop.unless(found).await?
        };
        info!(
            "restoring {} as it was at {}",
            set.instance,
            rfc3339_millis(set.time)
        );
        for volume in &set.left_out {
            warn!("{volume} was left out of the set: it is not restored");
        }
        let disks = self.places(&set)?;
        if let Some(path) = &self.inventory {
            write_inventory(path, &set)?;
        }
        if !disks
            .iter()
            .all(|one| matches!(one.place, RestoreTarget::Image(_)))
        {
            // One that is refused stops all: devices are overwritten.
            let mut decided = self.disks(&address, &disks, true, &stop).await;
            decided.retain(|(_, outcome)| outcome.ended.is_err());
            if !decided.is_empty() {
                return Ok((set, decided));
            }
        }
        let outcomes = self.disks(&address, &disks, false, &stop).await;
        Ok((set, outcomes))
    }

    /// Where each disk goes. A folder is made, with the inventory in it.
    fn places(&self, set: &MachineSet) -> Result<Vec<RestoredDisk>> {
        let selected = select(&set.disks, &self.only)?;
        let new_snapshots = self.to.as_ref().filter(|to| to.starts_with("ebs:"));
        self.check_options(new_snapshots.is_some())?;
        let places: Vec<RestoreTarget> = match (&self.to, new_snapshots) {
            (_, Some(place)) => {
                let place = || RestoreTarget::NewSnapshot(place.clone());
                selected.iter().map(|_| place()).collect()
            }
            (Some(folder), None) => {
                let folder = PathBuf::from(folder);
                make_folder(&folder)?;
                write_inventory(&folder.join(INVENTORY), set)?;
                let images = selected.iter().filter_map(|number| {
                    let disk = set.disks.get(*number)?;
                    Some(RestoreTarget::Image(folder.join(image_name(*number, disk))))
                });
                images.collect()
            }
            (None, None) => {
                let devices = assign(&set.disks, &selected, &self.device)?;
                check_devices(&devices)?;
                devices.into_iter().map(RestoreTarget::Device).collect()
            }
        };
        let disks = selected.iter().filter_map(|number| set.disks.get(*number));
        let disks = disks.cloned().zip(places);
        Ok(disks
            .map(|(disk, place)| RestoredDisk { disk, place })
            .collect())
    }

    /// Refuses options that would do nothing.
    fn check_options(&self, makes_snapshots: bool) -> Result<()> {
        let given = match makes_snapshots {
            true => self.new_snapshots.of_one_snapshot(),
            false if self.allow_plaintext => Some("--allow-plaintext"),
            false => self.new_snapshots.first_given(),
        };
        let why = match makes_snapshots {
            true => "it is of one snapshot",
            false => "no new EBS snapshots are made",
        };
        match given {
            Some(option) => {
                let what = format!("cannot use {option}: {why}");
                Err(Error::new(Kind::Invalid, what))
            }
            None => Ok(()),
        }
    }

    /// Copies the disks, or only decides about each. A stop ends it.
    async fn disks(
        &self,
        address: &Address,
        disks: &[RestoredDisk],
        dry_run: bool,
        stop: &Stop,
    ) -> Vec<DiskOutcome> {
        let mut outcomes = Vec::new();
        for one in disks {
            let outcome = self.disk(address, one, dry_run, stop).await;
            let is_stopped = matches!(&outcome.ended, Err(error) if error.kind() == Kind::Stopped);
            outcomes.push((one.disk.clone(), outcome));
            if is_stopped {
                break;
            }
        }
        outcomes
    }

    /// Copies one disk.
    async fn disk(
        &self,
        address: &Address,
        one: &RestoredDisk,
        dry_run: bool,
        stop: &Stop,
    ) -> TargetOutcome {
        let name = one.place.name();
        let source = format!("{address}#{}", one.disk.snapshot);
        let copied = self.copy(&source, &one.place, dry_run, stop);
        let mut outcome = copied.await.unwrap_or_else(|error| TargetOutcome {
            target: name.clone(),
            ended: Err(error),
        });
        let is_image = matches!(one.place, RestoreTarget::Image(_));
        outcome.ended = outcome.ended.map_err(|error| match error.remedy() {
            None => error,
            Some(Remedy::Overwrite(_) | Remedy::AllowPlaintext | Remedy::TryLater) if !is_image => {
                error
            }
            // Its options are those of a sync.
            Some(_) => {
                let elsewhere = if is_image {
                    "restore to another folder, or "
                } else {
                    ""
                };
                let copy = format!("{elsewhere}copy this disk alone: ebsfs sync '{source}' {name}");
                error.with_remedy(Remedy::Do(copy))
            }
        });
        outcome
    }

    async fn copy(
        &self,
        source: &str,
        place: &RestoreTarget,
        dry_run: bool,
        stop: &Stop,
    ) -> Result<TargetOutcome> {
        let progress = Arc::new(Progress::default());
        let shown = self.reading.show(&progress);
        let to_ebs = match place {
            RestoreTarget::NewSnapshot(_) => ToEbs::All,
            _ => ToEbs::None,
        };
        let opened = self.reading.open_for(source, to_ebs, &shown, stop).await?;
        let target = self.target(place, &opened, &shown);
        let target = match stop.unless(target).await {
            Ok(target) => target,
            Err(error) => {
                end_reading(opened.lease).await;
                return Err(error);
            }
        };
        let job = SyncJob {
            verify: self.verify,
            overwrite: self.overwrite.clone(),
            allow_plaintext: self.allow_plaintext,
            dry_run,
            in_flight: self.reading.in_flight(),
            rate: self.reading.rate(),
            ..SyncJob::full()
        };
        let context = Context {
            ui: &NoPlans,
            progress,
            stop: stop.clone(),
        };
        let mut outcomes = sync::run(&job, &opened.source, vec![target], &context, &mut None).await;
        end_reading(opened.lease).await;
        outcomes.pop().ok_or_else(|| {
            let what = format!("{}: nothing was done", place.name());
            Error::new(Kind::Io, what)
        })
    }

    async fn target(
        &self,
        place: &RestoreTarget,
        opened: &OpenedSource,
        shown: &Shown,
    ) -> Result<Arc<dyn Target>> {
        let (name, state_dir) = (place.name(), self.reading.state_dir());
        if !matches!(place, RestoreTarget::NewSnapshot(_)) {
            return local_target(&name, false, false, &state_dir);
        }
        let request = self.reading.target_request(&self.new_snapshots, &state_dir);
        let mut clients = Vec::new();
        let target = connect(&request, &name, &opened.source.info, &mut clients).await?;
        shown.count(&clients);
        Ok(target)
    }

    fn print(&self, set: &MachineSet, outcomes: &[DiskOutcome]) -> Result<()> {
        if self.reading.json {
            let disks = outcomes.iter().map(|(disk, outcome)| {
                json!({
                    "device": disk.device,
                    "root": disk.is_root,
                    "volume": disk.volume,
                    "snapshot": disk.snapshot,
                    "result": words::json(outcome),
                })
            });
            let value = json!({
                "version": JSON_VERSION,
                "instance": set.instance,
                "time": rfc3339_millis(set.time),
                "left_out": set.left_out,
                "disks": disks.collect::<Vec<_>>(),
            });
            return output::write(None, |out| writeln!(out, "{value:#}"));
        }
        let lines: Vec<String> = outcomes
            .iter()
            .filter_map(|(disk, outcome)| {
                let place = match outcome.ended.as_ref().ok()? {
                    Ended::Copied(report) => report.snapshot.as_ref(),
                    Ended::Held { snapshot, .. } => snapshot.as_ref(),
                    Ended::Planned => None,
                };
                let device = disk.device.as_deref().unwrap_or("-");
                let device = plain(device);
                let place = place.unwrap_or(&outcome.target);
                Some(format!(
                    "{device} {} {} {place}",
                    disk.volume, disk.snapshot
                ))
            })
            .collect();
        output::write(None, |out| {
            lines.iter().try_for_each(|line| writeln!(out, "{line}"))
        })
    }
}

/// The name of a disk's image. A device's name comes from the repository: it is no path here.
fn image_name(number: usize, disk: &SetDisk) -> String {
    let device = disk.device.as_deref().unwrap_or(&disk.volume);
    let last = device.rsplit('/').next().unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
    let name: String = last.chars().filter(is_plain).take(MOST_NAME).collect();
    format!("{number}-{name}.raw")
}

/// Refuses what is no block device, and two names of one device.
fn check_devices(paths: &[PathBuf]) -> Result<()> {
    let mut known: Vec<(u64, &PathBuf)> = Vec::new();
    for path in paths {
        let number = device_number(path)?;
        if let Some((_, other)) = known.iter().find(|(known, _)| *known == number) {
            let what = format!(
                "cannot restore to {}: it is the same device as {}",
                path.display(),
                other.display()
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        known.push((number, path));
    }
    Ok(())
}

/// The number of a block device. Anything else is refused: a typing error must not make an image in `/dev`.
fn device_number(path: &Path) -> Result<u64> {
    let found = std::fs::metadata(path);
    let found = found.map_err(|error| Error::of_file(path, "cannot find", error))?;
    if found.file_type().is_block_device() {
        return Ok(found.rdev());
    }
    let what = format!(
        "cannot restore to {}: it is no block device",
        path.display()
    );
    let remedy = Remedy::Do("--to DIRECTORY restores to images".into());
    Err(Error::new(Kind::Invalid, what).with_remedy(remedy))
}

/// Makes a folder that other users cannot read: disks are in it.
fn make_folder(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|error| Error::of_file(path, "cannot make", error))
}

/// Writes the inventory of a set with the set's name, unless that of another one is there. Sets can have one inventory: the name
/// tells them apart.
fn write_inventory(path: &Path, set: &MachineSet) -> Result<()> {
    let mut inventory = json!(set.inventory);
    if let Some(members) = inventory.as_object_mut() {
        members.insert("set".into(), set.name().to_string().into());
    }
    let text = format!("{inventory:#}\n");
    let Ok(there) = std::fs::symlink_metadata(path) else {
        return replace(path, text.as_bytes());
    };
    // Anything but a file of this size is not read.
    let may_be_it = there.is_file() && there.len() == text.len() as u64;
    if may_be_it && std::fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    let what = format!(
        "cannot write {}: a file with other content is there",
        path.display()
    );
    let remedy = Remedy::Do("name another file or folder".into());
    Err(Error::new(Kind::Undecided, what).with_remedy(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_no_paths() {
        for (device, name) in [
            (Some("/dev/xvda"), "3-xvda.raw"),
            (Some("/dev/sda1"), "3-sda1.raw"),
            (Some("xvdb"), "3-xvdb.raw"),
            (Some("/dev/../../etc/passwd"), "3-passwd.raw"),
            (Some("/dev/.."), "3-.raw"),
            (Some("a b\n\u{1b}"), "3-ab.raw"),
            (None, "3-vol-0a.raw"),
        ] {
            let disk = SetDisk {
                device: device.map(str::to_owned),
                is_root: false,
                volume: "vol-0a".to_owned(),
                snapshot: "snap-0a".parse().unwrap(),
            };
            assert_eq!(image_name(3, &disk), name);
        }
    }
}
