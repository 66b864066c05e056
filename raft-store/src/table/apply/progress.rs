//! What time brings to backends: drained ones lose their flows, and shares rise.

use super::super::{
    Table,
    backend::{ALL, AdminState, Backend, Share},
    reply::Effect,
};

impl Table {
    /// What of it still holds: a backend that is another one by now, or is drained no longer, is left alone.
    pub(in crate::table) fn progress(&mut self, drained: &[u64], shares: &[Share]) -> Effect {
        let mut effect = Effect::Unchanged;
        for id in drained {
            if let Some(backend) = self.backend_with_id(*id).filter(may_end) {
                self.put_backend(Backend { is_drained: true, ..backend.clone() });
                effect = Effect::Changed;
            }
        }
        for share in shares {
            let rises =
                |backend: &&Backend| (backend.eighths + 1..=ALL).contains(&share.eighths) && backend.eighths > 0;
            if let Some(backend) = self.backend_with_id(share.backend).filter(rises) {
                let eighths = if share.eighths == ALL { 0 } else { share.eighths };
                self.put_backend(Backend { eighths, ..backend.clone() });
                effect = Effect::Changed;
            }
        }
        effect
    }

    /// A backend goes from one state to another, by the clock of whoever asked for it.
    pub(in crate::table) fn turn(&self, backend: &mut Backend, before: Option<AdminState>, stamp_ms: u64) {
        let state = backend.settings.state;
        if before == Some(state) || !self.rules().backends_take_time {
            return;
        }
        backend.is_drained = false;
        backend.draining_since_ms = if state == AdminState::Drain { stamp_ms } else { 0 };
        if state == AdminState::Active {
            self.begin_to_rise(backend);
        }
    }

    /// It takes flows from now on, and its whole share later, where its service says so.
    pub(in crate::table) fn begin_to_rise(&self, backend: &mut Backend) {
        let service = self.services.get(&backend.settings.service);
        let rises = self.rules().backends_take_time && service.is_some_and(|service| service.settings.slow_start_s > 0);
        backend.eighths = u32::from(rises);
    }
}

fn may_end(backend: &&Backend) -> bool {
    backend.settings.state == AdminState::Drain && !backend.is_drained
}
