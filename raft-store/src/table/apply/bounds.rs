//! How much a table may hold.

use super::super::{
    Table,
    rejection::Rejection,
    rules::{ELEVENTH, FIFTH, FIRST, NINTH, Rules, THIRD},
};

impl Table {
    /// What holds at the table's feature level.
    pub fn rules(&self) -> &'static Rules {
        // A new rule comes with a new level, and with an arm of its own.
        match self.feature_level() {
            ..3 => &FIRST,
            3..5 => &THIRD,
            5..=8 => &FIFTH,
            9..=10 => &NINTH,
            11.. => &ELEVENTH,
        }
    }

    /// Whether the table holds no more than it may, after changes that add to it.
    pub(in crate::table) fn check_bounds(&self) -> Result<(), Rejection> {
        let rules = self.rules();
        bounded("VIPs", self.vips.size(), rules.vips)?;
        bounded("services", self.services.size(), rules.services)?;
        bounded("backends", self.backends.size(), rules.backends)?;
        bounded("segments", self.segments.size(), rules.segments)?;
        bounded("nodes", self.nodes.size(), rules.nodes)
    }
}

fn bounded(what: &str, size: usize, bound: usize) -> Result<(), Rejection> {
    if size <= bound {
        Ok(())
    } else {
        Err(Rejection::exhausted(what, format!("the table holds {bound} {what}, as many as it takes")))
    }
}
