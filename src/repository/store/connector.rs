//! [`PooledConnector`]: the connections of [`Http`] for object_store, so that proxies, certificate authorities and time-outs
//! are the same for Azure and Google as for AWS.

use async_trait::async_trait;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{HeaderValue, USER_AGENT};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};

use super::backend::MOST_BYTES;
use crate::aws::Http;

/// Names the program in the logs of a store.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("ebsfs/", env!("CARGO_PKG_VERSION")));

/// Bytes of a reply besides an object: object_store reads listings and errors into memory as a whole.
const HEADROOM: u64 = 1 << 20;

/// Gives object_store the shared connections.
#[derive(Clone, Debug)]
pub(super) struct PooledConnector(pub(super) Http);

impl HttpConnector for PooledConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for PooledConnector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut request = request.map(SdkBody::from_body_1_x);
        request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
        let reply = self.0.exchange(request).await.map_err(failed)?;
        let most = usize::try_from(MOST_BYTES + HEADROOM).unwrap_or(usize::MAX);
        Ok(reply.map(|body| HttpResponseBody::new(Limited::new(body, most).map_err(broken))))
    }
}

/// Why a body has ended too early.
fn broken(error: Box<dyn std::error::Error + Send + Sync>) -> HttpError {
    let kind = match error.is::<LengthLimitError>() {
        true => HttpErrorKind::Decode,
        false => HttpErrorKind::Interrupted,
    };
    HttpError::new_boxed(kind, error)
}

fn failed(error: ConnectorError) -> HttpError {
    let kind = match (error.is_timeout(), error.is_io()) {
        (true, _) => HttpErrorKind::Timeout,
        (_, true) => HttpErrorKind::Connect,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}

#[cfg(test)]
mod tests {
    use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
    use object_store::{ObjectStoreExt, RetryConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::aws::Proxies;

    /// A bucket behind a server that answers each connection with the next of `replies`, and the requests that it got.
    async fn bucket(
        replies: &'static [&'static str],
    ) -> (GoogleCloudStorage, tokio::task::JoinHandle<Vec<String>>) {
        let (store, listener) = store().await;
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for reply in replies {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                requests.push(String::from_utf8_lossy(&request[..length]).into_owned());
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
            requests
        });
        (store, server)
    }

    /// A bucket and the listener of its server.
    async fn store() -> (GoogleCloudStorage, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let account = format!(
            r#"{{"gcs_base_url":"{url}","disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}}"#
        );
        let http = Http::new(Proxies::default(), None).unwrap();
        let store = GoogleCloudStorageBuilder::new()
            .with_bucket_name("bucket")
            .with_service_account_key(account)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_http_connector(PooledConnector(http))
            .with_retry(RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            });
        (store.build().unwrap(), listener)
    }

    #[tokio::test]
    async fn a_reply_without_an_end_is_an_error() {
        let (store, listener) = store().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let head = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let (mut sent, piece) = (0, vec![b'x'; 1 << 16]);
            while stream.write_all(&piece).await.is_ok() {
                sent += 1 << 16;
                assert!(sent < 2 * MOST_BYTES, "it is read to its end");
            }
        });
        store.get(&"p/packs/a".into()).await.unwrap_err();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_reply_is_passed_on_and_one_that_is_cut_is_an_error() {
        let (store, server) = bucket(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: close\r\n\r\nbytes",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: close\r\n\r\nbytes",
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 29\r\nConnection: close\r\n\r\n<Code>AccessDenied</Code>12345",
            "",
        ])
        .await;
        let key = "p/packs/a".into();
        let get = async || store.get(&key).await?.bytes().await;
        assert_eq!(get().await.unwrap(), "bytes");
        get().await.unwrap_err();
        let denied = get().await.unwrap_err().to_string();
        assert!(denied.contains("AccessDenied"), "{denied}");
        get().await.unwrap_err();
        for request in server.await.unwrap() {
            assert!(
                request.starts_with("GET /bucket/p%2Fpacks%2Fa HTTP/1.1"),
                "{request}"
            );
            assert!(request.contains("user-agent: ebsfs/"), "{request}");
        }
    }
}
