//! Metrics for Prometheus: what the other modules count, under names that stay, as text.
//!
//! # How the parts fit
//! Each module counts where things happen, in plain values: [`crate::aws::RequestCounts`], [`crate::repository::StoreTraffic`],
//! [`crate::fs::ActivityCounts`], [`crate::progress::Progress`], [`crate::replicate::JobStatus`]. Here each kind of count has one
//! file that turns it into [`Metric`]s: [`mod@requests`], [`mod@stores`], [`mod@mount`], [`mod@sync`], [`mod@replicate`], [`mod@process`]. A verb that counts something else gets a file of
//! its own beside them, named like the verb.
//! [`text`] writes the text format, the only file that names the library for it; [`server`] sends the text to whom asks by HTTP,
//! [`mod@file`] writes it for the textfile collector of node_exporter. `docs/metrics.md` explains every metric.
//!
//! # Rules
//! Names begin with `ebsfs_`; counters end with `_total`, times with `_seconds`, sizes with `_bytes`. A label has few values, which
//! are known when the program is built. Ids, paths and addresses are no labels: they are many, and some are secret.

mod file;
mod mount;
mod process;
mod replicate;
mod requests;
mod server;
mod stores;
mod sync;
mod text;

use crate::histogram::Histogram;

pub(crate) use file::MetricsFile;
pub(crate) use mount::{CacheUse, mount};
pub(crate) use process::process;
pub(crate) use replicate::{replicate, replicate_counts};
pub(crate) use requests::requests;
pub(crate) use server::{MetricsServer, ServedMetrics};
pub(crate) use stores::stores;
pub(crate) use sync::{KEPT, SyncEnd, sync, sync_end};

/// A metric: its name, what it is, and its values.
#[derive(Clone, Debug)]
pub(crate) struct Metric {
    /// The whole name, with `_total` for a counter.
    pub(crate) name: &'static str,
    /// One sentence.
    pub(crate) help: &'static str,
    /// Its values, each with its labels.
    pub(crate) values: MetricValues,
}

/// The name of a label and its value.
pub(crate) type MetricLabel = (&'static str, &'static str);

/// Values of one type, each with its labels.
#[derive(Clone, Debug)]
pub(crate) enum MetricValues {
    /// Numbers that only grow while the process runs.
    Counters(Vec<(Vec<MetricLabel>, u64)>),
    /// Numbers that can change in any way.
    Gauges(Vec<(Vec<MetricLabel>, f64)>),
    /// Durations.
    Histograms(Vec<(Vec<MetricLabel>, Histogram)>),
}

/// A counter without labels.
fn counter(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric {
        name,
        help,
        values: MetricValues::Counters(vec![(Vec::new(), value)]),
    }
}

/// A gauge without labels.
fn gauge(name: &'static str, help: &'static str, value: f64) -> Metric {
    Metric {
        name,
        help,
        values: MetricValues::Gauges(vec![(Vec::new(), value)]),
    }
}

/// Counters with one label.
fn counters(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> Metric {
    let values = values.into_iter();
    let values = values.map(|(of, value)| (vec![(label, of)], value));
    Metric {
        name,
        help,
        values: MetricValues::Counters(values.collect()),
    }
}
