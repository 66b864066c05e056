//! A certificate authority in a directory, for clusters that have no other: its key, what it has issued and what it has
//! revoked. The directory belongs on a machine that is no node, or offline.
//!
//! ```text
//!   ca.pem       its certificate: every node and every caller trusts it
//!   ca.key       its key, for nobody else
//!   crl.pem      what it has revoked (RFC 5280 5)
//!   issued.json  what it has issued
//! ```

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use lb_proto::tls::{Certified, Identity, Role};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// A certificate is valid a little earlier: clocks differ.
const BEFORE: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A new list is due then; the nodes take an older one, too.
const LIST_DAYS: u32 = 30;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Wrong { path: PathBuf, problem: String },
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Certificate(#[from] rcgen::Error),
}

/// What was issued.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// In hexadecimal.
    pub(crate) serial: String,
    /// `lb://CLUSTER/ROLE/NAME`.
    pub(crate) identity: String,
    /// RFC 3339.
    pub(crate) not_after: String,
    /// Its further names: DNS names and addresses.
    pub(crate) names: Vec<String>,
    /// When it was revoked, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) revoked: Option<String>,
}

/// The authority.
pub(crate) struct Authority {
    dir: PathBuf,
    /// Of the cluster.
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    issued: Vec<Issued>,
    /// Two that write would lose what one of them has issued: held by whoever has it open.
    _lock: fs::File,
}

/// Whom a certificate is for, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) role: Role,
    pub(crate) name: String,
    /// DNS names and addresses, for clients that look at them.
    pub(crate) names: Vec<String>,
    pub(crate) days: u32,
}

/// Its role's.
pub(crate) fn default_days(role: Role) -> u32 {
    if role == Role::Node { 365 } else { 90 }
}

