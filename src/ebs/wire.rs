//! GetSnapshotBlock as one signed request, past the SDK's orchestrator.
//!
//! The orchestrator puts each call together anew from plugins, interceptors and type-erased bags: 15 % of a mount's CPU
//! at 500 MiB/s. Nothing of it changes from block to block, so [`Route`] takes what the SDK settled for its first listing
//! (endpoint, Region and name to sign for, credentials, connections) and goes on by itself. A listing always comes first:
//! it brings the tokens.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::auth::{AuthScheme, AuthSchemeId};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::identity::{ResolveCachedIdentity, SharedIdentityResolver};
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use http_body_util::{BodyExt, Collected, Limited};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::BlockRequest;
use crate::aws::{Verdict, judge_identity, judge_reply, judge_sending, skew};
use crate::error::{Error, Kind};

/// What a query may contain unescaped when it is signed.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// How long connecting may take, TLS included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);
/// The most of a refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;

/// How requests reach the service: told by the SDK's first call, an interceptor of which this is.
#[derive(Clone, Debug, Default)]
pub(super) struct Route(Arc<OnceLock<Settled>>);

#[derive(Debug)]
struct Settled {
    /// The request's URI up to its path.
    endpoint: String,
    region: String,
    name: String,
    user_agent: String,
    connector: SharedHttpConnector,
    identity: SharedIdentityResolver,
    components: RuntimeComponents,
    /// Milliseconds by which the service's clock is ahead of ours, once it has refused a signature for it.
    skew: AtomicI64,
}

impl Intercept for Route {
    fn name(&self) -> &'static str {
        "Route"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.0.get().is_none()
            && let Some(settled) = Settled::from(context.request(), components)
        {
            let _ = self.0.set(settled);
        }
        Ok(())
    }
}

impl Settled {
    fn from(request: &HttpRequest, components: &RuntimeComponents) -> Option<Self> {
        let path = request.uri().split('?').next()?;
        let endpoint = path.rsplit_once("/snapshots/")?.0.to_owned();
        // Credential=AKID/20261122/eu-west-1/ebs/aws4_request
        let authorization = request.headers().get("authorization")?;
        let scope = authorization.split_once("Credential=")?.1;
        let mut scope = scope.split(',').next()?.split('/').skip(2);
        let (region, name) = (scope.next()?.to_owned(), scope.next()?.to_owned());
        let user_agent = request.headers().get("user-agent").unwrap_or("ebsfs");
        let settings = HttpConnectorSettings::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build();
        let client = components.http_client()?;
        let scheme = components.auth_scheme(AuthSchemeId::new("sigv4"))?;
        Some(Self {
            endpoint,
            region,
            name,
            user_agent: user_agent.to_owned(),
            connector: client.http_connector(&settings, components),
            identity: scheme.identity_resolver(components)?,
            components: components.clone(),
            skew: AtomicI64::new(0),
        })
    }

    /// The SDK's clock, corrected by what the service said of its own.
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
    async fn request(
        &self,
        uri: &str,
        now: SystemTime,
        action: &str,
    ) -> Result<HttpRequest, Verdict> {
        let settings = ConfigBag::base();
        let identity = self
            .components
            .identity_cache()
            .resolve_cached_identity(self.identity.clone(), &self.components, &settings)
            .await
            .map_err(|error| judge_identity(&error, action))?;
        let unsigned = |error: BoxError| {
            let what = format!("{action}: the request could not be signed: {error}");
            Verdict::Permanent(Error::new(Kind::Invalid, what))
        };
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.name)
            .time(now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| unsigned(error.into()))?;
        let body = SignableBody::empty();
        let request = SignableRequest::new("GET", uri, std::iter::empty(), body);
        let signed = request
            .and_then(|request| sign(request, &params.into()))
            .map_err(|error| unsigned(error.into()))?;
        let mut request = HttpRequest::get(uri).map_err(|error| unsigned(error.into()))?;
        let headers = request.headers_mut();
        headers.insert("user-agent", self.user_agent.clone());
        for (name, value) in signed.output().headers() {
            headers.insert(name.to_owned(), value.to_owned());
        }
        Ok(request)
    }
}

impl Route {
    /// Asks for one block: the reply of a success, its body still to come.
    pub(super) async fn get_block(
        &self,
        block: &BlockRequest<'_>,
        action: &str,
        target: &str,
    ) -> Result<HttpResponse, Verdict> {
        let Some(settled) = self.0.get() else {
            let what = format!("{action} {target}: nothing was listed before");
            return Err(Verdict::Permanent(Error::new(Kind::Invalid, what)));
        };
        let BlockRequest {
            snapshot, index, ..
        } = block;
        let token = utf8_percent_encode(block.token, UNRESERVED);
        let (endpoint, now) = (&settled.endpoint, settled.now());
        let uri = format!("{endpoint}/snapshots/{snapshot}/blocks/{index}?blockToken={token}");
        let request = settled.request(&uri, now, action).await?;
        let reply = settled.connector.call(request).await;
        let mut reply = reply.map_err(|error| judge_sending(error, action, target))?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        let refusal = Limited::new(reply.take_body(), MAX_REFUSAL).collect().await;
        let is_whole = refusal.is_ok();
        let refusal = refusal.map(Collected::to_bytes).unwrap_or_default();
        let verdict = judge_reply(&reply, &refusal, now, action, target);
        if matches!(verdict, Verdict::Skewed(_))
            && let Some(skew) = skew(reply.headers(), SystemTime::now())
        {
            settled.skew.store(skew, Ordering::Relaxed);
        }
        // What a refusal says for good is in the part that was cut off.
        Err(match verdict {
            Verdict::Permanent(error) if !is_whole => {
                let what = format!("{action} {target}: a refusal that broke off");
                Verdict::Retry(Error::with_source(Kind::Unavailable, what, error))
            }
            verdict => verdict,
        })
    }
}
