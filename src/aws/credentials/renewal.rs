//! The SDK's own retries with other credentials: for the clients whose attempts the SDK counts.

use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};

use super::Credentials;

/// Codes of refused credentials in replies of the query protocol.
const CODES: [&str; 5] = [
    "<Code>ExpiredToken</Code>",
    "<Code>RequestExpired</Code>",
    "<Code>AuthFailure</Code>",
    "<Code>InvalidClientTokenId</Code>",
    "<Code>ExpiredTokenException</Code>",
];

/// Has a call whose credentials were refused sent again with others. The SDK asks for credentials before each attempt.
#[derive(Clone, Debug)]
pub struct Renewal(pub(in crate::aws) Credentials);

impl ClassifyRetry for Renewal {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let reply = context.response();
        let body = reply.and_then(|reply| reply.body().bytes());
        if !body.is_some_and(is_about_credentials) {
            return RetryAction::NoActionIndicated;
        }
        // Which credentials the attempt had is not known here; those of now are loaded again at most once in some seconds.
        match self.0.refused(self.0.generation()) {
            true => RetryAction::transient_error(),
            false => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "Renewal"
    }
}

fn is_about_credentials(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    CODES.iter().any(|code| text.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refused_credentials_are_replaced() {
        let body = |code: &str| {
            format!("<Response><Errors><Error><Code>{code}</Code></Error></Errors></Response>")
        };
        for (code, expected) in [
            ("RequestExpired", true),
            ("AuthFailure", true),
            ("ExpiredToken", true),
            ("UnauthorizedOperation", false),
            ("RequestLimitExceeded", false),
            ("InvalidSnapshot.NotFound", false),
        ] {
            assert_eq!(
                is_about_credentials(body(code).as_bytes()),
                expected,
                "{code}"
            );
        }
    }
}
