//! Accepting, routing, latency, and replies that break while they are sent.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::http::Extensions;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::call::EmulatedCall;
use super::direct::Query;
use super::reply::{Body, Refusal, Reply, block_reply, full, json_reply, reply};
use super::switches::{Switches, happens};
use super::{ACCOUNT, Emulator, connections, guard, names};

/// Bytes of the largest request: a block and some.
const MAX_BODY: usize = 1 << 20;
/// How much longer a slow reply takes.
const SLOW: Duration = Duration::from_secs(1);
/// How long a stalled or silent connection is held.
const STALL: Duration = Duration::from_secs(600);

/// How many bytes of an endless body are sent at once.
const ENDLESS: usize = 64 << 10;
/// Pieces that a slow body sends in a second.
const TICKS: u64 = 10;

pub(super) async fn accept(
    emulator: Arc<Emulator>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    let names = names::as_sent().await?;
    let schedule = Arc::clone(&emulator);
    tokio::spawn(async move { connections::keep_schedule(&schedule).await });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (emulator, tls) = (Arc::clone(&emulator), tls.clone());
        let names = names.clone();
        tokio::spawn(async move {
            let ended = match tls {
                None => connection(emulator, names, stream).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => connection(emulator, names, stream).await,
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
    names: Extensions,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> hyper::Result<()> {
    let (number, mut closing) = emulator.connections.open();
    let service = service_fn(move |request| {
        let (emulator, names) = (Arc::clone(&emulator), names.clone());
        async move {
            let mut reply = answer(emulator, request, number).await?;
            reply.extensions_mut().extend(names);
            io::Result::Ok(reply)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        ended = served.as_mut() => return ended,
        _ = closing.changed() => served.as_mut().graceful_shutdown(),
    }
    served.await
}

async fn answer(
    emulator: Arc<Emulator>,
    request: Request<Incoming>,
    connection: u64,
) -> io::Result<Reply> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(io::Error::other)?
        .to_bytes();
    if emulator.connections.is_frozen(connection) {
        tokio::time::sleep(STALL).await;
        return Err(io::Error::other("frozen, as was asked"));
    }
    if let Some(path) = parts.uri.path().strip_prefix("/_emulator/") {
        return Ok(emulator.own(&parts, path, &body).await);
    }
    let _under_way = emulator.under_way();
    let switches = emulator.switches();
    if switches.silent {
        tokio::time::sleep(STALL).await;
    }
    let call = EmulatedCall::of(&parts, &body);
    emulator.count(call.name());
    if switches.latency_ms > 0 {
        tokio::time::sleep(Duration::from_millis(switches.latency_ms)).await;
    }
    if happens(switches.slow) {
        tokio::time::sleep(SLOW).await;
    }
    if happens(switches.reset) {
        return Err(io::Error::other("reset, as the switch says"));
    }
    let reply = if happens(switches.error_5xx) {
        call.refuse(&Refusal::internal())
    } else {
        let done =
            tokio::task::block_in_place(|| emulator.perform(&call, &parts, &body, &switches));
        done.unwrap_or_else(|refusal| call.refuse(&refusal))
    };
    if call.makes_snapshots() && happens(switches.lose_reply) {
        return Err(io::Error::other("lost, as the switch says"));
    }
    let mut reply = damage(reply, &call, &switches).await?;
    let ec2 = matches!(call, EmulatedCall::Ec2(_));
    let closes = match reply.status().as_u16() {
        200 => false,
        400 => true,
        // Of the direct APIs' refusals only those of status 400 close the connection.
        _ => ec2,
    };
    let headers = reply.headers_mut();
    // Clients correct their clocks by it.
    if let Ok(date) = httpdate::fmt_http_date(emulator.now()).parse() {
        headers.insert("date", date);
    }
    if closes {
        headers.insert("connection", HeaderValue::from_static("close"));
    }
    if ec2 {
        headers.insert("server", HeaderValue::from_static("AmazonEC2"));
    }
    Ok(reply)
}

impl Emulator {
    /// Endpoints that AWS does not have: blocks for clients that measure HTTP alone, and the control endpoint.
    async fn own(&self, parts: &Parts, path: &str, body: &Bytes) -> Reply {
        if let Some(what) = guard::refused(&parts.headers) {
            return json_reply(403, &json!({"error": what}));
        }
        let Some(place) = path.strip_prefix("blocks/") else {
            let query = parts.uri.query().unwrap_or_default();
            return self.control(&parts.method, path, query, body);
        };
        if !self.unsigned_blocks.load(Ordering::Relaxed)
            && let Err(refusal) = self.caller(parts, body)
        {
            return refusal.rest_json();
        }
        tokio::time::sleep(Duration::from_millis(self.switches().latency_ms)).await;
        let place = place.split_once('/').and_then(|(id, index)| {
            let index = index.parse().ok()?;
            self.store.lock().locate(id, index)
        });
        match place.map(|place| place.read()) {
            Some(Ok((bytes, digest))) => block_reply(bytes, &digest),
            // Holes are met often: the connection stays.
            _ => reply(404, "text/plain", &[], Bytes::new()),
        }
    }
}

impl Emulator {
    fn perform(
        &self,
        call: &EmulatedCall,
        parts: &Parts,
        body: &Bytes,
        switches: &Switches,
    ) -> Result<Reply, Refusal> {
        let service = call.service();
        if self.is_expired(&parts.headers, switches) {
            let message = "The security token included in the request is expired";
            let (status, code) = match service {
                "sts" => (403, "ExpiredToken"),
                "ec2" => (400, "RequestExpired"),
                _ => (403, "ExpiredTokenException"),
            };
            return Err(Refusal::new(status, code, None, message));
        }
        let caller = self.caller(parts, body);
        let caller = caller.map_err(|refusal| match service {
            "sts" => sts_refusal(refusal),
            "ec2" => ec2_refusal(&refusal),
            _ => refusal,
        })?;
        if caller.service != service {
            let message = format!("Credential should be scoped to correct service: '{service}'.");
            return Err(Refusal::new(
                403,
                "InvalidSignatureException",
                None,
                message,
            ));
        }
        if service != "sts" && caller.account() != ACCOUNT {
            // Snapshots and volumes are those of the emulator's own account; another one has never used EC2.
            let message = "You are not subscribed to this service. Please go to http://aws.amazon.com to subscribe.";
            return Err(Refusal::new(401, "OptInRequired", None, message));
        }
        self.authorize(&caller, call, parts, body, switches)?;
        let here = caller.region == switches.region;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        match call {
            EmulatedCall::ListSnapshotBlocks(id)
            | EmulatedCall::ListChangedBlocks(id)
            | EmulatedCall::GetSnapshotBlock(id, _)
            | EmulatedCall::PutSnapshotBlock(id, _)
            | EmulatedCall::CompleteSnapshot(id)
                if !here =>
            {
                // Another Region has its own snapshots, and none of these.
                Err(Refusal::not_found(id))
            }
            EmulatedCall::ListSnapshotBlocks(id) => self.list_snapshot_blocks(id, &query),
            EmulatedCall::ListChangedBlocks(id) => self.list_changed_blocks(id, &query),
            EmulatedCall::GetSnapshotBlock(id, index) => self.get_snapshot_block(id, index, &query),
            EmulatedCall::StartSnapshot => self.start_snapshot(body, here),
            EmulatedCall::PutSnapshotBlock(id, index) => {
                self.put_snapshot_block(id, index, &parts.headers, body)
            }
            EmulatedCall::CompleteSnapshot(id) => self.complete_snapshot(id, &parts.headers),
            EmulatedCall::Ec2(action) => {
                let empty = !self.buckets.lock().take(action, switches.ec2_rps);
                if empty || happens(switches.ec2_throttle) {
                    self.count("throttled");
                    let message = "Request limit exceeded.";
                    return Err(Refusal::new(503, "RequestLimitExceeded", None, message));
                }
                self.ec2(action, body, here, &caller)
            }
            EmulatedCall::Unknown => Err(Refusal::new(404, "UnknownOperationException", None, "")),
        }
    }
}

/// The codes of STS (<https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>).
fn sts_refusal(refusal: Refusal) -> Refusal {
    let code = match refusal.code {
        "InvalidSignatureException" => "SignatureDoesNotMatch",
        "UnrecognizedClientException" => "InvalidClientTokenId",
        "MissingAuthenticationTokenException" => "MissingAuthenticationToken",
        other => other,
    };
    Refusal::new(403, code, None, refusal.message)
}

/// EC2's error codes for a bad signature.
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

/// Breaks a reply while it is sent, if a switch is set.
async fn damage(reply: Reply, call: &EmulatedCall, switches: &Switches) -> io::Result<Reply> {
    let (stall, truncate) = (happens(switches.stall), happens(switches.truncate));
    let endless = call.is_list() && happens(switches.endless_body);
    let slow = call.is_list() && switches.list_body_bps > 0;
    if !stall && !truncate && !endless && !slow {
        return Ok(reply);
    }
    let (parts, body) = reply.into_parts();
    let bytes = body.collect().await?.to_bytes();
    let length = bytes.len();
    let half = bytes.slice(..length / 2);
    let body: Body = if length == 0 {
        full(bytes)
    } else if endless {
        // Any number of blanks is valid JSON and XML.
        let blanks = Bytes::from(vec![b' '; ENDLESS]);
        let then = stream::repeat_with(move || Ok(Frame::data(blanks.clone())));
        let first = stream::once(async move { Ok(Frame::data(half)) });
        StreamBody::new(stream::StreamExt::chain(first, then)).boxed_unsync()
    } else if stall || truncate {
        let first = stream::once(async move { Ok(Frame::data(half)) });
        let then = stream::once(async move {
            if stall {
                tokio::time::sleep(STALL).await;
            }
            Err::<Frame<Bytes>, _>(io::Error::other("cut, as the switch says"))
        });
        StreamBody::new(stream::StreamExt::chain(first, then)).boxed_unsync()
    } else {
        StreamBody::new(slowly(bytes, switches.list_body_bps)).boxed_unsync()
    };
    let mut reply = Response::from_parts(parts, body);
    let headers = reply.headers_mut();
    if endless {
        headers.remove("content-length");
    } else if headers.contains_key("content-length") {
        headers.insert("content-length", length.into());
    }
    Ok(reply)
}

/// Sends the bytes at this rate.
fn slowly(bytes: Bytes, rate: u64) -> impl stream::Stream<Item = io::Result<Frame<Bytes>>> {
    let piece = usize::try_from(rate / TICKS).unwrap_or(usize::MAX).max(1);
    stream::unfold(bytes, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1000 / TICKS)).await;
        let sent = rest.split_to(piece.min(rest.len()));
        Some((Ok(Frame::data(sent)), rest))
    })
}
