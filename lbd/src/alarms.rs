//! What is wrong with this node, as far as it knows itself: each task says what it sees, the log has a line when it begins
//! and when it ends, and `lbctl status` leads with it while it lasts.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use lb_raft_store::table::NodeId;

use crate::events::{Events, Kind, News};

/// What can be wrong. Those of the same name come and go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// This node cannot own VIPs: it does not do its work.
    Unfit,
    /// The lease has run out.
    Lease,
    /// A majority of the voters does not answer.
    Quorum,
    /// Another node does not answer heartbeats.
    SilentPeer(NodeId),
    /// One is farther away than the timing bears.
    Distance(NodeId),
    /// The table has another address of this node than its configuration.
    Address,
    /// Another node takes this one for somebody else.
    Identity,
    /// A VIP is configured on an interface of this node.
    OwnVip(IpAddr),
    /// Another station claims a VIP.
    Contested(IpAddr),
    /// Little space is left for the store.
    Space,
    /// Flows find no room.
    FlowTable,
    /// Frames find none.
    Ring,
    /// Checks would cost too much, and are made less often.
    Checks,
    /// New files of the credentials are not taken.
    Credentials,
    /// The certificate ends soon, or has.
    Expiry,
}

impl Alarm {
    /// What an event of it is about.
    fn kind(self) -> Kind {
        match self {
            Self::Unfit | Self::SilentPeer(_) | Self::Distance(_) | Self::Address | Self::Identity => Kind::Node,
            Self::Lease => Kind::Lease,
            Self::Quorum => Kind::Leader,
            Self::OwnVip(_) | Self::Contested(_) => Kind::Conflict,
            Self::Space | Self::FlowTable | Self::Ring => Kind::Kernel,
            Self::Checks => Kind::Health,
            Self::Credentials | Self::Expiry => Kind::Certificate,
        }
    }
}

/// All that is wrong now. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alarms {
    all: Arc<Mutex<BTreeMap<Alarm, String>>>,
    events: Events,
}

impl Alarms {
    /// None yet; each that comes and goes is an event.
    pub(crate) fn new(events: Events) -> Self {
        Self { all: Arc::default(), events }
    }

    /// This is wrong from now on, or nothing of the kind.
    pub(crate) fn set(&self, alarm: Alarm, problem: Option<String>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => {
                // What only differs in a number is told once; the number is shown.
                if all.insert(alarm, problem.clone()).is_none() {
                    tracing::warn!("{problem}");
                    self.events.note(News::of_node(alarm.kind(), true, problem));
                }
            }
            None => {
                if let Some(problem) = all.remove(&alarm) {
                    let reason = format!("no longer so: {problem}");
                    tracing::info!("{reason}");
                    self.events.note(News::of_node(alarm.kind(), false, reason));
                }
            }
        }
    }

    /// Of several of a kind, these are wrong from now on, and no others.
    pub(crate) fn set_each<T: Copy + Ord>(
        &self,
        kind: impl Fn(T) -> Alarm,
        all_of: impl Fn(Alarm) -> Option<T>,
        problems: &BTreeMap<T, String>,
    ) {
        let known: Vec<T> = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.keys().filter_map(|alarm| all_of(*alarm)).collect()
        };
        for of in known.into_iter().filter(|of| !problems.contains_key(of)) {
            self.set(kind(of), None);
        }
        for (of, problem) in problems {
            self.set(kind(*of), Some(problem.clone()));
        }
    }

    /// What is wrong, the worst first.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// All that is wrong, by its kind.
    pub(crate) fn all(&self) -> Vec<(Alarm, String)> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(alarm, problem)| (*alarm, problem.clone())).collect()
    }

    /// What is wrong of one kind.
    pub(crate) fn of(&self, alarm: Alarm) -> Option<String> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).get(&alarm).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_shown_while_it_lasts() {
        let alarms = Alarms::default();
        alarms.set(Alarm::Space, Some("5 % is left".into()));
        alarms.set(Alarm::Unfit, Some("no guard".into()));
        alarms.set(Alarm::Space, Some("4 % is left".into()));
        assert_eq!(alarms.problems(), ["no guard", "4 % is left"]);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let vip = |alarm| match alarm {
            Alarm::OwnVip(vip) => Some(vip),
            _ => None,
        };
        let set = |vips: &[IpAddr]| {
            let problems = vips.iter().map(|vip| (*vip, vip.to_string())).collect();
            alarms.set_each(Alarm::OwnVip, vip, &problems);
        };
        set(&[one, other]);
        set(&[other]);
        alarms.set(Alarm::Space, None);
        assert_eq!(alarms.problems(), ["no guard", "192.0.2.2"]);
        assert_eq!(alarms.of(Alarm::OwnVip(one)), None);
    }
}
