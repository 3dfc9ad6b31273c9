//! Region, profile, credentials and endpoints: the AWS CLI's names for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::ProvideCredentials;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use clap::Args;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::aws::no_credentials;
use crate::ebs::{Client, EbsCatalog, Limits};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Descriptions, Selector};

/// How long credentials may take: the metadata service of an instance that has none to give is slow to say so.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(8);

#[derive(Args, Debug)]
#[command(next_help_heading = "AWS")]
pub(super) struct AwsArgs {
    /// The Region of the snapshots [env: AWS_REGION, AWS_DEFAULT_REGION; else the profile's]
    #[arg(long)]
    region: Option<String>,
    /// The profile in ~/.aws/config and ~/.aws/credentials [env: AWS_PROFILE]
    #[arg(long)]
    profile: Option<String>,
    /// The URL of EBS and EC2 alike [env: AWS_ENDPOINT_URL, and for one alone AWS_ENDPOINT_URL_EBS, AWS_ENDPOINT_URL_EC2]
    #[arg(long, value_name = "URL")]
    endpoint_url: Option<String>,
    /// The certificate authorities to trust instead of the system's, in PEM
    #[arg(long, value_name = "FILE", env = "AWS_CA_BUNDLE")]
    ca_bundle: Option<PathBuf>,
}

impl AwsArgs {
    /// The same for another account or Region: what is not said is as here, but for the endpoint of another Region.
    pub(super) fn elsewhere(
        &self,
        profile: Option<String>,
        region: Option<String>,
        endpoint_url: Option<String>,
        ca_bundle: Option<PathBuf>,
        same_region: bool,
    ) -> Self {
        let here = self.endpoint_url.clone().filter(|_| same_region);
        Self {
            profile: profile.or_else(|| self.profile.clone()),
            region: region.or_else(|| self.region.clone()),
            endpoint_url: endpoint_url.or(here),
            ca_bundle: ca_bundle.or_else(|| self.ca_bundle.clone()),
        }
    }

    /// The certificate authorities to trust.
    pub(super) fn ca_bundle(&self) -> Option<&PathBuf> {
        self.ca_bundle.as_ref()
    }

    /// Whether the command line names an endpoint.
    pub(super) fn names_endpoint(&self) -> bool {
        self.endpoint_url.is_some()
    }

    /// The configuration, with a Region and credentials that were asked for once.
    pub(super) async fn load_with_credentials(&self) -> Result<SdkConfig> {
        let config = self.load().await?;
        check_credentials(&config).await?;
        Ok(config)
    }

    /// The configuration, with a Region; whether there are credentials is asked only by [`check_credentials`].
    pub(super) async fn load(&self) -> Result<SdkConfig> {
        let config = self.configured().await?;
        let config = config.filter(|config| config.region().is_some());
        config.ok_or_else(|| {
            let what = "no AWS Region: use --region, AWS_REGION or a profile that has one";
            Error::new(Kind::Invalid, what)
        })
    }

    /// The configuration for an object store, which may have no Region; with credentials that were asked for once.
    pub(super) async fn load_for_store(&self) -> Result<SdkConfig> {
        let config = self.configured().await?;
        let config = config.ok_or_else(|| {
            let what = format!("no AWS configuration within {CREDENTIALS_TIMEOUT:?}");
            Error::new(Kind::Denied, what)
        })?;
        check_credentials(&config).await?;
        Ok(config)
    }

    /// The configuration as far as it is told; none when the metadata service that is to tell it does not answer.
    async fn configured(&self) -> Result<Option<SdkConfig>> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &self.profile {
            // A profile that is named goes before keys in the environment, as with the AWS CLI.
            let credentials = ProfileFileCredentialsProvider::builder().profile_name(profile);
            loader = loader
                .profile_name(profile)
                .credentials_provider(credentials.build());
        }
        if let Some(url) = &self.endpoint_url {
            let usable = url
                .strip_prefix("http://")
                .or_else(|| url.strip_prefix("https://"))
                .is_some_and(|host| !host.is_empty() && !host.starts_with('/'));
            if !usable {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "--endpoint-url {url:?} is no URL: it must look like https://HOST[:PORT]"
                    ),
                ));
            }
            loader = loader.endpoint_url(url);
        }
        if let Some(file) = &self.ca_bundle {
            loader = loader.http_client(trusting(file)?);
        }
        let config = tokio::time::timeout(CREDENTIALS_TIMEOUT, loader.load()).await;
        Ok(config.ok())
    }
}

/// An HTTPS client that trusts the authorities in `file` and no others.
fn trusting(file: &Path) -> Result<SharedHttpClient> {
    let unusable = |why: String| {
        let what = format!("--ca-bundle {}: {why}", file.display());
        Error::new(Kind::Invalid, what)
    };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    // The client takes them unchecked and panics at what is none.
    let mut checked = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        let added = checked.add(certificate);
        added.map_err(|error| unusable(error.to_string()))?;
    }
    if checked.is_empty() {
        return Err(unusable("there is no certificate in it".into()));
    }
    let trust = TrustStore::empty().with_pem_certificate(pem);
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| unusable(error.to_string()))?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .build_https())
}

/// Asks for the credentials once, to say at once what is missing.
pub(super) async fn check_credentials(config: &SdkConfig) -> Result<()> {
    let provider = config
        .credentials_provider()
        .ok_or_else(|| Error::new(Kind::Denied, "no AWS credentials are configured"))?;
    match tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(no_credentials(&error)),
        Err(_) => Err(Error::new(
            Kind::Denied,
            format!(
                "no AWS credentials within {CREDENTIALS_TIMEOUT:?}: set AWS_PROFILE or --profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ),
        )),
    }
}

/// The client and the catalog over it, with what EC2 tells where that is built in.
pub(super) fn catalog(
    config: &SdkConfig,
    limits: &Limits,
    select: Vec<Selector>,
) -> (Arc<Client>, Arc<EbsCatalog>) {
    let client = Arc::new(Client::new(config, limits));
    let catalog = EbsCatalog::new(Arc::clone(&client), descriptions(config), select);
    (client, Arc::new(catalog))
}

/// What EC2 tells, where that is built in.
#[cfg(feature = "ec2")]
pub(super) fn descriptions(config: &SdkConfig) -> Option<Arc<dyn Descriptions>> {
    Some(Arc::new(crate::ec2::Ec2::new(config)))
}

/// Nothing: EC2 is not built in.
#[cfg(not(feature = "ec2"))]
pub(super) fn descriptions(_config: &SdkConfig) -> Option<Arc<dyn Descriptions>> {
    None
}
