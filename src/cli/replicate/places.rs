//! [`AwsPlaces`]: opens the sources and targets of a job with the options of the command line. Everything that it opens shares one
//! client of the source, one of each account and Region, and one bandwidth.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::ReplicateArgs;
use crate::aws::{Aws, Given, Service};
use crate::cli::aws::{AwsArgs, TargetAws, descriptions, machines, snapshot_maker};
use crate::cli::option_word;
use crate::cli::source::{check_whole_blocks, completed, of_repository, of_snapshot};
use crate::cli::store::{
    StoreLine, StoreOptions, addresses, check_repositories, check_s3, end_reading,
};
use crate::cli::target::{TargetRequest, ToArgs, connect, local_target};
use crate::ebs::{Client, EbsCatalog, Limits};
use crate::error::{Error, Kind, Result};
use crate::inventory::{DescribeMachine, Inventory, inventory};
use crate::replicate::{
    CycleRequests, DrillFindings, DrillRequest, JOB_TAG, JobSource, JobTarget, LEAST_RATE,
    OpenedSnapshot, Places, ReplicateJob, TargetAccess,
};
use crate::repository::{Address, Bandwidth, RepositoryCatalog, Store};
use crate::snapshot::{Descriptions, Selector, SnapshotId, SnapshotMaker};
use crate::source::Catalog;
use crate::target::{SourceInfo, Stop, Target};
use crate::targets::{EbsAccount, EbsTarget};

/// An account and Region of a target, and what makes and deletes snapshots there.
#[derive(Clone)]
struct TargetAccount {
    place: EbsAccount,
    maker: Arc<dyn SnapshotMaker>,
}

/// EC2 and EBS of the source.
struct SourceAccount {
    client: Arc<Client>,
    maker: Arc<dyn SnapshotMaker>,
    descriptions: Option<Arc<dyn Descriptions>>,
    machines: Arc<dyn DescribeMachine>,
    region: Option<String>,
}

/// Where the snapshots come from.
enum ConnectedSource {
    Ec2(SourceAccount),
    Repository(Arc<Store>),
}

/// What a job is connected to.
pub(super) struct AwsPlaces {
    aws: AwsArgs,
    store: StoreOptions,
    limits: Limits,
    state_dir: PathBuf,
    /// Options of s3:// and of all repositories, for another process.
    s3_words: Vec<OsString>,
    lease_words: Vec<OsString>,
    job: String,
    source: ConnectedSource,
    bandwidth: Bandwidth,
    /// Blocks a second at present, for accounts that are connected later.
    max_rps: AtomicU32,
    /// By what names them.
    accounts: Mutex<BTreeMap<String, TargetAccount>>,
}

impl AwsPlaces {
    /// Connects to the source.
    pub(super) async fn open(args: &ReplicateArgs, job: &ReplicateJob) -> Result<Self> {
        let written = addresses(job.targets.iter().map(|target| target.to.as_str()));
        let read = match &job.source {
            JobSource::Ec2(_) => None,
            JobSource::Repository(from) => Some(from.address.clone()),
        };
        let reached: Vec<Address> = written.iter().cloned().chain(read).collect();
        check_s3(&args.new.given(), &written)?;
        check_s3(&args.store.given(), &reached)?;
        check_repositories(&args.lease.given(), &reached)?;
        let limits = args.limits.limits().divided(job.shard.count());
        let bandwidth = Bandwidth::adjustable();
        let line = StoreLine::of(&limits, bandwidth.clone());
        let store = args.store.options(line).with_lease(args.lease.lease());
        let source = match &job.source {
            JobSource::Ec2(_) => {
                let aws: Aws = args.aws.load_with_credentials().await?;
                ConnectedSource::Ec2(SourceAccount {
                    client: Arc::new(Client::new(&aws.service(Service::Ebs)?, &limits)),
                    maker: snapshot_maker(&aws)?,
                    descriptions: descriptions(&aws)?,
                    machines: machines(&aws)?,
                    region: aws.region().map(str::to_owned),
                })
            }
            JobSource::Repository(from) => {
                let account = source_account(&args.aws, &from.access);
                ConnectedSource::Repository(store.open(&from.address, &account, false).await?)
            }
        };
        Ok(Self {
            source,
            aws: args.aws.clone(),
            store: store.writing(&args.new),
            limits,
            state_dir: args.state_dir(),
            s3_words: [args.store.words(), args.new.words()].concat(),
            lease_words: args.lease.words(),
            job: job.name.clone(),
            max_rps: AtomicU32::new(limits.max_rps),
            bandwidth,
            accounts: Mutex::default(),
        })
    }

