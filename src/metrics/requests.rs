//! Metrics of requests to EBS and EC2.

use super::{Metric, MetricValues, counters};
use crate::aws::{ActionCounts, RequestCounts};

/// Metrics of requests to AWS, by IAM action.
pub(crate) fn requests(counts: &RequestCounts) -> Vec<Metric> {
    let counts = counts.by_action();
    let of = |name, help, value: fn(&ActionCounts) -> u64| {
        let values = counts
            .iter()
            .map(|(action, counts)| (*action, value(counts)));
        counters(name, help, "action", values)
    };
    let answers = counts
        .iter()
        .map(|(action, counts)| (vec![("action", *action)], counts.answers));
    vec![
        of(
            "ebsfs_aws_requests_total",
            "Requests sent to EBS and EC2, repeated ones included",
            |counts| counts.sent,
        ),
        of(
            "ebsfs_aws_retries_total",
            "Requests to EBS and EC2 that were sent again after a failure",
            |counts| counts.retries,
        ),
        of(
            "ebsfs_aws_hedges_total",
            "Requests to EBS that were sent a second time because the first was slow",
            |counts| counts.hedges,
        ),
        of(
            "ebsfs_aws_throttled_total",
            "Requests that EBS and EC2 refused because there were too many",
            |counts| counts.throttles,
        ),
        Metric {
            name: "ebsfs_aws_request_duration_seconds",
            help: "How long answers of EBS and EC2 took that were no failures",
            values: MetricValues::Histograms(answers.collect()),
        },
    ]
}
