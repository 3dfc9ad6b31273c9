//! One request without a signature: a service refuses it at once, and the refusal shows that requests and answers arrive.

use std::time::{Duration, SystemTime};

use aws_smithy_types::body::SdkBody;
use hyper::{Request, Uri};
use tokio::time::{Instant, timeout};

use crate::aws::Http;

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub(super) struct ServerAnswer {
    pub(super) status: u16,
    /// The clock of the server.
    pub(super) date: Option<SystemTime>,
    /// This machine's clock in the middle of the exchange.
    pub(super) at: SystemTime,
    pub(super) took: Duration,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Nothing came in this time.
    Silent(Duration),
    /// The connection failed.
    Failed(String),
}

/// Sends a request with a body of this many bytes.
pub(super) async fn ask(
    http: &Http,
    url: &Uri,
    bytes: usize,
    limit: Duration,
) -> Result<ServerAnswer, NoAnswer> {
    let request = match bytes {
        0 => Request::get(url.clone()).body(SdkBody::empty()),
        _ => Request::post(url.clone())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(SdkBody::from(vec![b'x'; bytes])),
    };
    let request = request.map_err(|error| NoAnswer::Failed(error.to_string()))?;
    let (since, began) = (Instant::now(), SystemTime::now());
    let reply = timeout(limit, http.exchange(request)).await;
    let took = since.elapsed();
    let reply = reply.map_err(|_| NoAnswer::Silent(limit))?;
    let reply = reply.map_err(|error| NoAnswer::Failed(crate::aws::causes_of(&error)))?;
    let date = reply.headers().get("date");
    let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Ok(ServerAnswer {
        status: reply.status().as_u16(),
        date,
        at: began + took / 2,
        took,
    })
}
