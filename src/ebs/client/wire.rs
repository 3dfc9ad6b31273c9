//! GetSnapshotBlock, PutSnapshotBlock and the list calls as one signed request each, past the SDK's orchestrator.
//!
//! The orchestrator builds each call from plugins, interceptors and type-erased bags: 15 % of a mount's CPU at 500 MiB/s. None
//! of that changes from block to block, so a [`Route`] takes what the SDK resolves for one call that is never sent (endpoint,
//! Region and name to sign for) and sends requests with the client's credentials and connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Limited};
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::aws::{Action, Credentials, ErrorClass, Http, classify_reply, classify_sending, skew};
use crate::error::{Error, Kind};

/// What a query may contain unescaped when it is signed.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// The most of a message that is read.
const MAX_MESSAGE: usize = 64 << 10;

/// How requests reach the service.
#[derive(Debug)]
pub(super) struct Route {
    /// The request's URI up to its path.
    endpoint: String,
    region: String,
    name: String,
    user_agent: String,
    http: Http,
    credentials: Credentials,
    /// Milliseconds by which the service's clock is ahead of ours, once it has refused a signature for it.
    skew: AtomicI64,
}

/// Takes the route of a call that the SDK is about to send, and keeps it from being sent.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    found: Arc<Mutex<Option<Route>>>,
    credentials: Credentials,
    http: Http,
}

impl Probe {
    pub(super) fn new(credentials: Credentials, http: Http) -> Self {
        Self {
            found: Arc::default(),
            credentials,
            http,
        }
    }

    /// The route, if the call reached the point where it is sent.
    pub(super) fn route(&self) -> Option<Route> {
        self.found.lock().take()
    }
}

impl Intercept for Probe {
    fn name(&self) -> &'static str {
        "Probe"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *self.found.lock() = Route::of(context.request(), self);
        Err("the route is known".into())
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    /// Behind the endpoint, escaped.
    pub(super) path: String,
    /// Behind the path, escaped.
    pub(super) query: String,
    /// Signed with the request.
    pub(super) headers: &'a [(&'static str, &'a str)],
    /// Its digest is in the headers, so that it is not signed.
    pub(super) body: Option<Bytes>,
    /// The IAM action, for messages.
    pub(super) action: &'static str,
    /// What the call is made on, for messages.
    pub(super) target: &'a str,
}

/// A value of a query.
pub(super) fn escaped(value: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(value, UNRESERVED)
}

impl Route {
    fn of(request: &HttpRequest, probe: &Probe) -> Option<Self> {
        let path = request.uri().split('?').next()?;
        let endpoint = path.rsplit_once("/snapshots/")?.0.to_owned();
        // Credential=AKID/20261122/eu-west-1/ebs/aws4_request
        let authorization = request.headers().get("authorization")?;
        let scope = authorization.split_once("Credential=")?.1;
        let mut scope = scope.split(',').next()?.split('/').skip(2);
        let (region, name) = (scope.next()?.to_owned(), scope.next()?.to_owned());
        let user_agent = request.headers().get("user-agent").unwrap_or("ebsfs");
        Some(Self {
            endpoint,
            region,
            name,
            user_agent: user_agent.to_owned(),
            http: probe.http.clone(),
            credentials: probe.credentials.clone(),
            skew: AtomicI64::new(0),
        })
    }

    /// The SDK's clock, corrected by the service's clock.
    fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        let skew = self.skew.load(Ordering::Relaxed);
        let by = Duration::from_millis(skew.unsigned_abs());
        let corrected = if skew < 0 {
            now.checked_sub(by)
        } else {
            now.checked_add(by)
        };
        corrected.unwrap_or(now)
    }

    /// The request, signed with this time.
    async fn signed(&self, call: &Request<'_>, now: SystemTime) -> Result<HttpRequest, ErrorClass> {
        let keys = self.credentials.current().await;
        let identity = Identity::from(keys.map_err(ErrorClass::without_credentials)?);
        let unsigned = |error: BoxError| {
            let what = format!("{}: the request could not be signed: {error}", call.action);
            ErrorClass::Permanent(Error::new(Kind::Invalid, what))
        };
        let mut settings = SigningSettings::default();
        let (signable, body) = match &call.body {
            None => (SignableBody::empty(), SdkBody::empty()),
            Some(bytes) => {
                settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
                (SignableBody::UnsignedPayload, SdkBody::from(bytes.clone()))
            }
        };
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.name)
            .time(now)
            .settings(settings)
            .build()
            .map_err(|error| unsigned(error.into()))?;
        let uri = format!("{}{}{}", self.endpoint, call.path, call.query);
        let headers = call.headers.iter().copied();
        let request = SignableRequest::new(call.method, &*uri, headers, signable);
        let signed = request
            .and_then(|request| sign(request, &params.into()))
            .map_err(|error| unsigned(error.into()))?;
        let mut request = HttpRequest::new(body);
        request
            .set_method(call.method)
            .map_err(|error| unsigned(error.into()))?;
        request
            .set_uri(uri)
            .map_err(|error| unsigned(error.into()))?;
        let headers = request.headers_mut();
        headers.insert("user-agent", self.user_agent.clone());
        for (name, value) in call.headers {
            headers.insert(*name, (*value).to_owned());
        }
        for (name, value) in signed.output().headers() {
            headers.insert(name.to_owned(), value.to_owned());
        }
        Ok(request)
    }

    /// Sends it: the reply of a success, its body still to come.
    pub(super) async fn send(&self, call: &Request<'_>) -> Result<HttpResponse, ErrorClass> {
        let action = Action::in_region(call.action, &self.region);
        let target = call.target;
        let now = self.now();
        let request = self.signed(call, now).await?;
        let reply = self.http.send(request).await;
        let mut reply = reply.map_err(|error| classify_sending(error, action, target))?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        let refusal = short_body(&mut reply).await;
        let is_whole = refusal.is_ok();
        let class = classify_reply(&reply, &refusal.unwrap_or_default(), now, action, target);
        if matches!(class, ErrorClass::Skewed(_))
            && let Some(skew) = skew(reply.headers(), SystemTime::now())
        {
            self.skew.store(skew, Ordering::Relaxed);
        }
        // The reason of the refusal is in the part that was cut off.
        Err(match class {
            ErrorClass::Permanent(error) if !is_whole => {
                let what = format!("{} {target}: a refusal that broke off", call.action);
                ErrorClass::Retry(Error::with_source(Kind::Unavailable, what, error))
            }
            class => class,
        })
    }
}

/// A body that is a message; read to its end, its connection serves again.
pub(super) async fn short_body(reply: &mut HttpResponse) -> Result<Bytes, BoxError> {
    let body = Limited::new(reply.take_body(), MAX_MESSAGE).collect().await;
    body.map(Collected::to_bytes)
}
