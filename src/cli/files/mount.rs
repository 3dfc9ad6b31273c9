//! `ebsfs files mount`: the files of a partition as a read-only mount.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tracing::info;

use super::ViewArgs;
use crate::cli::mount::{MountSignals, serve_until_end};
use crate::cli::signals::only_read;
use crate::cli::store::end_reading;
use crate::error::Result;
use crate::fs::{Access, Needs, mount_view, reserve};
use crate::target::Stop;

/// Threads of the mount and the program.
const THREADS: usize = 8;
/// Descriptors besides those of requests in flight.
const DESCRIPTORS: u64 = 48;

/// Show the files of a partition as a read-only mount, until it is unmounted
#[derive(Args, Debug)]
#[command(
    long_about = "Show the files of a partition as a read-only mount, until it is unmounted (ebsfs umount, fusermount3 -u) or gets SIGINT, \
    SIGTERM or SIGHUP. The filesystem is parsed by a process without rights, not by the kernel. Set-user-id bits, devices and programs \
    have no effect there.\n\n\
    For a user other than root, all files belong to that user."
)]
pub(super) struct MountFilesArgs {
    /// Snapshot id, volume id, tag:KEY=VALUE, snapshot of a repository, raw image or block device
    source: String,
    /// Empty folder to mount at
    directory: PathBuf,
    #[command(flatten)]
    view: ViewArgs,
}

impl MountFilesArgs {
    pub(super) fn run(self) -> Result<()> {
        self.view.check(&[&self.source])?;
        crate::fs::check_mountpoint(&self.directory)?;
        reserve(Needs {
            threads: THREADS,
            descriptors: u64::from(self.view.from.limits.max_in_flight) + DESCRIPTORS,
            memory: super::MEMORY.as_u64(),
        })?;
        let runtime = crate::cli::runtime()?;
        let done = runtime.block_on(self.serve());
        runtime.shutdown_timeout(Duration::from_millis(200));
        done.map_err(only_read)
    }

    async fn serve(&self) -> Result<()> {
        let mut signals = MountSignals::new()?;
        let (stop, stopped) = watch::channel(false);
        let stopped = Stop::new(stopped);
        // Never dropped half way: it ends the lease that it has started.
        let mut opening = pin!(self.view.open(&self.source, &stopped));
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened?,
                () = signals.next() => drop(stop.send_replace(true)),
            }
        };
        let mounted = stopped
            .check()
            .and_then(|()| mount_view(opened.view, &self.directory, &self.source, Access::Owner));
        let mounted = match mounted {
            Ok(mounted) => mounted,
            Err(error) => {
                end_reading(opened.lease).await;
                return Err(error);
            }
        };
        info!("mounted at {}", mounted.mountpoint().display());
        let done = serve_until_end(&mounted, &mut signals).await;
        end_reading(opened.lease).await;
        done
    }
}