impl Authority {
    /// Makes one in a directory that has none.
    pub(crate) fn create(dir: &Path, cluster: &str, days: u32) -> Result<Self, AuthorityError> {
        let check = Identity::new(cluster, Role::Admin, "x");
        check.map_err(|error| AuthorityError::Refused(format!("--cluster {cluster}: {error}")))?;
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        if let Some(there) = [&certificate, &key].into_iter().find(|path| path.exists()) {
            return Err(AuthorityError::Refused(format!(
                "{} is there already: an authority that is made anew would be trusted by nobody who trusts the old one",
                there.display()
            )));
        }
        fs::create_dir_all(dir).map_err(|source| AuthorityError::File { path: dir.to_owned(), source })?;
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, format!("{cluster} load balancer CA"));
        params.distinguished_name.push(DnType::OrganizationalUnitName, cluster);
        (params.not_before, params.not_after) = validity(days);
        params.serial_number = Some(serial());
        let pem = params.self_signed(&pair)?.pem();
        write(&key, Zeroizing::new(pair.serialize_pem()).as_bytes(), 0o600)?;
        let lock = lock(&key)?;
        write(&certificate, pem.as_bytes(), 0o644)?;
        let (dir, cluster, issuer) = (dir.to_owned(), cluster.to_owned(), Issuer::new(params, pair));
        let made = Self { dir, cluster, issuer, certificate: pem, issued: Vec::new(), _lock: lock };
        made.save()?;
        made.write_list()?;
        Ok(made)
    }

    /// Opens one, when nobody else has it open any more.
    pub(crate) fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => AuthorityError::Refused(format!(
                    "{} is missing: 'lbctl pki init' makes an authority, and --dir says where it is",
                    path.display()
                )),
                _ => AuthorityError::File { path, source },
            })
        };
        let wrong = |name: &str, problem: String| AuthorityError::Wrong { path: dir.join(name), problem };
        let certificate = read("ca.pem")?;
        let lock = lock(&dir.join("ca.key"))?;
        let pair = KeyPair::from_pem(&Zeroizing::new(read("ca.key")?))
            .map_err(|error| wrong("ca.key", format!("it is no key: {error}")))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, pair)
            .map_err(|error| wrong("ca.pem", format!("it is no authority's certificate: {error}")))?;
        let known: Known =
            serde_json::from_str(&read("issued.json")?).map_err(|error| wrong("issued.json", error.to_string()))?;
        let (dir, cluster, issued) = (dir.to_owned(), known.cluster, known.certificates);
        Ok(Self { dir, cluster, issuer, certificate, issued, _lock: lock })
    }

    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    pub(crate) fn issued(&self) -> &[Issued] {
        &self.issued
    }

    pub(crate) fn list_path(&self) -> PathBuf {
        self.dir.join("crl.pem")
    }

    /// Issues a certificate for a new key; both in PEM.
    pub(crate) fn issue(&mut self, wanted: &Wanted) -> Result<(String, Zeroizing<String>), AuthorityError> {
        let pair = KeyPair::generate()?;
        let certificate = self.params(wanted)?.signed_by(&pair, &self.issuer)?;
        self.note(wanted, certificate.der())?;
        Ok((certificate.pem(), Zeroizing::new(pair.serialize_pem())))
    }

    /// Issues a certificate for a key that stays where it was made (PKCS #10, RFC 2986). What the request asks for beside its
    /// key is not looked at: the command says whom it is for.
    pub(crate) fn issue_for(&mut self, request: &str, wanted: &Wanted) -> Result<String, AuthorityError> {
        let read = CertificateSigningRequestParams::from_pem(request);
        let read = read.map_err(|error| AuthorityError::Refused(format!("it is no certificate request: {error}")))?;
        let certificate = self.params(wanted)?.signed_by(&read.public_key, &self.issuer)?;
        self.note(wanted, certificate.der())?;
        Ok(certificate.pem())
    }

    fn params(&self, wanted: &Wanted) -> Result<CertificateParams, AuthorityError> {
        let identity = Identity::new(&self.cluster, wanted.role, &wanted.name);
        let identity = identity.map_err(|error| AuthorityError::Refused(format!("{:?}: {error}", wanted.name)))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, &*wanted.name);
        params.distinguished_name.push(DnType::OrganizationalUnitName, wanted.role.as_str());
        params.subject_alt_names.push(SanType::URI(identity.to_string().try_into()?));
        for name in &wanted.names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if wanted.role == Role::Node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(wanted.days);
        params.serial_number = Some(serial());
        Ok(params)
    }

    fn note(&mut self, wanted: &Wanted, der: &[u8]) -> Result<(), AuthorityError> {
        let certified = Certified::read(der).map_err(|error| AuthorityError::Refused(error.to_string()))?;
        self.issued.push(Issued {
            serial: certified.serial_text(),
            identity: certified.identity.to_string(),
            not_after: shown(certified.not_after),
            names: wanted.names.clone(),
            revoked: None,
        });
        self.save()
    }

    /// What was issued by that serial number, or to that identity or name and is valid yet.
    pub(crate) fn find(&self, what: &str) -> Vec<&Issued> {
        let is_of = |issued: &&Issued| {
            issued.serial == what.to_lowercase().replace(':', "")
                || issued.identity == what
                || issued.identity.rsplit('/').next() == Some(what)
        };
        self.issued.iter().filter(is_of).collect()
    }

    /// Revokes by serial numbers, and signs a new list.
    pub(crate) fn revoke(&mut self, serials: &[String]) -> Result<(), AuthorityError> {
        let now = shown(SystemTime::now());
        for issued in self.issued.iter_mut().filter(|issued| serials.contains(&issued.serial)) {
            issued.revoked.get_or_insert_with(|| now.clone());
        }
        self.save()?;
        self.write_list()
    }

    /// Signs a new list, and puts it beside the authority.
    pub(crate) fn write_list(&self) -> Result<(), AuthorityError> {
        write(&self.list_path(), self.list()?.as_bytes(), 0o644)
    }

    /// Signs a list of what is revoked; in PEM.
    pub(crate) fn list(&self) -> Result<String, AuthorityError> {
        let revoked = self.issued.iter().filter_map(|issued| {
            let at = humantime::parse_rfc3339(issued.revoked.as_ref()?).ok()?;
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&unhex(&issued.serial)?),
                revocation_time: at.into(),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let now = OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now - BEFORE,
            next_update: now + DAY * LIST_DAYS,
            crl_number: SerialNumber::from(u64::try_from(now.unix_timestamp()).unwrap_or_default()),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }

    fn save(&self) -> Result<(), AuthorityError> {
        let known = Known { cluster: self.cluster.clone(), certificates: self.issued.clone() };
        let text = serde_json::to_string_pretty(&known).map_err(|error| AuthorityError::Refused(error.to_string()))?;
        write(&self.dir.join("issued.json"), text.as_bytes(), 0o644)
    }
}

/// `issued.json`.
#[derive(Serialize, Deserialize)]
struct Known {
    cluster: String,
    certificates: Vec<Issued>,
}

/// The authority's key, which never changes: locked for as long as the file is open (flock(2)).
fn lock(key: &Path) -> Result<fs::File, AuthorityError> {
    let locked = fs::File::open(key).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            AuthorityError::Refused(format!("{} is missing: it is kept elsewhere?", key.display()))
        }
        _ => AuthorityError::File { path: key.to_owned(), source },
    })
}

fn validity(days: u32) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BEFORE, now + DAY * days)
}

