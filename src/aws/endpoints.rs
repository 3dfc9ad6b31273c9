//! Which URL each service has: options, variables, sections of the profile, or the host of its partition.

use crate::error::{Error, Kind, Result};

/// A service of AWS that this program calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The EBS direct APIs.
    Ebs,
    /// EC2: descriptions, tags.
    Ec2,
    /// Object stores.
    S3,
    /// Quotas of the account.
    Quotas,
    /// Roles.
    Sts,
    /// Sign-in of people.
    Sso,
    /// The tokens of SSO.
    SsoOidc,
}

impl Service {
    /// Its name in `AWS_ENDPOINT_URL_NAME`, and in lower case in a `services` section
    /// (<https://docs.aws.amazon.com/sdkref/latest/guide/ss-endpoints-table.html>).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ebs => "EBS",
            Self::Ec2 => "EC2",
            Self::S3 => "S3",
            Self::Quotas => "SERVICE_QUOTAS",
            Self::Sts => "STS",
            Self::Sso => "SSO",
            Self::SsoOidc => "SSO_OIDC",
        }
    }
}

/// A value, and where it was given: an option, a variable or a profile, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given<T> {
    /// What was given.
    pub(crate) value: T,
    /// Where, as a person would name it.
    pub(crate) from: String,
}

impl<T> Given<T> {
    /// A value from a place.
    pub(crate) fn new(value: T, from: impl Into<String>) -> Self {
        let from = from.into();
        Self { value, from }
    }
}

/// Where URLs can be given, the first to ask first.
#[derive(Debug, Default)]
pub(super) struct UrlSources {
    /// The option for this service.
    pub(super) own_option: Option<Given<String>>,
    /// The option for EBS and EC2, or for an object store.
    pub(super) common_option: Option<Given<String>>,
    /// AWS_ENDPOINT_URL_SERVICE.
    pub(super) own_variable: Option<Given<String>>,
    /// AWS_ENDPOINT_URL.
    pub(super) common_variable: Option<Given<String>>,
    /// `endpoint_url` of the service in the profile's `services` section.
    pub(super) section: Option<Given<String>>,
    /// `endpoint_url` of the profile.
    pub(super) profile: Option<Given<String>>,
    /// AWS_IGNORE_CONFIGURED_ENDPOINT_URLS: only options count.
    pub(super) ignores_configured: bool,
}

impl UrlSources {
    /// The URL to use; none is the service's own in its partition. The order is that of
    /// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html>.
    pub(super) fn choose(self) -> Option<Given<String>> {
        let option = self.own_option.or(self.common_option);
        if self.ignores_configured {
            return option;
        }
        option
            .or(self.own_variable)
            .or(self.common_variable)
            .or(self.section)
            .or(self.profile)
    }
}

/// Refuses what is no URL of a service, and a custom URL where FIPS is asked for. A password in it is never repeated.
pub(super) fn check(url: &Given<String>, fips: Option<&str>) -> Result<()> {
    let (text, from) = (&url.value, &url.from);
    let refused = |why: &str| {
        let what = format!("cannot use {from} {:?}: {why}", without_password(text));
        Err(Error::new(Kind::Invalid, what))
    };
    let Some((scheme, rest)) = text.split_once("://") else {
        return refused("it must look like https://HOST[:PORT]");
    };
    if !matches!(scheme, "http" | "https") {
        return refused("it must begin with https:// or http://");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return refused("it holds a user or password: credentials come from the profile");
    }
    if rest.contains(['?', '#']) {
        return refused("it must end at the host, the port or a path");
    }
    if !has_valid_port(authority) {
        return refused("its port must be a number from 1 to 65535");
    }
    let parsed = text.parse::<hyper::Uri>().ok();
    let host = parsed.as_ref().and_then(hyper::Uri::host);
    if host.is_none_or(|host| !is_host(host)) {
        return refused("it must look like https://HOST[:PORT]");
    }
    if let Some(fips) = fips {
        return refused(&format!(
            "{fips} asks for a FIPS endpoint, and whether that of a URL is one cannot be checked: leave one of them out"
        ));
    }
    Ok(())
}

/// Whether the part behind the host, if there is one, is a port.
pub(super) fn has_valid_port(authority: &str) -> bool {
    let host = authority.rsplit('@').next().unwrap_or_default();
    // The colons of an IPv6 address are within brackets.
    let port = match host.rsplit_once(']') {
        Some((_, "")) => return true,
        Some((_, rest)) => rest.strip_prefix(':'),
        None => match host.split_once(':') {
            Some((_, port)) => Some(port),
            None => return true,
        },
    };
    port.is_some_and(|port| {
        port.bytes().all(|digit| digit.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    !host.is_empty() && host.chars().all(is_name)
}

/// A URL without the user and password in it.
pub(crate) fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((_, host)) = authority.rsplit_once('@') else {
        return url.to_owned();
    };
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}***@{host}{path}")
}

/// A set of Regions with names and ARNs of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// The second part of its ARNs.
    pub(crate) id: &'static str,
    /// The end of the names of its hosts.
    pub(crate) suffix: &'static str,
}

