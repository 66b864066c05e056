//! What an entry has changed, in one line for people: for each object what it was and what it is.

use std::fmt::Write as _;

use lb_proto::v1::{self, change::Row};
use serde::Serialize;
use serde_json::{Map, Value};

/// Objects that are named; of the others it is said how many.
const NAMED: usize = 8;
/// Of a value, in characters.
const LONGEST: usize = 80;

/// What is different, object by object.
pub(super) fn of(changes: &[v1::Change]) -> String {
    let mut text = String::new();
    for change in changes.iter().take(NAMED) {
        let line = change.row.as_ref().map(row).unwrap_or_default();
        let _ = write!(text, "{}{line}", if text.is_empty() { "" } else { "; " });
    }
    if changes.len() > NAMED {
        let _ = write!(text, "; and {} more", changes.len() - NAMED);
    }
    text
}

fn row(row: &Row) -> String {
    match row {
        Row::Settings(v1::SettingsChange { before, after }) => object("settings", &[], before, after),
        Row::Vip(v1::VipChange { before, after }) => object("vip", &["address"], before, after),
        Row::Service(v1::ServiceChange { before, after }) => object("service", &["name"], before, after),
        Row::Backend(v1::BackendChange { before, after }) => object("backend", &["service", "address"], before, after),
        Row::Segment(v1::SegmentChange { before, after }) => object("segment", &["network"], before, after),
    }
}

fn object<T: Serialize>(kind: &str, key: &[&str], before: &Option<T>, after: &Option<T>) -> String {
    let fields = |of: &Option<T>| match of.as_ref().map(serde_json::to_value) {
        Some(Ok(Value::Object(fields))) => fields,
        _ => Map::new(),
    };
    let (old, new) = (fields(before), fields(after));
    let of_either = |field: &str| new.get(field).or(old.get(field)).map(plain).unwrap_or_default();
    let name: Vec<String> = std::iter::once(kind.to_owned()).chain(key.iter().map(|field| of_either(field))).collect();
    let name = name.join(" ");
    // Which revision it is stands beside this.
    let is_told = |field: &str| field != "revision" && !key.contains(&field);
    let all: Vec<&String> = new.keys().chain(old.keys().filter(|field| !new.contains_key(*field))).collect();
    let told = all.into_iter().filter(|field| is_told(field));
    match (before, after) {
        (None, _) => {
            let set =
                told.filter(|field| !is_empty(&new[*field])).map(|field| format!("{field}={}", shown(&new[field])));
            let set: Vec<String> = set.collect();
            format!("{name} added{}{}", if set.is_empty() { "" } else { ": " }, set.join(" "))
        }
        (_, None) => format!("{name} removed"),
        _ => {
            let absent = Value::Null;
            let of = |fields: &Map<String, Value>, field: &str| shown(fields.get(field).unwrap_or(&absent));
            let differs = told.filter(|field| old.get(*field) != new.get(*field));
            let differs = differs.map(|field| format!("{field} {} -> {}", of(&old, field), of(&new, field)));
            format!("{name}: {}", differs.collect::<Vec<_>>().join(", "))
        }
    }
}

/// What was left as it is by default is not worth a word.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty() || text == "unspecified",
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(is_empty),
        Value::Bool(true) => false,
    }
}

/// A value, cut; control characters are escaped as JSON does.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".to_owned(),
        value => plain(value),
    };
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// Without quotes, if it needs none.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(weight: u32, mac: &str) -> v1::Backend {
        let state = v1::AdminState::Active.into();
        let (service, address) = ("web".to_owned(), "10.0.0.1".to_owned());
        v1::Backend {
            service,
            address,
            weight: Some(weight),
            mac: mac.to_owned(),
            state,
            revision: weight.into(),
            ..v1::Backend::default()
        }
    }

    fn changed(before: Option<v1::Backend>, after: Option<v1::Backend>) -> v1::Change {
        v1::Change { row: Some(Row::Backend(v1::BackendChange { before, after })) }
    }

    #[test]
    fn what_was_and_what_is_stand_beside_each_other() {
        let [old, new] = [backend(1, ""), backend(2, "02:00:00:00:00:01")];
        let told = of(&[changed(Some(old.clone()), Some(new))]);
        assert!(told.starts_with("backend web 10.0.0.1: "), "{told}");
        assert!(told.contains("weight 1 -> 2") && told.contains("mac \"\" -> 02:00:00:00:00:01"), "{told}");
        assert!(!told.contains("revision") && !told.contains("state"), "{told}");
        let added = changed(None, Some(old.clone()));
        assert_eq!(of(&[added]), "backend web 10.0.0.1 added: state=active weight=1");
        let removed = changed(Some(old), None);
        assert_eq!(of(std::slice::from_ref(&removed)), "backend web 10.0.0.1 removed");
        let many = of(&vec![removed; NAMED + 3]);
        assert!(many.ends_with("; and 3 more"), "{many}");
    }

    #[test]
    fn what_somebody_else_wrote_cannot_break_a_line() {
        let evil = v1::Service { name: "a\nb".into(), ..v1::Service::default() };
        let told = of(&[v1::Change { row: Some(Row::Service(v1::ServiceChange { before: None, after: Some(evil) })) }]);
        assert!(told.starts_with(r#"service "a\nb" added"#), "{told}");
        assert!(shown(&Value::String("x".repeat(500))).len() < 90);
    }
}
