//! `ebsfs umount`.

use std::path::PathBuf;

use clap::Args;

use super::log;
use crate::error::{Error, Kind, Result};
use crate::fs::{UnmountReport, Unmounted};

/// Unmount a mount of `ebsfs mount`
#[derive(Args, Debug)]
pub(super) struct UmountArgs {
    /// Mountpoint, as given to ebsfs mount
    mountpoint: PathBuf,
    /// Detach the mount even while files are open; open files can be read until they are closed
    #[arg(long)]
    lazy: bool,
}

impl UmountArgs {
    pub(super) fn run(&self) -> Result<()> {
        let at = self.mountpoint.display();
        let report = crate::fs::unmount_at(&self.mountpoint, self.lazy)?;
        let reason = match &report.unmounted {
            Unmounted::Done => {
                if let Some(line) = lives_on(&report) {
                    log::say(&format!("{at} is unmounted, but {line}"));
                }
                return Ok(());
            }
            Unmounted::Busy if report.hangs => {
                "it does not answer; --lazy detaches it all the same".into()
            }
            Unmounted::Busy => {
                format!("it is busy (fuser -vm {at} lists its users); --lazy detaches it")
            }
            Unmounted::Covered(path) => format!(
                "something else is mounted over it: unmount that first (umount {})",
                path.display()
            ),
            Unmounted::Absent => "it was unmounted meanwhile".into(),
        };
        Err(Error::new(
            Kind::Io,
            format!("cannot unmount {at}: {reason}"),
        ))
    }
}

/// The reason why the process that serves the mount has not ended.
fn lives_on(report: &UnmountReport) -> Option<String> {
    let pid = report.server?;
    let why = if report.holders.is_empty() {
        "another mount namespace or an open file holds it".to_owned()
    } else {
        report.holders.join(", ")
    };
    Some(format!("process {pid} still serves it, held by: {why}"))
}
