//! The rules of the cluster's settings.

use super::super::{
    Table,
    rejection::Rejection,
    reply::Effect,
    settings::{ClusterSettings, FlowTimeouts},
};

/// From which [`FlowTimeouts::FIN_S`] holds.
const FIN_LEVEL: u32 = 5;

impl Table {
    pub(in crate::table) fn update_settings(&mut self, settings: ClusterSettings) -> Result<Effect, Rejection> {
        if let Some(problem) = settings.timing.problem() {
            return Err(Rejection::invalid("timing", problem));
        }
        if let Some((name, problem)) = settings.flow_timeouts.problem() {
            return Err(Rejection::invalid(name, problem));
        }
        if self.settings == settings {
            return Ok(Effect::Unchanged);
        }
        self.settings = settings;
        self.longest_withdraw_ms = self.longest_withdraw_ms.max(settings.timing.withdraw_ms);
        Ok(Effect::Changed)
    }

    pub(in crate::table) fn raise_feature_level(&mut self, level: u32) -> Effect {
        let known = self.nodes().map(|node| node.feature_level).min().unwrap_or(0);
        if level <= self.feature_level || level > known {
            return Effect::Unchanged;
        }
        // What nobody has chosen becomes what is chosen now for all.
        let fin_s = &mut self.settings.flow_timeouts.fin_s;
        if self.feature_level < FIN_LEVEL && level >= FIN_LEVEL && *fin_s == FlowTimeouts::default().fin_s {
            *fin_s = FlowTimeouts::FIN_S;
        }
        self.feature_level = level;
        Effect::Changed
    }
}
