//! `ebsfs mount`: shows snapshots as files until it is unmounted or a signal ends it.

mod doctor;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::signal::unix::SignalKind;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::aws::{self, AwsArgs};
use super::background;
use super::cache::DiskCacheArgs;
use super::limits::LimitArgs;
use super::log;
use super::metrics::{self, MetricsArgs};
use super::notify::Notifier;
use super::signals::{TakenSignal, take};
use super::store::{
    LeaseArgs, NewObjectArgs, StoreArgs, StoreLine, check_repositories, check_s3, end_reading,
};
use crate::aws::Aws;
use crate::block::BlockIndex;
use crate::cache::{Cache, CachedCatalog, DISK_DESCRIPTORS, DISK_THREADS, DiskCache};
use crate::ebs::{Client, EbsCatalog};
use crate::error::{Error, Kind, Result};
use crate::evidence::CustodyLog;
use crate::fs::{Access, Custodian, Mounted, Needs, Ownership, Provenance, Tree, Unmounted};
use crate::image::ReadaheadBudget;
use crate::metrics::{CacheUse, MetricsServer, ServedMetrics};
use crate::repository::{Address, Bandwidth, Lease};
use crate::snapshot::{Selector, SnapshotId};
use crate::source::Catalog;

/// How long the first listing may take, several attempts together: a person waits for the mount.
const CHECK_TIMEOUT: Duration = Duration::from_secs(15);
/// Named snapshots that are checked at once.
const CHECKS: usize = 16;
/// Threads of a mount: two of the runtime, four of the FUSE session, and some that draw maps or look up names.
const THREADS: usize = 12;
/// Descriptors of a mount besides one for each request in flight: the FUSE session, EC2, STS, credentials, the log.
const DESCRIPTORS: u64 = 24;
/// How long readers may take to close their files after EIO.
const CLOSING: Duration = Duration::from_secs(3);

/// Show EBS snapshots as read-only raw disk images
#[derive(Args, Debug)]
#[command(
    long_about = "Show EBS snapshots as read-only raw disk images, whose blocks are fetched when they are read.\n\n\
    MOUNTPOINT/snapshots/ID/disk.raw is the volume at that instant. Any snapshot id can be opened there, selected or not.\n\
    MOUNTPOINT/changes/ID..ID/ is what differs between two: delta.raw, and maps of it for other tools.\n\
    Stays in the foreground until it is unmounted (ebsfs umount, fusermount3 -u) or gets SIGINT, SIGTERM or SIGHUP.\n\
    In the background SIGHUP opens --log-file again, for logrotate. Signals that it was started to ignore (nohup) stay ignored."
)]
pub(super) struct MountArgs {
    /// Empty folder to mount at; for a repository its URL (s3://BUCKET/PREFIX, az://, gs://, file:///FOLDER), and then the folder
    #[arg(value_name = "MOUNTPOINT | REPOSITORY MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Snapshots to list: snapshot ids, volume ids, tag:KEY=VALUE [default: all snapshots of the account]
    #[arg(value_name = "SNAPSHOT | VOLUME | tag:KEY=VALUE")]
    select: Vec<String>,
    /// Return when the mount answers, and serve it in the background; the log then goes to --log-file or is lost
    #[arg(long)]
    pub(super) background: bool,
    /// Append a line to FILE for each opening and closing of an image: time, user, process, blocks read; each line has the SHA-256 of
    /// the line before
    #[arg(long, value_name = "FILE")]
    custody: Option<PathBuf>,
    /// Send no request to EBS or EC2 before the mount is used; without it each named snapshot is checked
    #[arg(long)]
    lazy: bool,
    /// Memory for blocks, cached and in flight together; at least 8MiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    memory: ByteSize,
    #[command(flatten)]
    disk: DiskCacheArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    new: NewObjectArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

/// A mount, and the client and caches that count its requests and hits.
type Served = (
    Mounted,
    Option<Arc<Client>>,
    Arc<Cache>,
    Option<Arc<DiskCache>>,
    Option<Lease>,
    Option<Arc<CustodyLog>>,
);

/// A mount, its caches and its log.
type MountedCatalog = (
    Mounted,
    Arc<Cache>,
    Option<Arc<DiskCache>>,
    Option<Arc<CustodyLog>>,
);

/// What is mounted.
enum What {
    /// Snapshots of EBS.
    Ebs(Vec<Selector>),
    /// All snapshots of a repository.
    Repository(Address),
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Access")]
struct AccessArgs {
    /// Let all users reach the mount; --mode decides what they may read
    #[arg(long, conflicts_with = "allow_root")]
    allow_other: bool,
    /// Let root reach the mount
    #[arg(long)]
    allow_root: bool,
    /// User id of the owner of all files [default: the user that mounts]
    #[arg(long, value_name = "ID")]
    uid: Option<u32>,
    /// Group id of all files [default: the group of the user that mounts]
    #[arg(long, value_name = "ID")]
    gid: Option<u32>,
    /// Permissions of all files, in octal, read bits only; for example 0444
    #[arg(long, value_name = "MODE", default_value = "0400", value_parser = read_mode)]
    mode: u16,
}

fn read_mode(text: &str) -> std::result::Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode & !0o444 == 0 => Ok(mode),
        _ => Err("must be octal and have read bits only, like 0400, 0440 or 0444".into()),
    }
}

