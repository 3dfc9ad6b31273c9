//! Rates, requests in flight and time-outs: options of all verbs that read blocks or list them.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::ebs::Limits;

#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// Time that a block or a listing may take, with its retries, before it fails
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
    /// Concurrent requests, to EBS and to each object store
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_in_flight, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) max_in_flight: u32,
    /// Blocks requested per second; AWS allows an account 1,000, and more on request
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_rps, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_rps: u32,
    /// Blocks requested per second from one snapshot; AWS allows 1,000
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_snapshot_rps, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_snapshot_rps: u32,
    /// List requests per second; AWS allows an account 50 [default: 49; for a mount 25]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_list_rps: Option<u32>,
    /// Request a block a second time when it takes longer than 99 of 100 blocks do: at most 2 % more requests, which AWS bills
    #[arg(long)]
    hedge: bool,
}

/// List requests per second of a mount: half of the account's 50, since it runs for weeks beside other programs.
const MOUNT_LIST_RPS: u32 = 25;

/// The least `--bandwidth`, in bytes per second: the smallest piece of a body that waits for a turn.
const LEAST_BANDWIDTH: u64 = 1 << 10;

/// Parses a bandwidth in bytes per second.
pub(super) fn bandwidth(text: &str) -> std::result::Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if size.as_u64() < LEAST_BANDWIDTH {
        return Err("must be at least 1KiB a second".into());
    }
    Ok(size)
}

impl LimitArgs {
    /// The limits of a mount.
    pub(super) fn mount_limits(&self) -> Limits {
        Limits {
            max_list_rps: self.max_list_rps.unwrap_or(MOUNT_LIST_RPS),
            ..self.limits()
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_in_flight: self.max_in_flight,
            max_rps: self.max_rps,
            max_snapshot_rps: self.max_snapshot_rps,
            max_list_rps: self.max_list_rps.unwrap_or(Limits::default().max_list_rps),
            hedge: self.hedge,
            timeout: self.timeout,
        }
    }
}
