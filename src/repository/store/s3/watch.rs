//! [`Watch`]: counts the bytes of one request of the SDK, and limits its reply.

use std::sync::Arc;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    AfterDeserializationInterceptorContextRef, BeforeDeserializationInterceptorContextMut,
    BeforeTransmitInterceptorContextRef,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use http_body_util::Limited;
use parking_lot::Mutex;
use tracing::trace;

use super::reply::listing_fault;
use crate::repository::store::transfer::{ReplyBody, Transfer};

/// The most bytes of a listing's page: 1,000 keys of 1,024 characters, escaped, and their metadata have 8 MB.
const MOST_PAGE: usize = 16 << 20;
/// The most bytes of a refusal or of a reply without content.
const MOST_REFUSAL: usize = 1 << 20;

/// Sits between the SDK and the connection for one request; clones share what they found.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    transfer: Arc<Transfer>,
    is_listing: bool,
    /// The most bytes of a successful reply.
    most: usize,
    fault: Arc<Mutex<Option<String>>>,
}

impl Watch {
    pub(super) fn object(transfer: &Arc<Transfer>, most: u64) -> Self {
        Self {
            transfer: Arc::clone(transfer),
            is_listing: false,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            fault: Arc::default(),
        }
    }

    /// A request whose reply has no bytes of interest.
    pub(super) fn short(transfer: &Arc<Transfer>) -> Self {
        Self::object(transfer, MOST_REFUSAL as u64)
    }

    pub(super) fn listing(transfer: &Arc<Transfer>) -> Self {
        Self {
            is_listing: true,
            ..Self::object(transfer, MOST_PAGE as u64)
        }
    }

    /// The fault of the reply to a list request.
    pub(super) fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request();
        // A query could be a signature.
        let path = request.uri().split('?').next().unwrap_or_default();
        trace!("{} {path}", request.method());
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_success = context.response().status().is_success();
        self.transfer.answered(is_success);
        let most = if is_success { self.most } else { MOST_REFUSAL };
        let body = Limited::new(context.response_mut().take_body(), most);
        let counted = ReplyBody::new(body, &self.transfer);
        *context.response_mut().body_mut() = SdkBody::from_body_1_x(counted);
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        if self.is_listing && response.status().is_success() {
            // No bytes: reading the body failed, which is reported as its own error.
            let fault = response.body().bytes().and_then(listing_fault);
            *self.fault.lock() = fault.map(|fault| {
                let kind = response.headers().get("content-type").unwrap_or("none");
                format!("{fault} (content type {kind})")
            });
        }
        Ok(())
    }
}
