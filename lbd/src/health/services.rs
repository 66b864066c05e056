//! Services that nobody serves. Pure.

use lb_raft_store::table::{AdminState, Backend, Health, Service, Table};

/// The services of which no backend takes new flows, or fewer than there shall be, though they have some, and why: for people.
pub(crate) fn unserved(table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for service in table.services() {
        let name = &service.settings.name;
        let (takers, minimum) = (table.takers(service), service.settings.min_healthy as usize);
        let what = if table.backends_of(name).next().is_none() {
            continue;
        } else if takers.is_open {
            "has no backend of which anything good is known, and gives new flows to all".to_owned()
        } else if takers.backends.is_empty() {
            "has no backend that takes new flows".to_owned()
        } else if takers.first_tier < minimum || takers.first_tier == 0 {
            let (first, second) = (takers.first_tier, takers.backends.len() - takers.first_tier);
            format!("has {first} backends of tier 1 that take new flows, not {}; {second} of tier 2 do", minimum.max(1))
        } else {
            continue;
        };
        let why = reasons(table, service);
        problems.push(format!("service {name} {what}{}", if why.is_empty() { why } else { format!(": {why}") }));
    }
    problems
}

/// Why backends take no new flows, and how many.
fn reasons(table: &Table, service: &Service) -> String {
    let count = |reason: &str| {
        table.backends_of(&service.settings.name).filter(|backend| reason_of(table, backend) == Some(reason)).count()
    };
    let counted = REASONS.iter().map(|reason| (count(reason), reason)).filter(|(count, _)| *count > 0);
    counted.map(|(count, reason)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}

const REASONS: [&str; 5] = ["unreachable", "unhealthy", "down", "draining", "of weight 0"];

/// What an operator has said comes before what was found.
fn reason_of(table: &Table, backend: &Backend) -> Option<&'static str> {
    let health = table.verdict(backend).map(|verdict| verdict.health);
    match (backend.settings.state, health) {
        (AdminState::Down, _) => Some("down"),
        (AdminState::Drain, _) => Some("draining"),
        (AdminState::Active, Some(Health::Unreachable)) => Some("unreachable"),
        (AdminState::Active, Some(Health::Unhealthy)) => Some("unhealthy"),
        (AdminState::Active, _) if backend.settings.weight.get() == 0 => Some("of weight 0"),
        (AdminState::Active, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::{BackendPatch, BackendSettings, Body, MacAddr, Mutation, Name, ServicePatch, Tier};

    use super::*;
    use crate::health::verdict::tests::table;

    #[test]
    fn a_service_without_a_backend_that_takes_new_flows_is_told_and_why() {
        // The only backend of service a is unreachable, that of b is not.
        let (mut table, _) = table();
        assert_eq!(unserved(&table), ["service a has no backend that takes new flows: 1 unreachable"]);
        let mut change = |index: u64, change: Mutation| {
            table.apply(index, &Body::Mutate(vec![change]).into()).reply.result.unwrap();
            unserved(&table)
        };
        let name = |text: &str| text.parse::<Name>().unwrap();
        let settings = |last: u8| BackendSettings {
            mac: Some(MacAddr::try_from([2, 0, 0, 0, 0, last]).unwrap()),
            ..BackendSettings::new(name("a"), [192, 168, 2, last].into())
        };
        let down = BackendSettings { state: AdminState::Down, ..settings(51) };
        let told = change(21, Mutation::CreateBackend(down));
        assert_eq!(told, ["service a has no backend that takes new flows: 1 unreachable, 1 down"]);
        assert_eq!(change(22, Mutation::CreateBackend(settings(52))), [] as [&str; 0]);
        let weight = Some(0.try_into().unwrap());
        let patch = BackendPatch { weight, ..BackendPatch::of(name("a"), [192, 168, 2, 52].into()) };
        let told = change(23, Mutation::UpdateBackend(patch));
        assert_eq!(told, ["service a has no backend that takes new flows: 1 unreachable, 1 down, 1 of weight 0"]);
        let second = BackendSettings { tier: Tier::Second, ..settings(53) };
        let told = change(24, Mutation::CreateBackend(second));
        let few = "service a has 0 backends of tier 1 that take new flows, not 1; 1 of tier 2 do: 1 unreachable, 1 down, 1 of weight 0";
        assert_eq!(told, [few]);
        let minimum = ServicePatch { min_healthy: Some(2), ..ServicePatch::of(name("b")) };
        let told = change(25, Mutation::UpdateService(minimum));
        assert_eq!(told[1..], ["service b has 1 backends of tier 1 that take new flows, not 2; 0 of tier 2 do"]);
        let out =
            BackendPatch { state: Some(AdminState::Down), ..BackendPatch::of(name("a"), [192, 168, 2, 53].into()) };
        change(26, Mutation::UpdateBackend(out));
        let open = ServicePatch { fails_open: Some(true), ..ServicePatch::of(name("a")) };
        let told = change(27, Mutation::UpdateService(open));
        assert!(
            told[0]
                .starts_with("service a has no backend of which anything good is known, and gives new flows to all: ")
        );
    }
}