    /// EC2 and EBS of the source; an error where it is a repository.
    fn source_account(&self) -> Result<&SourceAccount> {
        match &self.source {
            ConnectedSource::Ec2(account) => Ok(account),
            ConnectedSource::Repository(store) => {
                let what = format!("the source {} makes no snapshots", store.address());
                Err(Error::new(Kind::Invalid, what))
            }
        }
    }

    fn to(&self, target: &JobTarget) -> ToArgs {
        let tag = (JOB_TAG.to_owned(), self.job.clone());
        ToArgs::of_job(&target.access, vec![tag])
    }

    /// The account and Region of an `ebs:` target, connected once.
    async fn target_account(&self, target: &JobTarget, name: &str) -> Result<TargetAccount> {
        let key = format!("{name} {:?}", target.access);
        if let Some(known) = self.accounts.lock().get(&key) {
            return Ok(known.clone());
        }
        let region = name.strip_prefix("ebs:").unwrap_or_default();
        let to = self.to(target);
        let (place, maker) = to.place_and_maker(region, &self.aws, &self.limits).await?;
        place
            .client
            .set_max_rps(self.max_rps.load(Ordering::Relaxed));
        let account = TargetAccount { place, maker };
        // Another volume may have connected meanwhile: all share one client.
        let mut accounts = self.accounts.lock();
        Ok(accounts.entry(key).or_insert(account).clone())
    }

    async fn open_target(
        &self,
        target: &JobTarget,
        name: &str,
        source: &SourceInfo,
    ) -> Result<Arc<dyn Target>> {
        let to = self.to(target);
        if name.starts_with("ebs:") {
            check_whole_blocks(source)?;
            let place = self.target_account(target, name).await?.place;
            let opened = EbsTarget::new(place, to.job(), source, &self.state_dir)?;
            return Ok(Arc::new(opened));
        }
        let request = TargetRequest {
            to: &to,
            aws: &self.aws,
            store: self.store.clone(),
            limits: self.limits,
            state_dir: &self.state_dir,
            in_place: is_in_place(target, name),
            is_shared: target.shared,
            dedup: target.dedup,
            compress: false,
        };
        connect(&request, name, source, &mut Vec::new()).await
    }

    async fn open_repository(&self, target: &JobTarget, name: &str) -> Result<RepositoryCatalog> {
        let address: Address = name.parse()?;
        address.names_no_snapshot()?;
        let account = self.to(target).account(&self.aws);
        self.store.repository(&address, &account).await
    }

    /// The limits of a part of the job.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The options by which another process of this program reaches what is drilled.
    pub(super) fn words_of(&self, request: &DrillRequest<'_>) -> Vec<OsString> {
        let mut words: Vec<OsString> = option_word("--state-dir", Some(&self.state_dir))
            .into_iter()
            .collect();
        let Ok(address) = request.unit.target.name.parse::<Address>() else {
            return words;
        };
        words.extend(self.to(request.target).account(&self.aws).words());
        words.extend(self.lease_words.iter().cloned());
        if address.is_s3() {
            words.extend(self.s3_words.iter().cloned());
        }
        let timeout = humantime::format_duration(self.limits.timeout).to_string();
        words.extend(option_word("--timeout", Some(timeout)));
        let in_flight = self.limits.max_in_flight.to_string();
        words.extend(option_word("--max-in-flight", Some(in_flight)));
        words
    }

    /// The client of EBS at the source, if there is one.
    fn client(&self) -> Option<&Arc<Client>> {
        match &self.source {
            ConnectedSource::Ec2(account) => Some(&account.client),
            ConnectedSource::Repository(_) => None,
        }
    }
}

/// Whether an image is changed itself. The first copy makes it.
fn is_in_place(target: &JobTarget, name: &str) -> bool {
    target.in_place && Path::new(name).exists()
}

/// How the store of a source is reached.
pub(super) fn source_account(aws: &AwsArgs, access: &TargetAccess) -> AwsArgs {
    if *access == TargetAccess::default() {
        return aws.clone();
    }
    let region = access.region.clone();
    let its = TargetAws {
        role: "source",
        is_target: true,
        profile: access.profile.clone(),
        region: region.map(|region| Given::new(region, "region of [source]")),
        endpoint_url: access.endpoint_url.clone(),
        ca_bundle: access.ca_bundle.clone(),
    };
    aws.for_target(its, true)
}

