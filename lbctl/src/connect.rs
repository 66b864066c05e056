//! To the first endpoint that can be reached.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use lb_proto::{
    tls::{Credentials, Paths},
    v1::{self, cluster_service_client::ClusterServiceClient},
};
use tokio::net::{TcpStream, UnixStream};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::exit::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Of the packages and the systemd unit.
pub(crate) const DEFAULT_ENDPOINT: &str = "unix:/run/lbd/lbd.sock";
const DEFAULT_GROUP: &str = "lbd";

/// Where a node's API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Unix(PathBuf),
    /// `HOST:PORT`
    Http(String),
    /// The same, by TLS.
    Https(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let (scheme, address) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), address)) => (scheme, address.trim_end_matches('/')),
            // By TLS: nobody speaks in clear without having said so.
            None if text.contains(':') && !text.contains('/') => ("https", text),
            None if text.parse::<Ipv4Addr>().is_ok() => return Err(format!("it has no port: write {text}:7400")),
            _ => {
                return Err(
                    "it is neither unix:PATH nor HOST:PORT nor https://HOST:PORT nor http://HOST:PORT".to_owned()
                );
            }
        };
        if address.parse::<Ipv6Addr>().is_ok() {
            return Err(format!(
                "it is an IPv6 address without brackets, or without a port: write {scheme}://[{address}]:7400"
            ));
        }
        match address.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            None => Err(format!("it has no port: write {scheme}://{address}:7400")),
            Some((_, port)) if !matches!(port.parse::<u64>(), Ok(1..=65535)) => {
                Err("its port is none from 1 to 65535".to_owned())
            }
            Some(_) if scheme == "https" => Ok(Self::Https(address.to_owned())),
            Some(_) => Ok(Self::Http(address.to_owned())),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
        }
    }
}

/// Whom to show oneself as: the files of a certificate, its key and its authority.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) cert: Option<&'a Path>,
    pub(crate) key: Option<&'a Path>,
    pub(crate) ca: Option<&'a Path>,
}

impl Shown<'_> {
    fn credentials(self) -> Result<Credentials, Failure> {
        let Self { cert: Some(cert), key: Some(key), ca: Some(ca) } = self else {
            return Err(Failure::Usage(
                "an https endpoint needs --cert, --key and --ca, or LBCTL_CERT, LBCTL_KEY and LBCTL_CA: 'lbctl pki issue' \
                 makes the files. A node without TLS (tls.insecure) is called by http://HOST:PORT"
                    .to_owned(),
            ));
        };
        let paths = Paths { cert: cert.to_owned(), key: key.to_owned(), ca: ca.to_owned(), crl: None };
        Credentials::load(&paths).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// The next endpoint is tried, too, when those before have not answered for so long (RFC 8305, section 5).
const NEXT_AFTER: Duration = Duration::from_millis(200);

/// To the first that answers; the earlier ones have a start.
pub(crate) async fn connect(targets: &[Target], shown: Shown<'_>) -> Result<Channel, Failure> {
    let is_secured = targets.iter().any(|target| matches!(target, Target::Https(_)));
    let credentials = is_secured.then(|| shown.credentials()).transpose()?.map(Arc::new);
    let mut failures = vec![String::new(); targets.len()];
    let mut next = targets.iter().enumerate();
    let mut trying = FuturesUnordered::new();
    loop {
        if let Some((at, target)) = next.next() {
            let credentials = credentials.as_ref();
            trying.push(async move {
                let connected = connect_one(target, credentials).await;
                match connected {
                    // Where there is no choice, the call itself shows whether it answers.
                    Ok(channel) if targets.len() > 1 => (at, answering(channel).await),
                    other => (at, other),
                }
            });
        }
        let has_next = next.len() > 0;
        let tried = tokio::select! {
            Some(tried) = trying.next() => tried,
            () = tokio::time::sleep(NEXT_AFTER), if has_next => continue,
            else => break,
        };
        match tried {
            (_, Ok(channel)) => return Ok(channel),
            (at, Err(reason)) => failures[at] = format!("{}: {reason}{}", targets[at], hint(&targets[at], &reason)),
        }
    }
    Err(Failure::Unreachable(format!(
        "cannot reach {}. Is lbd running? Name a node with --endpoint or LBCTL_ENDPOINT",
        failures.join("; ")
    )))
}

/// A connection can be made to whoever says nothing ever after.
async fn answering(channel: Channel) -> Result<Channel, io::Error> {
    let request = v1::GetStatusRequest { local: true, brief: true, ..Default::default() };
    let mut client = ClusterServiceClient::new(channel.clone());
    let asked = tokio::time::timeout(CONNECT_TIMEOUT, client.get_status(request));
    match asked.await {
        Err(_) => Err(io::Error::other("it does not answer")),
        // What it refuses it has answered.
        Ok(Err(status)) if status.code() == Code::Unavailable => Err(io::Error::other(status.message().to_owned())),
        Ok(_) => Ok(channel),
    }
}

async fn connect_one(target: &Target, credentials: Option<&Arc<Credentials>>) -> Result<Channel, io::Error> {
    let connected = match target {
        Target::Http(address) | Target::Https(address) => {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(io::Error::other)?;
            let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
            match credentials.filter(|_| matches!(target, Target::Https(_))) {
                None => endpoint.connect().await,
                Some(credentials) => {
                    let (address, credentials) = (address.clone(), credentials.clone());
                    let connector = service_fn(move |_: Uri| {
                        let (address, credentials) = (address.clone(), credentials.clone());
                        async move {
                            let stream = TcpStream::connect(&address).await?;
                            stream.set_nodelay(true)?;
                            Ok::<_, io::Error>(TokioIo::new(credentials.connect(stream).await?))
                        }
                    });
                    endpoint.connect_with_connector(connector).await
                }
            }
        }
        Target::Unix(path) => {
            let path = path.clone();
            // The URI is never used: the connector goes to the path.
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            });
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await
        }
    };
    connected.map_err(|error| match innermost(&error) {
        late if late.to_string().contains("deadline has elapsed") => {
            io::Error::other(format!("no answer within {}", humantime::format_duration(CONNECT_TIMEOUT)))
        }
        other => other,
    })
}

