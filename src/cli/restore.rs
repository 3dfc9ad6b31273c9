//! `ebsfs restore`: brings back all disks of an instance at one instant, from a repository.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tracing::{info, warn};

use super::output;
use super::reading::ReadArgs;
use super::signals::listen;
use super::store::end_reading;
use super::sync::words;
use super::target::local_target;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::replace;
use crate::repository::{Address, MachineSet, SetDisk};
use crate::sync::{self, Context, PlanReport, Progress, SyncJob, TargetOutcome, Ui};
use crate::target::Stop;
use crate::time::rfc3339_millis;

/// The version of the JSON that `--json` prints.
const JSON_VERSION: u32 = 1;
/// The inventory in the folder.
const INVENTORY: &str = "instance.json";
/// Characters of a device's name in the name of its image.
const MOST_NAME: usize = 32;

/// Bring back all disks of an instance at one instant, in device order, from a repository
#[derive(Args, Debug)]
#[command(
    long_about = "Bring back all disks of an instance at one instant from a repository, as raw images in a folder: 0-xvda.raw is the \
    disk that it boots from, 1-xvdb.raw the next one, instance.json the machine around them.\n\n\
    The set must have been added (ebsfs repository instances --add). The same command again resumes where it was stopped. An \
    image appears whole or not at all, and one that holds something else is never overwritten."
)]
pub(super) struct RestoreArgs {
    /// The set: s3://BUCKET/PREFIX#INSTANCE (az://, gs://, file:///FOLDER) for the newest, #INSTANCE@TIME for the last one until then
    #[arg(value_name = "REPOSITORY#INSTANCE[@TIME]")]
    set: String,
    /// Folder for the images; it is made if it does not exist
    #[arg(long, value_name = "DIRECTORY")]
    to: PathBuf,
    /// Read each whole image back, past the page cache, and compare it with what was copied
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    reading: ReadArgs,
}

/// Shows no plans: each disk is a copy of its own, and nothing is overwritten.
struct NoPlans;

impl Ui for NoPlans {
    fn plans(&self, _plans: &[PlanReport]) -> Result<()> {
        Ok(())
    }

    fn confirm(&self, target: &str) -> Result<()> {
        let what = format!("cannot write {target}: its content is unknown");
        Err(Error::new(Kind::Undecided, what))
    }
}

impl RestoreArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.restore());
        runtime.shutdown_timeout(Duration::from_millis(200));
        let (set, outcomes) = done?;
        self.print(&set, &outcomes)?;
        words::result(&outcomes)
    }

    async fn restore(&self) -> Result<(MachineSet, Vec<TargetOutcome>)> {
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
        make_folder(&self.to)?;
        write_inventory(&self.to.join(INVENTORY), &set)?;
        let mut outcomes = Vec::new();
        for (number, disk) in set.disks.iter().enumerate() {
            let image = self.to.join(image_name(number, disk));
            let outcome = self.disk(&address, disk, &image, &stop).await;
            let is_stopped = matches!(&outcome.ended, Err(error) if error.kind() == Kind::Stopped);
            outcomes.push(outcome);
            if is_stopped {
                break;
            }
        }
        Ok((set, outcomes))
    }

    /// Copies one disk.
    async fn disk(
        &self,
        address: &Address,
        disk: &SetDisk,
        image: &Path,
        stop: &Stop,
    ) -> TargetOutcome {
        let name = image.display().to_string();
        let source = format!("{address}#{}", disk.snapshot);
        let copied = self.copy(&source, &name, stop);
        let mut outcome = copied.await.unwrap_or_else(|error| TargetOutcome {
            target: name.clone(),
            ended: Err(error),
        });
        outcome.ended = outcome.ended.map_err(|error| match error.remedy() {
            None => error,
            // Its options are those of a sync.
            Some(_) => error.with_remedy(Remedy::Do(format!(
                "restore to another folder, or copy this disk alone: ebsfs sync '{source}' {name}"
            ))),
        });
        outcome
    }

    async fn copy(&self, source: &str, image: &str, stop: &Stop) -> Result<TargetOutcome> {
        let progress = Arc::new(Progress::default());
        let shown = self.reading.show(&progress);
        let opened = self.reading.open(source, &shown, stop).await?;
        let target = local_target(image, false, false, &self.reading.state_dir())?;
        let job = SyncJob {
            verify: self.verify,
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
        outcomes
            .pop()
            .ok_or_else(|| Error::new(Kind::Io, format!("{image}: nothing was done")))
    }

    fn print(&self, set: &MachineSet, outcomes: &[TargetOutcome]) -> Result<()> {
        let rows = set.disks.iter().zip(outcomes);
        if self.reading.json {
            let disks = rows.map(|(disk, outcome)| {
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
        let good = rows.filter(|(_, outcome)| outcome.ended.is_ok());
        let lines: Vec<String> = good
            .map(|(disk, outcome)| {
                let device = disk.device.as_deref().unwrap_or("-");
                let device: String = device.chars().filter(|c| !c.is_control()).collect();
                format!(
                    "{device} {} {} {}",
                    disk.volume, disk.snapshot, outcome.target
                )
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
    let what = format!("cannot write {}: it is of another set", path.display());
    let remedy = Remedy::Do("restore to another folder".into());
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