impl MountArgs {
    /// Checks that need no request: the mountpoint, the sizes of the caches.
    pub(super) fn check(&self) -> Result<()> {
        let (what, mountpoint) = self.what()?;
        let places = match what {
            What::Ebs(_) => Vec::new(),
            What::Repository(address) => vec![address],
        };
        check_s3(&self.store.given(), &places)?;
        check_s3(&self.new.given(), &places)?;
        check_repositories(&self.lease.given(), &places)?;
        crate::fs::check_mountpoint(mountpoint)?;
        if let Some(disk) = self.disk.config("") {
            disk.check()?;
        }
        Cache::new(self.memory, self.limits.max_in_flight).map(drop)
    }

    /// Threads, descriptors and memory.
    fn needs(&self) -> Needs {
        let (threads, descriptors) = match self.disk.config("") {
            Some(_) => (DISK_THREADS, DISK_DESCRIPTORS),
            None => (0, 0),
        };
        Needs {
            threads: THREADS + threads,
            descriptors: u64::from(self.limits.max_in_flight)
                + DESCRIPTORS
                + descriptors
                + self.metrics.descriptors(),
            memory: self.memory.as_u64(),
        }
    }

    /// The source and the mountpoint.
    fn what(&self) -> Result<(What, &Path)> {
        let first = self
            .mountpoint
            .to_str()
            .filter(|first| Address::looks_like(first));
        let Some(address) = first else {
            let select = self.select.iter().map(|text| text.parse());
            return Ok((What::Ebs(select.collect::<Result<_>>()?), &self.mountpoint));
        };
        match &self.select[..] {
            [mountpoint] => Ok((What::Repository(address.parse()?), mountpoint.as_ref())),
            _ => {
                let what =
                    format!("say ebsfs mount {address} MOUNTPOINT: all its snapshots are shown");
                Err(Error::new(Kind::Invalid, what))
            }
        }
    }

    /// The source that the mount table shows: what a line of /etc/fstab names, so that `mount -a` finds it mounted.
    fn source_in_table(&self) -> String {
        let first = self.mountpoint.to_str();
        let address = first.filter(|first| Address::looks_like(first));
        match (address, &self.select[..]) {
            (Some(address), _) => address.to_owned(),
            (None, [one]) => one.clone(),
            (None, _) => "ebsfs".to_owned(),
        }
    }