/// The cause that a person can do something about.
fn innermost(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let cause = lb_proto::cause::innermost(error);
    let of_system = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    of_system.map_or_else(|| io::Error::other(cause.to_string()), io::Error::from_raw_os_error)
}

/// What to do about it.
fn hint(target: &Target, error: &io::Error) -> String {
    let said = error.to_string();
    match target {
        Target::Https(address) if said.contains("InvalidContentType") => {
            format!(" (it does not speak TLS: http://{address} if that is its api.listen, with tls.insecure)")
        }
        Target::Http(address) if said.contains("connection closed") || said.contains("broken pipe") => {
            format!(" (it may speak TLS alone: https://{address})")
        }
        Target::Unix(path) if error.kind() == io::ErrorKind::PermissionDenied => {
            let group = group_of(path).unwrap_or_else(|| DEFAULT_GROUP.to_owned());
            format!(
                " (it is for root and the group {group}: 'sudo usermod -aG {group} $USER' and log in again, or sudo)"
            )
        }
        _ => String::new(),
    }
}

/// The group whose members may connect: that of the socket, or of the nearest directory that can be looked into.
fn group_of(path: &Path) -> Option<String> {
    let id = path.ancestors().find_map(|at| std::fs::metadata(at).ok())?.gid();
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let named = |line: &str| {
        // name:password:number:members (group(5))
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(id)).then(|| name.to_owned())
    };
    groups.lines().find_map(named).filter(|group| group != "root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_each_mistake_is_named() {
        assert_eq!("unix:/run/a".parse(), Ok(Target::Unix("/run/a".into())));
        for sound in ["http://10.0.0.1:7400", "http://[2001:db8::1]:7400", "http://lb1.example:1/"] {
            let address = sound["http://".len()..].trim_end_matches('/').to_owned();
            assert_eq!(sound.parse(), Ok(Target::Http(address.clone())));
            assert_eq!(sound.replace("http:", "https:").parse(), Ok(Target::Https(address)));
        }
        let problem = |text: &str| text.parse::<Target>().unwrap_err();
        assert_eq!("10.0.0.1:7400".parse(), Ok(Target::Https("10.0.0.1:7400".into())));
        assert!(problem("10.0.0.1").contains("no port: write 10.0.0.1:7400"));
        assert!(problem("lb1.example").contains("neither unix:PATH nor HOST:PORT"));
        assert!(problem("/run/lbd/lbd.sock").contains("neither unix:PATH nor HOST:PORT"));
        assert!(problem("ftp://10.0.0.1:21").contains("neither unix:PATH nor HOST:PORT"));
        assert!(problem("http://10.0.0.1").contains("no port: write http://10.0.0.1:7400"));
        assert!(problem("http://[2001:db8::1]").contains("no port"));
        assert!(problem("http://2001:db8::1").contains("without brackets"));
        assert!(problem("http://10.0.0.1:65536").contains("1 to 65535"));
        assert!(problem("http://10.0.0.1:0").contains("1 to 65535"));
    }

    #[test]
    fn a_refused_socket_names_the_group_that_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::Unix(dir.path().join("lbd.sock"));
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let said = hint(&target, &denied);
        assert!(said.contains("usermod -aG"), "{said}");
        assert_eq!(hint(&target, &io::ErrorKind::ConnectionRefused.into()), "");
    }
}
