//! [`ConnectionTrace`]: the steps of one new connection, each with its result and its time, for a person who looks for the one that
//! fails. It makes them by the functions that connections of requests are made by.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use hyper::Uri;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{CertificateError, Error as TlsError};

use super::super::Unreachable;
use super::super::tls::CertificateFacts;
use super::{BoxIo, Dialer, HostPort, Proxy, first_of, in_turns, resolve, tunnel};

/// Limits of the steps: a person waits for them, one after the other.
// glibc asks the second resolver after 5 s.
const RESOLVE: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(4);
const TUNNEL: Duration = Duration::from_secs(4);
const SHAKE: Duration = Duration::from_secs(4);

/// One step.
#[derive(Clone, Debug)]
pub(crate) enum TraceStep<T> {
    /// It is not needed, or a step before it failed.
    Skipped,
    /// It succeeded, after this time.
    Done(T, Duration),
    /// It failed, after this time.
    Failed(TraceFailure, Duration),
}

/// Why a step failed.
#[derive(Clone, Debug)]
pub(crate) struct TraceFailure {
    /// In words.
    pub(crate) reason: String,
    /// What a caller can act on.
    pub(crate) kind: TraceFailureKind,
}

/// What a failed step means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TraceFailureKind {
    /// No answer in time.
    Silent,
    /// Nothing listens at the port.
    Refused,
    /// This machine, or a router, has no route.
    NoRoute,
    /// The certificate is signed by an authority that is not trusted.
    UnknownSigner,
    /// There are no authorities to trust.
    NoAuthorities,
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is for other names.
    WrongName,
    /// The other side does not speak TLS.
    NotTls,
    /// Something else.
    Other,
}

/// The steps of a connection, in their order.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionTrace {
    /// The proxy, HOST:PORT.
    pub(crate) proxy: Option<String>,
    /// HOST:PORT that is resolved and connected to: the proxy's, or that of the URL.
    pub(crate) place: String,
    /// The addresses of that host.
    pub(crate) resolved: TraceStep<Vec<IpAddr>>,
    /// The local address and the one that answered.
    pub(crate) connected: TraceStep<(IpAddr, SocketAddr)>,
    /// The proxy's consent.
    pub(crate) tunnel: TraceStep<()>,
    /// The handshake with the host of the URL.
    pub(crate) tls: TraceStep<()>,
    /// The certificates of that host, accepted or not, its own first.
    pub(crate) chain: Vec<CertificateFacts>,
}

impl TraceFailure {
    fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        let kind = match error.kind() {
            TimedOut => TraceFailureKind::Silent,
            ConnectionRefused => TraceFailureKind::Refused,
            HostUnreachable | NetworkUnreachable => TraceFailureKind::NoRoute,
            _ => TraceFailureKind::Other,
        };
        let reason = match error.kind() {
            TimedOut => "no answer".to_owned(),
            _ => error.to_string(),
        };
        Self { reason, kind }
    }

    fn silent() -> Self {
        Self::of_io(&io::ErrorKind::TimedOut.into())
    }

    fn other(reason: String) -> Self {
        Self {
            reason,
            kind: TraceFailureKind::Other,
        }
    }

    fn of_tls(error: &io::Error, has_authorities: bool, refusal: Option<Unreachable>) -> Self {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        let kind = match cause {
            Some(TlsError::InvalidCertificate(wrong)) => kind_of(wrong, has_authorities),
            Some(TlsError::InvalidMessage(_)) => TraceFailureKind::NotTls,
            _ => Self::of_io(error).kind,
        };
        let reason = refusal.map_or_else(|| error.to_string(), |refusal| refusal.reason);
        Self { reason, kind }
    }
}

fn kind_of(wrong: &CertificateError, has_authorities: bool) -> TraceFailureKind {
    match wrong {
        CertificateError::UnknownIssuer if has_authorities => TraceFailureKind::UnknownSigner,
        CertificateError::UnknownIssuer => TraceFailureKind::NoAuthorities,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            TraceFailureKind::Expired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TraceFailureKind::NotYetValid
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            TraceFailureKind::WrongName
        }
        _ => TraceFailureKind::Other,
    }
}