/// One that is not guessed and not given twice (CA/Browser Forum Baseline Requirements 7.1: 64 random bits at least).
fn serial() -> SerialNumber {
    let mut bytes = *uuid::Uuid::new_v4().as_bytes();
    // Positive, and as long as it is written.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// Writes a file whole or not at all; nobody else reads a key, also while it is written.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let failed = |source| AuthorityError::File { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fs::File::options().write(true).create_new(true).mode(mode).open(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        drop(fs::remove_file(&beside));
    }
    done.map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use lb_proto::tls::{Credentials, Paths};

    use super::*;

    fn wanted(role: Role, name: &str) -> Wanted {
        Wanted { role, name: name.to_owned(), names: vec!["10.77.1.1".into(), "lb1.example".into()], days: 7 }
    }

    fn load(dir: &Path, issued: &(String, Zeroizing<String>)) -> Result<Credentials, String> {
        let path = |name: &str| dir.join(name);
        fs::write(path("a.pem"), &issued.0).unwrap();
        fs::write(path("a.key"), &*issued.1).unwrap();
        let paths = Paths { cert: path("a.pem"), key: path("a.key"), ca: path("ca.pem"), crl: Some(path("crl.pem")) };
        Credentials::load(&paths).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_issued_is_taken_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = Authority::create(dir.path(), "lab", 3650).unwrap();
        assert!(Authority::create(dir.path(), "lab", 1).is_err(), "twice");
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("ca.pem")), (0o600, 0o644));
        let node = authority.issue(&wanted(Role::Node, "lb1")).unwrap();
        let loaded = load(dir.path(), &node).unwrap();
        assert_eq!(loaded.identity().to_string(), "lb://lab/node/lb1");
        drop(authority);
        // Another process goes on with it.
        let mut authority = Authority::open(dir.path()).unwrap();
        let alice = authority.issue(&wanted(Role::Operator, "alice")).unwrap();
        assert_eq!(load(dir.path(), &alice).unwrap().identity().role, Role::Operator);
        let serials: Vec<String> = authority.find("alice").iter().map(|of| of.serial.clone()).collect();
        assert_eq!(serials.len(), 1);
        authority.revoke(&serials).unwrap();
        let problem = load(dir.path(), &alice).unwrap_err();
        assert!(problem.contains("it was revoked"), "{problem}");
        let loaded = load(dir.path(), &node).unwrap();
        assert!(loaded.is_revoked(&unhex(&serials[0]).unwrap()));
        assert!(!loaded.is_revoked(&loaded.own.serial));
    }

    #[test]
    fn those_who_write_at_the_same_time_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(Authority::create(dir.path(), "lab", 3650).unwrap());
        std::thread::scope(|scope| {
            for name in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    Authority::open(dir).unwrap().issue(&wanted(Role::Viewer, &format!("v{name}"))).unwrap()
                });
            }
        });
        assert_eq!(Authority::open(dir.path()).unwrap().issued().len(), 8);
    }

    #[test]
    fn files_that_do_not_belong_together_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = Authority::create(dir.path(), "lab", 3650).unwrap();
        let [one, other] = ["lb1", "lb2"].map(|name| authority.issue(&wanted(Role::Node, name)).unwrap());
        let problem = load(dir.path(), &(one.0.clone(), other.1)).unwrap_err();
        assert!(problem.contains("it is not the key of"), "{problem}");
        let elsewhere = tempfile::tempdir().unwrap();
        let mut foreign = Authority::create(elsewhere.path(), "lab", 1).unwrap();
        let problem = load(dir.path(), &foreign.issue(&wanted(Role::Node, "lb1")).unwrap()).unwrap_err();
        assert!(problem.contains("has not signed it"), "{problem}");
        let (pair, mut params) = (KeyPair::generate().unwrap(), authority.params(&wanted(Role::Node, "lb1")).unwrap());
        (params.not_before, params.not_after) = (params.not_before - DAY * 9, params.not_before - DAY);
        let expired = params.signed_by(&pair, &authority.issuer).unwrap().pem();
        let problem = load(dir.path(), &(expired, Zeroizing::new(pair.serialize_pem()))).unwrap_err();
        assert!(problem.contains("it has expired, at "), "{problem}");
        for (issued, word) in [
            (("no pem".to_owned(), one.1.clone()), "no CERTIFICATE"),
            ((one.0.clone(), Zeroizing::new("no pem".to_owned())), "no PRIVATE KEY"),
        ] {
            let problem = load(dir.path(), &issued).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
    }

    #[test]
    fn a_key_can_stay_where_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = Authority::create(dir.path(), "lab", 3650).unwrap();
        let pair = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::default();
        // What it asks for is not for it to say.
        asked.subject_alt_names.push(SanType::URI("lb://lab/admin/mallory".try_into().unwrap()));
        let request = asked.serialize_request(&pair).unwrap().pem().unwrap();
        let certificate = authority.issue_for(&request, &wanted(Role::Viewer, "bob")).unwrap();
        let loaded = load(dir.path(), &(certificate, Zeroizing::new(pair.serialize_pem()))).unwrap();
        assert_eq!(loaded.identity().to_string(), "lb://lab/viewer/bob");
        assert!(authority.issue_for("nonsense", &wanted(Role::Viewer, "bob")).is_err());
    }
}
