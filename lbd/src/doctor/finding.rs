//! One thing that was found.

use lb_proto::v1::{self, Severity};

/// All kinds of findings: how each is called, which is the name of its section in docs/doctor.md, and how bad it is.
macro_rules! ids {
    ($($id:ident = $name:literal, $severity:ident;)+) => {
        /// A kind of finding. The names stay.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Id {
            $($id,)+
        }

        impl Id {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$id,)+];

            fn of(self) -> (&'static str, Severity) {
                match self {
                    $(Self::$id => ($name, Severity::$severity),)+
                }
            }
        }
    };
}

ids! {
    AddressDiffers = "address-differs", Error;
    BackendAnswersArp = "backend-answers-arp", Error;
    BackendAsksWithVip = "backend-asks-with-vip", Error;
    BackendMacChanges = "backend-mac-changes", Warning;
    BackendOffSegment = "backend-off-segment", Error;
    BackendReturnsPackets = "backend-returns-packets", Error;
    BackendUnresolved = "backend-unresolved", Warning;
    Certificate = "certificate", Error;
    ChecksStretched = "checks-stretched", Warning;
    ClockRate = "clock-rate", Warning;
    DiskLatency = "disk-latency", Warning;
    DiskSpace = "disk-space", Error;
    DuplicateVip = "duplicate-vip", Error;
    FlowTableSmall = "flow-table-small", Warning;
    ForwardingWithoutGuard = "forwarding-without-guard", Error;
    HeartbeatsBlocked = "heartbeats-blocked", Error;
    InterfaceWithoutAddress = "interface-without-address", Warning;
    LargeReceiveOffload = "large-receive-offload", Error;
    Lease = "lease", Error;
    MaglevTableSmall = "maglev-table-small", Warning;
    MtuDiffers = "mtu-differs", Warning;
    NodeFar = "node-far", Warning;
    NodeSilent = "node-silent", Error;
    NotAccelerated = "not-accelerated", Warning;
    Quorum = "quorum", Error;
    RaftBehind = "raft-behind", Warning;
    ReversePathFilter = "reverse-path-filter", Error;
    RingFull = "ring-full", Error;
    Scheduling = "scheduling", Warning;
    SegmentCutOff = "segment-cut-off", Error;
    ServiceUnserved = "service-unserved", Error;
    SharedMac = "shared-mac", Info;
    SoftwareSegmentation = "software-segmentation", Info;
    StalePort = "stale-port", Warning;
    Unfit = "unfit", Error;
    Unowned = "unowned", Error;
    VersionsDiffer = "versions-differ", Warning;
    VipMissing = "vip-missing", Error;
    VipOnInterface = "vip-on-interface", Error;
}

/// What was found, before it is known by whom.
pub(super) fn finding(
    id: Id,
    object: impl Into<String>,
    explanation: impl Into<String>,
    mend: impl Into<String>,
) -> v1::Finding {
    let (name, severity) = id.of();
    v1::Finding {
        id: name.to_owned(),
        severity: severity.into(),
        node: String::new(),
        object: object.into(),
        explanation: explanation.into(),
        mend: mend.into(),
        documents: format!("docs/doctor.md#{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_section_in_the_documents() {
        let text = include_str!("../../../docs/doctor.md");
        let sections: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let names: Vec<&str> = Id::ALL.iter().map(|id| id.of().0).collect();
        assert!(names.is_sorted());
        assert_eq!(
            sections.into_iter().filter(|section| section.contains('-') || names.contains(section)).collect::<Vec<_>>(),
            names
        );
    }
}
