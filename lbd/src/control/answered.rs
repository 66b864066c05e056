//! Tells the log for which VIPs this node answers, as that changes.

use std::{collections::BTreeMap, net::IpAddr};

use lb_raft_store::table::Epoch;

/// VIPs that are named in one line; of more only their number is told.
const NAMED: usize = 8;

/// The VIPs for which this node answers, and their grants.
#[derive(Debug, Default)]
pub(super) struct Answered {
    vips: BTreeMap<IpAddr, Epoch>,
}

impl Answered {
    /// The dataplane answers for these now.
    pub(super) fn tell(&mut self, now: &BTreeMap<IpAddr, Epoch>) {
        let before = std::mem::replace(&mut self.vips, now.clone());
        let given_up = named(&before, &self.vips);
        if !given_up.is_empty() {
            tracing::info!(vips = given_up, "this node no longer answers for VIPs");
        }
        let taken_on = named(&self.vips, &before);
        if !taken_on.is_empty() {
            tracing::info!(vips = taken_on, "this node answers for VIPs");
        }
    }
}

/// The grants that are in `these` and not in `those`.
fn named(these: &BTreeMap<IpAddr, Epoch>, those: &BTreeMap<IpAddr, Epoch>) -> String {
    let only: Vec<_> = these.iter().filter(|(vip, epoch)| those.get(vip) != Some(epoch)).collect();
    let mut text: Vec<String> =
        only.iter().take(NAMED).map(|(vip, epoch)| format!("{vip} (epoch {})", epoch.0)).collect();
    if only.len() > NAMED {
        text.push(format!("and {} more", only.len() - NAMED));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(of: impl IntoIterator<Item = (u8, u64)>) -> BTreeMap<IpAddr, Epoch> {
        of.into_iter().map(|(last, epoch)| (IpAddr::from([192, 0, 2, last]), Epoch(epoch))).collect()
    }

    #[test]
    fn what_changed_is_named_and_many_are_counted() {
        assert_eq!(named(&grants([(1, 5), (2, 6)]), &grants([(1, 5), (2, 4)])), "192.0.2.2 (epoch 6)");
        assert_eq!(named(&grants([(1, 5)]), &grants([(1, 5)])), "");
        let many = named(&grants((1..=20).map(|last| (last, 7))), &grants([]));
        assert!(many.ends_with("192.0.2.8 (epoch 7), and 12 more"), "{many}");
    }
}
