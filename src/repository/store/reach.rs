//! How a store is reached: credentials, endpoint, style, certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_RANGE, RANGE};
use object_store::aws::{AmazonS3Builder, AwsCredential};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{
    Certificate, ClientOptions, CredentialProvider, Error as StoreError, ObjectStore, RetryConfig,
};
use parking_lot::Mutex;
use tracing::trace;

use super::address::{Address, Scheme};
use crate::aws::{Credentials, Generation};
use crate::error::{Error, Kind, Result};

/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing may come of a reply.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one request may take: 32 MiB at 250 KB a second.
pub(in crate::repository) const REQUEST_TIMEOUT: Duration = Duration::from_secs(130);

/// Where the bucket's name goes in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketStyle {
    /// Into the path, as most servers that are not a cloud want it.
    Path,
    /// Before the host, as AWS, OBS and OSS want it.
    Host,
}

/// How a store is reached. Azure's and Google's credentials are those of their own environment variables.
#[derive(Clone, Debug)]
pub struct Connection {
    /// What signs requests to S3; none signs none.
    pub credentials: Option<Credentials>,
    /// The Region to sign for, whatever its cloud calls it.
    pub region: Option<String>,
    /// The store's URL, without the bucket; none is AWS itself.
    pub endpoint: Option<String>,
    /// PEM certificates to trust instead of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// None: before the host for AWS itself, in the path elsewhere.
    pub style: Option<BucketStyle>,
    /// How long an object may take, all tries together.
    pub timeout: Duration,
}

/// The credentials as the library takes them; it compares them by address.
#[derive(Debug)]
struct Bridge {
    credentials: Credentials,
    last: Mutex<Option<(Generation, Arc<AwsCredential>)>>,
}

#[async_trait::async_trait]
impl CredentialProvider for Bridge {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let usable = self.credentials.current().await;
        let usable = usable.map_err(|error| StoreError::Generic {
            store: "S3",
            source: Box::new(error),
        })?;
        let mut last = self.last.lock();
        if let Some((generation, credential)) = &*last
            && *generation == usable.generation
        {
            return Ok(Arc::clone(credential));
        }
        let keys = &usable.keys;
        let credential = Arc::new(AwsCredential {
            key_id: keys.access_key_id().to_owned(),
            secret_key: keys.secret_access_key().to_owned(),
            token: keys.session_token().map(str::to_owned),
        });
        *last = Some((usable.generation, Arc::clone(&credential)));
        Ok(credential)
    }
}

/// Requests as the library makes them, each in the log of -vv, and replies as it understands them.
#[derive(Debug)]
struct Tolerant(HttpClient);

#[async_trait::async_trait]
impl HttpService for Tolerant {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let wants_range = request.headers().contains_key(RANGE);
        // Queries can be signatures.
        trace!("{} {}", request.method(), request.uri().path());
        let mut reply = self.0.execute(request).await?;
        // Some servers (rclone's) send the range that was asked for and call it the whole.
        if wants_range
            && reply.status() == StatusCode::OK
            && reply.headers().contains_key(CONTENT_RANGE)
        {
            *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Ok(reply)
    }
}

#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Tolerant(client)))
    }
}

/// Reaches a bucket or a folder; nothing is asked yet.
pub(super) fn reach(address: &Address, connection: &Connection) -> Result<Arc<dyn ObjectStore>> {
    let wrong = |error: StoreError| {
        Error::with_source(Kind::Invalid, format!("cannot reach {address}"), error)
    };
    let client = client_options(connection)?;
    // One loop here covers them all, and asks for credentials anew each time.
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let bucket = &address.bucket;
    Ok(match address.scheme {
        Scheme::Folder => {
            if !std::path::Path::new(bucket).exists() {
                // Nothing is in it; whoever writes makes it first.
                return Ok(Arc::new(InMemory::new()));
            }
            let folder = LocalFileSystem::new_with_prefix(bucket).map_err(wrong)?;
            Arc::new(folder.with_fsync(true))
        }
        Scheme::S3 => {
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(bucket)
                .with_region(connection.region.as_deref().unwrap_or("us-east-1"))
                .with_http_connector(Connector)
                .with_client_options(client)
                .with_retry(retry);
            let style = connection.style.unwrap_or(match connection.endpoint {
                Some(_) => BucketStyle::Path,
                None => BucketStyle::Host,
            });
            // What is put is read back; over TLS nobody changes it on the way.
            let is_tls = connection
                .endpoint
                .as_deref()
                .is_none_or(|url| url.starts_with("https:"));
            builder = builder.with_unsigned_payload(is_tls);
            builder = builder.with_virtual_hosted_style_request(style == BucketStyle::Host);
            if let Some(url) = &connection.endpoint {
                let url = match style {
                    BucketStyle::Path => url.clone(),
                    BucketStyle::Host => with_bucket(url, bucket)?,
                };
                builder = builder.with_endpoint(url);
            }
            builder = match &connection.credentials {
                Some(given) => builder.with_credentials(Arc::new(Bridge {
                    credentials: given.clone(),
                    last: Mutex::default(),
                })),
                None => builder.with_skip_signature(true),
            };
            Arc::new(builder.build().map_err(wrong)?)
        }
        Scheme::Azure => {
            let builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_http_connector(Connector)
                .with_client_options(client)
                .with_retry(retry);
            Arc::new(builder.build().map_err(wrong)?)
        }
        Scheme::Google => {
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_http_connector(Connector)
                .with_client_options(client)
                .with_retry(retry);
            Arc::new(builder.build().map_err(wrong)?)
        }
    })
}

fn client_options(connection: &Connection) -> Result<ClientOptions> {
    let mut options = ClientOptions::new()
        .with_allow_http(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT);
    if let Some(file) = &connection.ca_bundle {
        let pem = std::fs::read(file)
            .map_err(|error| Error::of_file(file, "cannot read the certificates in", error))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| {
            let what = format!("{} holds no certificates", file.display());
            Error::with_source(Kind::Invalid, what, error)
        })?;
        options = options.with_no_system_certificates(true);
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// The URL with the bucket before the host.
fn with_bucket(url: &str, bucket: &str) -> Result<String> {
    let (scheme, host) = url.split_once("://").ok_or_else(|| {
        Error::new(
            Kind::Invalid,
            format!("{url:?} is no URL: it must begin with https:// or http://"),
        )
    })?;
    Ok(format!("{scheme}://{bucket}.{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_goes_before_the_host() {
        let url = with_bucket("https://obs.example:9/", "b").unwrap();
        assert_eq!(url, "https://b.obs.example:9/");
        assert!(with_bucket("obs.example", "b").is_err());
    }
}
