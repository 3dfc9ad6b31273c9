//! Prices of the EBS direct APIs in us-east-1, in dollars: <https://aws.amazon.com/ebs/pricing/>, "EBS direct APIs".
//! GetSnapshotBlock and PutSnapshotBlock are priced per block, list calls per request.

/// Where the prices are from, for reports.
pub(crate) const PRICES: &str = "us-east-1, https://aws.amazon.com/ebs/pricing/";

/// Dollars for this many GetSnapshotBlock requests.
pub(crate) fn of_gets(requests: u64) -> f64 {
    requests as f64 * (0.003 / 1000.0)
}

/// Dollars for this many PutSnapshotBlock requests.
pub(crate) fn of_puts(requests: u64) -> f64 {
    requests as f64 * (0.006 / 1000.0)
}

/// Dollars for this many ListSnapshotBlocks or ListChangedBlocks requests.
pub(crate) fn of_lists(requests: u64) -> f64 {
    requests as f64 * (0.0006 / 1000.0)
}
