//! [`DoctorJob`]: what a verb would need, as plain values, and [`DoctorClients`]: how it would reach that.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::aws::{Aws, Http, Service, Settings};
use crate::error::{Error, Result};
use crate::fs::Needs;
use crate::repository::{Address, Store, StoreOrigin};
use crate::snapshot::{Descriptions, NewSnapshots, Selector, SnapshotMaker};
use crate::source::Catalog;

/// What is checked.
#[derive(Debug, Default)]
pub(crate) struct DoctorJob {
    /// Accounts of AWS, each with its services.
    pub(crate) accounts: Vec<DoctorAccount>,
    /// Repositories.
    pub(crate) stores: Vec<DoctorStore>,
    /// This machine.
    pub(crate) machine: MachineNeeds,
    /// Whether a check may write: objects of its own to a store, which it deletes.
    pub(crate) writes: bool,
}

/// AWS as one side of a verb sees it.
#[derive(Debug)]
pub(crate) struct DoctorAccount {
    /// `source`, or the name of a target.
    pub(crate) role: String,
    /// As the verb would have them.
    pub(crate) settings: Settings,
    /// What is asked there.
    pub(crate) services: Vec<ServiceUse>,
    /// What is read there.
    pub(crate) reads: Option<ReadNeeds>,
    /// Whether snapshots of volumes are made there.
    pub(crate) makes: bool,
    /// Whether new snapshots are written there.
    pub(crate) is_written: bool,
}

/// A service, and whether the verb can do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServiceUse {
    /// Which.
    pub(crate) service: Service,
    /// Whether the verb fails without it.
    pub(crate) is_needed: bool,
}

/// Snapshots that are read.
#[derive(Clone, Debug)]
pub(crate) struct ReadNeeds {
    /// Which; none are all of the account.
    pub(crate) select: Vec<Selector>,
    /// How long blocks are fetched to measure the rate; zero: not at all.
    pub(crate) sample: Duration,
    /// Requests in flight at once.
    pub(crate) in_flight: usize,
}

/// A repository.
#[derive(Clone, Debug)]
pub(crate) struct DoctorStore {
    /// Where.
    pub(crate) address: Address,
    /// Whether the verb writes to it.
    pub(crate) is_written: bool,
}

/// What is needed of this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct MachineNeeds {
    /// A mount.
    pub(crate) mount: Option<MountNeeds>,
    /// The directory of records and checkpoints.
    pub(crate) state_dir: Option<PathBuf>,
    /// Directories that are written: a cache, a stage.
    pub(crate) folders: Vec<PathBuf>,
    /// Images and devices that are written.
    pub(crate) targets: Vec<PathBuf>,
}

/// What a mount needs.
#[derive(Clone, Debug)]
pub(crate) struct MountNeeds {
    /// Where; none where it is not named.
    pub(crate) mountpoint: Option<PathBuf>,
    /// Whether other users are to reach it.
    pub(crate) allows_others: bool,
    /// Threads, descriptors and memory.
    pub(crate) needs: Needs,
}

/// The snapshots that a job would make if it ran now.
#[derive(Debug)]
pub(crate) struct PlannedSnapshots {
    /// How many volumes are selected.
    pub(crate) volumes: usize,
    /// The calls that make them, with their tags.
    pub(crate) calls: Vec<NewSnapshots>,
    /// Why selectors of the job select nothing.
    pub(crate) failures: Vec<Error>,
}

/// Reaches what a verb would reach, in the same way.
pub(crate) trait DoctorClients: Send + Sync {
    /// The URL of a service; none where this build cannot ask it.
    ///
    /// # Errors
    /// `Invalid` for settings that make none.
    fn url<'a>(&'a self, aws: &'a Aws, service: Service) -> BoxFuture<'a, Result<Option<String>>>;

    /// The snapshots that are read, each attempt limited by `timeout`.
    ///
    /// # Errors
    /// `Invalid` for an endpoint that cannot be used.
    fn catalog(&self, aws: &Aws, reads: &ReadNeeds, timeout: Duration) -> Result<Arc<dyn Catalog>>;

    /// EC2, where it is built in.
    ///
    /// # Errors
    /// `Invalid` for an endpoint that cannot be used.
    fn descriptions(&self, aws: &Aws) -> Result<Option<Arc<dyn Descriptions>>>;

    /// What makes snapshots.
    ///
    /// # Errors
    /// `Invalid` for an endpoint that cannot be used, and where EC2 is not built in.
    fn maker(&self, aws: &Aws) -> Result<Arc<dyn SnapshotMaker>>;

    /// The calls that the job would make now. Nothing is made.
    ///
    /// # Errors
    /// Why EC2 could not be asked.
    fn planned<'a>(
        &'a self,
        maker: &'a dyn SnapshotMaker,
    ) -> BoxFuture<'a, Result<PlannedSnapshots>>;

    /// Where the store of this number is and the connections to it, if it is in Azure or Google. That of S3 is a service of an
    /// account.
    ///
    /// # Errors
    /// `Invalid` for settings that make no client.
    fn origin(&self, number: usize) -> BoxFuture<'_, Result<Option<(Http, StoreOrigin)>>>;

    /// The store of this number in the job.
    ///
    /// # Errors
    /// Why it cannot be reached.
    fn store(&self, number: usize) -> BoxFuture<'_, Result<Arc<Store>>>;
}
