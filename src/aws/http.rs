//! The one HTTP client: for everything that speaks to AWS, and for the object stores of Azure and Google.
//!
//! HTTP/1.1 over pooled connections that [`connect`] makes: by a proxy where the environment names one ([`proxy`]), with the
//! certificate authorities of the system or of a bundle ([`tls`]). The client ignores the SDK's connect time-out: a far
//! address needs more than 3.1 s.

mod connect;
mod proxy;
mod tls;

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use self::connect::Dialer;
use super::observer::Observer;
use crate::error::{Kind, Result};

pub(crate) use connect::{ConnectionTrace, TraceFailure, TraceFailureKind, TraceStep};
pub(crate) use proxy::Proxies;
pub(crate) use tls::CertificateFacts;

/// An idle connection is closed after this time: load balancers and NAT gateways drop them silently after 60 s or more.
const POOL_IDLE: Duration = Duration::from_secs(50);
/// Idle connections are dropped at most this often: many requests notice the same silence.
const FORGET_EVERY: Duration = Duration::from_secs(5);
/// Time for a connection to a metadata service on this machine or its host; where there is none, packets may vanish.
const METADATA_CONNECT: Duration = Duration::from_secs(1);

/// Why no connection can be made, where waiting does not help: a proxy that refuses, a certificate that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Unreachable {
    pub(crate) kind: Kind,
    pub(crate) reason: String,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl StdError for Unreachable {}

/// Connections to AWS and to object stores; clones share them.
#[derive(Clone)]
pub struct Http {
    connections: Arc<SharedConnections>,
    observer: Observer,
}

struct SharedConnections {
    dialer: Dialer,
    pool: RwLock<Pool<Dialer, SdkBody>>,
    forgotten: Mutex<Option<Instant>>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// A client that trusts the authorities in `ca_bundle`, or else the system's, and goes through `proxies`.
    ///
    /// # Errors
    /// `Invalid` when the bundle cannot be read or holds no usable certificate.
    pub(crate) fn new(proxies: Proxies, ca_bundle: Option<&Path>) -> Result<Self> {
        let tls = tls::Trust::new(ca_bundle)?;
        Ok(Self::with(Dialer::new(proxies, tls, None)))
    }

    /// A client for the metadata services of instances and containers: without proxies, with short connect time-outs.
    ///
    /// # Errors
    /// As for [`Http::new`].
    pub(crate) fn metadata(ca_bundle: Option<&Path>) -> Result<Self> {
        let tls = tls::Trust::new(ca_bundle)?;
        let dialer = Dialer::new(Proxies::default(), tls, Some(METADATA_CONNECT));
        Ok(Self::with(dialer))
    }

    fn with(dialer: Dialer) -> Self {
        let pool = RwLock::new(pool(&dialer));
        Self {
            connections: Arc::new(SharedConnections {
                dialer,
                pool,
                forgotten: Mutex::default(),
            }),
            observer: Observer::default(),
        }
    }

    /// The same connections; each request is shown to `observer`.
    pub(crate) fn observed_by(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// The proxy that requests to a URL go through, HOST:PORT.
    pub(crate) fn proxy_of(&self, url: &hyper::Uri) -> Option<String> {
        self.connections.dialer.proxy_of(url)
    }

    /// Makes one connection to a URL as a request would, and reports each step; the connection is closed.
    pub(crate) async fn trace(&self, url: &hyper::Uri) -> ConnectionTrace {
        self.connections.dialer.trace(url).await
    }

    /// Closes the idle connections. After one connection was silent the others are suspect too: a firewall that forgot
    /// one forgot them all, and each would cost a time-out. Requests under way keep theirs.
    pub(crate) fn forget_idle(&self) {
        let mut forgotten = self.connections.forgotten.lock();
        if forgotten.is_some_and(|at| at.elapsed() < FORGET_EVERY) {
            return;
        }
        *forgotten = Some(Instant::now());
        let fresh = pool(&self.connections.dialer);
        *self.connections.pool.write() = fresh;
    }

    /// Sends a request of the SDK; the time until the reply's headers is limited by the caller.
    ///
    /// # Errors
    /// The error of the connection.
    pub(crate) async fn send(
        &self,
        request: HttpRequest,
    ) -> std::result::Result<HttpResponse, ConnectorError> {
        let request = request
            .try_into_http1x()
            .map_err(|error| ConnectorError::user(error.into()))?;
        let reply = self.exchange(request).await?.map(SdkBody::from_body_1_x);
        HttpResponse::try_from(reply).map_err(|error| ConnectorError::other(error.into(), None))
    }

    /// Sends a request; the time until the reply's headers is limited by the caller.
    ///
    /// # Errors
    /// The error of the connection.
    pub(crate) async fn exchange(
        &self,
        mut request: Request<SdkBody>,
    ) -> std::result::Result<Response<Incoming>, ConnectorError> {
        if let Some(value) = self.connections.dialer.plain_proxy_auth(request.uri()) {
            let name = hyper::header::PROXY_AUTHORIZATION;
            request.headers_mut().insert(name, value);
        }
        // The lock is not held while the request is under way.
        let pool = self.connections.pool.read().clone();
        let observed = self.observer.begin(&request);
        let reply = pool.request(request).await;
        let reply = reply.map_err(|error| failed(error.into()))?;
        if let Some(observed) = observed {
            observed.answered(reply.status(), reply.headers());
        }
        Ok(reply)
    }
}

fn pool(dialer: &Dialer) -> Pool<Dialer, SdkBody> {
    Pool::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .build(dialer.clone())
}

/// Whether the request may be sent again: not when [`Unreachable`] is the cause.
fn failed(error: BoxError) -> ConnectorError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error);
    while let Some(current) = cause {
        if current.is::<Unreachable>() {
            return ConnectorError::user(error);
        }
        if let Some(error_of_hyper) = current.downcast_ref::<hyper::Error>()
            && error_of_hyper.is_user()
        {
            return ConnectorError::user(error);
        }
        cause = current.source();
    }
    ConnectorError::io(error)
}

/// The client with the read time-out that the SDK asks for.
#[derive(Debug)]
struct Sending {
    http: Http,
    read_timeout: Option<Duration>,
}

impl HttpConnector for Sending {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (http, limit) = (self.http.clone(), self.read_timeout);
        HttpConnectorFuture::new(async move {
            let Some(limit) = limit else {
                return http.send(request).await;
            };
            let reply = tokio::time::timeout(limit, http.send(request)).await;
            reply.unwrap_or_else(|_| {
                let what = format!("no answer in {limit:?}");
                Err(ConnectorError::timeout(what.into()))
            })
        })
    }
}

impl HttpClient for Http {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Sending {
            http: self.clone(),
            read_timeout: settings.read_timeout(),
        })
    }
}
