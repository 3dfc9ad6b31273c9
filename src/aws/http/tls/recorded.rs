//! [`RecordedChain`]: which certificates a server presents, for a person; whether they are accepted is decided as always.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};

use super::certificate::CertificateFacts;
use crate::error::{Error, Kind, Result};

/// The most certificates of a chain that are read.
const LONGEST: usize = 8;

/// The certificates of the last handshake, the server's own first.
#[derive(Clone, Debug, Default)]
pub(in crate::aws::http) struct RecordedChain(Arc<Mutex<Vec<CertificateFacts>>>);

impl RecordedChain {
    /// A connector that records. Without a verifier no certificate is accepted.
    pub(super) fn connector(
        usual: Option<Arc<dyn ServerCertVerifier>>,
    ) -> Result<(TlsConnector, Self)> {
        let chain = Self::default();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(RecordingVerifier {
            usual,
            provider: Arc::clone(&provider),
            chain: chain.clone(),
        });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::with_source(Kind::Invalid, "cannot set up TLS", error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((TlsConnector::from(Arc::new(config)), chain))
    }

    /// What was presented; empty before a handshake has come so far.
    pub(in crate::aws::http) fn facts(&self) -> Vec<CertificateFacts> {
        self.0.lock().clone()
    }
}

#[derive(Debug)]
struct RecordingVerifier {
    usual: Option<Arc<dyn ServerCertVerifier>>,
    provider: Arc<CryptoProvider>,
    chain: RecordedChain,
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        let all = std::iter::once(end_entity).chain(intermediates);
        let facts = all
            .take(LONGEST)
            .filter_map(|der| CertificateFacts::of(der));
        *self.chain.0.lock() = facts.collect();
        match &self.usual {
            None => Err(CertificateError::UnknownIssuer.into()),
            Some(usual) => {
                usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }
}
