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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use lb_proto::tls::{Certified, Role};
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};

    use super::*;
    use crate::authority::{Authority, Wanted};

    /// For longer: `cargo bolero test -p lbctl enroll::tests::...`, as in RELEASING.md.
    #[test]
    fn what_strangers_say_is_read_or_refused() {
        let sound = br#"{"issued":{"certificate":"a","authority":"b","revoked":"c"}}"#;
        bolero::check!().for_each(|input: &[u8]| {
            for before in [0, 12, sound.len()] {
                let said = [&sound[..before], input].concat();
                // What is longer than anything that is said is not read to its end.
                if let Ok(ask) = receive::<Ask>(&mut &said[..]).now_or_never().unwrap() {
                    assert!(ask.request.len() < said.len());
                }
                drop(receive::<Answer>(&mut &said[..]).now_or_never().unwrap());
            }
        });
    }

    #[test]
    fn any_text_is_a_token_or_none() {
        bolero::check!().for_each(|input: &[u8]| {
            let text = String::from_utf8_lossy(input);
            let sound = format!("lb4@[::1]:7402/{}/{}", "ab".repeat(32), "0".repeat(40));
            for text in [text.as_ref(), &sound.replacen('4', &text, 1)] {
                if let Ok(token) = text.parse::<Token>() {
                    assert_eq!(token.to_string().parse(), Ok(token));
                }
            }
        });
    }

    #[test]
    fn any_request_is_signed_for_whom_it_is_wanted_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Authority::create(dir.path(), "lab", 10).unwrap());
        let pair = rcgen::KeyPair::generate().unwrap();
        let sound = rcgen::CertificateParams::default().serialize_request(&pair).unwrap().pem().unwrap();
        let wanted = Wanted { role: Role::Node, name: "lb4".into(), names: Vec::new(), days: 1 };
        let is_of = |pem: &str| Certified::read(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
        assert_eq!(
            is_of(&Authority::open(dir.path()).unwrap().issue_for(&sound, &wanted).unwrap()).unwrap().identity.name,
            "lb4"
        );
        bolero::check!().for_each(|input: &[u8]| {
            let mut request = sound.clone().into_bytes();
            for change in input.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % request.len();
                request[at] = change[2] & 0x7f;
            }
            let request = String::from_utf8(request).unwrap();
            if let Ok(issued) = Authority::open(dir.path()).unwrap().issue_for(&request, &wanted) {
                let identity = is_of(&issued).unwrap().identity;
                assert_eq!((identity.role, &*identity.name), (Role::Node, "lb4"));
            }
        });
    }
}
