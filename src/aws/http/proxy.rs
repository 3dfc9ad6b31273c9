//! Which proxy a request goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case.

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::error::{Error, Kind, Result};

/// The proxies of this process.
#[derive(Debug)]
pub(crate) struct Proxies {
    matcher: Matcher,
    /// Exceptions that hold for one port.
    with_port: Vec<(String, u16)>,
}

impl Default for Proxies {
    /// No proxies.
    fn default() -> Self {
        Self {
            matcher: Matcher::builder().build(),
            with_port: Vec::new(),
        }
    }
}

/// A proxy to send requests through.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub(super) uri: Uri,
    /// The value of Proxy-Authorization.
    pub(super) auth: Option<HeaderValue>,
}

impl Proxy {
    fn of(found: &Intercept) -> Self {
        Self {
            uri: found.uri().clone(),
            auth: found.basic_auth().cloned(),
        }
    }

    /// HOST:PORT for people, and nothing secret.
    pub(super) fn name(&self) -> String {
        let host = self.uri.host().unwrap_or_default();
        let port = self.uri.port_u16();
        port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

impl Proxies {
    /// The proxies that the variables name. `variable` gives the value of one, none when it is unset or empty.
    ///
    /// # Errors
    /// `Invalid` when a variable holds no URL of an HTTP proxy; its value is not printed, for it can hold a password.
    pub(crate) fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| {
            // As in Python, and so in the AWS CLI, the lower case wins.
            let lower = name.to_ascii_lowercase();
            let found = variable(&lower).map(|value| (lower, value));
            found.or_else(|| Some((name.to_owned(), variable(name)?)))
        };
        let url = |name: &str| -> Result<String> {
            let Some((name, value)) = value(name) else {
                return Ok(String::new());
            };
            if let Some(url) = proxy_url(&value) {
                return Ok(url);
            }
            let what = format!(
                "cannot use the proxy in {name}: it must look like http://[USER:PASSWORD@]HOST[:PORT], special characters percent-encoded"
            );
            Err(Error::new(Kind::Invalid, what))
        };
        let (https, http, all) = (url("HTTPS_PROXY")?, url("HTTP_PROXY")?, url("ALL_PROXY")?);
        let exceptions = value("NO_PROXY")
            .map(|(_, value)| value)
            .unwrap_or_default();
        let Some((exceptions, with_port)) = exceptions_of(&exceptions) else {
            return Ok(Self::default());
        };
        let matcher = Matcher::builder()
            .https(https)
            .http(http)
            .all(all)
            .no(exceptions)
            .build();
        Ok(Self { matcher, with_port })
    }

    /// The proxy for a URL.
    pub(super) fn proxy(&self, uri: &Uri) -> Option<Proxy> {
        let is_default = |port| {
            uri.port().is_none()
                && uri.scheme_str() == Some(if port == 443 { "https" } else { "http" })
        };
        let is_exception = self.with_port.iter().any(|(host, port)| {
            let is_port =
                uri.port_u16() == Some(*port) || matches!(port, 80 | 443) && is_default(*port);
            is_port
                && uri
                    .host()
                    .is_some_and(|known| known.eq_ignore_ascii_case(host))
        });
        if is_exception {
            return None;
        }
        self.matcher.intercept(uri).as_ref().map(Proxy::of)
    }
}

/// The URL of an HTTP proxy, without a path; a value without a scheme is taken for `http`. None where it is none, and where an
/// `@` of a password is not percent-encoded: parsers differ on where the host begins.
fn proxy_url(value: &str) -> Option<String> {
    let (scheme, rest) = match value.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(_) => return None,
        None => ("http", value),
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    if authority.matches('@').count() > 1 {
        return None;
    }
    let url = format!("{scheme}://{authority}");
    let uri: Uri = url.parse().ok()?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    // `port_u16` hides a port that is out of range.
    (has_host && super::super::endpoints::has_valid_port(authority)).then_some(url)
}

/// Exceptions for the matcher, and hosts with a port, which it does not know.
type Exceptions = (String, Vec<(String, u16)>);

/// The exceptions; none when all hosts are one. `*.example` is what the matcher calls `.example`.
fn exceptions_of(value: &str) -> Option<Exceptions> {
    let entries: Vec<&str> = value.split([',', ' ']).map(str::trim).collect();
    if entries.contains(&"*") {
        return None;
    }
    let (mut plain, mut with_port) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.strip_prefix('*').unwrap_or(entry);
        // An IPv6 address has more colons than the one of a port.
        let split = entry.rsplit_once(':').filter(|(host, _)| {
            !host.contains(':') || (host.starts_with('[') && host.ends_with(']'))
        });
        match split.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
            Some((host, port)) => with_port.push((host.to_owned(), port)),
            None => plain.push(entry.trim_matches(['[', ']'])),
        }
    }
    Some((plain.join(","), with_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies> {
        Proxies::of_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn no_proxy_takes_hosts_suffixes_and_networks() {
        for (exceptions, url, is_proxied) in [
            ("", "https://ebs.eu-west-1.amazonaws.com/", true),
            (
                "ebs.eu-west-1.amazonaws.com",
                "https://ebs.eu-west-1.amazonaws.com/",
                false,
            ),
            (
                "amazonaws.com",
                "https://ebs.eu-west-1.amazonaws.com/",
                false,
            ),
            (
                ".amazonaws.com",
                "https://ebs.eu-west-1.amazonaws.com/",
                false,
            ),
            (
                "*.amazonaws.com",
                "https://ebs.eu-west-1.amazonaws.com/",
                false,
            ),
            (
                "AMAZONAWS.COM",
                "https://ebs.eu-west-1.amazonaws.com/",
                false,
            ),
            ("zonaws.com", "https://ebs.eu-west-1.amazonaws.com/", true),
            ("10.0.0.0/8", "https://10.1.2.3:8443/", false),
            ("10.0.0.0/8", "https://11.1.2.3/", true),
            ("10.1.2.3", "https://10.1.2.3/", false),
            ("fd00::/8", "https://[fd00::1]:443/", false),
            ("[fd00::1]", "https://[fd00::1]:443/", false),
            ("fd00::1", "https://[fd00::2]:443/", true),
            ("*", "https://10.1.2.3/", false),
            ("10.1.2.3:8443", "https://10.1.2.3:8443/", false),
            ("10.1.2.3:8443", "https://10.1.2.3/", true),
            ("10.1.2.3:443", "https://10.1.2.3/", false),
            ("[fd00::1]:8443", "https://[fd00::1]:8443/", false),
            (
                "a.example, 10.0.0.0/8 b.example",
                "https://b.example/",
                false,
            ),
        ] {
            for (upper, lower) in [("HTTPS_PROXY", "NO_PROXY"), ("https_proxy", "no_proxy")] {
                let found = proxies(&[(upper, "http://proxy:3128"), (lower, exceptions)]).unwrap();
                let found = found.proxy(&url.parse().unwrap());
                assert_eq!(found.is_some(), is_proxied, "{exceptions:?} {url}");
            }
        }
    }

    #[test]
    fn the_scheme_chooses_the_proxy() {
        let both = [("HTTPS_PROXY", "http://s:1"), ("http_proxy", "http://p:2")];
        let both = proxies(&both).unwrap();
        let name = |url: &str| both.proxy(&url.parse().unwrap()).unwrap().name();
        assert_eq!(name("https://a.example/"), "s:1");
        assert_eq!(name("http://a.example/"), "p:2");
        // The lower case wins, and an empty variable is unset.
        let two = [
            ("https_proxy", "http://low:1"),
            ("HTTPS_PROXY", "http://up:2"),
        ];
        let two = proxies(&two).unwrap();
        let found = two.proxy(&"https://a.example/".parse().unwrap());
        assert_eq!(found.unwrap().name(), "low:1");
        // A path behind the port, without a scheme, is no reason to go without a proxy.
        for value in ["proxy:3128/", "u:p@proxy:3128/", "http://proxy:3128/x"] {
            let found = proxies(&[("HTTPS_PROXY", value)]).unwrap();
            let found = found.proxy(&"https://a.example/".parse().unwrap());
            assert_eq!(found.unwrap().name(), "proxy:3128", "{value}");
        }
        let all = proxies(&[("ALL_PROXY", "proxy:3128")]).unwrap();
        assert!(all.proxy(&"https://a.example/".parse().unwrap()).is_some());
    }

    #[test]
    fn user_and_password_are_decoded_and_never_shown() {
        let found = proxies(&[("HTTPS_PROXY", "http://u%40x:p%20w@proxy:3128")]).unwrap();
        let found = found.proxy(&"https://a.example/".parse().unwrap()).unwrap();
        let expected = "Basic dUB4OnAgdw==";
        assert_eq!(found.auth.as_ref().unwrap().to_str().unwrap(), expected);
        assert_eq!(found.name(), "proxy:3128");
        assert!(!format!("{found:?}").contains("dUB4"));
    }

    #[test]
    fn a_wrong_proxy_is_refused_without_printing_its_value() {
        for value in [
            "socks5://u:secret@h:1",
            "http://",
            "http://u:secret@h:99999",
            "http://h:x",
            // An `@` that is not percent-encoded.
            "http://u:p@secret@h:3128",
        ] {
            let error = proxies(&[("https_proxy", value)]).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{value}");
            assert!(error.chain().contains("https_proxy"), "{error}");
            assert!(!error.chain().contains("secret"), "{error}");
        }
    }
}
