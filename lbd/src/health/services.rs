//! Services that nobody serves. Pure.

use lb_raft_store::table::{AdminState, Backend, Health, Table};

/// The services of which no backend takes new flows, though they have some, and why: for people.
pub(crate) fn unserved(table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for service in table.services() {
        let name = &service.settings.name;
        let is_served = table.backends_of(name).any(|backend| table.takes_new_flows(backend));
        if !is_served && table.backends_of(name).next().is_some() {
            let why: Vec<String> = REASONS
                .iter()
                .map(|reason| (reason, table.backends_of(name).filter(|backend| reason_of(table, backend) == *reason)))
                .map(|(reason, of)| (reason, of.count()))
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| format!("{count} {reason}"))
                .collect();
            problems.push(format!("service {name} has no backend that takes new flows: {}", why.join(", ")));
        }
    }
    problems
}

const REASONS: [&str; 4] = ["unreachable", "down", "draining", "of weight 0"];

/// What an operator has said comes before what was found.
fn reason_of(table: &Table, backend: &Backend) -> &'static str {
    let health = table.verdict(backend).map(|verdict| verdict.health);
    match (backend.settings.state, health) {
        (AdminState::Down, _) => "down",
        (AdminState::Drain, _) => "draining",
        (AdminState::Active, Some(Health::Unreachable)) => "unreachable",
        (AdminState::Active, _) => "of weight 0",
    }
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::{BackendPatch, BackendSettings, Body, MacAddr, Mutation, Name};

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
    }
}
