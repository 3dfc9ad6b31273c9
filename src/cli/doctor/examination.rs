//! [`Examination`]: the job of a doctor, and the clients that its verb would have.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::aws::{Aws, Http, Service};
use crate::cli::aws::{self, AwsArgs};
use crate::cli::store::{StoreLine, StoreOptions};
use crate::doctor::{
    DoctorAccount, DoctorClients, DoctorJob, DoctorStore, PlannedSnapshots, ReadNeeds, ServiceUse,
};
use crate::ebs::{self, Limits};
use crate::error::{Error, Kind, Result};
use crate::replicate::{JobSource, ReplicateJob, planned_cycle};
use crate::repository::{self, Address, Bandwidth, Store, StoreOrigin, store_origin};
use crate::snapshot::{Descriptions, Selector, SnapshotMaker};
use crate::source::Catalog;

/// Blocks of a sample in flight at once.
const MOST_AT_ONCE: usize = 16;
/// How long a request is repeated.
const TIMEOUT: Duration = Duration::from_secs(6);

/// What is checked for a verb, and how it is reached.
pub(in crate::cli) struct Examination {
    /// `mount`, `sync`, `replicate`, or empty.
    pub(in crate::cli) verb: &'static str,
    pub(in crate::cli) job: DoctorJob,
    limits: Limits,
    /// The options of each account of the job.
    accounts: Vec<Vec<OsString>>,
    /// How each store of the job is reached.
    stores: Vec<(StoreOptions, AwsArgs)>,
    /// The job that makes snapshots.
    makes: Option<ReplicateJob>,
}

/// EBS, EC2 and STS. Without EC2 only snapshots that are named by their ids are read, and STS only says who calls.
pub(in crate::cli) fn ebs_services(needs_ec2: bool) -> Vec<ServiceUse> {
    [
        (Service::Ebs, true),
        (Service::Ec2, needs_ec2),
        (Service::Sts, false),
    ]
    .map(|(service, is_needed)| ServiceUse { service, is_needed })
    .to_vec()
}

impl Examination {
    /// The examination of a verb, of nothing yet.
    pub(in crate::cli) fn new(verb: &'static str, limits: Limits) -> Self {
        Self {
            verb,
            job: DoctorJob::default(),
            limits: Limits {
                timeout: TIMEOUT.min(limits.timeout),
                ..limits
            },
            accounts: Vec::new(),
            stores: Vec::new(),
            makes: None,
        }
    }

    /// How a store is asked.
    pub(in crate::cli) fn line(&self) -> StoreLine {
        StoreLine::of(&self.limits, Bandwidth::default())
    }

    /// An account whose snapshots are read.
    pub(in crate::cli) fn read(
        &mut self,
        role: &str,
        aws: &AwsArgs,
        services: Vec<ServiceUse>,
        select: Vec<Selector>,
        sample: Duration,
    ) {
        let in_flight = usize::try_from(self.limits.max_in_flight).unwrap_or(usize::MAX);
        let reads = ReadNeeds {
            select,
            sample,
            in_flight: in_flight.min(MOST_AT_ONCE),
        };
        self.account(role, aws, services, Some(reads));
    }

    /// An account with these services; one with the same options is the same one.
    fn account(
        &mut self,
        role: &str,
        aws: &AwsArgs,
        services: Vec<ServiceUse>,
        reads: Option<ReadNeeds>,
    ) {
        let words = aws.words();
        if !self.accounts.contains(&words) {
            self.accounts.push(words.clone());
            self.job.accounts.push(DoctorAccount {
                role: role.to_owned(),
                settings: aws.settings(),
                services: Vec::new(),
                reads: None,
                makes: false,
                is_written: false,
            });
        }
        let mut known = self.accounts.iter().zip(&mut self.job.accounts);
        let Some((_, account)) = known.find(|(known, _)| **known == words) else {
            return;
        };
        account.reads = reads.or(account.reads.take());
        for used in services {
            let has = |known: &&mut ServiceUse| known.service == used.service;
            match account.services.iter_mut().find(has) {
                Some(known) => known.is_needed |= used.is_needed,
                None => account.services.push(used),
            }
        }
    }