/// By the beginning of a Region's name (`partitions.json` of the AWS SDKs).
const PARTITIONS: &[(&str, Partition)] = &[
    ("cn-", partition("aws-cn", "amazonaws.com.cn")),
    ("us-gov-", partition("aws-us-gov", "amazonaws.com")),
    ("us-iso-", partition("aws-iso", "c2s.ic.gov")),
    ("us-isob-", partition("aws-iso-b", "sc2s.sgov.gov")),
    ("eu-isoe-", partition("aws-iso-e", "cloud.adc-e.uk")),
    ("us-isof-", partition("aws-iso-f", "csp.hci.ic.gov")),
    ("eusc-", partition("aws-eusc", "amazonaws.eu")),
    ("", AWS),
];
/// The partition of the Regions that have no other.
const AWS: Partition = partition("aws", "amazonaws.com");

const fn partition(id: &'static str, suffix: &'static str) -> Partition {
    Partition { id, suffix }
}

/// The partition of a Region.
pub(crate) fn partition_of(region: &str) -> Partition {
    let found = PARTITIONS
        .iter()
        .find(|(start, _)| region.starts_with(start));
    found.map_or(AWS, |found| found.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str, fips: Option<&str>) -> String {
        let given = Given::new(url.to_owned(), "--ebs-endpoint");
        check(&given, fips).map_or_else(|error| error.chain(), |()| String::new())
    }

    #[test]
    fn urls_are_checked_before_they_are_used() {
        for url in [
            "https://ebs.eu-west-1.amazonaws.com",
            "https://vpce-0a1b-2c3d.ebs.eu-west-1.vpce.amazonaws.com/",
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "https://[fd00::1]",
            "https://host/prefix",
        ] {
            assert_eq!(refusal(url, None), "", "{url}");
        }
        for (url, why) in [
            ("host:9000", "must look like"),
            ("ftp://host", "must begin with"),
            ("https://", "must look like"),
            ("https:///path", "must look like"),
            ("http://host:99999", "port"),
            ("http://host:0", "port"),
            ("http://host:", "port"),
            ("http://host:+80", "port"),
            ("http://[::1", "port"),
            ("http://[::1]x", "port"),
            ("http://[zz]", "must look like"),
            ("http://ho st", "must look like"),
            ("http://host?x=1", "must end"),
            ("http://user:secret@host", "user or password"),
        ] {
            let said = refusal(url, None);
            assert!(said.contains(why), "{url}: {said}");
            assert!(said.contains("--ebs-endpoint"), "{url}: {said}");
            assert!(!said.contains("secret"), "{url}: {said}");
        }
        assert!(refusal("https://host", Some("--use-fips")).contains("--use-fips"));
    }

    #[test]
    fn the_nearest_source_of_a_url_wins() {
        let given = |from: &str| Some(Given::new("https://h".to_owned(), from));
        let mut order = vec!["own", "common", "OWN", "COMMON", "section", "profile"];
        while let Some(first) = order.first() {
            let has = |name: &str| given(name).filter(|_| order.contains(&name));
            let sources = |ignores_configured| UrlSources {
                own_option: has("own"),
                common_option: has("common"),
                own_variable: has("OWN"),
                common_variable: has("COMMON"),
                section: has("section"),
                profile: has("profile"),
                ignores_configured,
            };
            assert_eq!(sources(false).choose().unwrap().from, *first);
            let is_option = ["own", "common"].contains(first);
            assert_eq!(sources(true).choose().is_some(), is_option, "{first}");
            order.remove(0);
        }
    }

    #[test]
    fn partitions_have_arns_of_their_own() {
        for (region, id) in [
            ("eu-west-1", "aws"),
            ("us-gov-west-1", "aws-us-gov"),
            ("cn-north-1", "aws-cn"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eusc-de-east-1", "aws-eusc"),
        ] {
            assert_eq!(partition_of(region).id, id);
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        assert_eq!(without_password("http://u:p@h:1/x"), "http://***@h:1/x");
        assert_eq!(without_password("u:p@h"), "***@h");
        assert_eq!(without_password("https://h/a@b"), "https://h/a@b");
    }
}
