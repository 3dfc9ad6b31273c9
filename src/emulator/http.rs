//! Connections, routing, latency, and replies that break on the way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::direct::Query;
use super::reply::{Body, Refusal, Reply, block_reply, full, with_body};
use super::switches::{Switches, strikes};
use super::{Emulator, REGION, auth};

/// Bytes of the largest request: a block and some.
const MAX_BODY: usize = 1 << 20;
/// How much longer a slow reply takes.
const SLOW: Duration = Duration::from_secs(1);
/// How long a stalled or silent connection is held.
const STALL: Duration = Duration::from_secs(600);

pub(super) async fn accept(
    emulator: Arc<Emulator>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (emulator, tls) = (Arc::clone(&emulator), tls.clone());
        tokio::spawn(async move {
            let ended = match tls {
                None => connection(emulator, stream).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => connection(emulator, stream).await,
                    Err(error) => return debug!("TLS: {error}"),
                },
            };
            if let Err(error) = ended {
                debug!("connection: {error}");
            }
        });
    }
}

async fn connection(
    emulator: Arc<Emulator>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> hyper::Result<()> {
    let service = service_fn(move |request| answer(Arc::clone(&emulator), request));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(emulator: Arc<Emulator>, request: Request<Incoming>) -> io::Result<Reply> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(io::Error::other)?
        .to_bytes();
    if let Some(path) = parts.uri.path().strip_prefix("/_emulator/blocks/") {
        return Ok(emulator.unsigned_block(path).await);
    }
    if let Some(path) = parts.uri.path().strip_prefix("/_emulator/") {
        return Ok(emulator.control(&parts.method, path, parts.uri.query().unwrap_or_default()));
    }
    let _under_way = emulator.under_way();
    let switches = emulator.switches();
    if switches.silent {
        tokio::time::sleep(STALL).await;
    }
    let call = Call::of(&parts, &body);
    emulator.count(call.name());
    if switches.latency_ms > 0 {
        tokio::time::sleep(Duration::from_millis(switches.latency_ms)).await;
    }
    if strikes(switches.slow) {
        tokio::time::sleep(SLOW).await;
    }
    if strikes(switches.reset) {
        return Err(io::Error::other("reset, as the switch says"));
    }
    let reply = if strikes(switches.error_5xx) {
        call.refuse(&Refusal::internal())
    } else {
        let done =
            tokio::task::block_in_place(|| emulator.perform(&call, &parts, &body, &switches));
        done.unwrap_or_else(|refusal| call.refuse(&refusal))
    };
    let mut reply = damage(reply, &switches).await?;
    // Clients correct their clocks by it.
    if let Ok(date) = httpdate::fmt_http_date(emulator.now()).parse() {
        reply.headers_mut().insert("date", date);
    }
    Ok(reply)
}

impl Emulator {
    /// A block without signature or token, for clients that measure what HTTP alone can do.
    async fn unsigned_block(&self, path: &str) -> Reply {
        tokio::time::sleep(Duration::from_millis(self.switches().latency_ms)).await;
        let place = path.split_once('/').and_then(|(id, index)| {
            let index = index.parse().ok()?;
            self.store.lock().locate(id, index)
        });
        match place.map(|place| place.read()) {
            Some(Ok((bytes, digest))) => block_reply(bytes, &digest),
            // Holes are met often: the connection stays.
            _ => with_body(404, "text/plain", Bytes::new()),
        }
    }
}

/// What a request asks for.
#[derive(Debug)]
enum Call {
    ListSnapshotBlocks(String),
    ListChangedBlocks(String),
    GetSnapshotBlock(String, String),
    StartSnapshot,
    PutSnapshotBlock(String, String),
    CompleteSnapshot(String),
    /// An action of the EC2 query API.
    Ec2(String),
    Unknown,
}

impl Call {
    fn of(parts: &Parts, body: &[u8]) -> Self {
        let steps: Vec<&str> = parts
            .uri
            .path()
            .split('/')
            .filter(|step| !step.is_empty())
            .collect();
        let own = str::to_owned;
        match (&parts.method, &steps[..]) {
            (&Method::GET, ["snapshots", id, "blocks"]) => Self::ListSnapshotBlocks(own(id)),
            (&Method::GET, ["snapshots", id, "changedblocks"]) => Self::ListChangedBlocks(own(id)),
            (&Method::GET, ["snapshots", id, "blocks", index]) => {
                Self::GetSnapshotBlock(own(id), own(index))
            }
            (&Method::PUT, ["snapshots", id, "blocks", index]) => {
                Self::PutSnapshotBlock(own(id), own(index))
            }
            (&Method::POST, ["snapshots"]) => Self::StartSnapshot,
            (&Method::POST, ["snapshots", "completion", id]) => Self::CompleteSnapshot(own(id)),
            (&Method::POST, []) => form_urlencoded::parse(body)
                .find(|(name, _)| name == "Action")
                .map_or(Self::Unknown, |(_, action)| Self::Ec2(action.into_owned())),
            _ => Self::Unknown,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::ListSnapshotBlocks(_) => "ListSnapshotBlocks",
            Self::ListChangedBlocks(_) => "ListChangedBlocks",
            Self::GetSnapshotBlock(..) => "GetSnapshotBlock",
            Self::StartSnapshot => "StartSnapshot",
            Self::PutSnapshotBlock(..) => "PutSnapshotBlock",
            Self::CompleteSnapshot(_) => "CompleteSnapshot",
            Self::Ec2(action) => action,
            Self::Unknown => "unknown",
        }
    }

    fn refuse(&self, refusal: &Refusal) -> Reply {
        match self {
            Self::Ec2(_) => refusal.ec2_xml(),
            _ => refusal.rest_json(),
        }
    }
}

impl Emulator {
    fn perform(
        &self,
        call: &Call,
        parts: &Parts,
        body: &Bytes,
        switches: &Switches,
    ) -> Result<Reply, Refusal> {
        let ec2 = matches!(call, Call::Ec2(_));
        let session = parts.headers.get("x-amz-security-token");
        let session = session.and_then(|session| session.to_str().ok());
        if session.is_some_and(|session| switches.expired_sessions.iter().any(|s| s == session)) {
            let message = "The security token included in the request is expired";
            let (status, code) = match ec2 {
                true => (400, "RequestExpired"),
                false => (403, "ExpiredTokenException"),
            };
            return Err(Refusal::new(status, code, None, message));
        }
        let caller = auth::verify(parts, body, &self.access_key, &self.secret_key, self.now())
            .map_err(|refusal| if ec2 { ec2_refusal(&refusal) } else { refusal })?;
        let service = if ec2 { "ec2" } else { "ebs" };
        if caller.service != service {
            let message = format!("Credential should be scoped to correct service: '{service}'.");
            return Err(Refusal::new(
                403,
                "InvalidSignatureException",
                None,
                message,
            ));
        }
        let action = format!("{service}:{}", call.name());
        if switches.deny.contains(&action) {
            let (code, who) = if ec2 {
                (
                    "UnauthorizedOperation",
                    "You are not authorized to perform this operation.".into(),
                )
            } else {
                (
                    "AccessDeniedException",
                    format!("User is not authorized to perform: {action}"),
                )
            };
            return Err(Refusal::new(403, code, None, who));
        }
        let here = caller.region == REGION;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        match call {
            Call::ListSnapshotBlocks(id)
            | Call::ListChangedBlocks(id)
            | Call::GetSnapshotBlock(id, _)
            | Call::PutSnapshotBlock(id, _)
            | Call::CompleteSnapshot(id)
                if !here =>
            {
                // Another Region has its own snapshots, and none of these.
                Err(Refusal::not_found(id))
            }
            Call::ListSnapshotBlocks(id) => self.list_snapshot_blocks(id, &query),
            Call::ListChangedBlocks(id) => self.list_changed_blocks(id, &query),
            Call::GetSnapshotBlock(id, index) => self.get_snapshot_block(id, index, &query),
            Call::StartSnapshot => self.start_snapshot(body),
            Call::PutSnapshotBlock(id, index) => {
                self.put_snapshot_block(id, index, &parts.headers, body)
            }
            Call::CompleteSnapshot(id) => self.complete_snapshot(id, &parts.headers),
            Call::Ec2(action) => self.ec2(action, body, here),
            Call::Unknown => Err(Refusal::new(404, "UnknownOperationException", None, "")),
        }
    }
}

/// EC2's names for what a bad signature is.
fn ec2_refusal(refusal: &Refusal) -> Refusal {
    Refusal::new(
        401,
        "AuthFailure",
        None,
        format!(
            "AWS was not able to validate the provided access credentials: {}",
            refusal.message
        ),
    )
}

/// Breaks a reply on its way, when a switch says so.
async fn damage(reply: Reply, switches: &Switches) -> io::Result<Reply> {
    let (stall, truncate) = (strikes(switches.stall), strikes(switches.truncate));
    if !stall && !truncate {
        return Ok(reply);
    }
    let (parts, body) = reply.into_parts();
    let bytes = body.collect().await?.to_bytes();
    let half = bytes.slice(..bytes.len() / 2);
    let length = bytes.len();
    let first = stream::once(async move { Ok(Frame::data(half)) });
    let then = stream::once(async move {
        if stall {
            tokio::time::sleep(STALL).await;
        }
        Err::<Frame<Bytes>, _>(io::Error::other("cut, as the switch says"))
    });
    let body: Body = if length == 0 {
        full(bytes)
    } else {
        StreamBody::new(stream::StreamExt::chain(first, then)).boxed_unsync()
    };
    let mut reply = Response::from_parts(parts, body);
    reply.headers_mut().insert("content-length", length.into());
    Ok(reply)
}
