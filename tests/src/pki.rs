//! A cluster's certificates, made by the real `lbctl pki`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use lb_proto::tls::{Credentials, Paths};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    version::TLS13,
};

use crate::binaries;

/// An authority in a directory, and what it has issued beside it.
#[derive(Debug, Clone)]
pub struct Pki {
    dir: PathBuf,
}

/// A certificate's files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority's certificate.
    pub ca: PathBuf,
}

impl Files {
    /// To speak as whom they are for.
    pub fn load(&self) -> anyhow::Result<Credentials> {
        let paths = Paths { cert: self.cert.clone(), key: self.key.clone(), ca: self.ca.clone(), crl: None };
        Ok(Credentials::load(&paths)?)
    }

    /// To show them to whoever answers: an attacker does not ask.
    pub fn load_trusting_all(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let chain = CertificateDer::pem_file_iter(&self.cert)?.collect::<Result<Vec<_>, _>>()?;
        let provider = Arc::new(ring::default_provider());
        let all = Arc::new(All(provider.signature_verification_algorithms));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(all)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&self.key)?)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// As lbctl is told of them.
    pub fn arguments(&self) -> anyhow::Result<[&str; 6]> {
        fn text(path: &Path) -> anyhow::Result<&str> {
            path.to_str().context("the path is no text")
        }
        Ok(["--cert", text(&self.cert)?, "--key", text(&self.key)?, "--ca", text(&self.ca)?])
    }
}

impl Pki {
    /// The authority of the cluster `lb` below a directory; it is made if there is none.
    pub fn below(root: &Path) -> anyhow::Result<Self> {
        Self::of_cluster(root, "lb")
    }

    /// That of another cluster.
    pub fn of_cluster(root: &Path, cluster: &str) -> anyhow::Result<Self> {
        let pki = Self { dir: root.join("pki") };
        if !pki.dir.exists() {
            pki.run(&["init", "--cluster", cluster])?;
        }
        Ok(pki)
    }

    /// Runs `lbctl pki`. What it prints.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binaries::directory()?.join("lbctl"));
        let output = command.args(["pki", "--dir"]).arg(&self.dir).args(arguments).output().context("running lbctl")?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lbctl pki {}: {told}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Issues a certificate into a directory of its own; anew, if there is one. `further`: arguments such as `--san`.
    pub fn issue(&self, role: &str, name: &str, further: &[&str]) -> anyhow::Result<Files> {
        let out = self.dir.with_file_name("issued").join(format!("{role}-{name}"));
        self.issue_to(role, name, &out, further)
    }

    /// Issues a certificate into some directory.
    pub fn issue_into(&self, role: &str, name: &str, out: &Path) -> anyhow::Result<Files> {
        self.issue_to(role, name, out, &[])
    }

    fn issue_to(&self, role: &str, name: &str, out: &Path, further: &[&str]) -> anyhow::Result<Files> {
        let out_text = out.to_str().context("the path is no text")?;
        self.run(&[&["issue", role, name, "--out", out_text], further].concat())?;
        let file = |extension: &str| out.join(format!("{name}.{extension}"));
        Ok(Files { cert: file("pem"), key: file("key"), ca: out.join("ca.pem") })
    }

    /// One that was valid until yesterday, in some directory.
    pub fn expired(&self, role: &str, name: &str, out: &Path) -> anyhow::Result<Files> {
        let read = |file: &str| fs::read_to_string(self.dir.join(file));
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, KeyPair::from_pem(&read("ca.key")?)?)?;
        let (key, mut params) = (KeyPair::generate()?, CertificateParams::default());
        params.subject_alt_names = vec![SanType::URI(format!("lb://lb/{role}/{name}").try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let days_ago = |days: u64| (SystemTime::now() - Duration::from_secs(days * 24 * 3600)).into();
        (params.not_before, params.not_after) = (days_ago(9), days_ago(1));
        fs::create_dir_all(out)?;
        let files = Files { cert: out.join("a.pem"), key: out.join("a.key"), ca: self.dir.join("ca.pem") };
        fs::write(&files.cert, params.signed_by(&key, &issuer)?.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }

    /// The list of what was revoked.
    pub fn crl(&self) -> PathBuf {
        self.dir.join("crl.pem")
    }
}

/// Takes whoever answers.
#[derive(Debug)]
struct All(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for All {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
