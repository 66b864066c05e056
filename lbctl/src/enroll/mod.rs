//! A node gets its certificate by a token that works once: its key is made where it stays, and nothing is copied by hand but
//! one line of text.
//!
//! ```text
//!   lbctl node token lb4                              lbctl node join TOKEN
//!   (where the authority is)                          (on the machine that becomes lb4)
//!                       <--- TLS 1.3: what is shown hashes to what the token says
//!                       <--- the token's secret, and a certificate request
//!   it signs it, for that name alone  --->            the certificate, the authority's, its list
//! ```
//!
//! The token says what both ends check: the server shows a certificate of its own, made for this token, and the authority's;
//! their hash stands in the token. So nobody in between learns the secret, and the node trusts no other authority.

mod join;
mod serve;
mod token;

use std::{io, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

pub(crate) use self::{
    join::{Joined, join},
    serve::{Served, serve},
    token::Token,
};

/// Longer than what either end says.
const LONGEST: u64 = 64 << 10;
/// For one exchange, from the connection on.
const EXCHANGE: Duration = Duration::from_secs(10);

/// What a node says.
#[derive(Serialize, Deserialize)]
struct Ask {
    secret: String,
    /// PKCS #10, in PEM.
    request: String,
}

/// What it is answered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// All in PEM.
    Issued {
        certificate: String,
        authority: String,
        revoked: String,
    },
    Refused(String),
}

/// Reads a line of JSON.
async fn receive<T: for<'a> Deserialize<'a>>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line).await?;
    serde_json::from_str(&line).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it speaks something else"))
}

/// Writes one.
async fn send<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}
