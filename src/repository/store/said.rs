//! What a store's refusals and failures mean: one line for people, and whether it will fail again.

use std::error::Error as StdError;
use std::path::PathBuf;

use object_store::Error as StoreError;

use super::{Store, Trouble};
use crate::error::{Error, Kind};

/// What S3 answers where the bucket is elsewhere, without saying where: the library tells that much of it and no more.
const REDIRECT: &str = "redirect";
/// Characters of a message of somebody else that are told.
const LONGEST_MESSAGE: usize = 300;

impl Store {
    pub(super) fn error(&self, kind: Kind, verb: &str, name: &str, what: &str) -> Error {
        Error::new(kind, format!("{verb} {}/{name}: {what}", self.address))
    }

    /// What failed, in one line, and whether it will fail again.
    pub(super) fn judge(&self, trouble: Trouble, verb: &str, name: &str) -> (Error, bool) {
        let error = match trouble {
            Trouble::Store(error) => error,
            Trouble::Wrong(what) => return (self.error(Kind::Corrupt, verb, name, &what), true),
            Trouble::Lost(what) => {
                let what = format!("the store has taken it, and {what}");
                return (self.error(Kind::Corrupt, verb, name, &what), false);
            }
        };
        if let Some(io) = cause::<std::io::Error>(&error).filter(|_| self.address.is_folder()) {
            let io = std::io::Error::new(io.kind(), io.to_string());
            let file = PathBuf::from(format!("{}/{name}", self.address.bucket));
            return (Error::of_file(&file, &format!("cannot {verb}"), io), true);
        }
        let said = Said::of(&error);
        let line = said.line();
        let told = |kind, need: &str| {
            let what = if need.is_empty() {
                line.clone()
            } else {
                format!("{line}; {need}")
            };
            self.error(kind, verb, name, &what)
        };
        let code = said.code.as_deref().unwrap_or_default();
        match (said.status, code) {
            (_, "NoSuchBucket" | "ContainerNotFound") => {
                (told(Kind::NotFound, "make the bucket first"), true)
            }
            (_, "RequestTimeTooSkewed") => (told(Kind::Denied, "the clock is wrong"), true),
            (_, "ExpiredToken" | "ExpiredTokenException") => (
                told(
                    Kind::Denied,
                    "the credentials have expired: renew them and do it again",
                ),
                true,
            ),
            (_, "SignatureDoesNotMatch" | "InvalidAccessKeyId") => (
                told(
                    Kind::Denied,
                    "the credentials are not the store's, or the Region is another",
                ),
                true,
            ),
            (
                _,
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            )
            | (Some(300..=399), _)
            | (None, REDIRECT) => (
                told(
                    Kind::Invalid,
                    "the bucket is in another Region, or behind another endpoint",
                ),
                true,
            ),
            (Some(401 | 403), _) => (
                told(
                    Kind::Denied,
                    "the credentials lack the permission, have expired, or are not the store's",
                ),
                true,
            ),
            (Some(408 | 429 | 500..), _) | (_, "SlowDown" | "RequestTimeout" | "InternalError") => {
                (told(Kind::Unavailable, ""), false)
            }
            (Some(404), _) => (told(Kind::NotFound, ""), true),
            (Some(400..=499), _) => (told(Kind::Invalid, ""), true),
            _ => match &error {
                StoreError::NotFound { .. } => (told(Kind::NotFound, ""), true),
                StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                    (told(Kind::Denied, ""), true)
                }
                // It will not be trusted the next time either.
                StoreError::Generic { .. } if line.contains("invalid peer certificate") => (
                    told(
                        Kind::Unavailable,
                        "--ca-bundle, or --to-ca-bundle, names the authorities to trust",
                    ),
                    true,
                ),
                StoreError::Generic { .. } => (told(Kind::Unavailable, ""), false),
                _ => (told(Kind::Invalid, ""), true),
            },
        }
    }
}

/// What a store has said, taken out of what the library makes of it: there it stands among URLs, whose queries may be
/// secrets.
struct Said {
    status: Option<u16>,
    code: Option<String>,
    message: String,
}

impl Said {
    fn of(error: &StoreError) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push('\n');
            text.push_str(&error.to_string());
            cause = error.source();
        }
        let between = |start: &str, end: &str| {
            let rest = text.split_once(start)?.1;
            Some(rest.split_once(end)?.0.trim().to_owned())
        };
        let status = between("status code: ", " ").and_then(|status| status.parse().ok());
        let is_redirect = text.contains("redirect without LOCATION");
        let code = between("<Code>", "</Code>").or(is_redirect.then(|| REDIRECT.to_owned()));
        let message = between("<Message>", "</Message>");
        // Of a failure to connect the innermost cause says what it is.
        let last = text.lines().last().unwrap_or_default().to_owned();
        let message = message.unwrap_or(match status {
            Some(_) => String::new(),
            None => last,
        });
        let message = message.chars().take(LONGEST_MESSAGE).collect();
        Self {
            status,
            code,
            message,
        }
    }

    fn line(&self) -> String {
        let status = self.status.map(|status| format!("HTTP {status}"));
        let message = Some(self.message.clone()).filter(|message| !message.is_empty());
        let parts = [self.code.clone(), status, message];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Whether a store does not know `If-None-Match`.
pub(super) fn is_unknown_condition(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }
    ) || Said::of(error).status == Some(501)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_says_is_one_line_without_urls() {
        let error = StoreError::Generic {
            store: "S3",
            source: "Error performing PUT https://b.example/x?sig=SECRET in 3ms - Server returned non-2xx status code: \
                     403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code>\n<Message>too far</Message></Error>"
                .into(),
        };
        let said = Said::of(&error);
        assert_eq!(said.line(), "RequestTimeTooSkewed, HTTP 403, too far");
        let error = StoreError::Generic {
            store: "S3",
            source: "a\nconnection refused".into(),
        };
        assert_eq!(Said::of(&error).line(), "connection refused");
    }
}
