//! Requests that were seen before.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::super::{
    Table,
    command::{Command, encode_command},
    rejection::Rejection,
    reply::{Effect, Reply},
    requests::Answered,
};

impl Table {
    /// The reply to a request id that was seen before.
    pub(in crate::table) fn already_answered(&self, command: &Command) -> Option<Reply> {
        let answered = self.requests.get(command.request.as_ref()?)?;
        let result = if answered.fingerprint == fingerprint(command) {
            Ok(answered.effect)
        } else {
            Err(Rejection::invalid("request_id", "it was used for another request: choose a new one"))
        };
        Some(Reply { revision: answered.revision, result })
    }

    pub(in crate::table) fn remember(&mut self, index: u64, command: &Command, effect: Effect) {
        let Some(request) = &command.request else { return };
        let answered = Answered { index, fingerprint: fingerprint(command), effect, revision: self.revision };
        self.requests.insert_mut(request.clone(), answered);
        self.request_order.insert_mut(index, request.clone());
        if self.requests.size() > self.rules().requests
            && let Some((oldest, request)) = self.request_order.first().map(|(i, r)| (*i, r.clone()))
        {
            self.request_order.remove_mut(&oldest);
            self.requests.remove_mut(&request);
        }
    }
}

/// Of what the command asks for; two commands under one request id must agree in it.
fn fingerprint(command: &Command) -> u64 {
    let asked = Command { stamp_ms: 0, principal: None, ..command.clone() };
    let mut hasher = SipHasher13::new();
    hasher.write(&encode_command(&asked));
    hasher.finish()
}
