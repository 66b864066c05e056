//! On the machine that becomes a node: a key, and a certificate for it.

use std::{fs, io, path::Path, sync::Arc};

use lb_proto::tls::{Credentials, Identity, Paths};
use rcgen::{CertificateParams, KeyPair};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
        version::TLS13,
    },
};
use zeroize::Zeroizing;

use super::{
    Answer, Ask, EXCHANGE, receive, send,
    token::{Token, digest},
};
use crate::{authority::write, exit::Failure};

/// What a node has now.
pub(crate) struct Joined {
    /// Whom it is for.
    pub(crate) identity: Identity,
    pub(crate) paths: Paths,
}

/// Makes a key in a directory, and has it certified.
pub(crate) async fn join(token: &Token, out: &Path) -> Result<Joined, Failure> {
    let file = |name: &str| out.join(name);
    let (cert, key) = (file(&format!("{}.pem", token.name)), file(&format!("{}.key", token.name)));
    let (ca, crl) = (file("ca.pem"), file("crl.pem"));
    // Before the token is used up.
    fs::create_dir_all(out).map_err(|error| Failure::of_file(out, error))?;
    if let Some(there) = [&cert, &key, &ca, &crl].into_iter().find(|path| path.exists()) {
        return Err(Failure::Usage(format!(
            "{} is there already: move it away, or name another --out",
            there.display()
        )));
    }
    let made = KeyPair::generate().and_then(|pair| {
        let request = CertificateParams::new(vec![token.name.clone()])?.serialize_request(&pair)?.pem()?;
        Ok((pair, request))
    });
    let (pair, request) = made.map_err(|error| Failure::Usage(error.to_string()))?;
    let ask = Ask { secret: token.secret.to_string(), request };
    let answer = timeout(EXCHANGE, exchange(token, &ask)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let answer = answer.map_err(|error| {
        Failure::Unreachable(format!(
            "{}: {error}. A token works once, and for ten minutes, while 'lbctl node token' runs there",
            token.address
        ))
    })?;
    let (certificate, authority, revoked) = match answer {
        Answer::Issued { certificate, authority, revoked } => (certificate, authority, revoked),
        Answer::Refused(reason) => return Err(Failure::Refused(reason)),
    };
    let paths = Paths { cert, key, ca, crl: Some(crl.clone()) };
    write(&paths.key, Zeroizing::new(pair.serialize_pem()).as_bytes(), 0o600)?;
    write(&paths.cert, certificate.as_bytes(), 0o644)?;
    write(&paths.ca, authority.as_bytes(), 0o644)?;
    write(&crl, revoked.as_bytes(), 0o644)?;
    let credentials = Credentials::load(&paths).map_err(|error| Failure::Refused(error.to_string()))?;
    Ok(Joined { identity: credentials.identity().clone(), paths })
}

async fn exchange(token: &Token, ask: &Ask) -> io::Result<Answer> {
    let stream = TcpStream::connect(&token.address).await?;
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let shown = Arc::new(Shown { token: token.clone(), algorithms });
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let config = config.map_err(io::Error::other)?;
    let config = config.dangerous().with_custom_certificate_verifier(shown).with_no_client_auth();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    send(&mut stream, ask).await?;
    receive(&mut stream).await
}

/// Takes what the token says is shown, and nothing else.
#[derive(Debug)]
struct Shown {
    token: Token,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match others {
            [authority] if digest(&self.token.name, own, authority) == self.token.shown => {
                Ok(ServerCertVerified::assertion())
            }
            _ => Err(Error::General("somebody else answers there than whoever has printed the token".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, own, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, own, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
