//! Settles, once for a run, who calls AWS, where and how: Region, profile, endpoints, FIPS, dual-stack, certificate
//! authorities and proxies. Every client is made from this.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_async::time::{SharedTimeSource, SystemTimeSource};
use futures_util::FutureExt;

use super::credentials::{Credentials, Loader};
use super::endpoints::{self, Given, Service, UrlSources};
use super::environment::{Environment, Profiles};
use super::http::{Http, Proxies};
use super::observer::Observer;
use super::requests::RequestCounts;
use crate::error::{Error, Kind, Remedy, Result};

/// One attempt of a small call (roles, SSO, metadata): these answer within a second or not at all.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12);

/// The settings that a person gave for AWS, each with its option. An absent one comes from the environment, and then from
/// the profile.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The Region.
    pub(crate) region: Option<Given<String>>,
    /// The profile.
    pub(crate) profile: Option<Given<String>>,
    /// The URL of EBS and EC2, or of an object store.
    pub(crate) endpoint_url: Option<Given<String>>,
    /// The URL of the EBS direct APIs.
    pub(crate) ebs_endpoint: Option<Given<String>>,
    /// The URL of EC2.
    pub(crate) ec2_endpoint: Option<Given<String>>,
    /// The URL of S3.
    pub(crate) s3_endpoint: Option<Given<String>>,
    /// The URL of STS.
    pub(crate) sts_endpoint: Option<Given<String>>,
    /// The certificate authorities to trust, in PEM.
    pub(crate) ca_bundle: Option<Given<PathBuf>>,
    /// FIPS endpoints only.
    pub(crate) use_fips: Option<Given<bool>>,
    /// Endpoints that have IPv6 addresses too.
    pub(crate) use_dual_stack: Option<Given<bool>>,
    /// How a person names a profile, for advice.
    pub(crate) profile_option: String,
    /// How a person names a Region, for advice.
    pub(crate) region_option: String,
    /// Counts the requests of all clients that are made from these settings.
    pub(crate) requests: RequestCounts,
    /// Receives each request of them, except those to metadata services.
    pub(crate) observer: Observer,
}

/// Settings as they hold for this run.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) profile: Option<Given<String>>,
    /// Whether an option names the profile, and no variable.
    pub(super) is_profile_option: bool,
    pub(super) profile_option: String,
    pub(super) imds_url: Option<Given<String>>,
    pub(super) region: Option<Given<String>>,
    fips: Option<String>,
    is_dual_stack: bool,
    settings: Settings,
    environment: Environment,
    pub(super) http: Http,
    metadata: Http,
    profiles: Profiles,
}

/// AWS as one account and Region see it; clones share connections and credentials.
#[derive(Clone, Debug)]
pub struct Aws {
    pub(super) settled: Arc<Settled>,
    pub(super) credentials: Credentials,
}

/// What a client of one service needs.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Region, endpoint, credentials and connections, as the SDK takes them.
    pub(crate) sdk: SdkConfig,
    /// The URL that was chosen instead of the service's own.
    pub(crate) url: Option<String>,
    /// The credentials; the SDK asks the same ones.
    pub(crate) credentials: Credentials,
    /// The connections; the SDK uses the same ones.
    pub(crate) http: Http,
    /// Counts the client's requests.
    pub(crate) requests: RequestCounts,
}

impl Settings {
    /// Reads the environment and the profile files, and asks the metadata service for the Region where nothing else names
    /// one. Credentials are not loaded yet.
    ///
    /// # Errors
    /// `Invalid` for settings that contradict each other or cannot be read, and for a Region that is none.
    pub(crate) async fn load(self) -> Result<Aws> {
        let environment = Environment::of_process();
        let profiles = Profiles::read(&environment).await?;
        let settled = Arc::new(self.settle(environment, profiles).await?);
        let loader = Arc::new(Loader {
            settled: Arc::clone(&settled),
        });
        let credentials = Credentials::new(move || {
            let loader = Arc::clone(&loader);
            async move { loader.load().await }.boxed()
        });
        Ok(Aws {
            settled,
            credentials,
        })
    }

