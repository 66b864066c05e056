//! Whether a certificate is what it says: signed by the cluster's authority, valid now, not revoked, of this cluster.

use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::identity::{Certified, Identity, Role};

/// The cluster's authority, for both ends of a connection.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) roots: RootCertStore,
    /// Their names.
    pub(super) hints: Vec<DistinguishedName>,
    pub(super) revoked: Vec<CertRevocationList<'static>>,
    pub(super) cluster: String,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Authority {
    /// Whom a certificate is for that comes with those in between.
    pub(super) fn check(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, Error> {
        let refused = |error| Error::InvalidCertificate(certificate_error(error));
        let end_entity = EndEntityCert::try_from(certificate).map_err(refused)?;
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        // A list is of one authority; of those in between there may be none.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options.with_depth(RevocationCheckDepth::EndEntity).with_status_policy(UnknownStatusPolicy::Allow).build()
        });
        let algorithms = self.algorithms.all;
        end_entity
            .verify_for_usage(algorithms, &self.roots.roots, between, now, usage, revocation, None)
            .map_err(refused)?;
        let identity = Certified::read(certificate).map_err(|error| Error::General(error.to_string()))?.identity;
        if identity.cluster != self.cluster {
            return Err(Error::General(format!("{identity} is of another cluster than {}", self.cluster)));
        }
        Ok(identity)
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

/// As rustls tells it to the other end.
fn certificate_error(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        error => CertificateError::Other(tokio_rustls::rustls::OtherError(std::sync::Arc::new(error))),
    }
}

fn only_tls13() -> Error {
    Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)
}

/// A server's view: everybody whom the authority knows comes in; what he may do is looked at with each call.
#[derive(Debug)]
pub(super) struct Clients(pub(super) std::sync::Arc<Authority>);

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0.hints
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.check(certificate, between, now, KeyUsage::client_auth()).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

/// A client's view: a server is a node of this cluster, wherever it was found.
#[derive(Debug)]
pub(super) struct Nodes(pub(super) std::sync::Arc<Authority>);

impl ServerCertVerifier for Nodes {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.check(certificate, between, now, KeyUsage::server_auth())? {
            Identity { role: Role::Node, .. } => Ok(ServerCertVerified::assertion()),
            identity => Err(Error::General(format!("{identity} is no node"))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}
