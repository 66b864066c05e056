//! What a caller says with a change beside the change itself: the request's id and the revision that it has seen.

use std::hash::Hasher as _;

use lb_proto::v1;
use lb_raft_store::table::{Expected, RequestId};
use prost::Message;
use siphasher::sip::SipHasher13;
use tonic::Status;

use super::status;

/// The guards of one change.
pub(super) struct Guard {
    /// The caller's, or one of our own: the node repeats a proposal whose fate it does not know.
    pub(super) request: RequestId,
    pub(super) expected_revision: u64,
    pub(super) expected_of: Expected,
    /// Of all that the caller has sent, but for the id.
    pub(super) asked: u64,
}

impl Guard {
    fn new(request_id: &str, expected_revision: u64, expected_of: Expected, asked: u64) -> Result<Self, Status> {
        let given = RequestId::parse(request_id).map_err(|rejection| status::rejected(&rejection))?;
        let request = given.unwrap_or_else(|| RequestId::own(uuid::Uuid::now_v7()));
        Ok(Self { request, expected_revision, expected_of, asked })
    }
}

/// A message that asks for a change.
pub(super) trait Guarded {
    fn guard(&self) -> Result<Guard, Status>;
}

/// What is told apart by a request's id: the kind of the message and its content. Never 0, which stands for none.
pub(super) fn fingerprint(kind: &str, content: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(kind.as_bytes());
    hasher.write_u8(0);
    hasher.write(content);
    hasher.finish().max(1)
}

macro_rules! guarded {
    ($($message:ident by $of:ident,)+) => {
        $(impl Guarded for v1::$message {
            fn guard(&self) -> Result<Guard, Status> {
                let sent = Self { request_id: String::new(), ..self.clone() };
                let asked = fingerprint(stringify!($message), &sent.encode_to_vec());
                Guard::new(&self.request_id, self.expected_revision, Expected::$of, asked)
            }
        })+
    };
}

guarded! {
    CreateVipRequest by Object,
    UpdateVipRequest by Object,
    DeleteVipRequest by Object,
    CreateServiceRequest by Object,
    UpdateServiceRequest by Object,
    DeleteServiceRequest by Object,
    CreateBackendRequest by Object,
    UpdateBackendRequest by Object,
    DeleteBackendRequest by Object,
    CreateSegmentRequest by Object,
    UpdateSegmentRequest by Object,
    DeleteSegmentRequest by Object,
    MoveVipRequest by Object,
    ApplyRequest by Configuration,
    UpdateSettingsRequest by Configuration,
    AddNodeRequest by Configuration,
    RemoveNodeRequest by Configuration,
    DrainNodeRequest by Configuration,
    UndrainNodeRequest by Configuration,
    SetNodeAddressRequest by Configuration,
    FenceNodeRequest by Configuration,
    RebalanceRequest by Configuration,
}

/// Of a snapshot that is restored: worked out for a revision of the whole table.
pub(super) fn of_snapshot(request_id: &str, worked_out_for: u64, content: &[u8]) -> Result<Guard, Status> {
    Guard::new(request_id, worked_out_for, Expected::Table, fingerprint("RestoreSnapshot", content))
}
