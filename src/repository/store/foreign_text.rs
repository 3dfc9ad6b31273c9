//! Errors of object_store as [`StoreRefusal`]s. The library keeps status, code and message only in its texts, among
//! URLs whose queries can be secrets.

use std::error::Error as StdError;

use object_store::Error as LibraryError;

use super::backend::FaultAction;
use super::refusal::StoreRefusal;
use crate::aws::Unreachable;
use crate::error::Kind;

/// The refusal of a store, or the library's own error where it has no status.
pub(super) fn refusal(error: &LibraryError) -> (StoreRefusal, Option<(Kind, FaultAction)>) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(unreachable) = error.downcast_ref::<Unreachable>() {
            let refusal = StoreRefusal {
                message: unreachable.reason.clone(),
                ..StoreRefusal::default()
            };
            return (refusal, Some((unreachable.kind, FaultAction::Final)));
        }
        text.push('\n');
        text.push_str(&error.to_string());
        cause = error.source();
    }
    let between = |start: &str, end: &str| {
        let rest = text.split_once(start)?.1;
        Some(rest.split_once(end)?.0.trim().to_owned())
    };
    let status: Option<u16> = between("status code: ", " ").and_then(|status| status.parse().ok());
    // The innermost cause names the failure to connect.
    let last = || match status {
        Some(_) => String::new(),
        None => text.lines().last().unwrap_or_default().to_owned(),
    };
    let refusal = StoreRefusal {
        status: status.or_else(|| text.contains("redirect without LOCATION").then_some(301)),
        code: between("<Code>", "</Code>").unwrap_or_default(),
        message: between("<Message>", "</Message>").unwrap_or_else(last),
        ..StoreRefusal::default()
    };
    let known = match error {
        LibraryError::NotFound { .. } => Some((Kind::NotFound, FaultAction::Absent)),
        LibraryError::AlreadyExists { .. } | LibraryError::Precondition { .. } => {
            Some((Kind::Io, FaultAction::Exists))
        }
        LibraryError::NotImplemented { .. } | LibraryError::NotSupported { .. } => {
            Some((Kind::Invalid, FaultAction::NoCondition))
        }
        LibraryError::PermissionDenied { .. } | LibraryError::Unauthenticated { .. } => {
            Some((Kind::Denied, FaultAction::Final))
        }
        LibraryError::Generic { .. } => Some((Kind::Unavailable, FaultAction::Retry)),
        _ => Some((Kind::Invalid, FaultAction::Final)),
    };
    (refusal, known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_store_is_one_line_without_urls() {
        let error = LibraryError::Generic {
            store: "GCS",
            source: "Error performing PUT https://b.example/x?sig=SECRET in 3ms - Server returned non-2xx status code: \
                     403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code>\n<Message>too far</Message></Error>"
                .into(),
        };
        let (said, _) = refusal(&error);
        assert_eq!(said.line(), "RequestTimeTooSkewed, HTTP 403, too far");
        let error = LibraryError::Generic {
            store: "GCS",
            source: "a\nconnection refused".into(),
        };
        let (said, known) = refusal(&error);
        assert_eq!(said.line(), "connection refused");
        assert_eq!(known, Some((Kind::Unavailable, FaultAction::Retry)));
    }
}
