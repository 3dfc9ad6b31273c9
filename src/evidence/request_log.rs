//! [`RequestLog`]: a line for each request to AWS, with AWS's id of it, and how far AWS's clocks are from ours.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::folder::{FileFacts, HashedFile, NewFolder, REQUESTS};
use crate::aws::{ObservedRequest, RequestObserver};
use crate::error::{Error, Kind, Result};
use crate::time::rfc3339_millis;

/// Hosts whose clocks are kept apart. A command calls some four.
const MOST_HOSTS: usize = 32;
/// A `Date` header has whole seconds: the time of the service was up to this much later.
const DATE_STEP: Duration = Duration::from_secs(1);

/// How far the clock of a service was ahead of the one of this machine, by the `Date` of its answers. An answer was written between
/// its request and its arrival, so each one gives two bounds; the nearest of all are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClockFacts {
    /// Host and port.
    pub(crate) host: String,
    /// Answers with a `Date`.
    pub(crate) answers: u64,
    /// At least so many milliseconds ahead; negative: behind.
    pub(crate) ahead_ms_least: i64,
    /// At most so many. Less than the least: one of the clocks was set meanwhile, or several machines answer.
    pub(crate) ahead_ms_most: i64,
}

impl ClockFacts {
    fn new(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            answers: 0,
            ahead_ms_least: i64::MIN,
            ahead_ms_most: i64::MAX,
        }
    }

    fn answer(&mut self, sent: SystemTime, took: Duration, date: SystemTime) {
        self.answers += 1;
        let least = between(date, sent + took);
        let most = between(date + DATE_STEP, sent);
        self.ahead_ms_least = self.ahead_ms_least.max(least);
        self.ahead_ms_most = self.ahead_ms_most.min(most);
    }
}

/// Milliseconds from `from` to `to`.
fn between(to: SystemTime, from: SystemTime) -> i64 {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match to.duration_since(from) {
        Ok(later) => millis(later),
        Err(earlier) => -millis(earlier.duration()),
    }
}

/// The file of requests, written while they are made.
#[derive(Debug)]
pub(crate) struct RequestLog(Mutex<RequestLogState>);

#[derive(Debug)]
struct RequestLogState {
    file: Option<HashedFile>,
    failed: Option<Error>,
    lines: u64,
    clocks: BTreeMap<String, ClockFacts>,
}

impl RequestLog {
    /// Begins it.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn begin(folder: &NewFolder) -> Result<Self> {
        Ok(Self(Mutex::new(RequestLogState {
            file: Some(folder.file(REQUESTS)?),
            failed: None,
            lines: 0,
            clocks: BTreeMap::new(),
        })))
    }

    /// Ends it: the file, its lines, and the clocks of the hosts. Later requests are not written.
    ///
    /// # Errors
    /// Why a line could not be written.
    pub(super) fn end(&self) -> Result<(FileFacts, u64, Vec<ClockFacts>)> {
        let mut state = self.0.lock();
        if let Some(failed) = state.failed.take() {
            return Err(failed);
        }
        let file = state.file.take().ok_or_else(|| {
            let what = "cannot end the list of requests: it has ended";
            Error::new(Kind::Io, what)
        })?;
        let clocks = state.clocks.values().cloned().collect();
        Ok((file.end()?, state.lines, clocks))
    }
}

impl RequestObserver for RequestLog {
    fn observe(&self, request: &ObservedRequest) {
        let line = json!({
            "sent": rfc3339_millis(request.sent),
            "took_ms": u64::try_from(request.took.as_millis()).unwrap_or(u64::MAX),
            "method": request.method,
            "host": request.host,
            "path": request.path,
            "action": request.action,
            "status": request.status,
            "request_id": request.request_id,
            "date": request.date.map(rfc3339_millis),
        });
        let mut state = self.0.lock();
        if let Some(date) = request.date
            && (state.clocks.len() < MOST_HOSTS || state.clocks.contains_key(&request.host))
        {
            let new = || ClockFacts::new(&request.host);
            let clock = state.clocks.entry(request.host.clone()).or_insert_with(new);
            clock.answer(request.sent, request.took, date);
        }
        let Some(file) = state.file.as_mut() else {
            return;
        };
        match file.add(format!("{line}\n").as_bytes()) {
            Ok(()) => state.lines += 1,
            // The run ends with it; the file is removed then.
            Err(error) => {
                state.failed = Some(error);
                state.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn many_answers_bound_the_offset_of_a_clock() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        for offset in [-86_400_000i64, -1500, 0, 20, 700, 3_600_000] {
            let mut clock = ClockFacts::new("ebs");
            for _ in 0..500 {
                let sent = 1_700_000_000_000 + fastrand::i64(0..1_000_000);
                let (there, back) = (fastrand::i64(5..30), fastrand::i64(5..30));
                let date = (sent + there + offset) / 1000 * 1000;
                let at = |ms: i64| UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs());
                let took = Duration::from_millis((there + back).unsigned_abs());
                clock.answer(at(sent), took, at(date));
            }
            let (least, most) = (clock.ahead_ms_least, clock.ahead_ms_most);
            assert!((least..=most).contains(&offset), "{offset}: {clock:?}");
            assert!(most - least < 60, "{offset}: {clock:?}");
        }
    }

    #[test]
    fn each_request_is_one_line_and_ends_with_the_log() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = NewFolder::create(&scratch.path().join("e")).unwrap();
        let log = RequestLog::begin(&folder).unwrap();
        let request = ObservedRequest {
            method: "GET".into(),
            host: "ebs".into(),
            path: "/snapshots/\n\"".into(),
            action: None,
            sent: UNIX_EPOCH,
            took: Duration::from_millis(7),
            status: Some(200),
            request_id: Some("0a-1b".into()),
            date: Some(UNIX_EPOCH),
        };
        for _ in 0..3 {
            log.observe(&request);
        }
        let (facts, lines, clocks) = log.end().unwrap();
        log.observe(&request);
        let text = std::fs::read_to_string(folder.path().join(REQUESTS)).unwrap();
        assert_eq!((lines, text.lines().count()), (3, 3));
        assert_eq!(facts.bytes, text.len() as u64);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["request_id"], "0a-1b");
        assert_eq!(line["path"], "/snapshots/\n\"");
        assert_eq!((clocks.len(), clocks[0].answers), (1, 3));
        assert!(log.end().is_err());
    }
}
