//! What only the two ends of a connection know.

use std::io;

use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use zeroize::Zeroizing;

/// A number by which to speak of it, and a key.
pub(crate) type Secret = Zeroizing<[u8; 24]>;

/// Exported by its label (RFC 8446 7.5).
pub(super) fn secret(stream: &TlsStream<TcpStream>) -> io::Result<Secret> {
    let (mut secret, label) = (Secret::default(), b"EXPORTER-lbd-heartbeat");
    let exported = match stream {
        TlsStream::Client(stream) => stream.get_ref().1.export_keying_material(&mut secret[..], label, None).map(drop),
        TlsStream::Server(stream) => stream.get_ref().1.export_keying_material(&mut secret[..], label, None).map(drop),
    };
    exported.map(|()| secret).map_err(io::Error::other)
}
