//! Servers of the protocols that health checks speak, well behaved and not.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{IpAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record, rdata},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::netns::Namespace;

/// The ports.
pub const HTTP: u16 = 8080;
/// With a certificate for [`NAME`] by [`Authority`].
pub const HTTPS: u16 = 8443;
/// With one that has expired.
pub const EXPIRED: u16 = 8444;
/// gRPC: [`SERVING`] serves and [`NOT_SERVING`] does not.
pub const GRPC: u16 = 9000;
/// Knows [`HOST`].
pub const DNS: u16 = 53;
/// Answers "pong" and what was asked.
pub const UDP: u16 = 9;
/// For whom the certificates are.
pub const NAME: &str = "a.example";
/// A gRPC service.
pub const SERVING: &str = "a.v1.Serving";
/// Another one.
pub const NOT_SERVING: &str = "a.v1.NotServing";
/// A name with an address.
pub const HOST: &str = "www.example.org.";

/// Whoever signs certificates.
pub struct Authority {
    /// Its own.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    fn config(&self, is_valid: bool) -> anyhow::Result<Arc<ServerConfig>> {
        let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
        if !is_valid {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
        Ok(Arc::new(config.with_single_cert(vec![certificate.der().clone()], key)?))
    }
}

/// All of them, on one address of a namespace, until this is dropped.
pub struct Servers {
    stop: Arc<AtomicBool>,
    _grpc: tokio::runtime::Runtime,
}

impl Servers {
    /// Serves.
    pub fn serve(namespace: &Namespace, address: IpAddr, authority: &Authority) -> anyhow::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let tcp = |port: u16| namespace.enter(|| TcpListener::bind((address, port)));
        let udp = |port: u16| namespace.enter(|| UdpSocket::bind((address, port)));
        accept(tcp(HTTP)?, &stop, answer)?;
        for (port, is_valid) in [(HTTPS, true), (EXPIRED, false)] {
            let config = authority.config(is_valid)?;
            accept(tcp(port)?, &stop, move |stream, stop| {
                let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                answer(StreamOwned::new(connection, stream), stop)
            })?;
        }
        respond(udp(UDP)?, &stop, |asked| Some([b"pong ", asked].concat()))?;
        respond(udp(DNS)?, &stop, name_server)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = tcp(GRPC)?;
        listener.set_nonblocking(true)?;
        runtime.block_on(async move {
            let (reporter, service) = tonic_health::server::health_reporter();
            reporter.set_service_status(SERVING, tonic_health::ServingStatus::Serving).await;
            reporter.set_service_status(NOT_SERVING, tonic_health::ServingStatus::NotServing).await;
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
            tokio::spawn(async move {
                let _reporter = reporter;
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
            });
            Ok::<_, io::Error>(())
        })?;
        Ok(Self { stop, _grpc: runtime })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn accept(
    listener: TcpListener,
    stop: &Arc<AtomicBool>,
    serve: impl Fn(std::net::TcpStream, &AtomicBool) -> io::Result<()> + Send + Clone + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let stop = stop.clone();
    thread::Builder::new().name("checked".into()).spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let (serve, stop) = (serve.clone(), stop.clone());
                    drop(thread::Builder::new().spawn(move || {
                        stream.set_nonblocking(false)?;
                        serve(stream, &stop)
                    }));
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    })?;
    Ok(())
}

/// One request, answered by its path.
fn answer(mut stream: impl Read + Write, stop: &AtomicBool) -> io::Result<()> {
    let mut lines = BufReader::new(&mut stream);
    let (mut request, mut field) = (String::new(), String::new());
    lines.read_line(&mut request)?;
    let mut host = String::new();
    while lines.read_line(&mut field)? > 2 {
        if let Some(value) = field.strip_prefix("host: ") {
            value.trim().clone_into(&mut host);
        }
        field.clear();
    }
    let goes_on = || !stop.load(Ordering::Relaxed);
    match request.split(' ').nth(1).unwrap_or_default() {
        "/ok" => {
            let body = format!("all is well at {host}");
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        }
        "/503" => write!(stream, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")?,
        "/redirect" => write!(stream, "HTTP/1.1 302 Found\r\nlocation: /redirect\r\ncontent-length: 0\r\n\r\n")?,
        "/slow" => {
            write!(stream, "HTTP/1.1 200 OK\r\nx-slow: ")?;
            while goes_on() {
                stream.write_all(b"x")?;
                stream.flush()?;
                thread::sleep(Duration::from_millis(5));
            }
        }
        "/endless" => {
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
            while goes_on() {
                stream.write_all(&[b'x'; 4096])?;
            }
        }
        "/headers" => {
            write!(stream, "HTTP/1.1 200 OK\r\n")?;
            for number in 0..100_000 {
                write!(stream, "x-header-{number}: {}\r\n", "y".repeat(100))?;
            }
            write!(stream, "\r\n")?;
        }
        "/garbage" => stream.write_all(b"\x00\xff\x16\x03 this is no HTTP\r\n\r\n")?,
        "/nothing" => {}
        _ => write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")?,
    }
    stream.flush()
}

fn respond(
    socket: UdpSocket,
    stop: &Arc<AtomicBool>,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let stop = stop.clone();
    thread::Builder::new().name("checked".into()).spawn(move || {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut buffer)
                && let Some(answer) = answer(&buffer[..len])
            {
                drop(socket.send_to(&answer, from));
            }
        }
    })?;
    Ok(())
}

fn name_server(question: &[u8]) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(question).ok()?;
    message.metadata.message_type = MessageType::Response;
    let name = message.queries.first()?.name().clone();
    if name.to_string() == HOST {
        message.add_answer(Record::from_rdata(name, 60, RData::A(rdata::A::new(192, 0, 2, 80))));
    } else {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    message.to_vec().ok()
}
