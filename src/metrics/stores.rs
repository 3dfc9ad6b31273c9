//! Metrics of repositories' object stores.

use super::{Metric, counter, counters};
use crate::repository::{OperationCounts, StoreTraffic};

/// Metrics of operations on object stores.
pub(crate) fn stores(traffic: &StoreTraffic) -> Vec<Metric> {
    let counts = traffic.counts();
    let of = |name, help, value: fn(&OperationCounts) -> u64| {
        let values = counts.operations.iter();
        let values = values.map(|(operation, counts)| (*operation, value(counts)));
        counters(name, help, "operation", values)
    };
    vec![
        of(
            "ebsfs_store_operations_total",
            "Operations on object stores, repeated ones included",
            |counts| counts.attempts,
        ),
        of(
            "ebsfs_store_retries_total",
            "Operations on object stores that were repeated after a failure",
            |counts| counts.retries,
        ),
        counter(
            "ebsfs_store_read_bytes_total",
            "Bytes of objects that were read from object stores",
            counts.bytes_read,
        ),
        counter(
            "ebsfs_store_written_bytes_total",
            "Bytes of objects that were written to object stores",
            counts.bytes_written,
        ),
    ]
}
