//! Replies: bodies, JSON, and errors as each of the two services writes them.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

/// A body that can also break.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// A reply on its way.
pub(super) type Reply = Response<Body>;

/// What a service refuses, in terms of its own.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) reason: Option<&'static str>,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(
        status: u16,
        code: &'static str,
        reason: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            reason,
            message: message.into(),
        }
    }

    /// A ValidationException with its reason.
    pub(super) fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, "ValidationException", Some(reason), message)
    }

    /// What the front end says of values out of range or of the wrong form: no reason, and `message` in lower case.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(400, "ValidationException", None, message)
    }

    pub(super) fn not_found(id: &str) -> Self {
        let message = format!("The snapshot '{id}' does not exist.");
        Self::new(
            404,
            "ResourceNotFoundException",
            Some("SNAPSHOT_NOT_FOUND"),
            message,
        )
    }

    pub(super) fn internal() -> Self {
        Self::new(
            500,
            "InternalServerException",
            None,
            "Internal server error",
        )
    }

    /// As restJson1: the type in a header, sometimes with a suffix, and the connection closed.
    pub(super) fn rest_json(&self) -> Reply {
        let body = match self.reason {
            Some(reason) => json!({"Message": self.message, "Reason": reason}),
            None if self.code == "ValidationException" => json!({"message": self.message}),
            None => json!({"Message": self.message}),
        };
        let mut kind = self.code.to_owned();
        if self.reason.is_none() {
            kind.push_str(":http://internal.amazon.com/coral/com.amazon.coral.service/");
        }
        let mut reply = json_reply(self.status, &body);
        let headers = reply.headers_mut();
        if let Ok(kind) = kind.parse() {
            headers.insert("x-amzn-errortype", kind);
        }
        headers.insert("connection", HeaderValue::from_static("close"));
        reply
    }

    /// As the EC2 query API: XML.
    pub(super) fn ec2_xml(&self) -> Reply {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{}</Code><Message>{}</Message>\
             </Error></Errors><RequestID>{}</RequestID></Response>",
            self.code,
            escape(&self.message),
            request_id()
        );
        with_body(self.status, "text/xml;charset=UTF-8", text.into())
    }
}

/// Text as XML has it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

pub(super) fn request_id() -> String {
    let n = fastrand::u128(..);
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        n >> 96,
        n >> 80 & 0xffff,
        n >> 68 & 0xfff,
        n >> 56 & 0xfff,
        n & 0xffff_ffff_ffff
    )
}

pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// GetSnapshotBlock's.
pub(super) fn block_reply(bytes: Bytes, digest: &[u8; 32]) -> Reply {
    let length = bytes.len();
    let mut reply = with_body(200, "application/octet-stream", bytes);
    let headers = reply.headers_mut();
    headers.insert("x-amz-data-length", length.into());
    headers.insert(
        "x-amz-checksum-algorithm",
        HeaderValue::from_static("SHA256"),
    );
    if let Ok(checksum) = STANDARD.encode(digest).parse() {
        headers.insert("x-amz-checksum", checksum);
    }
    reply
}

pub(super) fn json_reply(status: u16, body: &Value) -> Reply {
    with_body(status, "application/json", body.to_string().into())
}

pub(super) fn with_body(status: u16, kind: &'static str, bytes: Bytes) -> Reply {
    let mut reply = Response::new(full(bytes));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = reply.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(kind));
    if let Ok(id) = request_id().parse() {
        headers.insert("x-amzn-requestid", id);
    }
    reply
}