impl AwsPlaces {
    async fn open_in_repository(
        &self,
        store: &Arc<Store>,
        id: &SnapshotId,
    ) -> Result<OpenedSnapshot> {
        // Its own catalog: what is known of the snapshot goes when its copies end.
        let catalog = self.store.catalog(Arc::clone(store)).await?;
        let lease = catalog.begin_reading(id.as_str()).await?;
        let open = async {
            let name = catalog.find(id.as_str()).await?;
            let published = catalog.manifest(&name).await?.written;
            Ok((of_repository(catalog, &name).await?, published))
        };
        match open.await {
            Ok((source, published)) => Ok(OpenedSnapshot {
                source,
                published: Some(published),
                lease,
            }),
            Err(error) => {
                end_reading(lease).await;
                Err(error)
            }
        }
    }
}

impl SourceAccount {
    async fn open(&self, id: &SnapshotId, wait: Duration) -> Result<OpenedSnapshot> {
        let select = vec![Selector::Snapshot(id.clone())];
        let descriptions = self.descriptions.clone();
        // Its own catalog: what is known of the snapshot goes when its copies end.
        let catalog = EbsCatalog::new(Arc::clone(&self.client), descriptions, select);
        let catalog = Arc::new(catalog);
        let (snapshot, blocks) = completed(&catalog, id, Some(wait)).await?;
        Ok(OpenedSnapshot {
            source: of_snapshot(snapshot, blocks, catalog as Arc<dyn Catalog>),
            published: None,
            lease: None,
        })
    }
}

impl Places for AwsPlaces {
    fn maker(&self) -> Result<Arc<dyn SnapshotMaker>> {
        Ok(Arc::clone(&self.source_account()?.maker))
    }

    fn source_repository(&self) -> BoxFuture<'_, Result<RepositoryCatalog>> {
        async move {
            match &self.source {
                ConnectedSource::Ec2(_) => {
                    Err(Error::new(Kind::Invalid, "the source is no repository"))
                }
                ConnectedSource::Repository(store) => {
                    let catalog = self.store.catalog(Arc::clone(store)).await?;
                    Ok(catalog.without_warnings())
                }
            }
        }
        .boxed()
    }

    fn source<'a>(
        &'a self,
        id: &'a SnapshotId,
        wait: Duration,
    ) -> BoxFuture<'a, Result<OpenedSnapshot>> {
        match &self.source {
            ConnectedSource::Ec2(account) => account.open(id, wait).boxed(),
            ConnectedSource::Repository(store) => self.open_in_repository(store, id).boxed(),
        }
    }

    fn target<'a>(
        &'a self,
        target: &'a JobTarget,
        name: &'a str,
        source: &'a SourceInfo,
    ) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        self.open_target(target, name, source).boxed()
    }

    fn local_target(&self, target: &JobTarget, name: &str) -> Result<Arc<dyn Target>> {
        local_target(
            name,
            is_in_place(target, name),
            target.shared,
            &self.state_dir,
        )
    }

    fn repository<'a>(
        &'a self,
        target: &'a JobTarget,
        name: &'a str,
    ) -> BoxFuture<'a, Result<RepositoryCatalog>> {
        self.open_repository(target, name).boxed()
    }

    fn account<'a>(
        &'a self,
        target: &'a JobTarget,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn SnapshotMaker>>> {
        async move { Ok(self.target_account(target, name).await?.maker) }.boxed()
    }

    fn inventory<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Inventory>> {
        async move {
            let account = self.source_account()?;
            let (machines, region) = (&*account.machines, account.region.as_deref());
            inventory(machines, instance, region, SystemTime::now()).await
        }
        .boxed()
    }

    fn drill<'a>(
        &'a self,
        request: &'a DrillRequest<'a>,
        stop: &'a Stop,
    ) -> BoxFuture<'a, Result<DrillFindings>> {
        self.drill_one(request, stop).boxed()
    }

    fn set_rate(&self, bytes_a_second: Option<u64>) {
        self.bandwidth.set(bytes_a_second);
        let blocks = bytes_a_second.map_or(u64::MAX, |rate| (rate / LEAST_RATE).max(1));
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let blocks = blocks.min(self.limits.max_rps);
        self.max_rps.store(blocks, Ordering::Relaxed);
        if let Some(client) = self.client() {
            client.set_max_rps(blocks);
        }
        for account in self.accounts.lock().values() {
            account.place.client.set_max_rps(blocks);
        }
    }

    fn requests(&self) -> CycleRequests {
        let accounts = self.accounts.lock();
        let clients = accounts.values().map(|account| &account.place.client);
        let mut requests = CycleRequests::default();
        for client in clients.chain(self.client()) {
            let counts = client.counts();
            requests.gets += counts.gets;
            requests.puts += counts.puts;
            requests.lists += counts.lists;
        }
        requests
    }
}