    /// A job makes snapshots in the account of the source.
    pub(in crate::cli) fn make(&mut self, job: ReplicateJob) {
        if let Some(source) = self.job.accounts.first_mut() {
            source.makes = true;
        }
        self.makes = Some(job);
    }

    /// An account where new snapshots are written.
    pub(in crate::cli) fn write(&mut self, target: &str, aws: &AwsArgs) {
        self.account(target, aws, ebs_services(true), None);
        let words = aws.words();
        let mut known = self.accounts.iter().zip(&mut self.job.accounts);
        if let Some((_, account)) = known.find(|(known, _)| **known == words) {
            account.is_written = true;
        }
    }

    /// A repository, and the account of its bucket.
    pub(in crate::cli) fn store(
        &mut self,
        role: &str,
        address: Address,
        options: StoreOptions,
        aws: &AwsArgs,
        is_written: bool,
    ) {
        if address.is_s3() {
            let s3 = ServiceUse {
                service: Service::S3,
                is_needed: true,
            };
            self.account(role, aws, vec![s3], None);
        }
        self.stores.push((options, aws.clone()));
        self.job.stores.push(DoctorStore {
            address,
            is_written,
        });
    }
}

impl Examination {
    fn no_store(&self, number: usize) -> Error {
        let count = self.stores.len();
        let what = format!("the job has no store {number} of {count}");
        Error::new(Kind::Invalid, what)
    }
}

impl DoctorClients for Examination {
    fn url<'a>(&'a self, aws: &'a Aws, service: Service) -> BoxFuture<'a, Result<Option<String>>> {
        async move {
            Ok(match service {
                Service::Ebs => Some(ebs::url(aws).await?),
                #[cfg(feature = "ec2")]
                Service::Ec2 => Some(crate::ec2::url(aws).await?),
                Service::S3 => Some(repository::s3_url(aws).await?),
                Service::Sts => Some(aws.sts_url().await?),
                _ => None,
            })
        }
        .boxed()
    }

    fn catalog(&self, aws: &Aws, reads: &ReadNeeds, timeout: Duration) -> Result<Arc<dyn Catalog>> {
        let limits = Limits {
            timeout,
            ..self.limits
        };
        let (_, catalog) = aws::catalog(aws, &limits, reads.select.clone())?;
        Ok(catalog)
    }

    fn descriptions(&self, aws: &Aws) -> Result<Option<Arc<dyn Descriptions>>> {
        aws::descriptions(aws)
    }

    fn maker(&self, aws: &Aws) -> Result<Arc<dyn SnapshotMaker>> {
        aws::snapshot_maker(aws)
    }

    fn planned<'a>(
        &'a self,
        maker: &'a dyn SnapshotMaker,
    ) -> BoxFuture<'a, Result<PlannedSnapshots>> {
        async move {
            let mut planned = PlannedSnapshots {
                volumes: 0,
                calls: Vec::new(),
                failures: Vec::new(),
            };
            if let Some(job) = &self.makes
                && let JobSource::Ec2(volumes) = &job.source
            {
                let cycle = planned_cycle(job, volumes, maker, SystemTime::now()).await?;
                planned.volumes = cycle.volumes;
                planned.calls = cycle.calls;
                planned.failures = cycle.failures;
            }
            Ok(planned)
        }
        .boxed()
    }

    fn origin(&self, number: usize) -> BoxFuture<'_, Result<Option<(Http, StoreOrigin)>>> {
        async move {
            let place = self.stores.get(number).zip(self.job.stores.get(number));
            let Some(((_, aws), store)) = place else {
                return Err(self.no_store(number));
            };
            let origin = store_origin(&store.address).await?;
            origin.map(|origin| Ok((aws.http()?, origin))).transpose()
        }
        .boxed()
    }

    fn store(&self, number: usize) -> BoxFuture<'_, Result<Arc<Store>>> {
        async move {
            let place = self.stores.get(number).zip(self.job.stores.get(number));
            let Some(((options, aws), store)) = place else {
                return Err(self.no_store(number));
            };
            options.open(&store.address, aws, false).await
        }
        .boxed()
    }
}
