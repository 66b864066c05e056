//! Segments of which more is known than the nodes find out themselves.

use std::net::IpAddr;

use super::{
    patch::patches,
    types::{Cidr, Revision},
};
use crate::codec::{recorded, recorded_with_settings};

/// What an operator says of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSettings {
    /// Which it is.
    pub network: Cidr,
    /// A router there. A node that alone does not hear it is cut off, and owns nothing.
    pub gateway: IpAddr,
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// What the operator said.
    pub settings: SegmentSettings,
    /// The revision of its last change.
    pub revision: Revision,
}

/// A change of a segment's settings; `None` leaves a value as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the settings that they change")]
pub struct SegmentPatch {
    pub network: Cidr,
    pub gateway: Option<IpAddr>,
}

recorded!(SegmentSettings => Segment { network, gateway });
recorded_with_settings!(Segment => Segment { revision });
patches!(SegmentPatch of SegmentSettings by { network: Cidr } { gateway });
recorded!(SegmentPatch => SegmentPatch { network, gateway });
