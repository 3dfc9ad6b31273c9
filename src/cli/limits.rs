//! How fast and how patient: options of all verbs that read blocks.

use std::time::Duration;

use clap::Args;

use crate::ebs::Limits;

#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// How long a block or a listing may take, all attempts together, before it is given up
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
    /// Requests on their way at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_in_flight, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) max_in_flight: u32,
    /// Blocks asked for in a second; AWS allows an account 1,000, and more when asked to
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_rps, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_rps: u32,
    /// The same for one snapshot; AWS allows 1,000
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_snapshot_rps, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_snapshot_rps: u32,
    /// Ask a second time for a block that is slower than 99 of 100; billed, at most 2 % more requests
    #[arg(long)]
    hedge: bool,
}

impl LimitArgs {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_in_flight: self.max_in_flight,
            max_rps: self.max_rps,
            max_snapshot_rps: self.max_snapshot_rps,
            hedge: self.hedge,
            timeout: self.timeout,
        }
    }
}
