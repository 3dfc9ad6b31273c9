//! Makes one connection: resolves the name, tries its addresses, asks a proxy for a tunnel, and does the TLS handshake.
//! [`trace`] makes one by the same steps and reports each.

mod trace;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::pki_types::ServerName;

use super::Unreachable;
use super::proxy::{Proxies, Proxy};
use super::tls::Trust;
use crate::error::Kind;

pub(crate) use trace::{ConnectionTrace, TraceFailure, TraceFailureKind, TraceStep};

/// How long one address may take: three SYNs are sent by then (after 0, 1 and 3 s).
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(6);
/// The next address is tried after this time beside the first ones (RFC 8305 says 250 ms; a far server takes longer).
const NEXT_ADDRESS: Duration = Duration::from_millis(500);
/// How long a TLS handshake or a proxy's answer may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a proxy's answer before its body.
const MAX_PROXY_REPLY: usize = 16 << 10;

/// A byte stream, over TLS or not.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type BoxIo = Box<dyn Io>;

/// Makes connections for the pool.
#[derive(Clone)]
pub(super) struct Dialer {
    proxies: Arc<Proxies>,
    trust: Trust,
    /// The time for one address.
    address_timeout: Duration,
}

impl Dialer {
    pub(super) fn new(proxies: Proxies, trust: Trust, address_timeout: Option<Duration>) -> Self {
        Self {
            proxies: Arc::new(proxies),
            trust,
            address_timeout: address_timeout.unwrap_or(ADDRESS_TIMEOUT),
        }
    }

    /// The proxy for a URL, HOST:PORT.
    pub(super) fn proxy_of(&self, uri: &Uri) -> Option<String> {
        self.proxies.proxy(uri).map(|proxy| proxy.name())
    }

    /// What a request over plain HTTP through a proxy must carry; a tunnel carries it once.
    pub(super) fn plain_proxy_auth(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme_str() != Some("http") {
            return None;
        }
        self.proxies.proxy(uri)?.auth
    }

    async fn connect(self, uri: Uri) -> Result<PooledStream, BoxError> {
        let is_tls = uri.scheme_str() == Some("https");
        let target = HostPort::of(&uri)?;
        let Some(proxy) = self.proxies.proxy(&uri) else {
            let stream = self.tcp(&target).await?;
            let stream = match is_tls {
                true => self.tls(stream, &target).await?,
                false => stream,
            };
            return Ok(PooledStream::new(stream, false));
        };
        let through = |error: BoxError| -> BoxError {
            match error.downcast::<Unreachable>() {
                Ok(error) => error,
                Err(error) => format!("the proxy {}: {error}", proxy.name()).into(),
            }
        };
        let place = HostPort::of(&proxy.uri)?;
        let mut stream = self.tcp(&place).await.map_err(through)?;
        if proxy.uri.scheme_str() == Some("https") {
            stream = self.tls(stream, &place).await.map_err(through)?;
        }
        if !is_tls {
            return Ok(PooledStream::new(stream, true));
        }
        let asked = timeout(HANDSHAKE_TIMEOUT, tunnel(&mut stream, &target, &proxy)).await;
        let asked = asked.unwrap_or_else(|_| Err("no answer to CONNECT".into()));
        asked.map_err(through)?;
        Ok(PooledStream::new(self.tls(stream, &target).await?, false))
    }

    /// A TCP connection to the first address that answers.
    async fn tcp(&self, place: &HostPort) -> Result<BoxIo, BoxError> {
        let found = resolve(place, HANDSHAKE_TIMEOUT).await;
        let unresolved = |error| format!("the name {} cannot be resolved: {error}", place.host);
        let addresses = in_turns(found.map_err(unresolved)?);
        let stream = first_of(&addresses, self.address_timeout).await;
        let stream = stream.map_err(|error| format!("cannot connect to {place}: {error}"))?;
        let _ = stream.set_nodelay(true);
        Ok(Box::new(stream))
    }

    async fn tls(&self, stream: BoxIo, place: &HostPort) -> Result<BoxIo, BoxError> {
        let name = ServerName::try_from(place.bare_host().to_owned())?;
        let shaken = self.trust.connector.connect(name, stream);
        let stream = match timeout(HANDSHAKE_TIMEOUT, shaken).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return Err(match self.trust.refusal(&place.to_string(), &error) {
                    Some(refusal) => refusal.into(),
                    None => format!("TLS with {place} failed: {error}").into(),
                });
            }
            Err(_) => return Err(format!("no answer of {place} to the TLS handshake").into()),
        };
        Ok(Box::new(stream))
    }
}

/// The addresses of a host, in the order of the resolver.
async fn resolve(place: &HostPort, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((place.bare_host(), place.port));
    let found = timeout(limit, found).await;
    let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    found.map(Iterator::collect)
}

/// Where a connection goes.
struct HostPort {
    /// As in the URL: an IPv6 address has brackets.
    host: String,
    port: u16,
}

