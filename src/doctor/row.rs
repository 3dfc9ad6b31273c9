//! [`DoctorRow`]: one check of one object. [`RowBoard`]: the rows of a run, planned before their results come.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Remedy};
use crate::time::in_words;

/// A kind of row, in the order in which things break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CheckKind {
    /// Region, profile and provider of credentials.
    Configuration,
    /// The URL of a service, and where it was given.
    Endpoint,
    /// The addresses of a host.
    Name,
    /// Route and TCP.
    Connection,
    /// The consent of a proxy.
    Proxy,
    /// Certificates.
    Tls,
    /// An answer over HTTP.
    Answer,
    /// A request that fills packets.
    Packets,
    /// The clock of this machine.
    Clock,
    /// Keys to sign with.
    Credentials,
    /// Who calls.
    Identity,
    /// An action of IAM.
    Permission,
    /// Quotas of the account.
    Quota,
    /// Blocks a second.
    Rate,
    /// A repository's store.
    Store,
    /// This machine.
    Machine,
}

impl CheckKind {
    /// Its name for people and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Endpoint => "endpoint",
            Self::Name => "name",
            Self::Connection => "connection",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Answer => "answer",
            Self::Packets => "packets",
            Self::Clock => "clock",
            Self::Credentials => "credentials",
            Self::Identity => "identity",
            Self::Permission => "permission",
            Self::Quota => "quota",
            Self::Rate => "rate",
            Self::Store => "store",
            Self::Machine => "machine",
        }
    }
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowState {
    /// As it should be.
    Good,
    /// The verb works, but not as well as it could, or not for long.
    Warning,
    /// The verb will fail here.
    Failed,
    /// Not checked, with the reason.
    Unknown,
}

impl RowState {
    /// Its name for people and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// What a check came to, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowFinding {
    /// Good or not.
    pub(crate) state: RowState,
    /// What was seen.
    pub(crate) seen: String,
    /// What to do about it.
    pub(crate) fix: Option<Remedy>,
}

impl RowFinding {
    pub(super) fn good(seen: impl Into<String>) -> Self {
        Self::of(RowState::Good, seen)
    }

    pub(super) fn unknown(seen: impl Into<String>) -> Self {
        Self::of(RowState::Unknown, seen)
    }

    pub(super) fn warning(seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::of(RowState::Warning, seen).fixed_by(fix)
    }

    pub(super) fn failed(seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::of(RowState::Failed, seen).fixed_by(fix)
    }

    /// A failure as the verb reports it.
    pub(super) fn of_error(error: &Error) -> Self {
        Self {
            fix: error.remedy().cloned(),
            ..Self::of(RowState::Failed, error.chain())
        }
    }

    fn of(state: RowState, seen: impl Into<String>) -> Self {
        Self {
            state,
            seen: seen.into(),
            fix: None,
        }
    }

    pub(super) fn fixed_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(Remedy::Do(fix.into()));
        self
    }

    /// The same for what the verb can do without.
    pub(super) fn unless_needed(mut self, is_needed: bool) -> Self {
        if self.state == RowState::Failed && !is_needed {
            self.state = RowState::Warning;
        }
        self
    }
}

/// A check of one object.
#[derive(Clone, Debug)]
pub(crate) struct DoctorRow {
    /// Which check.
    pub(crate) check: CheckKind,
    /// Of what: a host, a file, an action.
    pub(crate) object: String,
    /// What it came to.
    pub(crate) finding: RowFinding,
    /// How long it took.
    pub(crate) took: Duration,
    /// Whether it was left out because a row that it depends on failed.
    pub(crate) is_skipped: bool,
    /// Whether it had no result in the time of the whole run.
    pub(crate) is_late: bool,
}

/// The rows of a run.
#[derive(Default)]
pub(super) struct RowBoard(Mutex<Vec<PlannedRow>>);

struct PlannedRow {
    check: CheckKind,
    object: String,
    since: Instant,
    result: Option<(RowFinding, Duration)>,
    is_skipped: bool,
}

/// A row of a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowId(usize);

