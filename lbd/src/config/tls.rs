//! `[tls]`: by which files this node shows who it is, or that TCP is plain.

use lb_proto::tls::Paths;

use super::{api::ApiListener, node::absolute_path, reader::Section};

/// How TCP is secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Plain TCP, on purpose.
    pub(crate) insecure: bool,
    pub(crate) paths: Option<Paths>,
}

/// `api`: its TCP listeners are as exposed as the cluster's.
pub(super) fn read(tls: &mut Section, api: &[ApiListener]) -> Tls {
    let is_any = ["cert", "key", "ca", "crl"].iter().any(|key| tls.contains(key));
    let mut path = |key| tls.optional(key, absolute_path);
    let (cert, key, ca, crl) = (path("cert"), path("key"), path("ca"), path("crl"));
    let insecure = tls.flag("insecure", false);
    let given = [("cert", &cert), ("key", &key), ("ca", &ca)];
    let missing: Vec<&str> = given.iter().filter(|(_, path)| path.is_none()).map(|(key, _)| *key).collect();
    match (is_any, insecure) {
        (true, true) => tls.fault("insecure", "is true, and certificates are given: take one of the two out"),
        (true, false) => {
            for key in missing {
                if !tls.has_fault(key) {
                    tls.fault(key, "is required beside the others: cert, key and ca go together");
                }
            }
        }
        (false, false) if !tls.has_fault("insecure") => {
            let api =
                if api.iter().any(|listener| matches!(listener, ApiListener::Tcp(_))) { " and the API's" } else { "" };
            tls.fault(
                "cert",
                &format!(
                    "is required: the cluster's{api} TCP listener speaks TLS. Set cert, key and ca ('lbctl pki init' and 'lbctl \
                     pki issue' make them), or insecure = true on a network that nobody else reaches"
                ),
            );
        }
        _ => {}
    }
    let paths = match (cert, key, ca) {
        (Some(cert), Some(key), Some(ca)) => Some(Paths { cert, key, ca, crl }),
        _ => None,
    };
    Tls { insecure, paths }
}
