//! The ARN of the caller, from STS, for the log.

use std::time::Duration;

use tokio::time::timeout;

use super::Aws;
use super::endpoints::Service;
use crate::error::{Error, Kind, Result};

/// Time limit for STS, which a VPC without its endpoint cannot reach; nothing waits for the answer.
const LIMIT: Duration = Duration::from_secs(10);

impl Aws {
    /// The caller's ARN, by one request to STS. No policy can deny it:
    /// <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html>.
    ///
    /// # Errors
    /// `Unavailable` when STS returns an error or does not answer within 10 s; errors of the endpoint's settings.
    pub(crate) async fn caller(&self) -> Result<String> {
        let config = self.service(Service::Sts)?;
        let sts = aws_sdk_sts::Client::new(&config.sdk);
        let failed = |why| {
            Error::new(
                Kind::Unavailable,
                format!("cannot get the caller's identity from STS: {why}"),
            )
        };
        let asked = timeout(LIMIT, sts.get_caller_identity().send()).await;
        let identity = asked
            .map_err(|_| failed("no answer".into()))?
            .map_err(|error| failed(error.into_service_error().to_string()))?;
        identity.arn.ok_or_else(|| failed("an empty reply".into()))
    }
}
