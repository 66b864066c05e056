//! A certificate, its key and whom it trusts, as files hold them.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        CertificateError, ClientConfig, DistinguishedName, Error, RootCertStore, ServerConfig,
        client::Resumption,
        crypto::{CryptoProvider, ring},
        pki_types::{
            CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _,
        },
        server::NoServerSessionStorage,
        sign::CertifiedKey,
        version::TLS13,
    },
};
use webpki::{CertRevocationList, KeyUsage, OwnedCertRevocationList};
use zeroize::Zeroizing;

use super::{
    identity::{Certified, Identity, trimmed},
    verify::{Authority, Clients, Nodes},
};

/// By which name (ALPN, RFC 7301) HTTP/2 goes.
const HTTP2: &[u8] = b"h2";
/// And that by which one node watches whether the process of another one lives.
pub const WATCHDOG: &[u8] = b"lbd-watchdog/1";

/// Where the parts are, in PEM (RFC 7468).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The certificate, and behind it those between it and the authority's.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the authority that is trusted.
    pub ca: PathBuf,
    /// The list of revoked certificates.
    pub crl: Option<PathBuf>,
}

/// What the files hold, as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Sources {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    ca: Vec<u8>,
    crl: Option<Vec<u8>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

impl Sources {
    /// Reads the files.
    pub fn read(paths: &Paths) -> Result<Self, CredentialsError> {
        let read =
            |path: &Path| fs::read(path).map_err(|source| CredentialsError::Read { path: path.to_owned(), source });
        Ok(Self {
            cert: read(&paths.cert)?,
            key: Zeroizing::new(read(&paths.key)?),
            ca: read(&paths.ca)?,
            crl: paths.crl.as_deref().map(read).transpose()?,
        })
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be, or does not go with another one.
    #[error("{}: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// All that is needed to speak as somebody, in both directions.
#[derive(Clone)]
pub struct Credentials {
    /// What its own certificate says.
    pub own: Certified,
    /// For those who connect.
    pub server: Arc<ServerConfig>,
    /// For connecting to nodes.
    client: Arc<ClientConfig>,
    /// The same, for [`WATCHDOG`].
    watchdog: Arc<ClientConfig>,
    revoked: Arc<Authority>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the files, and checks that they belong together.
    pub fn load(paths: &Paths) -> Result<Self, CredentialsError> {
        Self::of(&Sources::read(paths)?, paths)
    }

    /// Checks that what was read belongs together. `paths`: for what is said of it.
    pub fn of(sources: &Sources, paths: &Paths) -> Result<Self, CredentialsError> {
        let wrong = |path: &Path, problem: &dyn fmt::Display| CredentialsError::Wrong {
            path: path.to_owned(),
            problem: problem.to_string(),
        };
        let certificates = |path: &Path, pem: &[u8]| {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let read = read.map_err(|error| wrong(path, &format!("it is no PEM: {error:?}")))?;
            let is_empty = read.is_empty();
            (!is_empty).then_some(read).ok_or_else(|| wrong(path, &"there is no CERTIFICATE in it"))
        };
        let chain = certificates(&paths.cert, &sources.cert)?;
        let own = Certified::read(&chain[0]).map_err(|error| wrong(&paths.cert, &error))?;
        let key = PrivateKeyDer::from_pem_slice(&sources.key)
            .map_err(|error| wrong(&paths.key, &format!("there is no PRIVATE KEY in it: {error:?}")))?;
        let provider = Arc::new(ring::default_provider());
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider);
        certified.map_err(|error| match error {
            Error::InconsistentKeys(_) => wrong(&paths.key, &format!("it is not the key of {}", paths.cert.display())),
            error => wrong(&paths.key, &error),
        })?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&paths.ca, &sources.ca)? {
            roots.add(root).map_err(|error| wrong(&paths.ca, &error))?;
        }
        let lists = match (&paths.crl, &sources.crl) {
            (Some(path), Some(pem)) => revoked(pem).map_err(|problem| wrong(path, &problem))?,
            _ => Vec::new(),
        };
        let authority = Arc::new(Authority {
            hints: roots.roots.iter().map(|root| DistinguishedName::in_sequence(&root.subject)).collect(),
            roots,
            revoked: lists,
            cluster: own.identity.cluster.clone(),
            algorithms: provider.signature_verification_algorithms,
        });
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            if own.identity.role != super::Role::Node && usage == KeyUsage::server_auth() {
                continue;
            }
            let checked = authority.check(&chain[0], &chain[1..], UnixTime::now(), usage);
            checked.map_err(|error| wrong(&paths.cert, &not_taken(&error, paths)))?;
        }
        let configs = configs(&provider, &authority, chain, key).map_err(|error| wrong(&paths.cert, &error))?;
        let (server, client) = configs;
        let mut watchdog = (*client).clone();
        watchdog.alpn_protocols = vec![WATCHDOG.to_vec()];
        Ok(Self { own, server, client, watchdog: watchdog.into(), revoked: authority })
    }

    /// Whom it speaks for.
    pub fn identity(&self) -> &Identity {
        &self.own.identity
    }

    /// Until when.
    pub fn not_after(&self) -> SystemTime {
        self.own.not_after
    }

    /// Speaks HTTP/2 in TLS to a node over a connection, as whoever holds these.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        connect(self.client.clone(), stream).await
    }

    /// Speaks [`WATCHDOG`] in TLS to a node over a connection.
    pub async fn watch(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        connect(self.watchdog.clone(), stream).await
    }

    /// Whether a certificate of the authority was revoked; of one that was shown before, too.
    pub fn is_revoked(&self, serial: &[u8]) -> bool {
        // A number whose first bit is set stands in a list with a zero before it (X.690 8.3).
        let number = trimmed(serial);
        let written = [&[0], &number[..]].concat();
        let is_in =
            |list: &CertRevocationList<'_>, number: &[u8]| list.find_serial(number).is_ok_and(|of| of.is_some());
        self.revoked.revoked.iter().any(|list| is_in(list, &number) || is_in(list, &written))
    }
}

