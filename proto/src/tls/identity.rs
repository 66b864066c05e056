//! What a certificate says of its holder.

use std::{
    fmt,
    path::Path,
    str::FromStr,
    time::{Duration, SystemTime},
};

use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const SCHEME: &str = "lb://";
/// Of a cluster's or a holder's name.
const LONGEST_NAME: usize = 64;

/// What a certificate's holder may do; each of the last three may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Speaks for itself to the other nodes.
    Node,
    /// Reads.
    Viewer,
    /// Changes VIPs, services, backends and segments, drains, moves.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Node, Self::Viewer, Self::Operator, Self::Admin];

    /// As it stands in a certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or(IdentityError("its role is none of node, viewer, operator, admin"))
    }
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// What the holder may do.
    pub role: Role,
    /// The node's name, or that of a person or a program.
    pub name: String,
}

/// Why it names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(&'static str);

impl Identity {
    /// Of names as they can stand in one.
    pub fn new(cluster: &str, role: Role, name: &str) -> Result<Self, IdentityError> {
        if ![cluster, name].into_iter().all(is_name) {
            return Err(IdentityError("a name has 1 to 64 letters, digits, '-', '_', '.' and '@'"));
        }
        Ok(Self { cluster: cluster.to_owned(), role, name: name.to_owned() })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let parts: Vec<&str> = text.strip_prefix(SCHEME).unwrap_or_default().split('/').collect();
        let [cluster, role, name] = parts[..] else { return Err(IdentityError("it is not lb://CLUSTER/ROLE/NAME")) };
        Self::new(cluster, role.parse()?, name)
    }
}

/// It may stand in a log or on a terminal as it is.
fn is_name(text: &str) -> bool {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(is_sound)
}

/// What is read from a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// Whom it is for.
    pub identity: Identity,
    /// By which a list of revoked certificates names it; big-endian, without leading zeros.
    pub serial: Vec<u8>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

impl Certified {
    /// The serial number as people write it, in hexadecimal.
    pub fn serial_text(&self) -> String {
        self.serial.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads the first certificate of a file in PEM.
    pub fn read_file(path: &Path) -> Result<Self, IdentityError> {
        let der = CertificateDer::from_pem_file(path).map_err(|_| IdentityError("there is no CERTIFICATE in it"))?;
        Self::read(&der)
    }

    /// Reads a certificate in DER, without asking who signed it.
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let unread = |_| IdentityError("it is no X.509 certificate");
        let (_, certificate) = X509Certificate::from_der(der).map_err(unread)?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME).map(|_| *uri),
            _ => None,
        });
        let uris: Vec<&str> = uris.collect();
        let identity = match uris[..] {
            [uri] => uri.parse()?,
            [] => return Err(IdentityError("none of its subject's alternative names is a URI lb://CLUSTER/ROLE/NAME")),
            _ => return Err(IdentityError("it names several: only one URI lb://CLUSTER/ROLE/NAME may stand in it")),
        };
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
        let validity = certificate.validity();
        Ok(Self {
            identity,
            serial: trimmed(certificate.raw_serial()),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }
}

/// A number's bytes without leading zeros.
pub(super) fn trimmed(number: &[u8]) -> Vec<u8> {
    number[number.iter().take_while(|byte| **byte == 0).count()..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_and_each_mistake_is_named() {
        let text = "lb://lab/operator/alice@example.org";
        let identity: Identity = text.parse().unwrap();
        assert_eq!((identity.role, &*identity.name, &*identity.cluster), (Role::Operator, "alice@example.org", "lab"));
        assert_eq!(identity.to_string(), text);
        for (wrong, why) in [
            ("", "lb://CLUSTER"),
            ("http://lab/node/lb1", "lb://CLUSTER"),
            ("lb://lab/node", "lb://CLUSTER"),
            ("lb://lab/node/lb1/more", "lb://CLUSTER"),
            ("lb://lab/root/lb1", "none of node"),
            ("lb://lab/node/", "letters"),
            ("lb://lab/node/a\nb", "letters"),
            ("lb:///node/lb1", "letters"),
        ] {
            let problem = wrong.parse::<Identity>().unwrap_err().to_string();
            assert!(problem.contains(why), "{wrong:?}: {problem}");
        }
    }

    /// Whatever comes: it is read or refused.
    #[test]
    fn any_bytes_are_read_as_a_certificate_or_refused() {
        bolero::check!().for_each(|input: &[u8]| drop(Certified::read(input)));
    }
}
