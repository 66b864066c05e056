//! What the readings of a node mean. Pure.

mod backends;
mod machine;
mod vips;

use std::collections::BTreeMap;

use lb_proto::v1;
use lb_raft_store::table::Table;

use super::readings::Readings;

/// Of one kind, so many are told one by one.
const EACH: usize = 20;

/// All that is wrong, or worth knowing.
pub(super) fn judge(readings: &Readings, table: &Table) -> Vec<v1::Finding> {
    let mut found = Vec::new();
    machine::judge(readings, table, &mut found);
    vips::judge(readings, table, &mut found);
    backends::judge(readings, table, &mut found);
    bounded(found)
}

/// Of many of a kind the first, and how many more there are.
fn bounded(found: Vec<v1::Finding>) -> Vec<v1::Finding> {
    let mut counts = BTreeMap::<String, usize>::new();
    for finding in &found {
        *counts.entry(finding.id.clone()).or_default() += 1;
    }
    let mut told = BTreeMap::<String, usize>::new();
    let mut kept = Vec::new();
    for mut finding in found {
        let (told, all) = (told.entry(finding.id.clone()).or_default(), counts[&finding.id]);
        *told += 1;
        if *told == EACH && all > EACH {
            finding.explanation += &format!(" (and {} more of this kind)", all - EACH);
        }
        if *told <= EACH {
            kept.push(finding);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_findings_of_a_kind_some_are_told_and_the_rest_is_counted() {
        let of = |id: &str, count: usize| vec![v1::Finding { id: id.to_owned(), ..v1::Finding::default() }; count];
        let kept = bounded([of("a", EACH), of("b", EACH + 5)].concat());
        assert_eq!(kept.len(), 2 * EACH);
        assert_eq!(kept.iter().filter(|finding| !finding.explanation.is_empty()).count(), 1);
        assert_eq!(kept.last().unwrap().explanation, " (and 5 more of this kind)");
    }
}