    async fn settle(self, environment: Environment, profiles: Profiles) -> Result<Settled> {
        let variable = |name: &str| {
            let value = environment.get(name)?.trim().to_owned();
            Some(Given::new(value, name))
        };
        let is_profile_option = self.profile.is_some();
        let profile = self.profile.clone().or_else(|| variable("AWS_PROFILE"));
        let name = profile.as_ref().map_or("default", |given| &given.value);
        let of_profile = |key: &str| {
            let value = profiles.get(name, key)?;
            Some(Given::new(
                value.to_owned(),
                format!("{key} of the profile {name}"),
            ))
        };
        let switch = |option: &Option<Given<bool>>, name: &str, key: &str| {
            let option = option
                .clone()
                .map(|given| Given::new(given.value.to_string(), given.from));
            let found = option
                .or_else(|| variable(name))
                .or_else(|| of_profile(key))?;
            found
                .value
                .eq_ignore_ascii_case("true")
                .then_some(found.from)
        };
        let fips = switch(&self.use_fips, "AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint");
        let dual = switch(
            &self.use_dual_stack,
            "AWS_USE_DUALSTACK_ENDPOINT",
            "use_dualstack_endpoint",
        );
        let path = |given: Given<String>| Given::new(PathBuf::from(given.value), given.from);
        let bundle = self
            .ca_bundle
            .clone()
            .filter(|given| !given.value.as_os_str().is_empty());
        let bundle = bundle
            .or_else(|| variable("AWS_CA_BUNDLE").map(path))
            .or_else(|| of_profile("ca_bundle").map(path));
        let file = bundle.as_ref().map(|given| given.value.as_path());
        let in_words = |error: Error| match &bundle {
            Some(given) => error.context(given.from.clone()),
            None => error,
        };
        let proxies = Proxies::of_variables(|name| environment.get(name).map(str::to_owned))?;
        let http = Http::new(proxies, file).map_err(in_words)?;
        let http = http.observed_by(self.observer.clone());
        let metadata = Http::metadata(file)?;
        let imds_url = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT")
            .or_else(|| of_profile("ec2_metadata_service_endpoint"));
        if let Some(url) = &imds_url {
            endpoints::check(url, None)?;
        }
        let region = self
            .region
            .clone()
            .or_else(|| variable("AWS_REGION"))
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .or_else(|| of_profile("region"));
        if let Some(region) = &region {
            check_region(region)?;
        }
        let mut settled = Settled {
            profile,
            is_profile_option,
            profile_option: self.profile_option.clone(),
            imds_url,
            region,
            fips,
            is_dual_stack: dual.is_some(),
            settings: self,
            environment,
            http,
            metadata,
            profiles,
        };
        if settled.region.is_none() && !settled.environment.is_true("AWS_EC2_METADATA_DISABLED") {
            let host = settled.of_host();
            let client = settled.imds(&host)?;
            let provider = ImdsRegionProvider::builder()
                .configure(&host)
                .imds_client(client);
            let region = provider.build().region().await;
            let given = |region: Region| Given::new(region.to_string(), "the instance's metadata");
            settled.region = region.map(given);
        }
        Ok(settled)
    }
}

/// Refuses what cannot be part of a host. Stores name their Regions as they like.
fn check_region(region: &Given<String>) -> Result<()> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !region.value.is_empty() && region.value.chars().all(is_name) {
        return Ok(());
    }
    let what = format!(
        "cannot use {} {:?}: it is not the name of a Region",
        region.from, region.value
    );
    Err(Error::new(Kind::Invalid, what))
}

impl Settled {
    /// The profile files as they are now.
    pub(super) async fn profiles(&self) -> Result<Profiles> {
        Profiles::read(&self.environment).await
    }

    /// The Region, if there is one.
    fn sdk_region(&self) -> Option<Region> {
        let region = self.region.as_ref();
        region.map(|given| Region::new(given.value.clone()))
    }

    /// The settings for metadata services.
    pub(super) fn of_host(&self) -> ProviderConfig {
        ProviderConfig::without_region()
            .with_region(self.sdk_region())
            .with_http_client(self.metadata.clone())
    }

    /// The URL that was chosen for a service, checked, and where.
    pub(super) fn url(&self, service: Service) -> Result<Option<Given<String>>> {
        let settings = &self.settings;
        let (own_option, common_option) = match service {
            Service::Ebs => (&settings.ebs_endpoint, &settings.endpoint_url),
            Service::Ec2 => (&settings.ec2_endpoint, &settings.endpoint_url),
            Service::S3 => (&settings.s3_endpoint, &settings.endpoint_url),
            Service::Sts => (&settings.sts_endpoint, &None),
            Service::Quotas | Service::Sso | Service::SsoOidc => (&None, &None),
        };
        let variable = |name: String| {
            let value = self.environment.get(&name)?.trim().to_owned();
            Some(Given::new(value, name))
        };
        let name = self
            .profile
            .as_ref()
            .map_or("default", |given| &given.value);
        let of_profile = |value: Option<&str>, what: &str| {
            let from = format!("{what} of the profile {name}");
            value.map(|value| Given::new(value.to_owned(), from))
        };
        let ignores = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";
        let ignores_configured = match self.environment.get(ignores) {
            Some(_) => self.environment.is_true(ignores),
            None => self
                .profiles
                .get(name, "ignore_configured_endpoint_urls")
                .is_some_and(|value| value.eq_ignore_ascii_case("true")),
        };
        let sources = UrlSources {
            own_option: own_option.clone(),
            common_option: common_option.clone(),
            own_variable: variable(format!("AWS_ENDPOINT_URL_{}", service.name())),
            common_variable: variable("AWS_ENDPOINT_URL".into()),
            section: of_profile(
                self.profiles.section_url(name, service),
                &format!("services.{}", service.name().to_ascii_lowercase()),
            ),
            profile: of_profile(self.profiles.get(name, "endpoint_url"), "endpoint_url"),
            ignores_configured,
        };
        let Some(url) = sources.choose() else {
            return Ok(None);
        };
        endpoints::check(&url, self.fips.as_deref())?;
        Ok(Some(url))
    }

