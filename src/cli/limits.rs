//! Rates, requests in flight and time-outs: options of all verbs that read blocks or list them.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::ebs::Limits;

#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// How long a block or a listing may take, all attempts together, before it is given up
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
    /// Requests on their way at once, to EBS and to each object store
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_in_flight, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) max_in_flight: u32,
    /// Blocks asked for in a second; AWS allows an account 1,000, and more when asked to
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_rps, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_rps: u32,
    /// The same for one snapshot; AWS allows 1,000
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_snapshot_rps, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_snapshot_rps: u32,
    /// List requests per second; AWS allows an account 50 [default: 49; for a mount 25]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_list_rps: Option<u32>,
    /// Ask a second time for a block that is slower than 99 of 100; billed, at most 2 % more requests
    #[arg(long)]
    hedge: bool,
}

/// List requests per second of a mount: half of the account's 50, since it runs for weeks beside other programs.
const MOUNT_LIST_RPS: u32 = 25;

/// The least that `--bandwidth` can be: a piece of a body each second.
const LEAST_BANDWIDTH: u64 = 1 << 10;

/// Reads a bandwidth.
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
