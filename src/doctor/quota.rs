//! The quotas of the EBS direct APIs that limit how fast a verb is. A verb works without the answer of Service Quotas, which
//! private networks seldom reach: the row is unknown then, and names the defaults.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::deadline::within;
use super::row::{CheckKind, RowBoard, RowFinding, RowId};
use crate::aws::Aws;
use crate::error::Result;

/// How long the requests may take together.
const ASKED: Duration = Duration::from_secs(4);
/// The rest of the whole time, for the other rows.
const SPARE: Duration = Duration::from_secs(1);

/// A quota of the EBS direct APIs: code and default as
/// <https://docs.aws.amazon.com/ebs/latest/userguide/ebs-resource-quotas.html> has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct EbsQuota {
    /// What it counts.
    what: &'static str,
    code: &'static str,
    default: u32,
    /// The unit, with the space before it.
    unit: &'static str,
}

/// Those of a verb that reads snapshots.
const OF_READERS: &[EbsQuota] = &[
    quota("GetSnapshotBlock", "L-C125AE42", 1000, " a second"),
    quota(
        "GetSnapshotBlock of one snapshot",
        "L-028ACFB9",
        1000,
        " a second",
    ),
];
/// Those of a verb that writes snapshots.
const OF_WRITERS: &[EbsQuota] = &[
    quota("PutSnapshotBlock", "L-AFAE1BE8", 1000, " a second"),
    quota(
        "PutSnapshotBlock of one snapshot",
        "L-1774F84A",
        1000,
        " a second",
    ),
    quota("pending snapshots", "L-94D7AB7D", 100, ""),
];

const fn quota(
    what: &'static str,
    code: &'static str,
    default: u32,
    unit: &'static str,
) -> EbsQuota {
    EbsQuota {
        what,
        code,
        default,
        unit,
    }
}

/// The row of quotas, and which they are.
#[derive(Clone, Debug)]
pub(super) struct QuotaRow {
    pub(super) id: RowId,
    quotas: Vec<EbsQuota>,
}

impl QuotaRow {
    /// The row of an account; none where no blocks are read and none are written.
    pub(super) fn plan(board: &RowBoard, role: &str, reads: bool, writes: bool) -> Option<Self> {
        let quotas = quotas(reads, writes);
        let plan = || board.plan(CheckKind::Quota, role);
        (!quotas.is_empty()).then(|| Self { id: plan(), quotas })
    }
}

fn quotas(reads: bool, writes: bool) -> Vec<EbsQuota> {
    let read = OF_READERS.iter().filter(|_| reads);
    let written = OF_WRITERS.iter().filter(|_| writes);
    read.chain(written).copied().collect()
}

/// Asks for the quotas, all at once. `foreign`: the host of EBS, where that is none of AWS.
pub(super) async fn check(
    board: &RowBoard,
    row: &QuotaRow,
    aws: &Aws,
    foreign: Option<&str>,
    until: Instant,
) {
    let region = aws.region().unwrap_or("REGION");
    board.start(row.id);
    if let Some(host) = foreign {
        let seen = format!("EBS is {host}, whose quotas AWS does not know");
        return board.fill(row.id, RowFinding::unknown(seen));
    }
    let left = until.saturating_duration_since(Instant::now());
    let limit = ASKED.min(left.saturating_sub(SPARE));
    let ask = |quota: EbsQuota| async move { within(limit, aws.ebs_quota(quota.code)).await };
    let values = join_all(row.quotas.iter().copied().map(ask)).await;
    board.fill(row.id, decide(&row.quotas, values, region));
}

/// The row of quotas, by the values in their order. Service Quotas has none for some that cannot be changed: their defaults hold
/// (<https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_GetServiceQuota.html>).
fn decide(quotas: &[EbsQuota], values: Vec<Result<f64>>, region: &str) -> RowFinding {
    let is_answered = values.iter().any(Result::is_ok);
    // Where none has a value, the row says once that these are the defaults.
    let mark = if is_answered { " (default)" } else { "" };
    let words = quotas.iter().zip(&values).map(|(quota, value)| {
        let (value, mark) = match value {
            Ok(value) => (*value, ""),
            Err(_) => (quota.default.into(), mark),
        };
        format!("{} {}{}{mark}", quota.what, grouped(value), quota.unit)
    });
    let words = words.collect::<Vec<_>>().join(", ");
    match values.into_iter().find_map(Result::err) {
        Some(error) if !is_answered => {
            let first = quotas.first().map_or("", |quota| quota.code);
            let seen = format!("{}; the defaults are {words}", error.chain());
            RowFinding::unknown(seen).fixed_by(format!(
                "the verb works without it; where Service Quotas can be reached: aws service-quotas get-service-quota \
                 --service-code ebs --quota-code {first} --region {region}"
            ))
        }
        _ => RowFinding::good(words),
    }
}

/// A number with commas between its thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;
    use crate::error::{Error, Kind};

    #[test]
    fn a_verb_has_the_quotas_of_what_it_does() {
        for (reads, writes, count) in [
            (false, false, 0),
            (true, false, 2),
            (false, true, 3),
            (true, true, 5),
        ] {
            assert_eq!(quotas(reads, writes).len(), count);
        }
    }

    #[test]
    fn values_are_good_and_without_them_the_defaults_are_named() {
        let of = quotas(true, false);
        let failed = || Err(Error::new(Kind::Unavailable, "no result in 4 s"));
        let good = decide(&of, vec![Ok(5000.0), Ok(1000.0)], "eu-west-1");
        assert_eq!(good.state, RowState::Good);
        assert_eq!(
            good.seen,
            "GetSnapshotBlock 5,000 a second, GetSnapshotBlock of one snapshot 1,000 a second"
        );
        let partly = decide(&of, vec![Ok(5000.0), failed()], "eu-west-1");
        assert_eq!(partly.state, RowState::Good);
        assert_eq!(partly.seen, format!("{} (default)", good.seen));
        let unknown = decide(&of, vec![failed(), failed()], "eu-west-1");
        assert_eq!(unknown.state, RowState::Unknown);
        let words = "no result in 4 s; the defaults are GetSnapshotBlock 1,000 a second";
        assert!(unknown.seen.starts_with(words), "{unknown:?}");
        let fix = format!("{:?}", unknown.fix);
        assert!(
            fix.contains("--quota-code L-C125AE42 --region eu-west-1"),
            "{fix}"
        );
    }

    #[test]
    fn thousands_are_grouped() {
        for (value, text) in [
            (0.0, "0"),
            (100.0, "100"),
            (1000.0, "1,000"),
            (12_345_678.0, "12,345,678"),
        ] {
            assert_eq!(grouped(value), text);
        }
    }
}
