use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};

use super::*;

/// An authority, as its certificate and what signs with it.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    /// A server's certificate for these names, changed as a test wants it.
    fn sign(&self, names: &[&str], change: impl Fn(&mut CertificateParams)) -> (Vec<u8>, KeyPair) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().to_vec(), key)
    }
}

/// What a client that trusts `bundle` says of a server with this certificate; empty when it accepts it.
async fn outcome(trust: &Trust, (certificate, key): (Vec<u8>, KeyPair)) -> String {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)
        .unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = TlsAcceptor::from(Arc::new(config)).accept(far);
    let name = ServerName::try_from("ebs.example").unwrap();
    let client = trust.connector.connect(name, near);
    let (_, shaken) = tokio::join!(server, client);
    match shaken {
        Ok(_) => String::new(),
        Err(error) => {
            let refusal = trust.refusal("ebs.example:443", &error);
            refusal.map_or_else(|| format!("not final: {error}"), |refusal| refusal.reason)
        }
    }
}

fn trusting(authority: &Authority, folder: &Path) -> Trust {
    let file = folder.join("ca.pem");
    std::fs::write(&file, authority.certificate.pem()).unwrap();
    Trust::new(Some(&file)).unwrap()
}

#[tokio::test]
async fn a_wrong_certificate_is_a_final_error_that_names_the_fault() {
    let folder = tempfile::tempdir().unwrap();
    let (known, other) = (Authority::new("known"), Authority::new("other"));
    let trust = trusting(&known, folder.path());
    let good = known.sign(&["ebs.example"], |_| {});
    assert_eq!(outcome(&trust, good).await, "");
    let past = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 3);
    };
    let future = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2099, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
    };
    let authority = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    let plain = |_: &mut CertificateParams| {};
    for (certificate, words) in [
        (known.sign(&["ebs.example"], past), "expired on 2020-02-03"),
        (
            known.sign(&["ebs.example"], future),
            "not valid before 2099-01-01",
        ),
        (known.sign(&["ebs.example"], authority), "CA:TRUE"),
        (known.sign(&[], plain), "no subjectAltName"),
        (
            known.sign(&["s3.example"], plain),
            "other names (DnsName(\"s3.example\"))",
        ),
        (
            other.sign(&["ebs.example"], plain),
            "signed by \"other\", which is not among the authorities of",
        ),
    ] {
        let said = outcome(&trust, certificate).await;
        assert!(said.contains(words), "{words}: {said}");
        assert!(said.contains("ebs.example:443"), "{said}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_where_it_is_in_the_bundle_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.pem");
    let own = |name: &str, change: fn(&mut CertificateParams)| {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().to_vec(), key)
    };
    let past = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 2, 3);
    for (certificate, words) in [
        (own("ebs.example", |_| {}), ""),
        (own("s3.example", |_| {}), "other names"),
        (own("ebs.example", past), "expired"),
    ] {
        std::fs::write(&file, pem(&certificate.0)).unwrap();
        let trust = Trust::new(Some(&file)).unwrap();
        let said = outcome(&trust, certificate).await;
        assert!(
            said.contains(words) && said.is_empty() == words.is_empty(),
            "{words}: {said}"
        );
    }
    // That of another server does not do.
    let trust = Trust::new(Some(&file)).unwrap();
    let said = outcome(&trust, own("ebs.example", |_| {})).await;
    assert!(said.contains("CA:TRUE"), "{said}");
}

/// A certificate in PEM.
fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[tokio::test]
async fn the_error_names_a_system_without_authorities() {
    let folder = tempfile::tempdir().unwrap();
    let known = Authority::new("known");
    let mut trust = trusting(&Authority::new("other"), folder.path());
    trust.verifier = None;
    let said = outcome(&trust, known.sign(&["ebs.example"], |_| {})).await;
    assert!(said.contains("no CA certificates are installed"), "{said}");
}

#[test]
fn only_alerts_about_certificates_names_and_versions_are_final() {
    use AlertDescription as Alert;
    let trust = Trust::new(None).unwrap();
    let is_refusal = |alert| {
        let error = std::io::Error::other(TlsError::AlertReceived(alert));
        trust.refusal("ebs.example:443", &error).is_some()
    };
    for (alert, expected) in [
        (Alert::AccessDenied, true),
        (Alert::BadCertificate, true),
        (Alert::CertificateExpired, true),
        (Alert::CertificateRequired, true),
        (Alert::CertificateRevoked, true),
        (Alert::CertificateUnknown, true),
        (Alert::HandshakeFailure, true),
        (Alert::InsufficientSecurity, true),
        (Alert::NoApplicationProtocol, true),
        (Alert::ProtocolVersion, true),
        (Alert::UnknownCA, true),
        (Alert::UnrecognisedName, true),
        (Alert::UnsupportedCertificate, true),
        (Alert::BadRecordMac, false),
        (Alert::CloseNotify, false),
        (Alert::DecodeError, false),
        (Alert::DecryptError, false),
        (Alert::IllegalParameter, false),
        (Alert::InternalError, false),
        (Alert::NoRenegotiation, false),
        (Alert::RecordOverflow, false),
        (Alert::UnexpectedMessage, false),
        (Alert::Unknown(200), false),
        (Alert::UserCanceled, false),
    ] {
        assert_eq!(is_refusal(alert), expected, "{alert:?}");
    }
}
