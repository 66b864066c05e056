//! TLS to a backend.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use lb_raft_store::table::TlsProbe;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::{
    super::answer::{Failure, said},
    connection::Connection,
};

/// The certificates that this node's system trusts, and why there may be none.
static TRUSTED: LazyLock<Result<Arc<RootCertStore>, String>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let mut trusted = RootCertStore::empty();
    let (added, _) = trusted.add_parsable_certificates(found.certs);
    match (added, found.errors.first()) {
        (1.., _) => Ok(Arc::new(trusted)),
        (0, Some(error)) => Err(format!("this node has no certificates to trust: {error}")),
        (0, None) => Err("this node has no certificates to trust: install ca-certificates, or turn verify off".into()),
    }
});

/// The connection as the protocol gets it: by TLS where the check says so. `protocol`: what is spoken then (ALPN).
pub(super) async fn secured(
    connection: Box<dyn Connection>,
    tls: Option<&TlsProbe>,
    vip: IpAddr,
    protocol: &[u8],
) -> Result<Box<dyn Connection>, Failure> {
    match tls {
        Some(tls) => Ok(Box::new(handshake(connection, tls, vip, protocol).await?)),
        None => Ok(connection),
    }
}

async fn handshake(
    connection: Box<dyn Connection>,
    tls: &TlsProbe,
    vip: IpAddr,
    protocol: &[u8],
) -> Result<TlsStream<Box<dyn Connection>>, Failure> {
    // Without a name, whom the certificate is for is not looked at.
    let name = if tls.server_name.is_empty() { vip.to_string() } else { tls.server_name.clone() };
    let name = ServerName::try_from(name).map_err(|_| said(format!("{:?} names no TLS server", tls.server_name)))?;
    let mut config = config(tls.verify)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, connection);
    connecting.await.map_err(|error| said(format!("TLS: {error}")))
}

fn config(verify: bool) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| said(error.to_string()))?;
    Ok(if verify {
        let trusted = TRUSTED.clone().map_err(said)?;
        builder.with_root_certificates(trusted).with_no_client_auth()
    } else {
        let any = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
    })
}

/// Whoever holds the key of the certificate will do, whoever it is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
