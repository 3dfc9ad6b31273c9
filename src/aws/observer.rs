//! [`Observer`]: what receives each request to AWS and its answer, with AWS's id of it.
//!
//! It sees the path of a URL and never its query or headers: block tokens and signatures are secrets.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_smithy_types::body::SdkBody;
use hyper::{HeaderMap, StatusCode};
use tokio::time::Instant;

/// The longest id of a request that is believed to be one.
const LONGEST_ID: usize = 64;
/// The longest action of a query API.
const LONGEST_ACTION: usize = 64;

/// A request, and its answer if one came.
#[derive(Clone, Debug)]
pub(crate) struct ObservedRequest {
    /// `GET`, `POST`, `PUT`.
    pub(crate) method: String,
    /// Host and port.
    pub(crate) host: String,
    /// The path of its URL, without the query.
    pub(crate) path: String,
    /// The action of a query API (EC2, STS), which is in the body.
    pub(crate) action: Option<String>,
    /// When it was sent, by the clock of this machine.
    pub(crate) sent: SystemTime,
    /// How long its answer took, to the end of the headers; of a request without an answer, until it was given up.
    pub(crate) took: Duration,
    /// The HTTP status; none without an answer.
    pub(crate) status: Option<u16>,
    /// AWS's id of it.
    pub(crate) request_id: Option<String>,
    /// The time of the service, in whole seconds.
    pub(crate) date: Option<SystemTime>,
}

/// Receives each request.
pub(crate) trait RequestObserver: Send + Sync {
    /// A request has been answered, or given up. Called by the task of the request: it must not wait for the network.
    fn observe(&self, request: &ObservedRequest);
}

/// The observer of the clients of a command; the default is none.
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<dyn RequestObserver>>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Observer"
        } else {
            "no Observer"
        })
    }
}

impl Observer {
    /// Shows each request to `observer`.
    pub(crate) fn new(observer: Arc<dyn RequestObserver>) -> Self {
        Self(Some(observer))
    }

    /// A request is sent. What this returns is dropped when the request is given up.
    pub(super) fn begin(&self, request: &hyper::Request<SdkBody>) -> Option<RequestUnderWay> {
        let observer = Arc::clone(self.0.as_ref()?);
        let uri = request.uri();
        Some(RequestUnderWay {
            observer,
            since: Instant::now(),
            request: ObservedRequest {
                method: request.method().to_string(),
                host: uri.authority().map(ToString::to_string).unwrap_or_default(),
                path: uri.path().to_owned(),
                action: request.body().bytes().and_then(query_action),
                sent: SystemTime::now(),
                took: Duration::ZERO,
                status: None,
                request_id: None,
                date: None,
            },
        })
    }
}

/// A request that is not answered yet.
pub(super) struct RequestUnderWay {
    observer: Arc<dyn RequestObserver>,
    since: Instant,
    request: ObservedRequest,
}

impl RequestUnderWay {
    /// The headers of its answer have come.
    pub(super) fn answered(mut self, status: StatusCode, headers: &HeaderMap) {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let id = header("x-amzn-requestid").or_else(|| header("x-amz-request-id"));
        self.request.status = Some(status.as_u16());
        self.request.request_id = id.filter(|id| is_id(id)).map(str::to_owned);
        let date = header("date").and_then(|date| httpdate::parse_http_date(date).ok());
        self.request.date = date;
    }
}

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        self.request.took = self.since.elapsed();
        self.observer.observe(&self.request);
    }
}

/// Whether a text looks like a request's id.
fn is_id(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !text.is_empty() && text.len() <= LONGEST_ID && text.chars().all(is_part)
}

/// The action of a form, which the SDK writes first: `Action=DescribeSnapshots&Version=...`.
fn query_action(body: &[u8]) -> Option<String> {
    let rest = body.strip_prefix(b"Action=")?;
    let action = rest.split(|byte| *byte == b'&').next()?;
    let is_action = action.len() <= LONGEST_ACTION && action.iter().all(u8::is_ascii_alphanumeric);
    is_action.then(|| String::from_utf8_lossy(action).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Kept(Mutex<Vec<ObservedRequest>>);

    impl RequestObserver for Kept {
        fn observe(&self, request: &ObservedRequest) {
            self.0.lock().push(request.clone());
        }
    }

    #[test]
    fn a_request_is_shown_once_without_its_secrets_answered_or_given_up() {
        let kept = Arc::new(Kept::default());
        let observer = Observer::new(Arc::clone(&kept) as Arc<dyn RequestObserver>);
        let uri = "https://ebs.example:1/snapshots/snap-1/blocks/7?blockToken=SECRET";
        let block = hyper::Request::get(uri).body(SdkBody::empty()).unwrap();
        let form = SdkBody::from("Action=DescribeSnapshots&Version=2016&Token=SECRET");
        let described = hyper::Request::post("https://ec2.example/");
        let described = described.body(form).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-amzn-requestid", "0a1b-2c"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let under_way = observer.begin(&block).unwrap();
        under_way.answered(StatusCode::OK, &headers);
        headers.insert("x-amzn-requestid", "no id {}".parse().unwrap());
        let under_way = observer.begin(&described).unwrap();
        under_way.answered(StatusCode::BAD_REQUEST, &headers);
        drop(observer.begin(&described));
        assert!(Observer::default().begin(&block).is_none());
        let seen = kept.0.lock();
        let of = |n: usize| {
            let request = &seen[n];
            let id = request.request_id.as_deref();
            (
                request.path.as_str(),
                request.action.as_deref(),
                request.status,
                id,
            )
        };
        let action = Some("DescribeSnapshots");
        assert_eq!(seen.len(), 3);
        let path = "/snapshots/snap-1/blocks/7";
        assert_eq!(of(0), (path, None, Some(200), Some("0a1b-2c")));
        assert_eq!(of(1), ("/", action, Some(400), None));
        assert_eq!(of(2), ("/", action, None, None));
        assert_eq!(
            (seen[0].method.as_str(), seen[0].host.as_str()),
            ("GET", "ebs.example:1")
        );
        assert!(seen[0].date.is_some() && seen[2].date.is_none());
        assert!(!format!("{seen:?}").contains("SECRET"));
    }
}
