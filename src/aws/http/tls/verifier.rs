//! [`AuthorityVerifier`]: the usual verifier, with two things that persons need of it.
//!
//! It accepts a server whose own self-signed certificate is in the bundle. `openssl req -x509` makes certificates with CA:TRUE, and
//! rustls accepts none of those from a server. A person who puts the server's own certificate into a bundle trusts that server; curl
//! and the AWS CLI accept it.
//!
//! It remembers who has signed a certificate that it does not trust: a proxy that opens TLS is recognized by that name.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};

use super::certificate::CertificateFacts;

/// Whether an error says that a server's certificate is that of an authority. All other checks that do not concern its issuer,
/// that of its dates among them, come before this one.
pub(super) fn is_authority(error: &CertificateError) -> bool {
    let CertificateError::Other(other) = error else {
        return false;
    };
    other.to_string().contains("CaUsedAsEndEntity")
}

/// The usual verifier, and the certificates that are trusted as they are.
#[derive(Debug)]
pub(super) struct AuthorityVerifier {
    usual: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
    /// The host and signer of the last chain without a trusted authority.
    last: Mutex<Option<(String, String)>>,
}

impl AuthorityVerifier {
    pub(super) fn new(
        usual: Arc<WebPkiServerVerifier>,
        named: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self {
            usual,
            named,
            last: Mutex::default(),
        }
    }

    /// Who signed the untrusted chain of a host, HOST:PORT; none for another host than the last one.
    pub(super) fn signer_of(&self, place: &str) -> Option<String> {
        let host = place.rsplit_once(':').map_or(place, |found| found.0);
        let bare = host.trim_matches(['[', ']']);
        let last = self.last.lock();
        let (_, signer) = last.as_ref().filter(|(of, _)| of == bare)?;
        Some(signer.clone()).filter(|signer| !signer.is_empty())
    }
}

impl ServerCertVerifier for AuthorityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match &verified {
            Err(TlsError::InvalidCertificate(wrong))
                if is_authority(wrong) && self.named.iter().any(|named| named == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                return Ok(ServerCertVerified::assertion());
            }
            Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                // The last one of the chain names the authority that would have to be trusted.
                let last = intermediates.last().unwrap_or(end_entity);
                let signer = CertificateFacts::of(last).map(|facts| facts.issuer);
                let host = server_name.to_str().into_owned();
                *self.last.lock() = signer.map(|signer| (host, signer));
            }
            _ => {}
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
