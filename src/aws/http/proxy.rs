//! Which proxy a request goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case.

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::error::{Error, Kind, Result};

/// The proxies of this process.
#[derive(Debug)]
pub struct Proxies {
    matcher: Matcher,
}

impl Default for Proxies {
    /// No proxies.
    fn default() -> Self {
        Self {
            matcher: Matcher::builder().build(),
        }
    }
}

/// A proxy on the way.
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
        let authority = self.uri.authority().map(ToString::to_string);
        authority.unwrap_or_default()
    }
}

impl Proxies {
    /// The proxies that the variables name. `variable` gives the value of one, none when it is unset or empty.
    ///
    /// # Errors
    /// `Invalid` when a variable holds no URL of an HTTP proxy; its value is not printed, for it can hold a password.
    pub fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| {
            let lower = name.to_ascii_lowercase();
            let found = variable(name).map(|value| (name.to_owned(), value));
            found.or_else(|| Some((lower.clone(), variable(&lower)?)))
        };
        let url = |name: &str| -> Result<String> {
            let Some((name, value)) = value(name) else {
                return Ok(String::new());
            };
            if is_http_proxy(&value) {
                return Ok(value);
            }
            let what = format!(
                "cannot use the proxy in {name}: it must look like http://[USER:PASSWORD@]HOST[:PORT]"
            );
            Err(Error::new(Kind::Invalid, what))
        };
        let (https, http, all) = (url("HTTPS_PROXY")?, url("HTTP_PROXY")?, url("ALL_PROXY")?);
        let exceptions = value("NO_PROXY")
            .map(|(_, value)| value)
            .unwrap_or_default();
        let Some(exceptions) = exceptions_of(&exceptions) else {
            return Ok(Self::default());
        };
        let matcher = Matcher::builder()
            .https(https)
            .http(http)
            .all(all)
            .no(exceptions)
            .build();
        Ok(Self { matcher })
    }

    /// The proxy for a URL.
    pub(super) fn proxy(&self, uri: &Uri) -> Option<Proxy> {
        self.matcher.intercept(uri).as_ref().map(Proxy::of)
    }
}

/// Whether a value is the URL of an HTTP proxy; without a scheme it is taken for `http`.
fn is_http_proxy(value: &str) -> bool {
    let url = match value.split_once("://") {
        Some(("http" | "https", _)) => value.to_owned(),
        Some(_) => return false,
        None => format!("http://{value}"),
    };
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().is_some_and(|host| !host.is_empty());
    // `port_u16` hides a port that is out of range.
    let authority = uri
        .authority()
        .map_or("", hyper::http::uri::Authority::as_str);
    host && super::super::endpoints::has_valid_port(authority)
}

/// The exceptions as the matcher takes them; none when all hosts are one. `*.example` is what it calls `.example`.
fn exceptions_of(value: &str) -> Option<String> {
    let entries: Vec<&str> = value.split([',', ' ']).map(str::trim).collect();
    if entries.contains(&"*") {
        return None;
    }
    let plain = |entry: &&str| {
        let entry = entry.strip_prefix('*').unwrap_or(entry);
        entry.trim_matches(['[', ']']).to_owned()
    };
    let entries: Vec<String> = entries.iter().map(plain).collect();
    Some(entries.join(","))
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
    fn what_is_no_proxy_is_refused_without_its_value() {
        for value in [
            "socks5://u:secret@h:1",
            "http://",
            "http://u:secret@h:99999",
            "http://h:x",
        ] {
            let error = proxies(&[("https_proxy", value)]).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{value}");
            assert!(error.chain().contains("https_proxy"), "{error}");
            assert!(!error.chain().contains("secret"), "{error}");
        }
    }
}