    pub(super) fn run(self) -> Result<()> {
        self.check()?;
        if background::is_child() {
            background::leave_session()?;
        }
        crate::fs::reserve(self.needs())?;
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.serve());
        // A dropped reply answers EIO to a request that still waits.
        runtime.shutdown_timeout(Duration::from_millis(200));
        done
    }

    async fn serve(self) -> Result<()> {
        // From here on a signal ends the program in order, even before the mount exists.
        let mut signals = MountSignals::new()?;
        let server = self.metrics.bind().await?;
        tokio::select! {
            mounted = self.mount() => {
                let (mounted, client, cache, disk, lease, custody) = mounted?;
                let _served = server.map(|server| self.serve_metrics(server, &mounted, &cache, &disk));
                let done = match announce(&mounted) {
                    Ok(()) => serve_until_end(&mounted, &mut signals).await,
                    Err(error) => Err(error),
                };
                let done = done.and(end_custody(custody.as_deref()));
                end_reading(lease).await;
                let (hits, fetched) = cache.counts();
                info!("unmounted: {fetched} blocks fetched, {hits} reads answered from memory");
                if let Some(disk) = disk {
                    info!("{} blocks read from the cache on disk", disk.hits());
                }
                let Some(requests) = client.map(|client| client.counts()) else {
                    return done;
                };
                info!(
                    "{} GetSnapshotBlock and {} list requests, {} of them hedges, {} retries, {} throttled",
                    requests.gets,
                    requests.lists,
                    requests.hedges,
                    requests.retries,
                    requests.throttles
                );
                done
            }
            _ = signals.next() => Err(Error::new(Kind::Io, "stopped before it was mounted")),
        }
    }

    /// Serves the counts of a mount.
    fn serve_metrics(
        &self,
        server: MetricsServer,
        mounted: &Mounted,
        cache: &Arc<Cache>,
        disk: &Option<Arc<DiskCache>>,
    ) -> ServedMetrics {
        let traffic = metrics::traffic(&self.aws, &self.store);
        let (activity, cache, disk) = (mounted.activity(), Arc::clone(cache), disk.clone());
        server.serve(move || {
            let (memory_hits, fetched) = cache.counts();
            let cache = CacheUse {
                memory_hits,
                disk_hits: disk.as_ref().map(|disk| disk.hits()),
                fetched,
            };
            let mut found = crate::metrics::mount(&activity.counts(), cache);
            found.extend(traffic());
            found
        })
    }

    async fn mount(&self) -> Result<Served> {
        let (what, mountpoint) = self.what()?;
        let source = self.source_in_table();
        let mut origin = Provenance::default();
        let mut lease = None;
        let (client, catalog): (_, Arc<dyn Catalog>) = match what {
            What::Ebs(select) => {
                let config = self.aws.load().await?;
                let mut limits = self.limits.mount_limits();
                limits.timeout = limits.timeout.min(CHECK_TIMEOUT);
                let (client, catalog) = aws::catalog(&config, &limits, select.clone())?;
                if !self.lazy {
                    config.check_credentials().await?;
                    check_selection(&select, &catalog).await?;
                }
                origin.place = aws::place(&config)?;
                tell_caller(config, &origin);
                (Some(client), catalog)
            }
            What::Repository(address) => {
                address.names_no_snapshot()?;
                origin.place = format!("repository {address}");
                let line = StoreLine::of(&self.limits.limits(), Bandwidth::default());
                let store = self.store.options(line).writing(&self.new);
                let store = store.with_lease(self.lease.lease());
                let catalog = store.repository(&address, &self.aws).await?;
                lease = catalog.begin_reading("a mount").await?;
                (None, Arc::new(catalog))
            }
        };
        match self.mount_catalog(catalog, origin, mountpoint, &source) {
            Ok((mounted, cache, disk, custody)) => {
                if let Some(client) = &client {
                    client.set_timeout(self.limits.timeout);
                }
                Ok((mounted, client, cache, disk, lease, custody))
            }
            Err(error) => {
                end_reading(lease).await;
                Err(error)
            }
        }
    }

    /// Mounts the snapshots of a catalog.
    fn mount_catalog(
        &self,
        catalog: Arc<dyn Catalog>,
        mut origin: Provenance,
        mountpoint: &Path,
        source: &str,
    ) -> Result<MountedCatalog> {
        let cache = Cache::new(self.memory, self.limits.max_in_flight)?;
        let readahead = ReadaheadBudget::new(cache.max_readahead());
        let disk = self.disk.config(&origin.place);
        let disk = disk.map(DiskCache::open).transpose()?;
        let cached = CachedCatalog::new(Arc::clone(&cache), catalog).with_disk(disk.clone());
        // Last: what fails before leaves no mount without an end in the log.
        let log = self.custody.as_deref();
        let log = log.map(|path| CustodyLog::begin(path, mountpoint, &origin.place));
        let custody = log.transpose()?.map(Arc::new);
        origin.custodian = custody.clone().map(|log| log as Arc<dyn Custodian>);
        let tree = Tree::new(
            Arc::new(cached),
            self.access.ownership(),
            readahead,
            self.limits.timeout,
            origin,
        );
        let mounted = crate::fs::mount(tree, mountpoint, source, self.access.access());
        if mounted.is_err() {
            // Its own error is what is reported.
            let _ = end_custody(custody.as_deref());
        }
        Ok((mounted?, cache, disk, custody))
    }
}

/// Says that the mount answers. If the parent process has ended, the mount has no user: it is detached.
fn announce(mounted: &Mounted) -> Result<()> {
    if background::is_child() {
        background::ready().inspect_err(|_| {
            let _ = mounted.detach();
        })?;
    } else {
        Notifier::from_environment().ready();
    }
    info!("mounted at {}", mounted.mountpoint().display());
    Ok(())
}

/// Writes that a mount has ended, and logs the digest that the chain ends with.
fn end_custody(custody: Option<&CustodyLog>) -> Result<()> {
    if let Some(custody) = custody {
        let last = custody.end()?;
        info!("the custody log ends with SHA-256 {last}");
    }
    Ok(())
}

/// Gets the caller's ARN from STS if the log shows it (`-v`). Nothing waits for the answer.
fn tell_caller(config: Aws, origin: &Provenance) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let caller = Arc::clone(&origin.caller);
    tokio::spawn(async move {
        let identity = config.caller().await;
        // Later openings log it.
        let arn = identity.map(|identity| identity.arn);
        let _ = caller.set(arn.unwrap_or_else(|error| format!("unknown ({})", error.chain())));
    });
}

