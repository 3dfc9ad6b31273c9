//! TLS with a certificate that the emulator makes for itself at every start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::error::{Error, Kind, Result};

/// The names and addresses of loopback.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

type TlsFailure = Box<dyn std::error::Error + Send + Sync>;

/// The acceptor of connections, and the file with the authority to trust, in `folder`.
///
/// # Errors
/// `Io` when the file cannot be written.
pub(super) fn acceptor(folder: &Path) -> Result<(TlsAcceptor, PathBuf)> {
    let authority = folder.join("ca.pem");
    let made = make(&authority);
    let acceptor = made.map_err(|error| {
        let what = format!("certificate {}: {error}", authority.display());
        Error::new(Kind::Io, what)
    })?;
    Ok((acceptor, authority))
}

fn named(name: &str) -> DistinguishedName {
    let mut whole = DistinguishedName::new();
    whole.push(DnType::CommonName, name);
    whole
}

fn make(file: &Path) -> std::result::Result<TlsAcceptor, TlsFailure> {
    let mut params = CertificateParams::new([])?;
    // OpenSSL takes a certificate whose issuer has its own name for a self-signed one.
    params.distinguished_name = named("ebsfs emulator, authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.distinguished_name = named("ebsfs emulator");
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    std::fs::write(file, authority.pem())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
