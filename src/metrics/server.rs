//! [`MetricsServer`]: metrics over HTTP, to clients that may be slow, silent or hostile.
//!
//! A connection brings one request, has a few KiB for its head and a few seconds for all of it. When too many are open, the oldest
//! one is closed: clients that hold connections open do not keep a scrape out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::{Metric, process, text};
use crate::error::{Error, Kind, Remedy, Result};

/// Connections that are open at once.
const CONNECTIONS: usize = 32;
/// How long a client may take for the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take in all: the reply is some KiB, which the system takes at once from all but a silent client.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the head of a request, at most.
const MOST_HEAD: usize = 8 << 10;
/// Pause after a connection that the system could not give: it has no descriptor left.
const PAUSE: Duration = Duration::from_millis(500);
/// The path of the metrics.
const PATH: &str = "/metrics";

/// What reads the counts for each scrape.
type ReadMetrics = dyn Fn() -> Vec<Metric> + Send + Sync;

/// An address at which metrics will be served.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    listener: TcpListener,
    started: SystemTime,
}

impl MetricsServer {
    /// File descriptors that it takes, at most.
    pub(crate) const DESCRIPTORS: u64 = CONNECTIONS as u64 + 2;

    /// Takes the address. Port 0 is any free port; the log says which.
    ///
    /// # Errors
    /// `Io` when it is in use, is no address of this machine or is not allowed.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let what = format!("cannot serve metrics at {address}");
            let remedy = "name a free address and port of this machine".to_owned();
            Error::with_source(Kind::Io, what, error).with_remedy(Remedy::Do(remedy))
        })?;
        if let Ok(address) = listener.local_addr() {
            info!("metrics at http://{address}{PATH}");
        }
        Ok(Self {
            listener,
            started: SystemTime::now(),
        })
    }

    /// Serves what `read` returns, and the metrics of the process, until the result is dropped.
    pub(crate) fn serve(
        self,
        read: impl Fn() -> Vec<Metric> + Send + Sync + 'static,
    ) -> ServedMetrics {
        let started = self.started;
        let read: Arc<ReadMetrics> = Arc::new(move || {
            let mut metrics = process(started);
            metrics.extend(read());
            metrics
        });
        ServedMetrics(tokio::spawn(accept(self.listener, read)))
    }
}

/// Metrics that are served until this is dropped.
#[derive(Debug)]
pub(crate) struct ServedMetrics(JoinHandle<Infallible>);

impl Drop for ServedMetrics {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, read: Arc<ReadMetrics>) -> Infallible {
    let mut open = OpenConnections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let task = tokio::spawn(connection(stream, Arc::clone(&read)));
                open.add(task).await;
            }
            Err(error) => {
                debug!("no connection for metrics: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// The connections that are open, the oldest first.
#[derive(Default)]
struct OpenConnections(VecDeque<JoinHandle<()>>);

impl OpenConnections {
    /// Closes the oldest one where there are too many, before another one is accepted.
    async fn add(&mut self, connection: JoinHandle<()>) {
        self.0.retain(|open| !open.is_finished());
        if self.0.len() >= CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
            // Its descriptor is closed when this ends, with the error of a task that was aborted.
            let _ = oldest.await;
        }
        self.0.push_back(connection);
    }
}

impl Drop for OpenConnections {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn connection(stream: TcpStream, read: Arc<ReadMetrics>) {
    let service = service_fn(|request: Request<Incoming>| {
        let reply = answer(&request, &*read);
        async { Ok::<_, Infallible>(reply) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MOST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("connection for metrics: {error}"),
        Err(_) => debug!("connection for metrics: open for {CONNECTION_TIMEOUT:?}"),
    }
}

fn answer(request: &Request<Incoming>, read: &ReadMetrics) -> Response<Full<Bytes>> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, kind, body) = match (is_read, request.uri().path()) {
        (false, _) => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET and HEAD\n".to_owned(),
        ),
        (true, PATH) => (
            StatusCode::OK,
            text::CONTENT_TYPE,
            text::render(read(), None),
        ),
        (true, _) => (
            StatusCode::NOT_FOUND,
            "text/plain",
            format!("metrics are at {PATH}\n"),
        ),
    };
    let mut reply = Response::new(Full::from(body));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    reply
}
