//! Where S3 is.

use crate::aws::{Aws, Service, service_url};
use crate::error::Result;

/// The URL of S3 in the Region of `aws`, or the one that was chosen; without a bucket.
///
/// # Errors
/// `Invalid` for an endpoint that cannot be used, and without either.
pub(crate) async fn url(aws: &Aws) -> Result<String> {
    service_url!(aws_sdk_s3::config::endpoint, aws, Service::S3)
}
