//! One thing that was found.

use lb_proto::v1::{self, Severity};

/// All kinds of findings. Their names stay; docs/doctor.md has a section for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Id {
    AddressDiffers,
    BackendAnswersArp,
    BackendAsksWithVip,
    BackendMacChanges,
    BackendOffSegment,
    BackendReturnsPackets,
    BackendUnresolved,
    Certificate,
    ChecksStretched,
    ClockRate,
    DiskLatency,
    DiskSpace,
    DuplicateVip,
    FlowTableSmall,
    ForwardingWithoutGuard,
    HeartbeatsBlocked,
    InterfaceWithoutAddress,
    LargeReceiveOffload,
    Lease,
    MaglevTableSmall,
    MtuDiffers,
    NodeFar,
    NodeSilent,
    Quorum,
    RaftBehind,
    ReversePathFilter,
    RingFull,
    Scheduling,
    SegmentCutOff,
    ServiceUnserved,
    SharedMac,
    SoftwareSegmentation,
    StalePort,
    Unfit,
    Unowned,
    VersionsDiffer,
    VipMissing,
    VipOnInterface,
}

impl Id {
    #[cfg(test)]
    pub(super) const ALL: [Self; 38] = [
        Self::AddressDiffers,
        Self::BackendAnswersArp,
        Self::BackendAsksWithVip,
        Self::BackendMacChanges,
        Self::BackendOffSegment,
        Self::BackendReturnsPackets,
        Self::BackendUnresolved,
        Self::Certificate,
        Self::ChecksStretched,
        Self::ClockRate,
        Self::DiskLatency,
        Self::DiskSpace,
        Self::DuplicateVip,
        Self::FlowTableSmall,
        Self::ForwardingWithoutGuard,
        Self::HeartbeatsBlocked,
        Self::InterfaceWithoutAddress,
        Self::LargeReceiveOffload,
        Self::Lease,
        Self::MaglevTableSmall,
        Self::MtuDiffers,
        Self::NodeFar,
        Self::NodeSilent,
        Self::Quorum,
        Self::RaftBehind,
        Self::ReversePathFilter,
        Self::RingFull,
        Self::Scheduling,
        Self::SegmentCutOff,
        Self::ServiceUnserved,
        Self::SharedMac,
        Self::SoftwareSegmentation,
        Self::StalePort,
        Self::Unfit,
        Self::Unowned,
        Self::VersionsDiffer,
        Self::VipMissing,
        Self::VipOnInterface,
    ];

    /// Its name, which is that of its section in docs/doctor.md, and how bad it is.
    fn of(self) -> (&'static str, Severity) {
        use Severity::{Error, Info, Warning};
        match self {
            Self::AddressDiffers => ("address-differs", Error),
            Self::BackendAnswersArp => ("backend-answers-arp", Error),
            Self::BackendAsksWithVip => ("backend-asks-with-vip", Error),
            Self::BackendMacChanges => ("backend-mac-changes", Warning),
            Self::BackendOffSegment => ("backend-off-segment", Error),
            Self::BackendReturnsPackets => ("backend-returns-packets", Error),
            Self::BackendUnresolved => ("backend-unresolved", Warning),
            Self::Certificate => ("certificate", Error),
            Self::ChecksStretched => ("checks-stretched", Warning),
            Self::ClockRate => ("clock-rate", Warning),
            Self::DiskLatency => ("disk-latency", Warning),
            Self::DiskSpace => ("disk-space", Error),
            Self::DuplicateVip => ("duplicate-vip", Error),
            Self::FlowTableSmall => ("flow-table-small", Warning),
            Self::ForwardingWithoutGuard => ("forwarding-without-guard", Error),
            Self::HeartbeatsBlocked => ("heartbeats-blocked", Error),
            Self::InterfaceWithoutAddress => ("interface-without-address", Warning),
            Self::LargeReceiveOffload => ("large-receive-offload", Error),
            Self::Lease => ("lease", Error),
            Self::MaglevTableSmall => ("maglev-table-small", Warning),
            Self::MtuDiffers => ("mtu-differs", Warning),
            Self::NodeFar => ("node-far", Warning),
            Self::NodeSilent => ("node-silent", Error),
            Self::Quorum => ("quorum", Error),
            Self::RaftBehind => ("raft-behind", Warning),
            Self::ReversePathFilter => ("reverse-path-filter", Error),
            Self::RingFull => ("ring-full", Error),
            Self::Scheduling => ("scheduling", Warning),
            Self::SegmentCutOff => ("segment-cut-off", Error),
            Self::ServiceUnserved => ("service-unserved", Error),
            Self::SharedMac => ("shared-mac", Info),
            Self::SoftwareSegmentation => ("software-segmentation", Info),
            Self::StalePort => ("stale-port", Warning),
            Self::Unfit => ("unfit", Error),
            Self::Unowned => ("unowned", Error),
            Self::VersionsDiffer => ("versions-differ", Warning),
            Self::VipMissing => ("vip-missing", Error),
            Self::VipOnInterface => ("vip-on-interface", Error),
        }
    }
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
