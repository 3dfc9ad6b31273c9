//! Replies as each of the two services writes them: header names and their order, JSON, XML, number formats, errors.
//!
//! They follow recorded replies of the real service (us-east-1, September 2026, published with the project stackd), to
//! the header, the text and the form of a number. What was never recorded (throttles and 5xx of the direct APIs, headers
//! of `UnauthorizedOperation`) follows the documents.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

/// A body that can also break.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// A reply that is being sent.
pub(super) type Reply = Response<Body>;

/// A refusal in the service's own terms.
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

    /// The front end's refusal of values out of range or of the wrong form: no reason, and `message` in lower case.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(400, "ValidationException", None, message)
    }

    /// The front end's words for one value that breaks one constraint.
    pub(super) fn constraint(name: &str, value: impl std::fmt::Display, must: &str) -> Self {
        Self::malformed(format!(
            "1 validation error detected: Value '{value}' at '{name}' failed to satisfy constraint: Member must {must}"
        ))
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

    /// The part of the service that refuses, which is the end of `x-amzn-ErrorType`.
    fn origin(&self) -> &'static str {
        match (self.code, self.reason) {
            ("ValidationException", None) => "com.amazon.coral.validate",
            (_, Some(_))
            | (
                "ConflictException"
                | "InternalServerException"
                | "ConcurrentLimitExceededException",
                None,
            ) => "com.amazon.zeppelindataservice",
            _ => "com.amazon.coral.service",
        }
    }

    /// As restJson1. Only the service itself and IAM write `Message`; the layers before them write `message`.
    pub(super) fn rest_json(&self) -> Reply {
        let origin = self.origin();
        let body = match self.reason {
            Some(reason) => json!({"Message": self.message, "Reason": reason}),
            None if origin.contains("coral") && self.code != "AccessDeniedException" => {
                json!({"message": self.message})
            }
            None => json!({"Message": self.message}),
        };
        let kind = format!("{}:http://internal.amazon.com/coral/{origin}/", self.code);
        let more = [("x-amzn-errortype", kind.as_str())];
        reply(self.status, JSON, &more, body.to_string().into())
    }

    /// As the EC2 query API: XML, in chunks.
    pub(super) fn ec2_xml(&self) -> Reply {
        let id = request_id();
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{}</Code><Message>{}</Message>\
             </Error></Errors><RequestID>{id}</RequestID></Response>",
            self.code,
            escape(&self.message),
        );
        ec2_reply(self.status, &id, text)
    }
}

impl Refusal {
    /// As STS writes it.
    pub(super) fn sts_xml(&self) -> Reply {
        let id = request_id();
        let text = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>Sender</Type>\n    <Code>{}</Code>\n    \
             <Message>{}</Message>\n  </Error>\n  <RequestId>{id}</RequestId>\n</ErrorResponse>\n",
            self.code,
            escape(&self.message),
        );
        ec2_reply(self.status, &id, text)
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

/// A time as the direct APIs write it: seconds with milliseconds behind the point, as Java prints a double
/// (`1.790922504246E9`).
pub(super) fn seconds(millis: u64) -> String {
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds since 1970 fit the 53 bits for 285,000 years"
    )]
    let text = format!("{:E}", millis as f64 / 1000.0);
    match text.split_once('E') {
        Some((whole, exponent)) if !whole.contains('.') => format!("{whole}.0E{exponent}"),
        _ => text,
    }
}

/// A JSON object of fields whose values are JSON text already, in this order.
pub(super) fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    format!("{{{}}}", fields.join(","))
}

/// A JSON string, or null.
pub(super) fn text_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), |text| Value::from(text).to_string())
}

pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

const JSON: &str = "application/json";

/// GetSnapshotBlock's.
pub(super) fn block_reply(bytes: Bytes, digest: &[u8; 32]) -> Reply {
    let length = bytes.len().to_string();
    let more = [
        ("x-amz-data-length", length.as_str()),
        ("x-amz-checksum", &STANDARD.encode(digest)),
        ("x-amz-checksum-algorithm", "SHA256"),
    ];
    reply(200, "application/octet-stream", &more, bytes)
}

pub(super) fn json_reply(status: u16, body: &Value) -> Reply {
    json_text(status, &[], body.to_string())
}

pub(super) fn json_text(status: u16, more: &[(&'static str, &str)], body: String) -> Reply {
    reply(status, JSON, more, body.into())
}

/// A reply of the direct APIs, its headers in their order.
pub(super) fn reply(
    status: u16,
    kind: &'static str,
    more: &[(&'static str, &str)],
    bytes: Bytes,
) -> Reply {
    let length = bytes.len();
    let mut reply = Response::new(full(bytes));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = reply.headers_mut();
    let id = request_id();
    for (name, value) in std::iter::once(&("x-amzn-requestid", id.as_str())).chain(more) {
        if let Ok(value) = value.parse() {
            headers.insert(*name, value);
        }
    }
    headers.insert("content-type", HeaderValue::from_static(kind));
    if status != 204 {
        headers.insert("content-length", length.into());
    }
    reply
}

/// A reply of EC2: the request's id is in the header as in the XML. Errors come in chunks, without a length.
pub(super) fn ec2_reply(status: u16, id: &str, text: String) -> Reply {
    let length = text.len();
    let body = if status == 200 {
        full(text.into())
    } else {
        let whole = stream::once(async move { Ok(Frame::data(Bytes::from(text))) });
        StreamBody::new(whole).boxed_unsync()
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = reply.headers_mut();
    if let Ok(id) = id.parse() {
        headers.insert("x-amzn-requestid", id);
    }
    for (name, value) in [
        ("cache-control", "no-cache, no-store"),
        (
            "strict-transport-security",
            "max-age=31536000; includeSubDomains",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if status != 200 {
        headers.insert("vary", HeaderValue::from_static("accept-encoding"));
    }
    headers.insert(
        "content-type",
        HeaderValue::from_static("text/xml;charset=UTF-8"),
    );
    if status == 200 {
        headers.insert("content-length", length.into());
    } else {
        headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_recorded() {
        for (millis, text) in [
            (1_790_922_504_246, "1.790922504246E9"),
            (1_790_337_440_570, "1.79033744057E9"),
            (1_790_337_440_000, "1.79033744E9"),
            (2_000_000_000_000, "2.0E9"),
        ] {
            assert_eq!(seconds(millis), text);
        }
    }

    #[test]
    fn each_refusal_names_the_part_that_refuses() {
        let origin = |refusal: Refusal| {
            let reply = refusal.rest_json();
            let kind = reply.headers().get("x-amzn-errortype").unwrap();
            kind.to_str().unwrap().to_owned()
        };
        let suffix = ":http://internal.amazon.com/coral/com.amazon";
        for (refusal, expected) in [
            (
                Refusal::not_found("snap-1"),
                format!("ResourceNotFoundException{suffix}.zeppelindataservice/"),
            ),
            (
                Refusal::constraint("maxResults", 1, "have value greater than or equal to 100"),
                format!("ValidationException{suffix}.coral.validate/"),
            ),
            (
                Refusal::new(403, "InvalidSignatureException", None, "no"),
                format!("InvalidSignatureException{suffix}.coral.service/"),
            ),
            (
                Refusal::new(409, "ConflictException", None, "no"),
                format!("ConflictException{suffix}.zeppelindataservice/"),
            ),
        ] {
            assert_eq!(origin(refusal), expected);
        }
    }
}