    /// What asks for FIPS endpoints, if something does.
    pub(super) fn fips(&self) -> Option<&str> {
        self.fips.as_deref()
    }

    /// The SDK's configuration for a service, without credentials.
    pub(super) fn sdk(&self, service: Service, region: Option<&Region>) -> Result<SdkConfig> {
        let region = region.cloned().or_else(|| self.sdk_region());
        // A store needs no Region, the roles to reach it need one.
        let region = region.unwrap_or_else(|| Region::from_static("us-east-1"));
        let attempt = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT);
        let builder = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(region)
            .identity_cache(IdentityCache::no_cache())
            .http_client(self.http.clone())
            .retry_config(RetryConfig::standard())
            .timeout_config(attempt.build())
            .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
            .time_source(SharedTimeSource::new(SystemTimeSource::new()))
            .use_fips(self.fips.is_some())
            .use_dual_stack(self.is_dual_stack);
        let mut config = builder;
        config.set_endpoint_url(self.url(service)?.map(|given| given.value));
        Ok(config.build())
    }
}

impl Aws {
    /// The Region; stores may have none.
    pub(crate) fn region(&self) -> Option<&str> {
        let region = self.settled.region.as_ref();
        region.map(|given| given.value.as_str())
    }

    /// Fails when nothing names a Region.
    ///
    /// # Errors
    /// `Invalid` with what to set.
    pub(crate) fn with_region(self) -> Result<Self> {
        if self.settled.region.is_some() {
            return Ok(self);
        }
        let option = &self.settled.settings.region_option;
        let error = Error::new(
            Kind::Invalid,
            "cannot choose an endpoint: no AWS Region is set",
        );
        Err(error.with_remedy(Remedy::GiveRegion(option.clone())))
    }

    /// Loads the credentials now, so that what is missing is reported at once.
    ///
    /// # Errors
    /// `Denied` when there are none.
    pub(crate) async fn check_credentials(&self) -> Result<()> {
        self.credentials.current().await.map(drop)
    }

    /// What a client of a service needs.
    ///
    /// # Errors
    /// `Invalid` for an endpoint that cannot be used.
    pub(crate) fn service(&self, service: Service) -> Result<ServiceConfig> {
        let sdk = self.settled.sdk(service, None)?;
        let provider = SharedCredentialsProvider::new(self.credentials.clone());
        Ok(ServiceConfig {
            url: sdk.endpoint_url().map(str::to_owned),
            sdk: sdk.into_builder().credentials_provider(provider).build(),
            credentials: self.credentials.clone(),
            http: self.settled.http.clone(),
            requests: self.settled.settings.requests.clone(),
        })
    }
}

impl ServiceConfig {
    /// A service at a URL with known keys, for tests and benches.
    ///
    /// # Errors
    /// `Invalid` when the system's certificate authorities cannot be read.
    pub fn fixed(url: &str, region: &str, key_id: &str, secret: &str) -> Result<Self> {
        let http = Http::new(Proxies::default(), None)?;
        let credentials = Credentials::fixed(key_id, secret);
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .identity_cache(IdentityCache::no_cache())
            .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            .http_client(http.clone())
            .endpoint_url(url)
            .build();
        Ok(Self {
            sdk,
            url: Some(url.to_owned()),
            credentials,
            http,
            requests: RequestCounts::default(),
        })
    }

    /// Where requests go, for people: the URL that was chosen, or the service and its Region.
    pub(crate) fn endpoint(&self, service: &str) -> String {
        let region = self.sdk.region().map_or("no Region", AsRef::as_ref);
        let usual = || format!("{service} in {region}");
        self.url.clone().unwrap_or_else(usual)
    }
}
