//! What each step of a connection means: pure functions over what was observed.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::cloud::OriginCloud;
use super::request::{NoAnswer, ServerAnswer};
use crate::aws::{CertificateFacts, TraceFailure, TraceFailureKind as Why, TraceStep};
use crate::doctor::resolver::ResolverFacts;
use crate::doctor::row::RowFinding;
use crate::time::{in_words, rfc3339_seconds};

/// A certificate that ends within this time is about to stop the verb.
const ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);
/// AWS refuses signatures that are 5 minutes off:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-signing-elements.html>.
const MOST_SKEW: u64 = 300_000;
/// Beyond this a clock is not kept.
const SOME_SKEW: u64 = 30_000;

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressKind {
    Here,
    Private,
    Public,
}

impl AddressKind {
    fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let is_private = match address {
            // RFC 1918, RFC 3927, and RFC 6598, which VPNs use.
            IpAddr::V4(v4) => {
                let [first, second, ..] = v4.octets();
                v4.is_private() || v4.is_link_local() || (first == 100 && second & 0xc0 == 64)
            }
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
        };
        match (address.is_loopback(), is_private) {
            (true, _) => Self::Here,
            (_, true) => Self::Private,
            _ => Self::Public,
        }
    }

    fn of_all(addresses: &[IpAddr]) -> Self {
        let mut kinds = addresses.iter().map(|address| Self::of(*address));
        let first = kinds.next().unwrap_or(Self::Public);
        if kinds.all(|kind| kind == first) {
            first
        } else {
            Self::Public
        }
    }

    fn in_words(self, cloud: OriginCloud) -> String {
        match self {
            Self::Here => "this machine".to_owned(),
            Self::Private => format!("private: {}", cloud.private()),
            Self::Public => format!("public: {}", cloud.public()),
        }
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let shown = addresses.iter().take(4).map(ToString::to_string);
    let more = if addresses.len() > 4 { ", ..." } else { "" };
    shown.collect::<Vec<_>>().join(", ") + more
}

/// What a name is looked up with.
pub(super) struct NameFacts<'a> {
    pub(super) host: &'a str,
    pub(super) cloud: OriginCloud,
    pub(super) resolver: &'a ResolverFacts,
    /// Where the URL was given.
    pub(super) from: Option<&'a str>,
}

/// The row of a name; none where the step was left out.
pub(super) fn name(
    facts: &NameFacts<'_>,
    step: &TraceStep<Vec<IpAddr>>,
) -> Option<(RowFinding, Duration)> {
    let NameFacts {
        host,
        cloud,
        resolver,
        from,
    } = facts;
    let failed = |seen: String| {
        let domain = host.split_once('.').map_or(*host, |(_, domain)| domain);
        let name = from.map(|from| format!("check the name in {from}; "));
        let name = name.unwrap_or_default();
        let fix = match (resolver.is_stub(), resolver.servers.is_empty()) {
            (true, _) => format!(
                "{name}resolvectl query {host}; if only the resolver behind the VPN knows the name: resolvectl dns LINK SERVER && \
                 resolvectl domain LINK '~{domain}' (SERVER: {})",
                cloud.resolver()
            ),
            (_, true) => format!("{name}add a line `nameserver SERVER` to /etc/resolv.conf"),
            _ => format!(
                "{name}getent hosts {host}; name the resolver that knows it in /etc/resolv.conf ({})",
                cloud.resolver()
            ),
        };
        RowFinding::failed(seen, fix)
    };
    Some(match step {
        TraceStep::Skipped => return None,
        TraceStep::Failed(why, took) => {
            let seen = format!("{} (asked {})", why.reason, resolver.in_words());
            (failed(seen), *took)
        }
        TraceStep::Done(addresses, took) if addresses.is_empty() => {
            (failed("the name has no address".to_owned()), *took)
        }
        TraceStep::Done(addresses, took) => {
            let kind = AddressKind::of_all(addresses);
            let mut seen = format!("{} ({})", list(addresses), kind.in_words(*cloud));
            if kind != AddressKind::Here {
                seen.push_str(&format!(", by {}", resolver.in_words()));
            }
            (RowFinding::good(seen), *took)
        }
    })
}

/// Where a connection goes.
pub(super) struct ConnectionFacts<'a> {
    /// HOST:PORT.
    pub(super) host_port: &'a str,
    pub(super) cloud: OriginCloud,
    pub(super) addresses: &'a [IpAddr],
    pub(super) is_proxy: bool,
    /// Where the URL was given.
    pub(super) from: Option<&'a str>,
    /// What gives the service another URL.
    pub(super) variable: &'a str,
}

