//! Where credentials come from: one decision over the variables and profiles, as the AWS CLI takes it.

use crate::aws::endpoints::Given;
use crate::aws::environment::{Environment, Profiles};
use crate::error::{Error, Kind, Remedy, Result};

/// Where the first credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Keys in the environment or in a profile.
    Keys(KeySet),
    /// `credential_process` of a profile.
    Program {
        /// A line for the shell; it can hold secrets.
        command: SecretText,
        profile: String,
    },
    /// A role by a token that Kubernetes or another identity provider writes into a file.
    WebIdentity { role: RoleStep, token_file: String },
    /// IAM Identity Center.
    Sso(SsoRole),
    /// The container's credentials endpoint.
    Container,
    /// The instance's metadata service.
    Instance,
}

/// An access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeySet {
    pub(super) id: String,
    pub(super) secret: SecretText,
    pub(super) token: Option<SecretText>,
}

/// Text that Debug does not print.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SecretText(pub(super) String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A role to assume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RoleStep {
    pub(super) arn: String,
    pub(super) external_id: Option<String>,
    pub(super) session_name: Option<String>,
    pub(super) seconds: Option<i32>,
}

/// A role of IAM Identity Center.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SsoRole {
    pub(super) profile: String,
    pub(super) account: String,
    pub(super) role: String,
    pub(super) region: String,
    pub(super) start_url: String,
    /// The name of the `sso-session` section; none in the old form.
    pub(super) session: Option<String>,
}

/// Where credentials come from, and which roles are assumed with them, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::aws) struct CredentialPlan {
    pub(super) origin: Origin,
    pub(super) roles: Vec<RoleStep>,
}

impl CredentialPlan {
    /// The plan for people, without anything secret.
    pub(in crate::aws) fn in_words(&self, profile: &str) -> String {
        let origin = match &self.origin {
            Origin::Keys(_) if profile.is_empty() => {
                "keys of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned()
            }
            Origin::Keys(_) => format!("keys of the profile {profile}"),
            Origin::Program { profile, .. } => {
                format!("credential_process of the profile {profile}")
            }
            Origin::WebIdentity { role, .. } => {
                format!("web identity for the role {}", role.arn)
            }
            Origin::Sso(sso) => format!(
                "IAM Identity Center, profile {}: role {} in account {}",
                sso.profile, sso.role, sso.account
            ),
            Origin::Container => "the container's credentials endpoint".to_owned(),
            Origin::Instance => "the role of this instance (IMDSv2)".to_owned(),
        };
        let roles = self.roles.iter().map(|role| role.arn.as_str());
        std::iter::once(origin.as_str())
            .chain(roles)
            .collect::<Vec<_>>()
            .join(", then the role ")
    }

    /// Whether STS is asked for credentials.
    pub(in crate::aws) fn needs_sts(&self) -> bool {
        !self.roles.is_empty() || matches!(self.origin, Origin::WebIdentity { .. })
    }
}

/// Decides where credentials come from. `profile` is the one that was named; `is_option` says that an option named it, so
/// that the environment's keys do not count.
///
/// # Errors
/// `Invalid` for profiles that do not exist or contradict themselves, `Denied` for what is not supported.
pub(in crate::aws) fn plan(
    environment: &Environment,
    profiles: &Profiles,
    profile: Option<&Given<String>>,
    is_option: bool,
) -> Result<CredentialPlan> {
    let only = |origin| CredentialPlan {
        origin,
        roles: Vec::new(),
    };
    if !is_option && let Some(keys) = environment_keys(environment)? {
        return Ok(only(Origin::Keys(keys)));
    }
    let name = profile.map_or("default", |given| given.value.as_str());
    if profiles.has(name) {
        if let Some(plan) = of_profile(environment, profiles, name)? {
            return Ok(plan);
        }
    } else if let Some(given) = profile {
        return Err(missing(given));
    }
    if !is_option
        && let Some(file) = environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")
        && let Some(arn) = environment.get("AWS_ROLE_ARN")
    {
        let role = RoleStep {
            arn: arn.to_owned(),
            session_name: environment.get("AWS_ROLE_SESSION_NAME").map(str::to_owned),
            ..RoleStep::default()
        };
        let token_file = file.to_owned();
        return Ok(only(Origin::WebIdentity { role, token_file }));
    }
    Ok(only(of_host(environment)))
}

