//! Settings of the whole cluster, as names and values.

use std::collections::HashMap;

use lb_raft_store::table::{Rejection, Timing};
use tonic::Status;

use super::status;

const NAMES: [&str; 4] = ["timing", "heartbeat_ms", "lease_ms", "withdraw_ms"];

/// All settings as they are.
pub(super) fn shown(timing: Timing) -> HashMap<String, String> {
    let Timing { heartbeat_ms, lease_ms, withdraw_ms } = timing;
    let values = [
        timing.name().unwrap_or("custom").to_owned(),
        heartbeat_ms.to_string(),
        lease_ms.to_string(),
        withdraw_ms.to_string(),
    ];
    NAMES.into_iter().map(ToOwned::to_owned).zip(values).collect()
}

/// The present ones with changes: first a named timing, then single durations. Whether they fit together is
/// for the table to say.
pub(super) fn merged(timing: Timing, changes: &HashMap<String, String>) -> Result<Timing, Status> {
    let invalid = |name: &str, problem: String| Err(status::rejected(&Rejection::invalid(name, problem)));
    if changes.is_empty() {
        return invalid("settings", format!("nothing to change; there are: {}", NAMES.join(", ")));
    }
    if let Some(name) = changes.keys().find(|name| !NAMES.contains(&name.as_str())) {
        return invalid(name, format!("there is no such setting; there are: {}", NAMES.join(", ")));
    }
    let mut merged = match changes.get("timing").map(String::as_str) {
        None => timing,
        Some(name) => match Timing::named(name) {
            Some(timing) => timing,
            None => return invalid("timing", format!("{name:?} is none of default, relaxed, fast")),
        },
    };
    let fields = [&mut merged.heartbeat_ms, &mut merged.lease_ms, &mut merged.withdraw_ms];
    for (name, field) in NAMES[1..].iter().zip(fields) {
        if let Some(text) = changes.get(*name) {
            match text.parse() {
                Ok(value) => *field = value,
                Err(_) => return invalid(name, format!("{text:?} is no number of milliseconds")),
            }
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set_and_every_fault_names_its_setting() {
        let all = shown(Timing::RELAXED);
        assert_eq!(all["timing"], "relaxed");
        assert_eq!(merged(Timing::FAST, &all).unwrap(), Timing::RELAXED);
        let one = |name: &str, value: &str| merged(Timing::DEFAULT, &HashMap::from([(name.into(), value.into())]));
        assert_eq!(one("heartbeat_ms", "10").unwrap(), Timing { heartbeat_ms: 10, ..Timing::DEFAULT });
        for (name, value) in [("timing", "custom"), ("lease_ms", "soon"), ("colour", "blue")] {
            let error = one(name, value).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(name), "{error}");
        }
        assert!(merged(Timing::DEFAULT, &HashMap::new()).is_err());
    }
}