/// Makes one small listing of each named snapshot, so a wrong id, Region, credential or permission fails at once.
async fn check_selection(select: &[Selector], catalog: &EbsCatalog) -> Result<()> {
    let named: Vec<&SnapshotId> = select
        .iter()
        .filter_map(|selector| match selector {
            Selector::Snapshot(id) => Some(id),
            _ => None,
        })
        .collect();
    if named.len() < select.len() {
        catalog.begin_listing(CHECK_TIMEOUT).await?;
    } else if named.len() > 1 {
        // One request describes them all; without it each needs its own.
        if let Err(error) = catalog.list().await {
            warn!("{}", error.chain());
        }
    }
    // A few at a time: each has its own deadline, and listings have a pace.
    stream::iter(named.into_iter().map(|id| check(catalog, id)))
        .buffer_unordered(CHECKS)
        .try_collect()
        .await
}

/// Opens a snapshot and lists its first blocks.
async fn check(catalog: &EbsCatalog, id: &SnapshotId) -> Result<()> {
    let (_, source) = catalog.open(id).await?;
    source.next_extent(BlockIndex(0)).await.map(drop)
}

impl AccessArgs {
    fn ownership(&self) -> Ownership {
        Ownership {
            uid: self.uid.unwrap_or(nix::unistd::geteuid().as_raw()),
            gid: self.gid.unwrap_or(nix::unistd::getegid().as_raw()),
            mode: self.mode,
        }
    }

    fn access(&self) -> Access {
        if self.allow_other {
            Access::AllUsers
        } else if self.allow_root {
            Access::Root
        } else {
            Access::Owner
        }
    }
}

/// The signals that end a mount.
pub(super) struct MountSignals {
    interrupt: TakenSignal,
    terminate: TakenSignal,
    /// The terminal was closed. In the background: open the log file again.
    hang_up: TakenSignal,
}

impl MountSignals {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hang_up: take(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that ends the mount.
    pub(super) async fn next(&mut self) {
        loop {
            tokio::select! {
                () = self.interrupt.received() => return,
                () = self.terminate.received() => return,
                () = self.hang_up.received() => match background::is_child() {
                    true => log::reopen(),
                    false => return,
                },
            }
        }
    }
}

/// Serves until the mount is unmounted or a signal ends it. After the first signal a busy mount stays, the second detaches it.
pub(super) async fn serve_until_end(mounted: &Mounted, signals: &mut MountSignals) -> Result<()> {
    tokio::select! {
        ended = mounted.ended() => return ended,
        () = signals.next() => {}
    }
    info!("unmounting {}", mounted.mountpoint().display());
    mounted.drain(true);
    let unmounted = tokio::select! {
        unmounted = unmount(mounted) => unmounted,
        () = signals.next() => return detach(mounted).await,
    };
    let at = mounted.mountpoint().display();
    let stays = match unmounted {
        // For example without fusermount3: the end of the process would leave a mount without a server.
        Err(error) => format!("{at} stays mounted: {}", error.chain()),
        // The connection ends soon, unless another namespace or an open file holds it.
        Ok(Unmounted::Done) => {
            let ended = tokio::time::timeout(Duration::from_secs(1), mounted.ended()).await;
            match ended {
                Ok(ended) => return ended,
                Err(_) => format!("{at} is unmounted here and still mounted or open elsewhere"),
            }
        }
        Ok(Unmounted::Absent) => {
            format!("{at} was unmounted here and is still mounted or open elsewhere")
        }
        Ok(Unmounted::Busy) => {
            format!("{at} is busy and stays mounted (fuser -vm {at} lists its users)")
        }
        Ok(Unmounted::Covered(path)) => format!(
            "{at} stays mounted: something else is mounted over it (umount {} first)",
            path.display()
        ),
    };
    mounted.drain(false);
    warn!("{stays}; a second signal detaches it and ends the process");
    tokio::select! {
        ended = mounted.ended() => ended,
        () = signals.next() => detach(mounted).await,
    }
}

/// Unmounts as soon as readers have closed their files; `Busy` if that takes longer than [`CLOSING`].
async fn unmount(mounted: &Mounted) -> Result<Unmounted> {
    let until = Instant::now() + CLOSING;
    loop {
        let unmounted = tokio::task::block_in_place(|| mounted.unmount())?;
        if unmounted != Unmounted::Busy || Instant::now() >= until {
            return Ok(unmounted);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Detaches the mount. The end of the process then ends the connection for all remaining holders.
async fn detach(mounted: &Mounted) -> Result<()> {
    warn!("detaching {}", mounted.mountpoint().display());
    mounted.drain(true);
    tokio::task::block_in_place(|| mounted.detach()).map(drop)
}