impl HostPort {
    fn of(uri: &Uri) -> Result<Self, BoxError> {
        let host = uri.host().ok_or("the URL has no host")?.to_owned();
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self { host, port })
    }

    fn bare_host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The addresses with the two families in turns, beginning with the one that the resolver prefers.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == is_first_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    loop {
        let pair = (first.next(), second.next());
        turns.extend(pair.0);
        turns.extend(pair.1);
        if pair == (None, None) {
            return turns;
        }
    }
}

/// Connects to the addresses one after the other, each beside those that have not answered yet; the first wins.
async fn first_of(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let mut waiting = FuturesUnordered::new();
    let mut rest = addresses.iter();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if waiting.is_empty() {
            let Some(address) = rest.next() else {
                return Err(failure);
            };
            waiting.push(one_of(*address, limit));
        }
        tokio::select! {
            done = waiting.select_next_some() => match done {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failure = error;
                    // The next one need not wait for its turn.
                    if let Some(address) = rest.next() {
                        waiting.push(one_of(*address, limit));
                    }
                }
            },
            () = sleep(NEXT_ADDRESS), if rest.len() > 0 => {
                if let Some(address) = rest.next() {
                    waiting.push(one_of(*address, limit));
                }
            }
        }
    }
}

async fn one_of(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(done) => done,
        Err(_) => {
            let what = format!("no answer of {address} in {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        }
    }
}

/// Asks a proxy for a connection to `target`.
async fn tunnel(stream: &mut BoxIo, target: &HostPort, proxy: &Proxy) -> Result<(), BoxError> {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(auth) = &proxy.auth {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(auth.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut reply = Vec::new();
    // One byte at a time: what follows the empty line is the tunnel's.
    while !reply.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await;
        reply.push(byte.map_err(|error| format!("no whole answer to CONNECT: {error}"))?);
        if reply.len() > MAX_PROXY_REPLY {
            return Err("its answer to CONNECT does not end".into());
        }
    }
    let text = String::from_utf8_lossy(&reply);
    let line = text.lines().next().unwrap_or_default();
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    match proxy_refusal(status, &proxy.name(), &target.to_string()) {
        None => Ok(()),
        Some(Ok(refusal)) => Err(refusal.into()),
        Some(Err(what)) => Err(what.into()),
    }
}

/// What the status of a proxy's answer to CONNECT means: none is a tunnel, `Ok` is final, `Err` may change.
fn proxy_refusal(
    status: Option<u16>,
    proxy: &str,
    target: &str,
) -> Option<Result<Unreachable, String>> {
    let Some(status) = status else {
        return Some(Err("its answer to CONNECT is not HTTP".into()));
    };
    let why = match status {
        200..=299 => return None,
        407 => "it wants a user and a password: http://USER:PASSWORD@HOST:PORT in HTTPS_PROXY",
        403 => "it does not allow this host",
        408 | 429 | 500..=599 => return Some(Err(format!("HTTP {status} to CONNECT {target}"))),
        _ => "it makes no connections for this client",
    };
    Some(Ok(Unreachable {
        kind: if matches!(status, 401 | 403 | 407) {
            Kind::Denied
        } else {
            Kind::Invalid
        },
        reason: format!("the proxy {proxy} refused CONNECT {target} (HTTP {status}): {why}"),
    }))
}

impl tower_service::Service<Uri> for Dialer {
    type Response = PooledStream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<PooledStream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection as the pool takes it.
pub(super) struct PooledStream {
    io: TokioIo<BoxIo>,
    /// Whether requests must name the whole URL: those to a proxy over plain HTTP.
    is_proxied: bool,
}

impl PooledStream {
    fn new(io: BoxIo, is_proxied: bool) -> Self {
        let io = TokioIo::new(io);
        Self { io, is_proxied }
    }
}

impl Connection for PooledStream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
    }
}

impl Read for PooledStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for PooledStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusing_proxy_is_final_and_a_tired_one_is_not() {
        let kind = |status| match proxy_refusal(status, "p:1", "h:443") {
            None => None,
            Some(Ok(refusal)) => {
                assert!(refusal.reason.contains("p:1"), "{refusal}");
                Some(Some(refusal.kind))
            }
            Some(Err(_)) => Some(None),
        };
        for (status, expected) in [
            (Some(200), None),
            (Some(407), Some(Some(Kind::Denied))),
            (Some(403), Some(Some(Kind::Denied))),
            (Some(405), Some(Some(Kind::Invalid))),
            (Some(302), Some(Some(Kind::Invalid))),
            (Some(502), Some(None)),
            (Some(429), Some(None)),
            (None, Some(None)),
        ] {
            assert_eq!(kind(status), expected, "{status:?}");
        }
    }

    #[test]
    fn address_families_take_turns() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|text| text.parse().unwrap()).collect()
        };
        let given = parse(&["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1"]);
        let turns = parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(in_turns(given), turns);
        assert!(in_turns(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn an_address_that_refuses_does_not_hide_one_that_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let bad = "127.0.0.1:1".parse().unwrap();
        let stream = first_of(&[bad, bad, good], ADDRESS_TIMEOUT).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(first_of(&[bad], ADDRESS_TIMEOUT).await.is_err());
        assert!(first_of(&[], ADDRESS_TIMEOUT).await.is_err());
    }
}