async fn connect(config: Arc<ClientConfig>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    // What a node is called proves nothing; only IP addresses go without being told in clear.
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    TlsConnector::from(config).connect(name, stream).await
}

/// Why its own authority does not take a certificate.
fn not_taken(error: &Error, paths: &Paths) -> String {
    use CertificateError::{BadSignature, ExpiredContext, NotValidYetContext, Revoked, UnknownIssuer};
    let Error::InvalidCertificate(of_certificate) = error else { return error.to_string() };
    let shown =
        |at: &UnixTime| humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(at.as_secs()));
    match of_certificate {
        UnknownIssuer | BadSignature => format!("the authority of {} has not signed it", paths.ca.display()),
        ExpiredContext { not_after, .. } => format!("it has expired, at {}", shown(not_after)),
        NotValidYetContext { not_before, .. } => {
            format!("it is not valid before {}: is this machine's clock right?", shown(not_before))
        }
        Revoked => "it was revoked".to_owned(),
        other => format!("the authority of {} does not take it: {other}", paths.ca.display()),
    }
}

fn configs(
    provider: &Arc<CryptoProvider>,
    authority: &Arc<Authority>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), Error> {
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Clients(authority.clone())))
        .with_single_cert(chain.clone(), key.clone_key())?;
    // HTTP/1.1 is for metrics alone; gRPC does not speak it.
    server.alpn_protocols = [HTTP2, b"http/1.1", WATCHDOG].map(<[u8]>::to_vec).into();
    // Whoever comes back shows his certificate again: it may have been revoked since.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Nodes(authority.clone())))
        .with_client_auth_cert(chain, key)?;
    client.alpn_protocols = vec![HTTP2.to_vec()];
    client.resumption = Resumption::disabled();
    Ok((Arc::new(server), Arc::new(client)))
}

fn revoked(pem: &[u8]) -> Result<Vec<CertRevocationList<'static>>, String> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem).map(|list| {
        let list = list.map_err(|error| format!("it is no PEM: {error:?}"))?;
        let list = OwnedCertRevocationList::from_der(&list).map_err(|error| format!("it is no X509 CRL: {error}"))?;
        Ok(CertRevocationList::from(list))
    });
    let lists = lists.collect::<Result<Vec<_>, String>>()?;
    if lists.is_empty() { Err("there is no X509 CRL in it".to_owned()) } else { Ok(lists) }
}
