//! [`SignerVerifier`]: the usual verifier, which remembers who has signed a certificate that it does not trust. A proxy that opens TLS
//! is recognized by that name.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};

use super::certificate::CertificateFacts;

/// A verifier, and the host and signer of the last chain without a trusted authority.
#[derive(Debug)]
pub(super) struct SignerVerifier {
    usual: Arc<dyn ServerCertVerifier>,
    last: Mutex<Option<(String, String)>>,
}

impl SignerVerifier {
    pub(super) fn new(usual: Arc<dyn ServerCertVerifier>) -> Self {
        Self {
            usual,
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

impl ServerCertVerifier for SignerVerifier {
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
        if let Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) = verified {
            // The last one of the chain names the authority that would have to be trusted.
            let last = intermediates.last().unwrap_or(end_entity);
            let signer = CertificateFacts::of(last).map(|facts| facts.issuer);
            let host = server_name.to_str().into_owned();
            *self.last.lock() = signer.map(|signer| (host, signer));
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
