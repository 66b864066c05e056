//! HTTP/1.1 (RFC 9112): one request, and its response as far as it matters.

use std::net::{IpAddr, SocketAddr};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use lb_raft_store::table::HttpProbe;

use super::{
    super::answer::{Failure, said},
    connection::Connection,
    tls,
};

/// Of the header, which hyper allows no less.
const HEADER_BYTES: usize = 64 << 10;
const HEADER_FIELDS: usize = 100;
/// Of the content, in which what is expected must stand.
const CONTENT_BYTES: usize = 64 << 10;

pub(super) async fn ask(
    connection: Box<dyn Connection>,
    probe: &HttpProbe,
    vip: IpAddr,
    port: u16,
) -> Result<(), Failure> {
    let host = if probe.host.is_empty() { SocketAddr::new(vip, port).to_string() } else { probe.host.clone() };
    let connection = tls::secured(connection, probe.tls.as_ref(), vip, b"http/1.1").await?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEADER_BYTES).max_headers(HEADER_FIELDS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(connection)).await.map_err(|error| wrong(&error))?;
    let request = Request::builder()
        .method(probe.method.as_str())
        .uri(&probe.path)
        .header("host", host)
        .header("user-agent", concat!("lbd/", env!("CARGO_PKG_VERSION")))
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| said(format!("the request cannot be made: {error}")))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|error| wrong(&error))?;
        judge(probe, response).await
    };
    let mut connection = std::pin::pin!(connection);
    let mut talk = std::pin::pin!(talk);
    // The connection works while somebody waits for the response; what is left of it is dropped with it.
    tokio::select! {
        biased;
        judged = &mut talk => judged,
        ended = &mut connection => match ended {
            Ok(()) => talk.await,
            Err(error) => Err(wrong(&error)),
        }
    }
}

async fn judge(probe: &HttpProbe, response: Response<Incoming>) -> Result<(), Failure> {
    let (status, first, last) = (response.status().as_u16(), probe.status_first, probe.status_last);
    if !(first..=last).contains(&status) {
        let expected = if first == last { first.to_string() } else { format!("{first} to {last}") };
        return Err(said(format!("status {status}, not {expected}")));
    }
    if probe.body.is_empty() {
        return Ok(());
    }
    let (mut content, mut body) = (Vec::new(), response.into_body());
    let wanted = probe.body.as_bytes();
    while content.len() < CONTENT_BYTES {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| wrong(&error))?;
        // What is expected may begin in one part and end in the next.
        let from = content.len().saturating_sub(wanted.len());
        content.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        content.truncate(CONTENT_BYTES);
        if content[from..].windows(wanted.len()).any(|part| part == wanted) {
            return Ok(());
        }
    }
    Err(said(format!("{:?} is not in the first {} bytes of the content", probe.body, content.len())))
}

fn wrong(error: &hyper::Error) -> Failure {
    use std::error::Error as _;
    let because = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    said(format!("HTTP: {error}{because}"))
}