/// The row of a connection.
pub(super) fn connection(
    facts: &ConnectionFacts<'_>,
    step: &TraceStep<(IpAddr, std::net::SocketAddr)>,
) -> Option<(RowFinding, Duration)> {
    let (why, took): (&TraceFailure, Duration) = match step {
        TraceStep::Skipped => return None,
        TraceStep::Done((local, peer), took) => {
            return Some((RowFinding::good(format!("from {local} to {peer}")), *took));
        }
        TraceStep::Failed(why, took) => (why, *took),
    };
    let port = facts.host_port.rsplit_once(':').map_or("", |found| found.1);
    let first = facts.addresses.first().map(ToString::to_string);
    let first = first.unwrap_or_default();
    let kind = AddressKind::of_all(facts.addresses);
    let (seen, fix) = match (why.kind, kind) {
        (Why::Silent, AddressKind::Private) => (
            format!("no answer of {first} to the connection: packets vanish on the way"),
            format!(
                "allow TCP {port} from this machine {}; the VPN must route {first}: ip route get {first}",
                facts.cloud.filters()
            ),
        ),
        (Why::Silent, _) if facts.is_proxy => (
            format!("no answer of the proxy at {first}"),
            format!(
                "correct HTTPS_PROXY, or let this machine reach {} TCP {port}",
                facts.host_port
            ),
        ),
        (Why::Silent, _) => (
            format!(
                "no answer of {first} to the connection: packets vanish, as behind a firewall without a way to the internet"
            ),
            format!(
                "name the proxy (HTTPS_PROXY=http://HOST:PORT), or {}",
                facts.cloud.other_way(facts.variable)
            ),
        ),
        (Why::Refused, _) => (
            format!("{first} refuses connections at port {port}: nothing listens there"),
            match (facts.is_proxy, facts.from) {
                (true, _) => "correct HOST and PORT in HTTPS_PROXY, or start the proxy".to_owned(),
                (_, Some(from)) => format!("start the server, or correct the URL of {from}"),
                _ => format!(
                    "a firewall refuses it: allow TCP {port} to {}",
                    facts.host_port
                ),
            },
        ),
        (Why::NoRoute, _) => (
            format!("no route to {first}: {}", why.reason),
            format!(
                "connect the VPN or Direct Connect that leads there; ip route get {first} shows the route"
            ),
        ),
        _ => (
            why.reason.clone(),
            format!("ip route get {first}; ss -tn dst {first}"),
        ),
    };
    Some((RowFinding::failed(seen, fix), took))
}

/// The row of a proxy's consent.
pub(super) fn proxy(
    proxy: &str,
    target: &str,
    step: &TraceStep<()>,
) -> Option<(RowFinding, Duration)> {
    let (why, took): (&TraceFailure, Duration) = match step {
        TraceStep::Skipped => return None,
        TraceStep::Done((), took) => {
            return Some((RowFinding::good(format!("a tunnel through {proxy}")), *took));
        }
        TraceStep::Failed(why, took) => (why, *took),
    };
    let fix = if why.reason.contains("HTTP 407") {
        "HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, special characters percent-encoded".to_owned()
    } else if why.reason.contains("HTTP 403") {
        format!(
            "let the operator of {proxy} allow {target}; NO_PROXY=HOST goes there without the proxy"
        )
    } else {
        format!(
            "curl -v -x http://{proxy} https://{target}/ shows what the proxy answers; NO_PROXY=HOST goes there without it"
        )
    };
    let seen = match why.kind {
        Why::Silent => format!("no answer of the proxy {proxy} to CONNECT {target}"),
        _ => why.reason.clone(),
    };
    Some((RowFinding::failed(seen, fix), took))
}

/// What a handshake was made with.
pub(super) struct TlsFacts<'a> {
    pub(super) host: &'a str,
    pub(super) host_port: &'a str,
    /// What gives the service another URL.
    pub(super) variable: &'a str,
    /// The certificates that were presented.
    pub(super) chain: &'a [CertificateFacts],
    pub(super) now: SystemTime,
}

impl TlsFacts<'_> {
    /// The last signer that was presented or named: the authority to trust.
    fn signer(&self) -> Option<&str> {
        let last = self.chain.last()?;
        Some(last.issuer.as_str()).filter(|name| !name.is_empty())
    }
}

/// The row of a handshake.
pub(super) fn tls(facts: &TlsFacts<'_>, step: &TraceStep<()>) -> Option<(RowFinding, Duration)> {
    let (why, took): (&TraceFailure, Duration) = match step {
        TraceStep::Skipped => return None,
        TraceStep::Done((), took) => return Some((accepted(facts), *took)),
        TraceStep::Failed(why, took) => (why, *took),
    };
    let host = facts.host;
    let signer = facts.signer();
    let seen = match why.kind {
        Why::Silent => "no answer to the TLS handshake, though TCP is connected".to_owned(),
        _ => why.reason.clone(),
    };
    let fix = match why.kind {
        Why::UnknownSigner => {
            let signer = signer.map_or_else(|| "that authority".to_owned(), |name| format!("{name:?}"));
            format!(
                "AWS_CA_BUNDLE=/path/bundle.pem, a file with the certificate of {signer} and the public ones: cat \
                 /etc/ssl/certs/ca-certificates.crt CA.pem > bundle.pem (get CA.pem from who operates the proxy or the store)"
            )
        }
        Why::NoAuthorities => "apt-get install ca-certificates, or AWS_CA_BUNDLE=/path/bundle.pem".to_owned(),
        Why::Expired | Why::NotYetValid => format!(
            "renew the certificate of {host}; if date -u is wrong here: timedatectl set-ntp true"
        ),
        Why::WrongName => format!(
            "use a name of the certificate: {}=https://NAME, or issue one for {host}",
            facts.variable
        ),
        Why::NotTls => format!("http:// instead of https:// in {}, or the port of TLS", facts.variable),
        Why::Silent => "full packets vanish where the line is narrower than it says (a VPN): ip link set dev LINK mtu 1300; or \
            something else listens at the port"
            .to_owned(),
        _ => format!(
            "openssl s_client -connect {} -servername {host} shows the handshake",
            facts.host_port
        ),
    };
    Some((RowFinding::failed(seen, fix), took))
}

