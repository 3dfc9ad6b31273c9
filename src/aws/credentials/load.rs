//! Fetches credentials as a [`CredentialPlan`] says.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sso::SsoTokenProvider;
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials as Keys;
use aws_credential_types::provider::error::{CredentialsError, TokenError};
use aws_credential_types::provider::token::ProvideToken;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};

use super::plan::{self, CredentialPlan, KeySet, Origin, RoleStep, SsoRole};
use super::program;
use crate::aws::classify::{causes_of, classify, no_credentials};
use crate::aws::config::Settled;
use crate::aws::endpoints::Service;
use crate::aws::environment::Environment;
use crate::aws::{ErrorClass, IamAction};
use crate::error::{Error, Kind, Remedy, Result};

/// Loads credentials from their beginning each time: files are read and programs run again. A load that fails with
/// [`Kind::Unavailable`] may succeed the next time.
#[derive(Debug)]
pub(in crate::aws) struct Loader {
    pub(in crate::aws) settled: Arc<Settled>,
}

impl Loader {
    pub(in crate::aws) async fn load(&self) -> Result<Keys> {
        let settled = &self.settled;
        let environment = Environment::of_process();
        let profiles = settled.profiles().await?;
        let profile = settled.profile.as_ref();
        let plan = plan::plan(&environment, &profiles, profile, settled.is_profile_option)?;
        let CredentialPlan { origin, roles } = plan;
        let mut keys = self.first(origin).await?;
        for role in &roles {
            keys = self.assume(role, keys).await?;
        }
        Ok(keys)
    }

    async fn first(&self, origin: Origin) -> Result<Keys> {
        match origin {
            Origin::Keys(KeySet { id, secret, token }) => {
                let token = token.map(|token| token.0);
                Ok(Keys::new(id, secret.0, token, None, "ebsfs"))
            }
            Origin::Program { command, profile } => program::run(&command.0, &profile).await,
            Origin::WebIdentity { role, token_file } => self.web_identity(&role, &token_file).await,
            Origin::Sso(sso) => self.sso(&sso).await,
            Origin::Container => {
                let provider = EcsCredentialsProvider::builder().configure(&self.of_host());
                let provided = provider.build().provide_credentials().await;
                provided.map_err(|error| self.none(&error))
            }
            Origin::Instance => {
                let client = self.settled.imds(&self.of_host())?;
                let provider = ImdsCredentialsProvider::builder()
                    .configure(&self.of_host())
                    .imds_client(client);
                let provided = provider.build().provide_credentials().await;
                provided.map_err(|error| self.none(&error))
            }
        }
    }

    /// The settings for metadata services, which are never proxied.
    fn of_host(&self) -> ProviderConfig {
        self.settled.of_host()
    }

    /// The error of a metadata service.
    fn none(&self, why: &CredentialsError) -> Error {
        let is_lasting = matches!(why, CredentialsError::InvalidConfiguration(_));
        let error = no_credentials(&self.settled.profile_option, &causes_of(why));
        match is_lasting {
            true => error,
            false => error.with_kind(Kind::Unavailable),
        }
    }

    async fn assume(&self, role: &RoleStep, with: Keys) -> Result<Keys> {
        let config = self.settled.sdk(Service::Sts, None)?;
        let config = config
            .into_builder()
            .credentials_provider(SharedCredentialsProvider::new(with))
            .build();
        let reply = sts(&config)
            .assume_role()
            .role_arn(&role.arn)
            .role_session_name(session_name(role))
            .set_external_id(role.external_id.clone())
            .set_duration_seconds(role.seconds)
            .send()
            .await;
        let reply = reply
            .map_err(|error| refused(classify(error, IamAction::AssumeRole.name(), &role.arn)))?;
        of_sts(reply.credentials(), IamAction::AssumeRole.name())
    }

    async fn web_identity(&self, role: &RoleStep, file: &str) -> Result<Keys> {
        let token = tokio::fs::read_to_string(file).await.map_err(|error| {
            let what =
                format!("no AWS credentials: cannot read the web identity token {file}: {error}");
            Error::new(Kind::Denied, what)
        })?;
        let config = self.settled.sdk(Service::Sts, None)?;
        let reply = sts(&config)
            .assume_role_with_web_identity()
            .role_arn(&role.arn)
            .role_session_name(session_name(role))
            .web_identity_token(token.trim())
            .set_duration_seconds(role.seconds)
            .send()
            .await;
        let action = IamAction::AssumeRoleWithWebIdentity.name();
        let reply = reply.map_err(|error| refused(classify(error, action, &role.arn)))?;
        of_sts(reply.credentials(), action)
    }