impl RowBoard {
    /// A row whose result comes later.
    pub(super) fn plan(&self, check: CheckKind, object: impl Into<String>) -> RowId {
        let mut rows = self.0.lock();
        rows.push(PlannedRow {
            check,
            object: object.into(),
            since: Instant::now(),
            result: None,
            is_skipped: false,
        });
        RowId(rows.len() - 1)
    }

    /// The clock of a row starts: until now it waited for others.
    pub(super) fn start(&self, row: RowId) {
        if let Some(row) = self.0.lock().get_mut(row.0) {
            row.since = Instant::now();
        }
    }

    /// The result of a row, which took until now.
    pub(super) fn fill(&self, row: RowId, finding: RowFinding) {
        if let Some(row) = self.0.lock().get_mut(row.0) {
            row.result = Some((finding, row.since.elapsed()));
        }
    }

    /// The result of a row, and how long it took.
    pub(super) fn fill_after(&self, row: RowId, finding: RowFinding, took: Duration) {
        if let Some(row) = self.0.lock().get_mut(row.0) {
            row.result = Some((finding, took));
        }
    }

    /// The rows depend on one that failed.
    pub(super) fn skip(&self, rows: &[RowId], because: RowId) {
        let mut all = self.0.lock();
        let Some(cause) = all.get(because.0) else {
            return;
        };
        let seen = format!(
            "not checked because of {} {}",
            cause.check.name(),
            cause.object
        );
        for row in rows {
            if let Some(row) = all.get_mut(row.0) {
                row.result = Some((RowFinding::unknown(seen.clone()), Duration::ZERO));
                row.is_skipped = true;
            }
        }
    }

    /// All rows, in the order in which things break. Those without a result had this time.
    pub(super) fn into_rows(self, limit: Duration) -> Vec<DoctorRow> {
        let mut rows: Vec<DoctorRow> = self
            .0
            .into_inner()
            .into_iter()
            .map(|row| {
                let none = || {
                    (
                        RowFinding::unknown(format!("no result within {}", in_words(limit))),
                        limit,
                    )
                };
                let is_late = row.result.is_none();
                let (finding, took) = row.result.unwrap_or_else(none);
                DoctorRow {
                    check: row.check,
                    object: row.object,
                    finding,
                    took,
                    is_skipped: row.is_skipped,
                    is_late,
                }
            })
            .collect();
        // A stable sort: the rows of a check stay in their order.
        rows.sort_by_key(|row| row.check);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_result_is_unknown_and_so_is_one_after_a_failed_one() {
        let board = RowBoard::default();
        let tls = board.plan(CheckKind::Tls, "h:443");
        let answer = board.plan(CheckKind::Answer, "h:443");
        let name = board.plan(CheckKind::Name, "h");
        let lost = board.plan(CheckKind::Machine, "disk");
        board.fill(name, RowFinding::good("10.0.0.1"));
        board.fill(tls, RowFinding::failed("expired", "renew it"));
        board.skip(&[answer], tls);
        let _ = lost;
        let rows = board.into_rows(Duration::from_secs(15));
        let late: Vec<bool> = rows.iter().map(|row| row.is_late).collect();
        assert_eq!(late, [false, false, false, true]);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.check, row.finding.state, row.finding.seen.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (CheckKind::Name, RowState::Good, "10.0.0.1"),
                (CheckKind::Tls, RowState::Failed, "expired"),
                (
                    CheckKind::Answer,
                    RowState::Unknown,
                    "not checked because of tls h:443"
                ),
                (
                    CheckKind::Machine,
                    RowState::Unknown,
                    "no result within 15 s"
                ),
            ]
        );
    }

    #[test]
    fn what_a_verb_can_do_without_only_warns() {
        let failed = RowFinding::failed("a", "b");
        assert_eq!(failed.clone().unless_needed(true).state, RowState::Failed);
        assert_eq!(failed.unless_needed(false).state, RowState::Warning);
        assert_eq!(
            RowFinding::good("a").unless_needed(false).state,
            RowState::Good
        );
    }
}