/// The error for a profile that does not exist.
fn missing(profile: &Given<String>) -> Error {
    let what = format!(
        "no AWS credentials: the profile {:?} of {} is in none of the profile files",
        profile.value, profile.from
    );
    let remedy = format!("give {} one of `aws configure list-profiles`", profile.from);
    Error::new(Kind::Denied, what).with_remedy(Remedy::Do(remedy))
}

fn of_host(environment: &Environment) -> Origin {
    let has = |name| environment.get(name).is_some();
    let relative = has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    if relative || has("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return Origin::Container;
    }
    Origin::Instance
}

fn environment_keys(environment: &Environment) -> Result<Option<KeySet>> {
    let id = environment.get("AWS_ACCESS_KEY_ID");
    let secret = environment.get("AWS_SECRET_ACCESS_KEY");
    match (id, secret) {
        (None, None) => Ok(None),
        (Some(id), Some(secret)) => Ok(Some(KeySet {
            id: id.trim().to_owned(),
            secret: SecretText(secret.trim().to_owned()),
            token: environment
                .get("AWS_SESSION_TOKEN")
                .map(|token| SecretText(token.trim().to_owned())),
        })),
        (Some(_), None) => Err(half("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (None, Some(_)) => Err(half("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")),
    }
}

fn half(set: &str, unset: &str) -> Error {
    let what = format!("no AWS credentials: {set} is set and {unset} is not");
    Error::new(Kind::Denied, what)
}

/// The plan that starts at a profile; none when the profile names no credentials.
fn of_profile(
    environment: &Environment,
    profiles: &Profiles,
    first: &str,
) -> Result<Option<CredentialPlan>> {
    let mut roles = Vec::new();
    let mut visited: Vec<&str> = Vec::new();
    let mut name = first;
    let origin = loop {
        if visited.contains(&name) {
            let what = format!(
                "cannot use the profile {first:?}: its source_profile leads back to {name:?}"
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        visited.push(name);
        let get = |key: &str| profiles.get(name, key);
        // A source that has keys and a role too gives its keys.
        if visited.len() > 1
            && let Some(keys) = profile_keys(profiles, name)?
        {
            break Some(Origin::Keys(keys));
        }
        let is_role = get("role_arn").filter(|_| get("web_identity_token_file").is_none());
        let Some(arn) = is_role else {
            break base(profiles, name)?;
        };
        if get("mfa_serial").is_some() {
            return Err(unsupported(name, "asks for an MFA code (mfa_serial)"));
        }
        roles.push(role_step(profiles, name, arn)?);
        match (get("source_profile"), get("credential_source")) {
            (Some(source), None) if source == name => break base(profiles, name)?,
            (Some(source), None) if profiles.has(source) => name = source,
            (Some(source), None) => {
                let what = format!(
                    "cannot use the profile {name:?}: its source_profile {source:?} does not exist"
                );
                return Err(Error::new(Kind::Denied, what));
            }
            (None, Some(source)) => break Some(named_source(environment, name, source)?),
            (Some(_), Some(_)) => {
                return Err(contradiction(
                    name,
                    "both source_profile and credential_source",
                ));
            }
            (None, None) => {
                return Err(contradiction(
                    name,
                    "role_arn without source_profile, credential_source or web_identity_token_file",
                ));
            }
        }
    };
    roles.reverse();
    match origin {
        Some(origin) => Ok(Some(CredentialPlan { origin, roles })),
        None if roles.is_empty() => Ok(None),
        None => {
            let what = format!(
                "cannot use the profile {first:?}: the profile {name:?}, from which its role is assumed, has no credentials"
            );
            Err(Error::new(Kind::Denied, what))
        }
    }
}

fn contradiction(profile: &str, what: &str) -> Error {
    let what = format!("cannot use the profile {profile:?}: it has {what}");
    Error::new(Kind::Invalid, what)
}

/// The error for a profile that needs what only the AWS CLI can do. Its output serves as `credential_process`, which has the
/// terminal.
fn unsupported(profile: &str, why: &str) -> Error {
    let what = format!("cannot use the profile {profile:?}: it {why}, which ebsfs cannot do");
    let remedy = format!(
        "use another profile with credential_process = aws configure export-credentials --profile {profile} --format process"
    );
    Error::new(Kind::Denied, what).with_remedy(Remedy::Do(remedy))
}

fn role_step(profiles: &Profiles, profile: &str, arn: &str) -> Result<RoleStep> {
    let text = |key: &str| profiles.get(profile, key).map(str::to_owned);
    let seconds = match profiles.get(profile, "duration_seconds") {
        None => None,
        Some(text) => match text.parse() {
            Ok(seconds @ 900..=43_200) => Some(seconds),
            _ => {
                return Err(contradiction(
                    profile,
                    "a duration_seconds that is not 900 to 43200",
                ));
            }
        },
    };
    Ok(RoleStep {
        arn: arn.to_owned(),
        external_id: text("external_id"),
        session_name: text("role_session_name"),
        seconds,
    })
}

fn named_source(environment: &Environment, profile: &str, source: &str) -> Result<Origin> {
    match source.to_ascii_lowercase().as_str() {
        "environment" => match environment_keys(environment)? {
            Some(keys) => Ok(Origin::Keys(keys)),
            None => {
                let what = format!(
                    "cannot use the profile {profile:?}: its credential_source is Environment and AWS_ACCESS_KEY_ID is not set"
                );
                Err(Error::new(Kind::Denied, what))
            }
        },
        "ecscontainer" => Ok(Origin::Container),
        "ec2instancemetadata" => Ok(Origin::Instance),
        _ => Err(contradiction(
            profile,
            "a credential_source other than Environment, EcsContainer and Ec2InstanceMetadata",
        )),
    }
}

/// The credentials that a profile has by itself.
fn base(profiles: &Profiles, profile: &str) -> Result<Option<Origin>> {
    let get = |key: &str| profiles.get(profile, key);
    if let (Some(arn), Some(file)) = (get("role_arn"), get("web_identity_token_file")) {
        return Ok(Some(Origin::WebIdentity {
            role: role_step(profiles, profile, arn)?,
            token_file: file.to_owned(),
        }));
    }
    if let Some(sso) = sso_role(profiles, profile)? {
        return Ok(Some(Origin::Sso(sso)));
    }
    if get("login_session").is_some() {
        return Err(unsupported(profile, "is one of `aws login`"));
    }
    if let Some(command) = get("credential_process") {
        return Ok(Some(Origin::Program {
            command: SecretText(command.to_owned()),
            profile: profile.to_owned(),
        }));
    }
    Ok(profile_keys(profiles, profile)?.map(Origin::Keys))
}

fn profile_keys(profiles: &Profiles, profile: &str) -> Result<Option<KeySet>> {
    let get = |key: &str| profiles.get(profile, key);
    match (get("aws_access_key_id"), get("aws_secret_access_key")) {
        (Some(id), Some(secret)) => Ok(Some(KeySet {
            id: id.to_owned(),
            secret: SecretText(secret.to_owned()),
            token: get("aws_session_token").map(|token| SecretText(token.to_owned())),
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(contradiction(
            profile,
            "aws_access_key_id without aws_secret_access_key",
        )),
        (None, Some(_)) => Err(contradiction(
            profile,
            "aws_secret_access_key without aws_access_key_id",
        )),
    }
}

fn sso_role(profiles: &Profiles, profile: &str) -> Result<Option<SsoRole>> {
    let get = |key: &str| profiles.get(profile, key);
    let session = get("sso_session");
    let of_session = |key: &str| match session {
        Some(session) => profiles.sso_session(session, key),
        None => get(key),
    };
    let (region, start_url) = (of_session("sso_region"), of_session("sso_start_url"));
    let (account, role) = (get("sso_account_id"), get("sso_role_name"));
    if [session, account, role, region, start_url]
        .iter()
        .all(Option::is_none)
    {
        return Ok(None);
    }
    let need = |key: &str, value: Option<&str>| {
        let missing = || contradiction(profile, &format!("keys of SSO and no {key}"));
        value.map(str::to_owned).ok_or_else(missing)
    };
    Ok(Some(SsoRole {
        profile: profile.to_owned(),
        account: need("sso_account_id", account)?,
        role: need("sso_role_name", role)?,
        region: need("sso_region", region)?,
        start_url: need("sso_start_url", start_url)?,
        session: session.map(str::to_owned),
    }))
}

#[cfg(test)]
mod tests;
