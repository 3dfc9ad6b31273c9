//! Where the metrics of a verb are served, and what all verbs count.

use std::net::SocketAddr;

use clap::Args;

use super::aws::AwsArgs;
use super::store::StoreArgs;
use crate::error::Result;
use crate::metrics::{Metric, MetricsServer, requests, stores};

/// Where the metrics of a verb that runs for long are served.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Metrics")]
pub(super) struct MetricsArgs {
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics, without TLS or a password, for example 127.0.0.1:9464
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
}

impl MetricsArgs {
    /// Takes the address, if one was given.
    pub(super) async fn bind(&self) -> Result<Option<MetricsServer>> {
        match self.metrics {
            Some(address) => MetricsServer::bind(address).await.map(Some),
            None => Ok(None),
        }
    }

    /// File descriptors that it takes, at most.
    pub(super) fn descriptors(&self) -> u64 {
        self.metrics.map_or(0, |_| MetricsServer::DESCRIPTORS)
    }
}

/// Reads the metrics of requests to AWS and to object stores by these options.
pub(super) fn traffic(
    aws: &AwsArgs,
    store: &StoreArgs,
) -> impl Fn() -> Vec<Metric> + Send + Sync + use<> {
    let (aws, store) = (aws.requests.clone(), store.traffic.clone());
    move || {
        let mut metrics = requests(&aws);
        metrics.extend(stores(&store));
        metrics
    }
}
