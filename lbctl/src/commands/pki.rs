//! `lbctl pki`: needs no cluster, only the authority's directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lb_proto::tls::{Certified, Identity};

use crate::{
    authority::{Authority, AuthorityError, Issued, Wanted, default_days, write},
    cli::{Format, PkiCommand, PkiTarget},
    exit::{Failure, complain},
    output::{self, Row},
};

impl From<AuthorityError> for Failure {
    fn from(error: AuthorityError) -> Self {
        Self::Usage(error.to_string())
    }
}

pub(super) fn run(format: Format, dir: &Path, command: PkiCommand) -> Result<(), Failure> {
    match command {
        PkiCommand::Init { cluster, days } => {
            Authority::create(dir, &cluster, days)?;
            complain(&format!(
                "the authority of cluster {cluster} is in {0}. Keep {0}/ca.key away from the nodes, and a copy of it offline",
                dir.display()
            ));
            output::print(&format!("{}\n", dir.join("ca.pem").display()))
        }
        PkiCommand::Issue { role, name, san, target, csr } => {
            let mut authority = Authority::open(dir)?;
            let days = target.days.unwrap_or_else(|| default_days(role));
            let wanted = Wanted { role, name, names: san, days };
            let Some(csr) = csr else { return issue(&mut authority, &wanted, &target) };
            let request = fs::read_to_string(&csr).map_err(|e| Failure::of_file(&csr, e))?;
            let certificate = authority.issue_for(&request, &wanted)?;
            let out = out(&target)?;
            let path = out.join(format!("{}.pem", wanted.name));
            write(&path, certificate.as_bytes(), 0o644)?;
            write(&out.join("ca.pem"), authority.certificate().as_bytes(), 0o644)?;
            output::print(&format!("{}\n", path.display()))
        }
        PkiCommand::Renew { cert, target } => {
            let mut authority = Authority::open(dir)?;
            let known = known(&authority, &cert)?;
            let problem = |what: &str| Failure::of_file(&cert, what);
            let identity: Identity = known.identity.parse().map_err(|error| problem(&format!("{error}")))?;
            if let Some(at) = &known.revoked {
                return Err(problem(&format!("it was revoked at {at}: 'lbctl pki issue' makes another one")));
            }
            let days = target.days.unwrap_or_else(|| default_days(identity.role));
            let wanted = Wanted { role: identity.role, name: identity.name, names: known.names.clone(), days };
            let beside = cert.parent().map(Path::to_owned);
            issue(&mut authority, &wanted, &PkiTarget { out: target.out.or(beside), ..target })
        }
        PkiCommand::Revoke { what } => {
            let mut authority = Authority::open(dir)?;
            let serials: Result<Vec<_>, _> = what.iter().map(|what| to_revoke(&authority, what)).collect();
            authority.revoke(&serials?.concat())?;
            complain("copy the list to the nodes (tls.crl): they take it up within 5 seconds");
            output::print(&format!("{}\n", authority.list_path().display()))
        }
        PkiCommand::List => output::list(format, "certificates", Authority::open(dir)?.issued()),
        PkiCommand::Crl => {
            let authority = Authority::open(dir)?;
            authority.write_list()?;
            output::print(&format!("{}\n", authority.list_path().display()))
        }
    }
}

/// Where the files go.
fn out(target: &PkiTarget) -> Result<PathBuf, Failure> {
    let out = target.out.clone().unwrap_or_else(|| PathBuf::from("."));
    fs::create_dir_all(&out).map_err(|error| Failure::of_file(&out, error))?;
    Ok(out)
}

/// Issues a certificate and its key, and puts beside them what else a node or a caller needs.
fn issue(authority: &mut Authority, wanted: &Wanted, target: &PkiTarget) -> Result<(), Failure> {
    let out = out(target)?;
    let path = |extension: &str| out.join(format!("{}.{extension}", wanted.name));
    let (certificate, key) = authority.issue(wanted)?;
    // The key first: whoever looks between the two sees a pair that does not match, and waits.
    write(&path("key"), key.as_bytes(), 0o600)?;
    write(&path("pem"), certificate.as_bytes(), 0o644)?;
    write(&out.join("ca.pem"), authority.certificate().as_bytes(), 0o644)?;
    let ca = out.join("ca.pem");
    output::print(&format!("{}\n{}\n{}\n", path("pem").display(), path("key").display(), ca.display()))
}

/// What the authority knows of a certificate in a file.
fn known(authority: &Authority, file: &Path) -> Result<Issued, Failure> {
    let problem = |what: String| Failure::of_file(file, what);
    let certified = Certified::read_file(file).map_err(|error| problem(error.to_string()))?;
    let (serial, identity) = (certified.serial_text(), certified.identity);
    let found = authority.find(&serial).into_iter().next().cloned();
    found.ok_or_else(|| problem(format!("this authority has not issued {identity} with serial number {serial}")))
}

/// The serial numbers of what is named.
fn to_revoke(authority: &Authority, what: &str) -> Result<Vec<String>, Failure> {
    let found = authority.find(what);
    if found.is_empty() {
        return Err(Failure::Usage(format!("{what}: nothing was issued to it; 'lbctl pki list' shows what was")));
    }
    let valid = found.iter().filter(|issued| issued.revoked.is_none());
    Ok(valid.map(|issued| issued.serial.clone()).collect())
}

impl Row for Issued {
    const COLUMNS: &'static [&'static str] = &["serial", "identity", "until", "names", "revoked"];

    fn cells(&self) -> Vec<String> {
        let revoked = self.revoked.clone().unwrap_or_default();
        vec![self.serial.clone(), self.identity.clone(), self.not_after.clone(), self.names.join(","), revoked]
    }
}
