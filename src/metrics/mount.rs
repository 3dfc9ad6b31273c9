//! Metrics of a mount: its readers and its caches.

use super::{Metric, MetricValues, counter, counters, gauge};
use crate::error::Kind;
use crate::fs::ActivityCounts;

/// How the caches of a mount were used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheUse {
    /// Reads of blocks that memory answered.
    pub(crate) memory_hits: u64,
    /// Blocks that the cache on disk answered; none without one.
    pub(crate) disk_hits: Option<u64>,
    /// Blocks fetched from the source.
    pub(crate) fetched: u64,
}

/// Metrics of a mount.
pub(crate) fn mount(activity: &ActivityCounts, cache: CacheUse) -> Vec<Metric> {
    // Each kind from the start: Prometheus sees no growth in a series that begins at 1.
    let failures = Kind::ALL.map(|kind| {
        let count = activity.failures.get(kind.name());
        (kind.name(), count.copied().unwrap_or_default())
    });
    let disk_hits = cache.disk_hits.map(|hits| ("disk", hits));
    let hits = [("memory", cache.memory_hits)].into_iter().chain(disk_hits);
    vec![
        Metric {
            name: "ebsfs_mount_read_duration_seconds",
            help: "How long reads of the kernel took that were answered with bytes",
            values: MetricValues::Histograms(vec![(Vec::new(), activity.reads)]),
        },
        counter(
            "ebsfs_mount_read_bytes_total",
            "Bytes that reads of the kernel were answered with",
            activity.bytes,
        ),
        counters(
            "ebsfs_mount_failures_total",
            "Requests of the kernel that were answered with an error",
            "error",
            failures,
        ),
        gauge(
            "ebsfs_mount_open_files",
            "Files of the mount that are open",
            activity.open_files as f64,
        ),
        counters(
            "ebsfs_cache_hits_total",
            "Blocks that a cache answered",
            "tier",
            hits,
        ),
        counter(
            "ebsfs_cache_fetches_total",
            "Blocks that no cache held and that were fetched",
            cache.fetched,
        ),
    ]
}
