//! Where the EBS direct APIs are.

use crate::aws::{Aws, Service, service_url};
use crate::error::Result;

/// Their URL in the Region of `aws`.
///
/// # Errors
/// `Invalid` for an endpoint that cannot be used, and without a Region.
pub(crate) async fn url(aws: &Aws) -> Result<String> {
    service_url!(aws_sdk_ebs::config::endpoint, aws, Service::Ebs)
}
