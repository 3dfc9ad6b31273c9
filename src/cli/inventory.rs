//! `ebsfs inventory`: prints the machine around the disks of an instance as JSON.

use std::time::SystemTime;

use clap::Args;
use tracing::warn;

use super::aws::{self, AwsArgs};
use super::{output, signals};
use crate::error::{Error, Kind, Result};
use crate::inventory::{InventoryOmission, OmissionReason, inventory};
use crate::snapshot::instance_id;

/// Describe the machine around the disks of an instance as JSON
#[derive(Args, Debug)]
#[command(
    long_about = "Describe the machine around the disks of an instance as JSON: its type, vCPUs, memory, architecture, boot mode, disks in \
    device order, network interfaces, addresses, VPC, subnets, security groups, image and tags.\n\n\
    What the caller may not describe is left out, and \"omitted\" names it with the IAM action. User data and secrets are never read."
)]
pub(super) struct InventoryArgs {
    /// Instance to describe, for example i-0123456789abcdef0
    #[arg(value_name = "INSTANCE", value_parser = instance_id)]
    instance: String,
    #[command(flatten)]
    aws: AwsArgs,
}

impl InventoryArgs {
    pub(super) fn run(self) -> Result<()> {
        let found = super::runtime()?.block_on(async {
            let stop = signals::listen()?;
            let work = async {
                let config = self.aws.load_with_credentials().await?;
                let describe = aws::machines(&config)?;
                let region = config.region();
                inventory(&*describe, &self.instance, region, SystemTime::now()).await
            };
            stop.unless(work).await.map_err(signals::only_read)
        })?;
        found.omitted.iter().for_each(warn_of);
        let text = serde_json::to_string_pretty(&found)
            .map_err(|error| Error::with_source(Kind::Io, "cannot write JSON", error))?;
        output::write(None, |out| writeln!(out, "{text}"))
    }
}

fn warn_of(omission: &InventoryOmission) {
    let InventoryOmission {
        part,
        action,
        reason,
    } = omission;
    match reason {
        OmissionReason::Denied => {
            warn!("{part}: left out, the caller needs the permission {action}");
        }
        OmissionReason::NotFound => {
            warn!("{part}: left out, {action} does not find it in this Region and account");
        }
    }
}
