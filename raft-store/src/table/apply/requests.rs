//! Requests that were seen before.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::super::{
    Table,
    command::{Command, Expected, encode_command},
    rejection::Rejection,
    reply::{Effect, Reply},
    requests::{Answered, Kept, RequestId},
};

impl Table {
    /// What a request was answered that was seen before; `fingerprint`: of what it asks for.
    pub fn answered(&self, request: &RequestId, fingerprint: u64) -> Option<Reply> {
        let answered = self.requests.get(request)?;
        let result = if answered.fingerprint == fingerprint {
            Ok(answered.effect)
        } else {
            Err(Rejection::invalid("request_id", "it was used for another request: choose a new one"))
        };
        Some(Reply { revision: answered.revision, result })
    }

    /// The reply to a request id that was seen before, or that may have been.
    pub(in crate::table) fn already_answered(&self, command: &Command) -> Option<Reply> {
        let request = command.request.as_ref()?;
        self.answered(request, fingerprint(command)).or_else(|| {
            let made_ms = request.made_ms().filter(|made_ms| *made_ms <= self.horizon_ms)?;
            let age_s = self.clock_ms.saturating_sub(made_ms) / 1000;
            let too_old = Rejection::precondition(
                "request_id",
                format!(
                    "it was made {age_s} s ago, and it is not remembered any more whether it was answered: look whether the \
                     change is made, then ask again with a new id"
                ),
            );
            Some(Reply { revision: self.revision, result: Err(too_old) })
        })
    }

    pub(in crate::table) fn remember(&mut self, index: u64, command: &Command, effect: Effect) {
        let has_time = self.rules().requests_have_time;
        if has_time {
            self.clock_ms = self.clock_ms.max(command.stamp_ms);
        }
        let Some(request) = &command.request else { return };
        let kept = if has_time { request.kept(command.stamp_ms) } else { Kept::ByCount };
        let answered = Answered {
            index,
            fingerprint: fingerprint(command),
            effect,
            revision: self.revision,
            clock_ms: self.clock_ms,
            kept,
        };
        self.requests.insert_mut(request.clone(), answered);
        self.request_order.insert_mut((kept, index), request.clone());
        self.request_counts[kept as usize] += 1;
        for kept in [Kept::ByCount, Kept::ByTime, Kept::Briefly] {
            while self.forget_oldest(kept) {}
        }
    }

    /// Forgets the request that was remembered first of its kind, if its time is over or there are too many. Whether it did.
    fn forget_oldest(&mut self, kept: Kept) -> bool {
        let room = if kept == Kept::Briefly { self.rules().own_requests } else { self.rules().requests };
        let of_kind = self.request_order.range((kept, 0)..).next();
        let Some(((_, index), request)) = of_kind.filter(|((of, _), _)| *of == kept) else { return false };
        let (index, request) = (*index, request.clone());
        let answered_ms = self.requests.get(&request).map_or(0, |answered| answered.clock_ms);
        let is_over = self.clock_ms.saturating_sub(answered_ms) > kept.window_ms();
        if !is_over && self.request_counts[kept as usize] <= room {
            return false;
        }
        if kept == Kept::ByTime {
            self.horizon_ms = self.horizon_ms.max(request.made_ms().unwrap_or_default());
        }
        self.request_order.remove_mut(&(kept, index));
        self.requests.remove_mut(&request);
        self.request_counts[kept as usize] -= 1;
        true
    }
}

/// Of what the command asks for; two commands under one request id must agree in it.
fn fingerprint(command: &Command) -> u64 {
    if command.asked != 0 {
        return command.asked;
    }
    let asked = Command { stamp_ms: 0, principal: None, expected_of: Expected::Table, ..command.clone() };
    let mut hasher = SipHasher13::new();
    hasher.write(&encode_command(&asked));
    hasher.finish()
}