    async fn sso(&self, sso: &SsoRole) -> Result<Keys> {
        let sign_in = |is_lasting: bool, why: &str| {
            let what = format!(
                "no AWS credentials: the profile {:?} is not signed in: {why}",
                sso.profile
            );
            let remedy = format!("aws sso login --profile {}", sso.profile);
            let kind = match is_lasting {
                true => Kind::Denied,
                false => Kind::Unavailable,
            };
            Error::new(kind, what).with_remedy(Remedy::Do(remedy))
        };
        let region = Region::new(sso.region.clone());
        let tokens = self.settled.sdk(Service::SsoOidc, Some(&region))?;
        // The token's file is named after the session, in the old form after the URL.
        let session = sso.session.as_ref().unwrap_or(&sso.start_url);
        let tokens = SsoTokenProvider::builder()
            .configure(&tokens)
            .region(region.clone())
            .session_name(session)
            .start_url(&sso.start_url)
            .build()
            .await;
        let token = tokens.provide_token().await;
        let token = token.map_err(|error| {
            let is_lasting = !matches!(error, TokenError::ProviderTimedOut(_));
            sign_in(is_lasting, &causes_of(&error))
        })?;
        let config = self.settled.sdk(Service::Sso, Some(&region))?;
        let reply = aws_sdk_sso::Client::new(&config)
            .get_role_credentials()
            .account_id(&sso.account)
            .role_name(&sso.role)
            .access_token(token.token())
            .send()
            .await;
        let reply = reply.map_err(|error| {
            let class = classify(error, "sso:GetRoleCredentials", &sso.profile);
            let is_lasting = !matches!(class, ErrorClass::Retry(_));
            sign_in(is_lasting, &class.into_error().chain())
        })?;
        let given = reply.role_credentials();
        let parts = given
            .and_then(|given| Some((given, given.access_key_id()?, given.secret_access_key()?)));
        let Some((given, id, secret)) = parts else {
            return Err(sign_in(true, "the reply holds no credentials"));
        };
        let expiry = u64::try_from(given.expiration()).ok().filter(|at| *at > 0);
        let expiry =
            expiry.and_then(|at| UNIX_EPOCH.checked_add(std::time::Duration::from_millis(at)));
        let token = given.session_token().map(str::to_owned);
        Ok(Keys::new(id, secret, token, expiry, "ebsfs"))
    }
}

fn sts(config: &SdkConfig) -> aws_sdk_sts::Client {
    aws_sdk_sts::Client::new(config)
}

/// The error of STS, as one of credentials.
fn refused(class: ErrorClass) -> Error {
    let kind = match class {
        ErrorClass::Retry(_) => Kind::Unavailable,
        _ => Kind::Denied,
    };
    Error::with_source(kind, "no AWS credentials", class.into_error())
}

fn session_name(role: &RoleStep) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let fallback = || format!("ebsfs-{}", since.unwrap_or_default().as_millis());
    role.session_name.clone().unwrap_or_else(fallback)
}

fn of_sts(given: Option<&aws_sdk_sts::types::Credentials>, action: &str) -> Result<Keys> {
    let given = given.ok_or_else(|| {
        let what = format!("no AWS credentials: the reply to {action} holds none");
        Error::new(Kind::Denied, what)
    })?;
    let expiry = SystemTime::try_from(*given.expiration()).ok();
    let token = Some(given.session_token().to_owned());
    Ok(Keys::new(
        given.access_key_id(),
        given.secret_access_key(),
        token,
        expiry,
        "ebsfs",
    ))
}

/// The metadata service's client; its URL comes from here, because the SDK takes an empty variable for a URL.
impl Settled {
    pub(in crate::aws) fn imds(&self, host: &ProviderConfig) -> Result<imds::Client> {
        let mut builder = imds::Client::builder().configure(host);
        if let Some(url) = &self.imds_url {
            builder = builder.endpoint(&url.value).map_err(|error| {
                let what = format!("cannot use {} {:?}: {error}", url.from, url.value);
                Error::new(Kind::Invalid, what)
            })?;
        }
        Ok(builder.build())
    }
}
