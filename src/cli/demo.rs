//! `ebsfs demo`: the emulator, a demo volume, two snapshots of it and a mount of them, in one process and without an account.
//!
//! | file | subject |
//! | --- | --- |
//! | [`disk`] | the demo volume, and what changes between the snapshots |
//! | [`folder`] | the private folder, which ends with the demo |
//! | [`words`] | what is printed |

mod disk;
mod folder;
mod words;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use tokio::task::block_in_place;

use super::mount::{MountSignals, serve_until_end};
use super::{aws, emulator, output};
use crate::aws::ServiceConfig;
use crate::cache::{Cache, CachedCatalog};
use crate::ebs::{Client, EbsCatalog, Limits};
use crate::emulator::{Emulator, REGION};
use crate::error::{Error, Kind, Result};
use crate::files::temporary_folder;
use crate::fs::{Access, Mounted, Ownership, Provenance, Tree};
use crate::image::ReadaheadBudget;
use disk::DemoDisk;
use folder::DemoFolder;
use words::DemoText;

/// Memory for blocks: the demo volume holds some 40 MB.
const MEMORY: ByteSize = ByteSize::mib(64);
/// Requests in flight to the emulator, which shares the processors with the mount.
const IN_FLIGHT: u32 = 16;
/// Permissions of the images.
const MODE: u16 = 0o400;

/// Try ebsfs on this machine: an emulator of EBS, a demo volume, two snapshots, a mount
#[derive(Args, Debug)]
#[command(
    long_about = "Try ebsfs on this machine, without an AWS account: runs an emulator of EBS on loopback, makes a demo volume with a \
    filesystem, takes two snapshots with a change in between, mounts them, and prints commands to try.\n\n\
    Stays in the foreground until Ctrl-C (SIGINT), SIGTERM or ebsfs umount, then unmounts and removes its files. Runs as root, or as \
    any user where fusermount3 (package fuse3) is installed. Without mkfs.ext4, debugfs and sfdisk the volume holds a pattern instead of \
    a filesystem."
)]
pub(super) struct DemoArgs {
    /// Empty folder to mount at [default: a new private folder in $TMPDIR, else in /tmp]
    #[arg(value_name = "DIRECTORY")]
    mountpoint: Option<PathBuf>,
}

/// The two snapshots of the demo volume.
struct DemoSnapshots {
    first: String,
    second: String,
}

impl DemoArgs {
    pub(super) fn run(self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.show());
        // A dropped reply answers EIO to a request that still waits.
        runtime.shutdown_timeout(Duration::from_millis(200));
        done
    }

    async fn show(&self) -> Result<()> {
        // From here on a signal ends the demo in order.
        let mut signals = MountSignals::new()?;
        if let Some(mountpoint) = &self.mountpoint {
            if crate::fs::is_dead_mount(mountpoint) {
                // What it cannot unmount, the check reports.
                let _ = crate::fs::unmount_at(mountpoint, true);
            }
            crate::fs::check_mountpoint(mountpoint)?;
        }
        let folder = DemoFolder::make(&temporary_folder())?;
        let mountpoint = match &self.mountpoint {
            Some(mountpoint) => mountpoint.clone(),
            None => folder.mountpoint()?,
        };
        let listener = Emulator::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let address = listener.local_addr();
        let address = address.map_err(|error| failed("cannot listen on loopback", error))?;
        let url = format!("http://{address}");
        let emulator = Emulator::open(&folder.path().join("emulator"), &[])?;
        let serving = tokio::spawn(Arc::clone(&emulator).serve(listener, None));
        let prepared = tokio::select! {
            prepared = prepare(&folder, &emulator) => prepared,
            () = signals.next() => Err(Error::new(Kind::Stopped, "stopped before the demo was mounted")),
        };
        let (disk, snapshots) = prepared?;
        let mounted = mount(&emulator, &url, &snapshots, &mountpoint)?;
        let shown = DemoText {
            disk: &disk,
            snapshots: &snapshots,
            mountpoint: mounted.mountpoint(),
            folder: &folder,
            url: &url,
        };
        let credentials = emulator.credentials_file();
        let environment =
            emulator::environment(&url, REGION, &credentials, None) + &shown.variables();
        let written = std::fs::write(folder.environment(), environment);
        let printed = written
            .map_err(|error| Error::of_file(&folder.environment(), "cannot write", error))
            .and_then(|()| output::write(None, |out| out.write_all(shown.text().as_bytes())));
        if let Err(error) = printed {
            block_in_place(|| mounted.detach())?;
            return Err(error);
        }
        tokio::select! {
            done = serve_until_end(&mounted, &mut signals) => done,
            ended = serving => {
                mounted.drain(true);
                block_in_place(|| mounted.detach())?;
                ended.unwrap_or_else(|error| Err(failed("the emulator ended", error)))
            }
        }
    }
}

fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::with_source(Kind::Io, what, error)
}

/// Makes the volume and its two snapshots.
async fn prepare(folder: &DemoFolder, emulator: &Emulator) -> Result<(DemoDisk, DemoSnapshots)> {
    folder.check_space()?;
    let disk = DemoDisk::make(folder.path()).await?;
    let snapshot = |what: &str| block_in_place(|| emulator.make_snapshot(disk::VOLUME, what));
    let first = snapshot("the demo volume at first")?;
    block_in_place(|| disk.keep(&folder.before()))?;
    disk.change(folder.path()).await?;
    let second = snapshot("the demo volume after a change")?;
    Ok((disk, DemoSnapshots { first, second }))
}

/// Mounts all snapshots of the emulator, also later ones; without EC2, which lists them, those of the demo.
fn mount(
    emulator: &Emulator,
    url: &str,
    snapshots: &DemoSnapshots,
    mountpoint: &Path,
) -> Result<Mounted> {
    let (key, secret) = emulator.keys();
    let service = ServiceConfig::fixed(url, REGION, &key, &secret)?;
    let limits = Limits {
        max_in_flight: IN_FLIGHT,
        ..Limits::default()
    };
    let client = Arc::new(Client::new(&service, &limits));
    let descriptions = aws::descriptions_by(&service);
    let select = match &descriptions {
        Some(_) => Vec::new(),
        None => vec![snapshots.first.parse()?, snapshots.second.parse()?],
    };
    let catalog = EbsCatalog::new(client, descriptions, select);
    let cache = Cache::new(MEMORY, IN_FLIGHT)?;
    let readahead = ReadaheadBudget::new(cache.max_readahead());
    let tree = Tree::new(
        Arc::new(CachedCatalog::new(cache, Arc::new(catalog))),
        Ownership {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            mode: MODE,
        },
        readahead,
        limits.timeout,
        Provenance {
            place: format!("ebsfs demo at {url}"),
            ..Provenance::default()
        },
    );
    crate::fs::mount(tree, mountpoint, "ebsfs demo", Access::Owner)
}
