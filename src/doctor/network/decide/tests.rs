use super::*;
use crate::doctor::row::RowState;
use crate::error::Remedy;

const TOOK: Duration = Duration::from_millis(7);

fn failed<T>(kind: Why, reason: &str) -> TraceStep<T> {
    let reason = reason.to_owned();
    TraceStep::Failed(TraceFailure { reason, kind }, TOOK)
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

#[track_caller]
fn assert_row(found: Option<(RowFinding, Duration)>, state: RowState, seen: &str, fix: &str) {
    let (finding, took) = found.unwrap();
    assert_eq!(took, TOOK);
    assert_finding(&finding, state, seen, fix);
}

#[track_caller]
fn assert_finding(finding: &RowFinding, state: RowState, seen: &str, fix: &str) {
    assert_eq!(finding.state, state, "{finding:?}");
    assert!(finding.seen.contains(seen), "{seen}: {finding:?}");
    let advice = match &finding.fix {
        Some(Remedy::Do(text)) => text.as_str(),
        _ => "",
    };
    assert_eq!(advice.is_empty(), fix.is_empty(), "{finding:?}");
    assert!(advice.contains(fix), "{fix}: {finding:?}");
}

#[test]
fn an_address_is_private_public_or_this_machine() {
    for (list, kind) in [
        (&["127.0.0.1", "::1"][..], AddressKind::Here),
        (&["10.1.2.3"], AddressKind::Private),
        (&["172.31.0.9", "192.168.0.1"], AddressKind::Private),
        (&["100.64.0.1"], AddressKind::Private),
        (&["fd00::1", "::ffff:10.0.0.1"], AddressKind::Private),
        (&["52.1.2.3"], AddressKind::Public),
        (&["100.128.0.1"], AddressKind::Public),
        (&["10.1.2.3", "52.1.2.3"], AddressKind::Public),
        (&["2600:1f18::1"], AddressKind::Public),
    ] {
        assert_eq!(AddressKind::of_all(&addresses(list)), kind, "{list:?}");
    }
}

#[test]
fn a_name_says_where_it_leads_and_who_was_asked() {
    let servers = |list: &[&str]| {
        list.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let plain = ResolverFacts {
        servers: servers(&["10.0.0.2"]),
        uplinks: Vec::new(),
    };
    let stub = ResolverFacts {
        servers: servers(&["127.0.0.53"]),
        uplinks: servers(&["1.1.1.1"]),
    };
    let none = ResolverFacts::default();
    let host = "ebs.eu-west-1.amazonaws.com";
    let of = |resolver, from, step: &TraceStep<Vec<IpAddr>>| {
        let facts = NameFacts {
            host,
            cloud: OriginCloud::Aws,
            resolver,
            from,
        };
        name(&facts, step)
    };
    let found = |list: &[&str]| TraceStep::Done(addresses(list), TOOK);
    assert_row(
        of(&plain, None, &found(&["10.0.3.7"])),
        RowState::Good,
        "10.0.3.7 (private: a VPC endpoint",
        "",
    );
    assert_row(
        of(&plain, None, &found(&["52.1.2.3"])),
        RowState::Good,
        "public: the internet, or a gateway endpoint of S3), by 10.0.0.2",
        "",
    );
    assert_row(
        of(&plain, None, &found(&[])),
        RowState::Failed,
        "no address",
        "getent hosts ebs.eu-west-1",
    );
    let unknown = failed(Why::Other, "Name or service not known");
    assert_row(
        of(&plain, None, &unknown),
        RowState::Failed,
        "Name or service not known (asked 10.0.0.2)",
        "/etc/resolv.conf",
    );
    assert_row(
        of(&stub, None, &unknown),
        RowState::Failed,
        "which asks 1.1.1.1",
        "resolvectl domain LINK '~eu-west-1.amazonaws.com'",
    );
    assert_row(
        of(&none, None, &unknown),
        RowState::Failed,
        "no server",
        "nameserver SERVER",
    );
    assert_row(
        of(&plain, Some("AWS_ENDPOINT_URL_EBS"), &unknown),
        RowState::Failed,
        "not known",
        "check the name in AWS_ENDPOINT_URL_EBS",
    );
    assert!(of(&plain, None, &TraceStep::Skipped).is_none());
}

#[test]
fn a_connection_that_fails_says_what_to_open() {
    let of = |list: &[&str], is_proxy, from, step| {
        let facts = ConnectionFacts {
            host_port: "h.example:443",
            cloud: OriginCloud::Aws,
            addresses: &addresses(list),
            is_proxy,
            from,
            variable: "AWS_ENDPOINT_URL_EBS",
        };
        connection(&facts, &step)
    };
    let done = TraceStep::Done(
        ("10.0.0.9".parse().unwrap(), "10.0.3.7:443".parse().unwrap()),
        TOOK,
    );
    assert_row(
        of(&["10.0.3.7"], false, None, done),
        RowState::Good,
        "from 10.0.0.9 to 10.0.3.7:443",
        "",
    );
    for (list, is_proxy, from, kind, seen, fix) in [
        (
            &["10.0.3.7"][..],
            false,
            None,
            Why::Silent,
            "packets vanish",
            "allow TCP 443 from this machine in the security group",
        ),
        (
            &["52.1.2.3"],
            false,
            None,
            Why::Silent,
            "without a way to the internet",
            "AWS_ENDPOINT_URL_EBS=https://vpce-",
        ),
        (
            &["52.1.2.3"],
            true,
            None,
            Why::Silent,
            "no answer of the proxy",
            "HTTPS_PROXY",
        ),
        (
            &["10.0.3.7"],
            false,
            None,
            Why::Refused,
            "refuses connections at port 443",
            "a firewall refuses it",
        ),
        (
            &["10.0.3.7"],
            false,
            Some("AWS_ENDPOINT_URL"),
            Why::Refused,
            "nothing listens",
            "correct the URL of AWS_ENDPOINT_URL",
        ),
        (
            &["10.0.3.7"],
            true,
            None,
            Why::Refused,
            "refuses",
            "in HTTPS_PROXY",
        ),
        (
            &["10.0.3.7"],
            false,
            None,
            Why::NoRoute,
            "no route to 10.0.3.7",
            "ip route get 10.0.3.7",
        ),
        (
            &["10.0.3.7"],
            false,
            None,
            Why::Other,
            "reason",
            "ip route get",
        ),
    ] {
        assert_row(
            of(list, is_proxy, from, failed(kind, "reason")),
            RowState::Failed,
            seen,
            fix,
        );
    }
}

#[test]
fn a_proxy_that_refuses_says_what_it_wants() {
    for (kind, reason, seen, fix) in [
        (
            Why::Other,
            "the proxy p:1 refused CONNECT h:443 (HTTP 407): x",
            "HTTP 407",
            "USER:PASSWORD",
        ),
        (
            Why::Other,
            "the proxy p:1 refused CONNECT h:443 (HTTP 403): x",
            "HTTP 403",
            "allow h:443",
        ),
        (
            Why::Other,
            "HTTP 502 to CONNECT h:443",
            "HTTP 502",
            "curl -v -x http://p:1",
        ),
        (
            Why::Silent,
            "no answer",
            "no answer of the proxy p:1",
            "curl",
        ),
    ] {
        assert_row(
            proxy("p:1", "h:443", &failed(kind, reason)),
            RowState::Failed,
            seen,
            fix,
        );
    }
    assert_row(
        proxy("p:1", "h:443", &TraceStep::Done((), TOOK)),
        RowState::Good,
        "through p:1",
        "",
    );
}

#[test]
fn a_certificate_that_is_refused_names_its_signer_and_the_file() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let chain = |days: u64| {
        vec![CertificateFacts {
            subject: "h.example".into(),
            issuer: "Corp Proxy CA".into(),
            ends: Some(now + Duration::from_secs(days * 86_400)),
        }]
    };
    let of = |days, step| {
        let facts = TlsFacts {
            host: "h.example",
            host_port: "h.example:8443",
            variable: "AWS_ENDPOINT_URL_S3",
            chain: &chain(days),
            now,
        };
        tls(&facts, &step)
    };
    assert_row(
        of(90, TraceStep::Done((), TOOK)),
        RowState::Good,
        "signed by \"Corp Proxy CA\", until 2027-04-15",
        "",
    );
    assert_row(
        of(6, TraceStep::Done((), TOOK)),
        RowState::Warning,
        "until 2027-01-21",
        "renew",
    );
    for (kind, seen, fix) in [
        (
            Why::Other,
            "reason",
            "openssl s_client -connect h.example:8443 -servername h.example shows",
        ),
        (
            Why::UnknownSigner,
            "reason",
            "AWS_CA_BUNDLE=/path/bundle.pem, a file with the certificate of \"Corp Proxy CA\"",
        ),
        (Why::NoAuthorities, "reason", "install ca-certificates"),
        (Why::Expired, "reason", "renew the certificate of h.example"),
        (Why::NotYetValid, "reason", "timedatectl"),
        (Why::WrongName, "reason", "AWS_ENDPOINT_URL_S3=https://NAME"),
        (Why::NotTls, "reason", "http:// instead of https://"),
        (Why::Silent, "no answer to the TLS handshake", "mtu 1300"),
        (Why::Other, "reason", "openssl s_client"),
    ] {
        assert_row(of(90, failed(kind, "reason")), RowState::Failed, seen, fix);
    }
}

fn answered(status: u16) -> Result<ServerAnswer, NoAnswer> {
    Ok(ServerAnswer {
        status,
        date: None,
        at: SystemTime::UNIX_EPOCH,
        took: TOOK,
    })
}

#[test]
fn an_answer_of_any_kind_is_one_but_for_those_of_gateways() {
    let silent = Err(NoAnswer::Silent(Duration::from_secs(4)));
    let broken = Err(NoAnswer::Failed("reset".into()));
    for (reply, through, state, seen, fix) in [
        (answered(403), None, RowState::Good, "HTTP 403", ""),
        (
            answered(407),
            Some("p:1"),
            RowState::Failed,
            "HTTP 407 from the proxy p:1",
            "USER:PASSWORD",
        ),
        (
            answered(503),
            None,
            RowState::Warning,
            "HTTP 503",
            "load balancer",
        ),
        (
            silent.clone(),
            None,
            RowState::Failed,
            "no answer to a request in 4 s",
            "drops requests",
        ),
        (broken.clone(), None, RowState::Failed, "reset", "curl"),
    ] {
        assert_finding(&answer(&reply, through), state, seen, fix);
    }
    assert_finding(
        &packets(&answered(403), 8192),
        RowState::Good,
        "8192 bytes is answered",
        "",
    );
    assert_finding(
        &packets(&silent, 8192),
        RowState::Failed,
        "MTU black hole",
        "mtu 1300",
    );
    assert_finding(
        &packets(&broken, 8192),
        RowState::Failed,
        "breaks the connection: reset",
        "mtu 1300",
    );
}

#[test]
fn a_clock_that_is_off_warns() {
    for (skew, state, seen, fix) in [
        (None, RowState::Unknown, "no date", ""),
        (Some(-900), RowState::Good, "as that of the service", ""),
        (Some(12_000), RowState::Good, "12 s behind", ""),
        (Some(-45_000), RowState::Warning, "45 s ahead of", "set-ntp"),
        (
            Some(600_000),
            RowState::Warning,
            "600 s behind the service's: the first signature",
            "set-ntp",
        ),
        (Some(i64::MIN), RowState::Warning, "ahead of", "set-ntp"),
    ] {
        assert_finding(&clock(skew, OriginCloud::Aws), state, seen, fix);
    }
    // Only clients of AWS follow the clock of the service.
    let azure = clock(Some(600_000), OriginCloud::Azure);
    assert_finding(
        &azure,
        RowState::Warning,
        "600 s behind the service's",
        "set-ntp",
    );
    assert!(!azure.seen.contains("signature"), "{azure:?}");
}

#[test]
fn each_cloud_has_its_own_way_to_open() {
    let resolver = ResolverFacts::default();
    for (cloud, private, public, filter, way) in [
        (
            OriginCloud::Aws,
            "VPC endpoint",
            "gateway endpoint of S3",
            "security group of the VPC endpoint",
            "VAR=https://vpce-ID",
        ),
        (
            OriginCloud::Azure,
            "private endpoint",
            "service endpoint",
            "network security group",
            "privatelink.blob.core.windows.net",
        ),
        (
            OriginCloud::Google,
            "Private Service Connect",
            "Private Google Access",
            "firewall rules",
            "private.googleapis.com",
        ),
    ] {
        for (address, words, fix) in [("10.0.3.7", private, filter), ("52.1.2.3", public, way)] {
            let found = addresses(&[address]);
            let facts = NameFacts {
                host: "h.example",
                cloud,
                resolver: &resolver,
                from: None,
            };
            let step = TraceStep::Done(found.clone(), TOOK);
            assert_row(name(&facts, &step), RowState::Good, words, "");
            let facts = ConnectionFacts {
                host_port: "h.example:443",
                cloud,
                addresses: &found,
                is_proxy: false,
                from: None,
                variable: "VAR",
            };
            let silent = connection(&facts, &failed(Why::Silent, "x"));
            assert_row(silent, RowState::Failed, "packets vanish", fix);
        }
    }
}
