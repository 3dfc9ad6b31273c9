//! Decides which clients may use the control endpoint: programs on this machine, but no web page in a browser on it.
//!
//! A page can send a POST to any address (the browser names the page in `Origin`), and one that has its own name resolve
//! to 127.0.0.1 can read the reply too (the browser sends that name as `Host`).

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::http::uri::Authority;

/// Why a request to the control endpoint is refused; `None` if it is allowed.
pub(super) fn refused(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(page) = text("origin") {
        return Some(format!("sent by the web page {page}"));
    }
    if let Some(site @ ("cross-site" | "same-site")) = text("sec-fetch-site") {
        return Some(format!("sent by a web page: Sec-Fetch-Site is {site}"));
    }
    match text("host") {
        None => Some("no Host".into()),
        Some(host) if is_loopback(host) => None,
        Some(host) => Some(format!("the Host {host:?} is not a name of loopback")),
    }
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    if host.contains('@') {
        return false;
    }
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_of_this_machine_reach_the_control_endpoint() {
        for (headers, allowed) in [
            (&[("host", "127.0.0.1:4566")][..], true),
            (&[("host", "127.9.9.9")], true),
            (&[("host", "localhost:1")], true),
            (&[("host", "LOCALHOST")], true),
            (&[("host", "[::1]:4566")], true),
            (&[], false),
            (&[("host", "")], false),
            (&[("host", "rebound.example:4566")], false),
            (&[("host", "localhost.example")], false),
            (&[("host", "127.0.0.1.example")], false),
            (&[("host", "127.0.0.1@example")], false),
            (&[("host", "10.0.0.1")], false),
            (
                &[("host", "127.0.0.1"), ("origin", "https://example")],
                false,
            ),
            (&[("host", "127.0.0.1"), ("origin", "null")], false),
            (
                &[("host", "127.0.0.1"), ("origin", "http://127.0.0.1:4566")],
                false,
            ),
            (
                &[("host", "127.0.0.1"), ("sec-fetch-site", "cross-site")],
                false,
            ),
            (&[("host", "127.0.0.1"), ("sec-fetch-site", "none")], true),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            assert_eq!(refused(&map).is_none(), allowed, "{headers:?}");
        }
    }
}
