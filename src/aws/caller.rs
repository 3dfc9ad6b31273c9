//! Who calls AWS, from STS: for the log and for evidence.

use std::time::Duration;

use aws_sdk_sts::operation::get_caller_identity::GetCallerIdentityError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Aws;
use super::actions::IamAction;
use super::classify::classify;
use super::endpoints::Service;
use crate::error::{Error, Kind, Result};

/// Time limit for STS, which a VPC without its endpoint cannot reach; nothing waits for the answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Who calls AWS, as STS states it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallerIdentity {
    /// The account's 12 digits.
    pub(crate) account: Option<String>,
    /// ARN of the user or of the session of a role.
    pub(crate) arn: String,
    /// The unique id, which stays when a user of the same name is made again.
    pub(crate) user_id: Option<String>,
}

/// The refusal in words: status, code, message and what they mean.
fn refused(error: SdkError<GetCallerIdentityError, HttpResponse>) -> String {
    classify(error, IamAction::GetCallerIdentity.name(), "in this Region")
        .into_error()
        .chain()
}

impl Aws {
    /// Who calls, by one request to STS. No policy can deny it:
    /// <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html>.
    ///
    /// # Errors
    /// `Unavailable` when STS returns an error or does not answer within 10 s; errors of the endpoint's settings.
    pub(crate) async fn caller(&self) -> Result<CallerIdentity> {
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
            .map_err(|error| failed(refused(error)))?;
        Ok(CallerIdentity {
            account: identity.account,
            arn: identity
                .arn
                .ok_or_else(|| failed("an empty reply".into()))?,
            user_id: identity.user_id,
        })
    }
}
