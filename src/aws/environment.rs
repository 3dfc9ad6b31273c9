//! The variables and profile files that name the caller of AWS, read each time: the SDK reads them once.

use std::collections::HashMap;

use aws_runtime::env_config::file::EnvConfigFiles;
use aws_runtime::env_config::property::PropertiesKey;
use aws_runtime::env_config::section::EnvConfigSections;
use aws_types::os_shim_internal::{Env, Fs};

use super::endpoints::Service;
use crate::error::{Error, Kind, Result};

/// Environment variables. An empty one counts as unset, as with the AWS CLI.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment(HashMap<String, String>);

impl Environment {
    /// The variables of this process.
    pub(super) fn of_process() -> Self {
        let pairs = std::env::vars_os();
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::of_pairs(pairs.filter_map(text))
    }

    pub(super) fn of_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let is_set = |(_, value): &(String, String)| !value.is_empty();
        Self(pairs.into_iter().filter(is_set).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether a variable says `true`.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }
}

/// The contents of ~/.aws/config and ~/.aws/credentials, or of the files that AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE
/// name.
#[derive(Clone, Debug)]
pub(super) struct Profiles(EnvConfigSections);

impl Profiles {
    /// Reads both files; one that does not exist is empty.
    ///
    /// # Errors
    /// `Invalid` when one cannot be read or understood.
    pub(super) async fn read(environment: &Environment) -> Result<Self> {
        let env = Env::from(environment.0.clone());
        let files = EnvConfigFiles::default();
        let source = aws_runtime::env_config::source::load(&env, &Fs::real(), &files).await;
        let source = source.map_err(|error| unreadable(&error))?;
        let sections = EnvConfigSections::parse(source);
        sections.map(Self).map_err(|error| unreadable(&error))
    }

    #[cfg(test)]
    pub(super) async fn of_text(config: &str) -> Self {
        use aws_runtime::env_config::file::EnvConfigFileKind;
        let files = EnvConfigFiles::builder()
            .with_contents(EnvConfigFileKind::Config, config)
            .build();
        let env = Env::from(HashMap::new());
        let source = aws_runtime::env_config::source::load(&env, &Fs::real(), &files).await;
        Self(EnvConfigSections::parse(source.unwrap()).unwrap())
    }

    /// Whether there is a profile of this name.
    pub(super) fn has(&self, profile: &str) -> bool {
        self.0.get_profile(profile).is_some()
    }

    /// A key of a profile; an empty value counts as absent.
    pub(super) fn get(&self, profile: &str, key: &str) -> Option<&str> {
        let value = self.0.get_profile(profile)?.get(key)?.trim();
        Some(value).filter(|value| !value.is_empty())
    }

    /// A key of an `sso-session` section.
    pub(super) fn sso_session(&self, session: &str, key: &str) -> Option<&str> {
        let value = self.0.sso_session(session)?.get(key)?.trim();
        Some(value).filter(|value| !value.is_empty())
    }

    /// The URL of a service in the `services` section that a profile names.
    pub(super) fn section_url(&self, profile: &str, service: Service) -> Option<&str> {
        let key = PropertiesKey::builder()
            .section_key("services")
            .section_name(self.get(profile, "services")?)
            .property_name(service.name().to_ascii_lowercase())
            .sub_property_name("endpoint_url")
            .build()
            .ok()?;
        let value = self.0.other_sections().get(&key)?.trim();
        Some(value).filter(|value| !value.is_empty())
    }
}

fn unreadable(error: &dyn std::error::Error) -> Error {
    let what = format!(
        "cannot read the AWS profiles: {}",
        super::classify::causes_of(error)
    );
    Error::new(Kind::Invalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_unset() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = Environment::of_pairs([pair("A", ""), pair("B", "True")]);
        assert_eq!(environment.get("A"), None);
        assert!(environment.is_true("B") && !environment.is_true("A"));
    }

    #[tokio::test]
    async fn a_services_section_holds_urls() {
        let profiles = Profiles::of_text(
            "[profile a]\nservices = mine\nregion =\n\
             [services mine]\nebs =\n  endpoint_url = https://ebs.example\ns3 =\n  endpoint_url = https://s3.example\n",
        )
        .await;
        let url = |service| profiles.section_url("a", service);
        assert_eq!(url(Service::Ebs), Some("https://ebs.example"));
        assert_eq!(url(Service::S3), Some("https://s3.example"));
        assert_eq!(url(Service::Ec2), None);
        assert_eq!(profiles.get("a", "region"), None);
        assert!(profiles.has("a") && !profiles.has("b"));
    }
}
