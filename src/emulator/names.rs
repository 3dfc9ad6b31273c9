//! The names of headers as AWS sends them: `x-amzn-RequestId`, `Content-Type`.
//!
//! hyper writes names in lower case, except for those whose spelling it keeps from a message that it has read. So one
//! message with all the names is read once, and each reply carries what hyper has kept of it.

use std::io;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::http::Extensions;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SPELLED: &str = "HTTP/1.1 200 OK\r\n\
    x-amzn-RequestId: 1\r\n\
    x-amzn-ErrorType: 1\r\n\
    x-amz-Data-Length: 1\r\n\
    x-amz-Checksum: 1\r\n\
    x-amz-Checksum-Algorithm: 1\r\n\
    Cache-Control: 1\r\n\
    Strict-Transport-Security: 1\r\n\
    Content-Type: 1\r\n\
    Content-Length: 0\r\n\
    Transfer-Encoding: chunked\r\n\
    Date: 1\r\n\
    Connection: close\r\n\
    Server: 1\r\n\r\n0\r\n\r\n";

/// The extension that makes hyper spell the names of a reply as AWS does.
///
/// # Errors
/// When hyper does not read the message.
pub(super) async fn as_sent() -> io::Result<Extensions> {
    let (client, mut server) = tokio::io::duplex(4096);
    let (mut sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(client))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    let answer = async {
        let mut request = [0; 1024];
        // A bodiless request of one header line comes in one piece.
        let _ = server.read(&mut request).await?;
        server.write_all(SPELLED.as_bytes()).await
    };
    let asked = sender.send_request(Request::new(Empty::<Bytes>::new()));
    let (reply, answered) = tokio::join!(asked, answer);
    answered?;
    let (parts, _) = reply.map_err(io::Error::other)?.into_parts();
    Ok(parts.extensions)
}
