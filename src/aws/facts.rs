//! What was settled, for people: which Region, profile, provider of credentials and URL, and where each was given.

use std::time::SystemTime;

use super::Aws;
use super::credentials::credential_plan;
use super::endpoints::{Given, Service};
use super::environment::{Environment, Profiles};
use super::http::Http;
use crate::error::{Error, Kind, Result};

/// The URL of a service by the rules of its SDK, whose module of endpoints is named.
macro_rules! service_url {
    ($($endpoint:ident)::+, $aws:expr, $service:expr) => {{
        use $($endpoint)::+::{DefaultResolver, Params, ResolveEndpoint};
        let sdk = $aws.service($service)?.sdk;
        let params = Params::builder()
            .set_region(sdk.region().map(ToString::to_string))
            .set_use_fips(sdk.use_fips())
            .set_use_dual_stack(sdk.use_dual_stack())
            .set_endpoint(sdk.endpoint_url().map(str::to_owned))
            .build()
            .map_err(|error| $crate::aws::no_url($service, &error))?;
        let found = ResolveEndpoint::resolve_endpoint(&DefaultResolver::new(), &params).await;
        let found = found.map_err(|error| $crate::aws::no_url($service, &*error))?;
        Ok(found.url().to_owned())
    }};
}
pub(crate) use service_url;

/// Where the credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CredentialOrigin {
    /// In words, without anything secret.
    pub(crate) text: String,
    /// Whether STS is asked for them.
    pub(crate) needs_sts: bool,
}

impl Service {
    /// The name in its hosts and in messages.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::SsoOidc => "SSO OIDC",
            Self::Quotas => "Service Quotas",
            other => other.name(),
        }
    }

    /// The variable that names its URL alone.
    pub(crate) fn url_variable(self) -> String {
        format!("AWS_ENDPOINT_URL_{}", self.name())
    }
}

impl Aws {
    /// The Region, and where it was given.
    pub(crate) fn region_given(&self) -> Option<&Given<String>> {
        self.settled.region.as_ref()
    }

    /// The profile, and where it was given; none where none was named.
    pub(crate) fn profile_given(&self) -> Option<&Given<String>> {
        self.settled.profile.as_ref()
    }

    /// The URL that was chosen instead of the service's own, and where.
    ///
    /// # Errors
    /// `Invalid` for a URL that cannot be used.
    pub(crate) fn url_given(&self, service: Service) -> Result<Option<Given<String>>> {
        self.settled.url(service)
    }

    /// The connections that all clients share.
    pub(crate) fn http(&self) -> &Http {
        &self.settled.http
    }

    /// Where the credentials come from. Files are read, nothing is sent.
    ///
    /// # Errors
    /// `Invalid` and `Denied` for profiles that cannot be used.
    pub(crate) async fn credential_origin(&self) -> Result<CredentialOrigin> {
        let settled = &self.settled;
        let environment = Environment::of_process();
        let profiles: Profiles = settled.profiles().await?;
        let profile = settled.profile.as_ref();
        let plan = credential_plan(&environment, &profiles, profile, settled.is_profile_option)?;
        let has_variables =
            !settled.is_profile_option && environment.get("AWS_ACCESS_KEY_ID").is_some();
        let name = match profile {
            _ if has_variables => "",
            Some(given) => &given.value,
            None => "default",
        };
        Ok(CredentialOrigin {
            text: plan.in_words(name),
            needs_sts: plan.needs_sts(),
        })
    }

    /// Loads the credentials, and returns when they expire; none for those that do not.
    ///
    /// # Errors
    /// `Denied` when there are none.
    pub(crate) async fn credential_expiry(&self) -> Result<Option<SystemTime>> {
        let keys = self.credentials.current().await?;
        Ok(keys.expiry())
    }

    /// The URL of STS in this Region.
    ///
    /// # Errors
    /// `Invalid` when the SDK knows none.
    pub(crate) async fn sts_url(&self) -> Result<String> {
        service_url!(aws_sdk_sts::config::endpoint, self, Service::Sts)
    }
}

/// The error of a service without a URL in these settings.
pub(crate) fn no_url(service: Service, why: &dyn std::error::Error) -> Error {
    let what = format!("cannot choose the endpoint of {}: {why}", service.label());
    Error::new(Kind::Invalid, what)
}
