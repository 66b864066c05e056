//! The rules of the cluster's settings.

use super::super::{Table, rejection::Rejection, reply::Effect, settings::ClusterSettings};

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
        self.settings = self.settings.at_level(self.feature_level, level);
        self.feature_level = level;
        Effect::Changed
    }
}
