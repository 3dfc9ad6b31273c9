//! How a store is reached: credentials, endpoint, style, certificates.

use std::time::Duration;

use super::address::{Address, Scheme};
use super::backend::Backend;
use super::bandwidth::Bandwidth;
use super::folder::FolderBackend;
use super::objects::ForeignBackend;
use super::s3::S3Backend;
use super::traffic::StoreTraffic;
use crate::aws::{Http, ServiceConfig};
use crate::error::{Error, Kind, Result};

/// The default of concurrent requests.
const IN_FLIGHT: usize = 64;

/// Where the bucket's name goes in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketStyle {
    /// Into the path, as most servers that are not a cloud want it.
    Path,
    /// Before the host, as AWS, OBS and OSS want it.
    Host,
}

/// What S3 alone knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The server-side encryption of new objects: `AES256`, `aws:kms`.
    pub encryption: Option<String>,
    /// The key of that encryption; none is the default key of the account.
    pub kms_key: Option<String>,
    /// The storage class of new objects.
    pub storage_class: Option<String>,
    /// Whether listings ask version 1 of ListObjects from the start.
    pub is_list_version_1: bool,
}

/// How a store is reached. Azure's and Google's credentials are those of their own environment variables.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Region, endpoint, credentials and connections of S3.
    pub s3: Option<ServiceConfig>,
    /// What S3 alone knows.
    pub s3_options: S3Options,
    /// The connections to Azure and Google.
    pub http: Option<Http>,
    /// None: before the host for AWS itself, in the path elsewhere.
    pub style: Option<BucketStyle>,
    /// How long a request is tried again without progress.
    pub timeout: Duration,
    /// The most concurrent requests.
    pub in_flight: usize,
    /// The limit of bytes per second, shared with the other stores of a run.
    pub bandwidth: Bandwidth,
    /// Counts operations, shared with the other stores of a run.
    pub traffic: StoreTraffic,
}

impl Connection {
    /// A connection that needs nothing but the time-out, as for a folder.
    pub fn new(timeout: Duration) -> Self {
        Self {
            s3: None,
            s3_options: S3Options::default(),
            http: None,
            style: None,
            timeout,
            in_flight: IN_FLIGHT,
            bandwidth: Bandwidth::default(),
            traffic: StoreTraffic::default(),
        }
    }
}

/// Reaches a bucket or a folder; no request is sent.
pub(super) fn reach(address: &Address, connection: &Connection) -> Result<Box<dyn Backend>> {
    if !address.is_s3() && connection.s3_options != S3Options::default() {
        let what = format!("cannot use {address} with options of S3: it is another kind of store");
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(match address.scheme {
        Scheme::Folder => Box::new(FolderBackend::new(address.bucket.as_ref())),
        Scheme::S3 => {
            let Some(service) = &connection.s3 else {
                let what = format!("cannot reach {address}: no settings of S3");
                return Err(Error::new(Kind::Invalid, what));
            };
            let options = connection.s3_options.clone();
            Box::new(S3Backend::new(
                service,
                &address.bucket,
                connection.style,
                options,
            ))
        }
        Scheme::Azure | Scheme::Google => Box::new(ForeignBackend::new(address, connection)?),
    })
}