impl Dialer {
    /// Connects, and reports each step.
    pub(in crate::aws::http) async fn trace(&self, uri: &Uri) -> ConnectionTrace {
        let proxy = self.proxies.proxy(uri);
        let mut trace = ConnectionTrace {
            proxy: proxy.as_ref().map(Proxy::name),
            place: String::new(),
            resolved: TraceStep::Skipped,
            connected: TraceStep::Skipped,
            tunnel: TraceStep::Skipped,
            tls: TraceStep::Skipped,
            chain: Vec::new(),
        };
        let near = proxy.as_ref().map_or(uri, |proxy| &proxy.uri);
        let (target, near) = match (HostPort::of(uri), HostPort::of(near)) {
            (Ok(target), Ok(near)) => (target, near),
            (Err(error), _) | (_, Err(error)) => {
                trace.resolved =
                    TraceStep::Failed(TraceFailure::other(error.to_string()), Duration::ZERO);
                return trace;
            }
        };
        trace.place = near.to_string();
        let Some(mut stream) = trace.reach(&near).await else {
            return trace;
        };
        let is_tls = uri.scheme_str() == Some("https");
        if let Some(proxy) = &proxy {
            let through = self.through(stream, &near, &target, proxy, is_tls);
            let since = Instant::now();
            match timeout(TUNNEL, through).await {
                Ok(Ok(tunnelled)) => {
                    trace.tunnel = TraceStep::Done((), since.elapsed());
                    stream = tunnelled;
                }
                Ok(Err(failure)) => {
                    trace.tunnel = TraceStep::Failed(failure, since.elapsed());
                    return trace;
                }
                Err(_) => {
                    trace.tunnel = TraceStep::Failed(TraceFailure::silent(), since.elapsed());
                    return trace;
                }
            }
        }
        if is_tls {
            self.shake(stream, &target, &mut trace).await;
        }
        trace
    }

    /// The stream to the target through a proxy; to the proxy alone where the target is plain HTTP.
    async fn through(
        &self,
        mut stream: BoxIo,
        near: &HostPort,
        target: &HostPort,
        proxy: &Proxy,
        is_tls: bool,
    ) -> Result<BoxIo, TraceFailure> {
        let other = |error: BoxError| TraceFailure::other(error.to_string());
        if proxy.uri.scheme_str() == Some("https") {
            stream = self.tls(stream, near).await.map_err(other)?;
        }
        if is_tls {
            let asked = tunnel(&mut stream, target, proxy).await;
            asked.map_err(other)?;
        }
        Ok(stream)
    }

    async fn shake(&self, stream: BoxIo, target: &HostPort, trace: &mut ConnectionTrace) {
        let since = Instant::now();
        let failed = |failure| TraceStep::Failed(failure, since.elapsed());
        let name = ServerName::try_from(target.bare_host().to_owned());
        let (name, (connector, chain)) = match (name, self.trust.recording()) {
            (Ok(name), Ok(recording)) => (name, recording),
            (Err(error), _) => {
                trace.tls = failed(TraceFailure::other(error.to_string()));
                return;
            }
            (_, Err(error)) => {
                trace.tls = failed(TraceFailure::other(error.chain()));
                return;
            }
        };
        let shaken = timeout(SHAKE, connector.connect(name, stream)).await;
        trace.tls = match shaken {
            Ok(Ok(_)) => TraceStep::Done((), since.elapsed()),
            Ok(Err(error)) => {
                let refusal = self.trust.refusal(&target.to_string(), &error);
                let has_authorities = self.trust.has_authorities();
                failed(TraceFailure::of_tls(&error, has_authorities, refusal))
            }
            Err(_) => failed(TraceFailure::silent()),
        };
        trace.chain = chain.facts();
    }
}

impl ConnectionTrace {
    /// Resolves a host and connects to it.
    async fn reach(&mut self, near: &HostPort) -> Option<BoxIo> {
        let since = Instant::now();
        let found = match resolve(near, RESOLVE).await {
            Ok(found) => found,
            Err(error) => {
                let mut failure = TraceFailure::of_io(&error);
                // The resolver of the system adds the same words to each of its reasons.
                let bare = failure
                    .reason
                    .strip_prefix("failed to lookup address information: ");
                if let Some(bare) = bare.map(str::to_owned) {
                    failure.reason = bare;
                }
                self.resolved = TraceStep::Failed(failure, since.elapsed());
                return None;
            }
        };
        let mut addresses: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
        addresses.dedup();
        self.resolved = TraceStep::Done(addresses, since.elapsed());
        let since = Instant::now();
        let failed = |failure| TraceStep::Failed(failure, since.elapsed());
        let stream = match timeout(CONNECT, first_of(&in_turns(found), CONNECT)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.connected = failed(TraceFailure::of_io(&error));
                return None;
            }
            Err(_) => {
                self.connected = failed(TraceFailure::silent());
                return None;
            }
        };
        match ends_of(&stream) {
            Ok(ends) => self.connected = TraceStep::Done(ends, since.elapsed()),
            Err(error) => {
                self.connected = failed(TraceFailure::of_io(&error));
                return None;
            }
        }
        let _ = stream.set_nodelay(true);
        Some(Box::new(stream))
    }
}

fn ends_of(stream: &TcpStream) -> io::Result<(IpAddr, SocketAddr)> {
    Ok((stream.local_addr()?.ip(), stream.peer_addr()?))
}
