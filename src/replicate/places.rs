//! [`Places`]: what a cycle is connected to. The command line opens concrete sources and targets; a cycle sees traits.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;

use super::drills::{DrillFindings, DrillRequest};
use super::job::JobTarget;
use super::state::CycleRequests;
use crate::error::Result;
use crate::inventory::Inventory;
use crate::repository::{Lease, RepositoryCatalog};
use crate::snapshot::{SnapshotId, SnapshotMaker};
use crate::sync::Source;
use crate::target::{SourceInfo, Stop, Target};

/// A snapshot of the source that is open.
#[derive(Debug)]
pub(crate) struct OpenedSnapshot {
    /// The snapshot.
    pub(crate) source: Source,
    /// When it was complete in the repository that is the source; none where the source is EC2.
    pub(crate) published: Option<SystemTime>,
    /// Keeps what is read of a repository from being swept; none where the source is EC2, or may not be written.
    pub(crate) lease: Option<Lease>,
}

/// Opens what a cycle reads and writes. All of it shares one rate.
pub(crate) trait Places: Send + Sync {
    /// EC2 of the source.
    ///
    /// # Errors
    /// `Invalid` when the source is not EC2.
    fn maker(&self) -> Result<Arc<dyn SnapshotMaker>>;

    /// The repository that is the source.
    ///
    /// # Errors
    /// `Invalid` when the source is none; why it cannot be reached.
    fn source_repository(&self) -> BoxFuture<'_, Result<RepositoryCatalog>>;

    /// Opens a snapshot of the source; one that is pending is waited for.
    ///
    /// # Errors
    /// `NotFound` when it does not exist, `Pending` when it is not completed in time, `Denied` when it cannot be read.
    fn source<'a>(
        &'a self,
        id: &'a SnapshotId,
        wait: Duration,
    ) -> BoxFuture<'a, Result<OpenedSnapshot>>;

    /// Opens a target. Nothing is made or changed.
    ///
    /// # Errors
    /// Why it cannot be reached.
    fn target<'a>(
        &'a self,
        target: &'a JobTarget,
        name: &'a str,
        source: &'a SourceInfo,
    ) -> BoxFuture<'a, Result<Arc<dyn Target>>>;

    /// Opens an image or a device of this machine. Nothing outside it is asked, and nothing is made or changed.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn local_target(&self, target: &JobTarget, name: &str) -> Result<Arc<dyn Target>>;

    /// Opens a repository, to remove snapshots from it.
    ///
    /// # Errors
    /// Why it cannot be reached.
    fn repository<'a>(
        &'a self,
        target: &'a JobTarget,
        name: &'a str,
    ) -> BoxFuture<'a, Result<RepositoryCatalog>>;

    /// EC2 of an `ebs:` target, to delete snapshots there.
    ///
    /// # Errors
    /// Why it cannot be reached.
    fn account<'a>(
        &'a self,
        target: &'a JobTarget,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn SnapshotMaker>>>;

    /// Describes an instance of the source and its network.
    ///
    /// # Errors
    /// `NotFound` when there is no such instance, `Denied` where it may not be described, else why it is not answered.
    fn inventory<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Inventory>>;

    /// Drills a recovery point; a stop ends it at once.
    ///
    /// # Errors
    /// `Stopped`; why it came to no result. A drill that failed is no error: see [`DrillFindings::failure`].
    fn drill<'a>(
        &'a self,
        request: &'a DrillRequest<'a>,
        stop: &'a Stop,
    ) -> BoxFuture<'a, Result<DrillFindings>>;

    /// Sets the rate of each direction in bytes a second; none: unlimited.
    fn set_rate(&self, bytes_a_second: Option<u64>);

    /// Requests to EBS since these places were opened.
    fn requests(&self) -> CycleRequests;
}
