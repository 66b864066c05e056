//! What other load balancers are configured by, as a table: `lbctl import`. What it cannot carry over is listed, line by line,
//! with the reason.
//!
//! [`mod@keepalived`] reads keepalived.conf(5), [`mod@ipvsadm`] the rules that `ipvsadm -Sn` saves; [`services`] makes rows of what
//! both say of IPVS.

mod ipvsadm;
mod keepalived;
mod services;
#[cfg(test)]
mod tests;

use crate::declared::Document;

pub(crate) use ipvsadm::ipvsadm;
pub(crate) use keepalived::keepalived;

/// What has become of a file.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    pub(crate) document: Document,
    /// What is left out or works otherwise: the line, and why.
    pub(crate) notes: Vec<(u64, String)>,
}
