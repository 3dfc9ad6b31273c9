//! Certificates: expired, for another name, of an unknown authority; no TLS at all.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

/// A server with a certificate that a test makes; it refuses every request.
struct TlsServer {
    port: u16,
    folder: tempfile::TempDir,
}

impl TlsServer {
    /// `change` makes of the certificate for localhost what the test wants.
    fn start(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.distinguished_name = rcgen::DistinguishedName::new();
        authority
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Corp Proxy CA");
        let own = authority.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), own.pem()).unwrap();
        let issuer = rcgen::Issuer::new(authority, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut server = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut server);
        let server = server.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![server.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream);
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while stream.read(&mut bytes).is_ok_and(|count| count > 0) {
                        let reply =
                            "HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                        let _ = stream.write_all(reply.as_bytes());
                    }
                });
            }
        });
        Self { port, folder }
    }

    /// A command whose EBS is this server, and nothing else is.
    fn ebsfs(&self, site: &DoctorSite, is_trusted: bool) -> Command {
        let mut command = site.ebsfs();
        command.env(
            "AWS_ENDPOINT_URL_EBS",
            format!("https://localhost:{}", self.port),
        );
        if is_trusted {
            command.env("AWS_CA_BUNDLE", self.folder.path().join("ca.pem"));
        }
        command
    }
}

/// A name; what is wrong with the certificate; whether its signer is trusted; what doctor sees, its fix, and the verb's line.
type CertificateCase = (
    &'static str,
    fn(&mut rcgen::CertificateParams),
    bool,
    &'static str,
    &'static str,
    &'static str,
);

#[test]
fn what_is_wrong_with_a_certificate_is_named_with_its_fix() {
    let site = DoctorSite::new();
    let cases: [CertificateCase; 4] = [
        (
            "signer",
            |_| {},
            false,
            "signed by \"Corp Proxy CA\"",
            "AWS_CA_BUNDLE=/path/bundle.pem, a file with the certificate of \"Corp Proxy CA\"",
            "signed by \"Corp Proxy CA\", which is not among the authorities of this system",
        ),
        (
            "expired",
            |params| params.not_after = rcgen::date_time_ymd(2020, 1, 2),
            true,
            "has expired on 2020-01-02",
            "renew the certificate of localhost",
            "has expired on 2020-01-02",
        ),
        (
            "future",
            |params| params.not_before = rcgen::date_time_ymd(2090, 1, 2),
            true,
            "is not valid before 2090-01-02",
            "timedatectl set-ntp true",
            "is not valid before 2090-01-02",
        ),
        (
            "name",
            |params| {
                params.subject_alt_names = vec![rcgen::SanType::DnsName(
                    "vpce-0a.example".try_into().unwrap(),
                )];
            },
            true,
            "other names",
            "use a name of the certificate: AWS_ENDPOINT_URL_EBS=https://NAME",
            "is for other names",
        ),
    ];
    for (case, change, is_trusted, seen, fix, said) in cases {
        println!("{case}");
        let server = TlsServer::start(change);
        let found = examined(server.ebsfs(&site, is_trusted), &[], &site.mount());
        found.fails("tls", "localhost", seen, fix);
        let answer = found.row("answer", "EBS");
        assert_eq!(answer["state"], "unknown");
        assert!(
            answer["seen"]
                .as_str()
                .unwrap()
                .starts_with("not checked because of tls localhost")
        );
        verb_says(server.ebsfs(&site, is_trusted), &site.mount(), 7, said);
    }
}

#[test]
fn an_accepted_certificate_says_whose_it_is_and_one_that_ends_soon_warns() {
    let site = DoctorSite::new();
    let server = TlsServer::start(|_| {});
    let found = examined(server.ebsfs(&site, true), &[], &site.mount());
    let row = found.row("tls", "localhost");
    assert_eq!(row["state"], "good", "{row}");
    assert!(
        row["seen"]
            .as_str()
            .unwrap()
            .contains("signed by \"Corp Proxy CA\", until"),
        "{row}"
    );
    let soon = std::time::SystemTime::now() + Duration::from_secs(3 * 86_400);
    let server = TlsServer::start(|params| params.not_after = soon.into());
    let found = examined(server.ebsfs(&site, true), &[], &site.mount());
    found.warns(
        "tls",
        "localhost",
        "until",
        "renew the certificate of localhost",
    );
}

#[test]
fn https_at_a_port_of_http_is_named() {
    let site = DoctorSite::new();
    let broken = || {
        let mut command = site.ebsfs();
        let url = site.emulator.url().replace("http://", "https://");
        command.env("AWS_ENDPOINT_URL_EBS", url);
        command
    };
    let found = examined(broken(), &[], &site.mount());
    found.fails(
        "tls",
        "127.0.0.1",
        "does not speak TLS",
        "http:// instead of https:// in AWS_ENDPOINT_URL_EBS",
    );
    verb_says(broken(), &site.mount(), 7, "does not speak TLS");
}
