//! What is handed over by hand: `NAME@HOST:PORT/HASH/SECRET`.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Once, for one node, at one place.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The node's.
    pub(crate) name: String,
    /// Where the certificate is issued, HOST:PORT.
    pub(crate) address: String,
    /// Of what is shown there; see [`digest`].
    pub(crate) shown: String,
    pub(crate) secret: Zeroizing<String>,
}

/// In hexadecimal, of the name, the certificate of whoever issues, and the authority's (both in DER).
pub(super) fn digest(name: &str, server: &[u8], authority: &[u8]) -> String {
    let mut hash = Sha256::new();
    // A length before each, so that nothing can be moved from one into the other.
    for part in [name.as_bytes(), server, authority] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// 160 bits, of which 150 are random (RFC 9562 5.4).
pub(super) fn secret() -> Zeroizing<String> {
    Zeroizing::new(uuid::Uuid::new_v4().simple().to_string() + &uuid::Uuid::new_v4().simple().to_string()[..8])
}

/// `HOST:PORT`, `[IPv6]:PORT`.
fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Token {
    /// Whether that is its secret. Hashes are compared, so that how long it takes says nothing.
    pub(super) fn is_secret(&self, said: &str) -> bool {
        Sha256::digest(said.as_bytes()) == Sha256::digest(self.secret.as_bytes())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}/{}", self.name, self.address, self.shown, *self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}/...", self.name, self.address, self.shown)
    }
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "it is no token: 'lbctl node token NAME' prints one, all of it in one line";
        let (name, rest) = text.trim().split_once('@').ok_or(wrong)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [address, shown, secret] = parts[..] else { return Err(wrong) };
        let is_hex = |text: &str, len: usize| text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit());
        if name.is_empty() || !has_port(address) || !is_hex(shown, 64) || !is_hex(secret, 40) {
            return Err(wrong);
        }
        let secret = Zeroizing::new(secret.to_owned());
        Ok(Self { name: name.to_owned(), address: address.to_owned(), shown: shown.to_owned(), secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_nothing_else_is() {
        let shown = digest("lb4", b"server", b"authority");
        let token = Token { name: "lb4".into(), address: "[2001:db8::1]:7402".into(), shown, secret: secret() };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()), "as it was pasted");
        assert!(token.is_secret(&token.secret) && !token.is_secret("") && !token.is_secret(&secret()));
        assert!(!format!("{token:?}").contains(&*token.secret), "it is in no log");
        for wrong in ["", "lb4", &text[..text.len() - 1], &text.replace('@', " "), &text.replace(":7402", "")] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_digest_is_of_all_three() {
        let one = digest("lb4", b"server", b"authority");
        for other in [
            digest("lb5", b"server", b"authority"),
            digest("lb4", b"serve", b"rauthority"),
            digest("lb4", b"server", b"other"),
        ] {
            assert_ne!(one, other);
        }
    }
}
