//! What nodes say to each other: the names under which the records of it are known here.

pub(crate) use crate::codec::record::{
    AddNode, Description, Join, PeerReply, PeerRequest, Reach, Reached, Refused, RefusedKind, Remove, Standing,
    StandingAnswer, Unreached, peer_reply::Answer, peer_request::Request,
};

impl Answer {
    pub(crate) fn refused(kind: RefusedKind, message: impl ToString) -> Self {
        Self::Refused(Refused { kind: kind.into(), message: message.to_string() })
    }
}
