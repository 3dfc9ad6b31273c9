//! `ebsfs sync`: a snapshot, or what changed since another, into images, devices and new snapshots; resumed by saying it
//! again.

mod choice;
mod plan;
mod remote;
mod report;
mod repository;
mod run;
mod show;
mod source;
mod status;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::aws::AwsArgs;
use super::limits::LimitArgs;
use super::store::StoreArgs;
use crate::block::BLOCK_SIZE;
use crate::ebs::Limits;
use crate::error::Result;
use crate::repository::Address;

use plan::Base;
use remote::ToArgs;
use show::ProgressForm;
use source::Source;

/// The longest that a block waits for its turn under `--bandwidth`: so few are asked for at once.
const TURN: Duration = Duration::from_secs(10);

/// Replicate a snapshot, or only its changes, and survive anything
#[derive(Args, Debug)]
#[command(
    long_about = "Replicate a snapshot, or only its changes, into raw images, block devices, new EBS snapshots and \
    repositories in object stores.\n\n\
    The same command again goes on where it was stopped or killed. A new image appears whole or not at all; a device, or an \
    image with --in-place, is recorded as unusable until it is whole."
)]
pub(super) struct SyncArgs {
    /// A snapshot id, a raw image or block device of this machine, or a snapshot of a repository: s3://BUCKET/PREFIX#SNAPSHOT,
    /// #latest, #VOLUME or #VOLUME@TIME
    #[arg(required_unless_present = "status")]
    source: Option<String>,
    /// Images to make or to replace, block devices to overwrite, `ebs:` or ebs:REGION for a new EBS snapshot, s3://BUCKET/PREFIX
    /// (az://, gs://, file:///FOLDER) for a repository
    #[arg(required_unless_present = "status", value_name = "TARGET")]
    targets: Vec<String>,
    /// Copy only what changed since this snapshot, which the targets must hold; auto: since the one that each of them holds,
    /// or all of it where that is not known or no longer there
    #[arg(long, value_name = "SNAPSHOT | auto")]
    base: Option<Base>,
    /// Send nothing to a repository that it holds in any snapshot of any volume, by an index in the state folder
    #[arg(long)]
    dedup: bool,
    /// Change an image itself, not a copy of it that replaces it in the end
    #[arg(long)]
    in_place: bool,
    /// Forget what an unfinished run has done for the targets
    #[arg(long)]
    restart: bool,
    /// Print what is to be done and what it costs, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Overwrite devices, and images that ebsfs has not written, without asking
    #[arg(long)]
    yes: bool,
    /// Read the targets back, past the page cache, and compare
    #[arg(long)]
    verify: bool,
    /// Read the targets back and print the SHA-256 of each whole image, holes included
    #[arg(long)]
    digest: bool,
    /// Write what was done to this file, as JSON, with the SHA-256 of each block
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How to show how far it is
    #[arg(long, value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    /// What a target holds, or what of new snapshots (ebs:) and in a repository is unfinished, and do nothing
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["source", "targets", "base"])]
    status: Option<String>,
    /// Where it is kept what devices hold, and how far they and new snapshots are
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/lib/ebsfs",
        env = "EBSFS_STATE_DIR"
    )]
    state_dir: PathBuf,
    /// Bytes to fetch in a second, at most; 512 KiB or more
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth: Option<ByteSize>,
    #[command(flatten)]
    to: ToArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

fn bandwidth(text: &str) -> std::result::Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if size.as_u64() < BLOCK_SIZE.into() {
        return Err("less than 512 KiB: a block a second is the least".into());
    }
    Ok(size)
}

impl SyncArgs {
    pub(super) fn run(self) -> Result<()> {
        if let Some(target) = &self.status {
            return status::tell(target, &self.state_dir, self.in_place);
        }
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.sync());
        runtime.shutdown_timeout(Duration::from_millis(200));
        done
    }

    /// The limits of the command line, and of the bandwidth.
    fn limits(&self) -> Limits {
        let mut limits = self.limits.limits();
        limits.max_rps = limits.max_rps.min(self.blocks_a_second());
        limits
    }

    fn blocks_a_second(&self) -> u32 {
        self.bandwidth.map_or(u32::MAX, |bandwidth| {
            u32::try_from(bandwidth.as_u64() / u64::from(BLOCK_SIZE)).unwrap_or(u32::MAX)
        })
    }

    /// Blocks that may be fetched in a second.
    fn rate(&self) -> u32 {
        let limits = self.limits();
        limits.max_rps.min(limits.max_snapshot_rps)
    }

    fn in_flight(&self) -> usize {
        let turn = u32::try_from(TURN.as_secs()).unwrap_or(1);
        let most = self.blocks_a_second().saturating_mul(turn);
        // Packs take memory too; 40 blocks in 40 ms are as many as EBS gives.
        let packs = self
            .targets
            .iter()
            .any(|target| Address::looks_like(target));
        let most = if packs { most.min(40) } else { most };
        self.limits.max_in_flight.min(most).max(2) as usize
    }
}
