//! [`SourceArgs`]: how the source of a verb that reads is reached.

use std::path::Path;

use clap::Args;

use super::{SourceRequest, ToEbs};
use crate::cli::aws::AwsArgs;
use crate::cli::limits::LimitArgs;
use crate::cli::store::{
    LeaseArgs, NewObjectArgs, StoreArgs, StoreLine, StoreOptions, addresses, check_repositories,
    check_s3,
};
use crate::error::Result;
use crate::repository::Bandwidth;

/// Options of the stores, the lease of a reader, the limits and AWS.
#[derive(Args, Debug)]
pub(in crate::cli) struct SourceArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    new: NewObjectArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    #[command(flatten)]
    pub(in crate::cli) limits: LimitArgs,
    #[command(flatten)]
    pub(in crate::cli) aws: AwsArgs,
}

impl SourceArgs {
    /// Refuses options that would do nothing for sources of these names.
    pub(in crate::cli) fn check<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let places = addresses(names);
        check_s3(&self.store.given(), &places)?;
        check_s3(&self.new.given(), &places)?;
        check_repositories(&self.lease.given(), &places)
    }

    /// How the stores of repositories are reached; all of them share one bandwidth.
    pub(in crate::cli) fn store(&self, bandwidth: Bandwidth) -> StoreOptions {
        let line = StoreLine::of(&self.limits.limits(), bandwidth);
        let store = self.store.options(line).writing(&self.new);
        store.with_lease(self.lease.lease())
    }

    /// A source that is only read, without a limit of the bandwidth.
    pub(in crate::cli) fn request<'a>(
        &'a self,
        name: &'a str,
        state_dir: &'a Path,
    ) -> SourceRequest<'a> {
        SourceRequest {
            name,
            aws: &self.aws,
            store: self.store(Bandwidth::default()),
            limits: self.limits.limits(),
            wait: None,
            state_dir,
            to_ebs: ToEbs::None,
        }
    }
}
