//! Clients and servers: HTTP over TCP, and UDP echoes that name their backend.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::netns::Namespace;

const CHUNK: usize = 64 << 10;

/// A backend's servers: HTTP on one TCP port, an echo on one UDP port. Both answer with its name.
pub struct Backend {
    stop: Arc<AtomicBool>,
    /// UDP datagrams that arrived.
    pub datagrams: Arc<AtomicU64>,
    /// TCP connections that arrived.
    pub connections: Arc<AtomicU64>,
}

impl Backend {
    /// Serves on a VIP, in a namespace, until it is dropped.
    pub fn serve(
        namespace: &Namespace,
        name: &str,
        vip: impl Into<IpAddr>,
        tcp_port: u16,
        udp_port: u16,
    ) -> io::Result<Self> {
        let vip = vip.into();
        // UDP on the VIP itself: a socket on any address would answer from the backend's own.
        let (tcp, udp) = namespace
            .enter(|| Ok::<_, io::Error>((TcpListener::bind((vip, tcp_port))?, UdpSocket::bind((vip, udp_port))?)))?;
        let backend = Self { stop: Arc::default(), datagrams: Arc::default(), connections: Arc::default() };
        backend.serve_http(tcp, name.to_owned())?;
        backend.serve_echo(udp, name.to_owned())?;
        Ok(backend)
    }

    fn serve_http(&self, listener: TcpListener, name: String) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let (stop, connections) = (self.stop.clone(), self.connections.clone());
        thread::Builder::new().name("http".into()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        connections.fetch_add(1, Ordering::Relaxed);
                        let name = name.clone();
                        // A client that hangs up ends its connection, nothing else.
                        drop(thread::Builder::new().stack_size(256 << 10).spawn(move || answer_http(stream, &name)));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        })?;
        Ok(())
    }

    fn serve_echo(&self, socket: UdpSocket, name: String) -> io::Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
        let (stop, datagrams) = (self.stop.clone(), self.datagrams.clone());
        thread::Builder::new().name("echo".into()).spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    datagrams.fetch_add(1, Ordering::Relaxed);
                    let mut answer = buffer[..len].to_vec();
                    answer.extend_from_slice(name.as_bytes());
                    drop(socket.send_to(&answer, from));
                }
            }
        })?;
        Ok(())
    }
}

impl Backend {
    /// Its servers end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whoever connects is let in and left alone; with its end nobody listens any more.
pub struct Doorman {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Doorman {
    /// Listens in a namespace.
    pub fn listen(namespace: &Namespace, on: impl IntoIterator<Item = SocketAddr>) -> io::Result<Self> {
        let listen = |address| {
            let listener = namespace.enter(|| TcpListener::bind(address))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listeners = on.into_iter().map(listen).collect::<io::Result<Vec<_>>>()?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let accept = move || {
            while !stopped.load(Ordering::Relaxed) {
                // What nobody takes would fill the listeners' queues.
                listeners.iter().for_each(|listener| while listener.accept().is_ok() {});
                thread::sleep(Duration::from_millis(5));
            }
        };
        let thread = Some(thread::Builder::new().name("doorman".into()).spawn(accept)?);
        Ok(Self { stop, thread })
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// GET / names the backend; GET /bytes/N sends N bytes; POST / counts what it gets; GET /ping on a kept
/// connection answers again and again.
fn answer_http(stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(&stream);
    let mut writer = &stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let length = read_headers(&mut reader)?;
        let received = io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        let path = line.split(' ').nth(1).unwrap_or("/");
        if let Some(bytes) = path.strip_prefix("/bytes/") {
            let mut left: usize = bytes.parse().map_err(io::Error::other)?;
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n")?;
            let chunk = vec![b'x'; CHUNK];
            while left > 0 {
                let len = left.min(CHUNK);
                writer.write_all(&chunk[..len])?;
                left -= len;
            }
        } else {
            let body = if received > 0 { format!("{name} {received}") } else { name.to_owned() };
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        }
    }
}

/// Reads up to the end of the headers. The length of the body.
fn read_headers(reader: &mut impl io::BufRead) -> io::Result<u64> {
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if header.trim().is_empty() {
            return Ok(length);
        }
    }
}

/// A kept HTTP connection.
pub struct HttpClient {
    reader: BufReader<TcpStream>,
}

impl HttpClient {
    /// Connects from a namespace.
    pub fn connect(namespace: &Namespace, to: impl Into<SocketAddr>, timeout: Duration) -> io::Result<Self> {
        let to = to.into();
        let stream = namespace.enter(|| TcpStream::connect_timeout(&to, timeout))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The client's port.
    pub fn local_port(&self) -> io::Result<u16> {
        Ok(self.reader.get_ref().local_addr()?.port())
    }

    /// A GET; its body.
    pub fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        write!(self.reader.get_mut(), "GET {path} HTTP/1.1\r\nHost: vip\r\n\r\n")?;
        self.answer()
    }

    /// The name of the backend that answers.
    pub fn who(&mut self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.get("/")?).into_owned())
    }

    /// Uploads so many bytes; what the backend says it got.
    pub fn upload(&mut self, bytes: usize) -> io::Result<String> {
        let stream = self.reader.get_mut();
        write!(stream, "POST / HTTP/1.1\r\nHost: vip\r\nContent-Length: {bytes}\r\n\r\n")?;
        let chunk = vec![b'y'; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let len = left.min(CHUNK);
            stream.write_all(&chunk[..len])?;
            left -= len;
        }
        Ok(String::from_utf8_lossy(&self.answer()?).into_owned())
    }

    fn answer(&mut self) -> io::Result<Vec<u8>> {
        let mut status = String::new();
        if self.reader.read_line(&mut status)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = read_headers(&mut self.reader)?;
        let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.reader.read_exact(&mut body)?;
        Ok(body)
    }
}

/// One GET on a connection of its own: which backend answered.
pub fn http_who(namespace: &Namespace, to: impl Into<SocketAddr>, timeout: Duration) -> io::Result<String> {
    HttpClient::connect(namespace, to, timeout)?.who()
}
