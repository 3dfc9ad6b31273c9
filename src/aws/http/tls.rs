//! Which certificate authorities are trusted, and what is wrong with a certificate, in words.

mod certificate;
mod recorded;
mod verifier;

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore,
};

use self::verifier::{AuthorityVerifier, is_authority};
use super::Unreachable;
use crate::error::{Error, Kind, Result};

pub(crate) use certificate::CertificateFacts;
pub(super) use recorded::RecordedChain;

/// The authorities that are trusted.
#[derive(Clone)]
pub(super) struct Trust {
    pub(super) connector: TlsConnector,
    /// Where they come from, for people.
    source: Arc<str>,
    /// None where no authority is trusted.
    verifier: Option<Arc<AuthorityVerifier>>,
}

impl Trust {
    /// The authorities in `bundle`, a PEM file, and no others; without it the system's.
    pub(super) fn new(bundle: Option<&Path>) -> Result<Self> {
        let ((roots, named), source) = match bundle {
            Some(file) => (bundled(file)?, file.display().to_string()),
            None => ((installed(), Vec::new()), "this system".to_owned()),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::with_source(Kind::Invalid, "cannot set up TLS", error))?;
        let verifier = verifier(roots, named, provider)?;
        let builder = match &verifier {
            None => builder.with_root_certificates(RootCertStore::empty()),
            Some(verifier) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(verifier) as Arc<_>),
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            source: source.into(),
            verifier,
        })
    }

    /// Whether any authority is trusted.
    pub(super) fn has_authorities(&self) -> bool {
        self.verifier.is_some()
    }

    /// A connector that trusts the same, and records which certificates a server presents, accepted or not.
    pub(super) fn recording(&self) -> Result<(TlsConnector, RecordedChain)> {
        let verifier = self.verifier.clone();
        RecordedChain::connector(verifier.map(|verifier| verifier as Arc<_>))
    }

    /// What a failed handshake with `host` means: final, with what is wrong, or none when it was a broken line.
    pub(super) fn refusal(&self, host: &str, error: &std::io::Error) -> Option<Unreachable> {
        let cause = error.get_ref()?;
        let reason = match cause.downcast_ref::<TlsError>()? {
            TlsError::InvalidCertificate(wrong) => self.wrong_certificate(host, wrong),
            TlsError::InvalidMessage(_) => "it does not speak TLS at this port".into(),
            TlsError::AlertReceived(alert) if is_final(*alert) => {
                format!("it refused the TLS handshake ({alert:?})")
            }
            TlsError::PeerIncompatible(why) => {
                format!("it has no TLS version or cipher in common ({why:?})")
            }
            _ => return None,
        };
        Some(Unreachable {
            kind: Kind::Unavailable,
            reason: format!("cannot trust {host}: {reason}"),
        })
    }

    fn wrong_certificate(&self, host: &str, wrong: &CertificateError) -> String {
        let untrusted = || {
            let Some(verifier) = &self.verifier else {
                return "no CA certificates are installed on this system, so its certificate cannot be checked: install the package ca-certificates, or name a file with AWS_CA_BUNDLE".to_owned();
            };
            match verifier.signer_of(host) {
                Some(signer) => format!(
                    "its certificate is signed by {signer:?}, which is not among the authorities of {}; AWS_CA_BUNDLE names a file with others",
                    self.source
                ),
                None => format!(
                    "its certificate is signed by an authority that is not among those of {}; AWS_CA_BUNDLE names a file with others",
                    self.source
                ),
            }
        };
        match wrong {
            CertificateError::Expired => "its certificate has expired".into(),
            CertificateError::ExpiredContext { not_after, .. } => format!(
                "its certificate has expired on {}, or the clock of this machine is wrong",
                date(not_after.as_secs())
            ),
            CertificateError::NotValidYet => "its certificate is not valid yet".into(),
            CertificateError::NotValidYetContext { not_before, .. } => format!(
                "its certificate is not valid before {}, or the clock of this machine is wrong",
                date(not_before.as_secs())
            ),
            CertificateError::UnknownIssuer => untrusted(),
            CertificateError::NotValidForName => "its certificate is for another name".into(),
            CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
                "its certificate names no host (no subjectAltName; a common name is not enough)".into()
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names: Vec<_> = presented.iter().take(8).map(String::as_str).collect();
                format!("its certificate is for other names ({})", names.join(", "))
            }
            CertificateError::BadSignature => "the signature of its certificate is wrong".into(),
            authority if is_authority(authority) => {
                "its certificate is that of an authority (CA:TRUE): issue one with CA:FALSE for the server, or name the server's own certificate as the CA bundle".into()
            }
            other => format!("its certificate is not accepted ({other:?})"),
        }
    }
}

/// Whether an alert is about certificates, names or versions, where waiting does not help. The others can come from a server
/// that restarts or is overloaded, or from a line that damages bytes.
///
/// <https://www.rfc-editor.org/rfc/rfc8446#section-6>
fn is_final(alert: AlertDescription) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, BadCertificateHashValue, BadCertificateStatusResponse,
        CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        CertificateUnobtainable, EncryptedClientHelloRequired, ExportRestriction, HandshakeFailure,
        InappropriateFallback, InsufficientSecurity, MissingExtension, NoApplicationProtocol,
        NoCertificate, ProtocolVersion, UnknownCA, UnknownPSKIdentity, UnrecognisedName,
        UnsupportedCertificate, UnsupportedExtension,
    };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | BadCertificateHashValue
            | BadCertificateStatusResponse
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | CertificateUnobtainable
            | EncryptedClientHelloRequired
            | ExportRestriction
            | HandshakeFailure
            | InappropriateFallback
            | InsufficientSecurity
            | MissingExtension
            | NoApplicationProtocol
            | NoCertificate
            | ProtocolVersion
            | UnknownCA
            | UnknownPSKIdentity
            | UnrecognisedName
            | UnsupportedCertificate
            | UnsupportedExtension
    )
}

fn date(secs: u64) -> String {
    let since = std::time::Duration::from_secs(secs).min(crate::time::LAST);
    crate::time::rfc3339_seconds(std::time::UNIX_EPOCH + since)
}

/// What checks the certificates of servers; none without an authority.
fn verifier(
    roots: RootCertStore,
    named: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<AuthorityVerifier>>> {
    if roots.is_empty() {
        return Ok(None);
    }
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| Error::with_source(Kind::Invalid, "cannot set up TLS", error))?;
    Ok(Some(Arc::new(AuthorityVerifier::new(usual, named))))
}

/// The authorities of the system, or of SSL_CERT_FILE and SSL_CERT_DIR; what is no certificate is left out.
fn installed() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!("a CA certificate of this system cannot be read: {error}");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The authorities in a PEM file, as roots and as certificates.
fn bundled(file: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>)> {
    let unusable = |why: &dyn StdError| {
        let what = format!("cannot use the CA bundle {}: {why}", file.display());
        Error::new(Kind::Invalid, what)
    };
    let pem = std::fs::read(file).map_err(|error| unusable(&error))?;
    let (mut roots, mut named) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots
            .add(certificate.clone())
            .map_err(|error| unusable(&error))?;
        named.push(certificate);
    }
    if roots.is_empty() {
        let what = format!(
            "cannot use the CA bundle {}: there is no certificate in it",
            file.display()
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok((roots, named))
}

#[cfg(test)]
mod tests;