fn accepted(facts: &TlsFacts<'_>) -> RowFinding {
    let Some(own) = facts.chain.first() else {
        return RowFinding::good("the certificate is accepted");
    };
    let ends = own
        .ends
        .map(|ends| format!(", until {}", rfc3339_seconds(ends)));
    let seen = format!(
        "the certificate of {:?}, signed by {:?}{}",
        own.subject,
        own.issuer,
        ends.unwrap_or_default()
    );
    let left = own
        .ends
        .and_then(|ends| ends.duration_since(facts.now).ok());
    match left {
        Some(left) if left < ENDS_SOON => {
            RowFinding::warning(seen, format!("renew the certificate of {}", facts.host))
        }
        _ => RowFinding::good(seen),
    }
}

/// The row of an answer.
pub(super) fn answer(reply: &Result<ServerAnswer, NoAnswer>, proxy: Option<&str>) -> RowFinding {
    match (reply, proxy) {
        (Ok(reply), Some(proxy)) if reply.status == 407 => RowFinding::failed(
            format!("HTTP 407 from the proxy {proxy}"),
            "HTTP_PROXY=http://USER:PASSWORD@HOST:PORT, special characters percent-encoded",
        ),
        (Ok(reply), _) if matches!(reply.status, 502..=504) => RowFinding::warning(
            format!("HTTP {}: a gateway on the way has no answer", reply.status),
            "look at the load balancer or proxy before the service",
        ),
        (Ok(reply), _) => RowFinding::good(format!(
            "HTTP {} to a request without a signature",
            reply.status
        )),
        (Err(NoAnswer::Silent(limit)), _) => RowFinding::failed(
            format!(
                "no answer to a request in {}, though the connection is made",
                in_words(*limit)
            ),
            "something on the way takes connections and drops requests: look at proxies and load balancers; or the service hangs",
        ),
        (Err(NoAnswer::Failed(why)), _) => RowFinding::failed(
            why.clone(),
            "curl -v to the same URL shows where the connection breaks",
        ),
    }
}

/// The row of a request of this many bytes, after a small one was answered.
pub(super) fn packets(reply: &Result<ServerAnswer, NoAnswer>, bytes: usize) -> RowFinding {
    let fix = "ip link set dev LINK mtu 1300 (LINK of the VPN), or sysctl -w net.ipv4.tcp_mtu_probing=1, or let routers send ICMP \
        \"fragmentation needed\"";
    match reply {
        Ok(_) => RowFinding::good(format!("a request of {bytes} bytes is answered")),
        Err(NoAnswer::Silent(limit)) => RowFinding::failed(
            format!(
                "small requests are answered, one of {bytes} bytes is not in {}: full packets vanish (MTU black hole)",
                in_words(*limit)
            ),
            fix,
        ),
        Err(NoAnswer::Failed(why)) => RowFinding::failed(
            format!("a request of {bytes} bytes breaks the connection: {why}"),
            fix,
        ),
    }
}

/// The row of a clock: milliseconds by which theirs is ahead.
pub(super) fn clock(skew: Option<i64>, cloud: OriginCloud) -> RowFinding {
    let Some(skew) = skew else {
        return RowFinding::unknown("the answer has no date");
    };
    let off = skew.unsigned_abs();
    let (seconds, word) = (off / 1000, if skew > 0 { "behind" } else { "ahead of" });
    let seen = format!("the clock here is {seconds} s {word} the service's");
    let fix = "timedatectl set-ntp true, or chronyc makestep (date -u shows the clock)";
    match off {
        MOST_SKEW.. if cloud == OriginCloud::Aws => RowFinding::warning(
            format!(
                "{seen}: the first signature of each run is refused, then ebsfs follows that clock"
            ),
            fix,
        ),
        SOME_SKEW.. => RowFinding::warning(seen, fix),
        // The date of a reply has whole seconds.
        ..2_000 => RowFinding::good("as that of the service"),
        _ => RowFinding::good(seen),
    }
}

#[cfg(test)]
mod tests;
