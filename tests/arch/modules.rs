//! The directions between the modules inside each crate: a list from the lowest to the highest, in which each may know
//! those before it; and no circle of files anywhere.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    root,
    source::{Imports, Module, imports, imports_of, split},
};

/// From the lowest to the highest; a module belongs to the longest name that it starts with.
const DATAPLANE: &[&str] = &[
    "io::sys::memory",
    "io::sys::bpf",
    "verdict",
    "packet",
    "stats",
    "forward",
    "io::cbpf",
    "io",
    "accel",
    "speaker",
    "query",
    "worker",
    "guard",
    "error",
    "config",
    "pool",
    "publisher",
    "sweep",
    "handle",
    "",
];

/// What may not be known, although it is lower.
const FORBIDDEN: &[(&str, &str, &[&str])] = &[
    // Engines move frames for whoever judges them; only the sharing of frames is one decision with the kernel's.
    ("io", "forward", &["forward::steering"]),
    ("packet", "stats", &[]),
    ("speaker", "io", &["io::sys::memory"]),
    ("query", "io", &["io::sys::memory"]),
];

const RAFT_STORE: &[&str] =
    &["latency", "codec", "table", "span", "raft", "feed", "store", "consensus", "recovery", ""];

const LBD: &[&str] = &[
    "events",
    "alarms",
    "clock",
    "config",
    "cli",
    "descriptors",
    "connection",
    "task",
    "terminal",
    "link",
    "privilege",
    "supervise",
    "ownership",
    "raft",
    "flow_key",
    "traffic",
    "peers",
    "exit",
    "bind",
    "health",
    "control",
    "doctor",
    "metrics",
    "api",
    "web",
    "store",
    "recover",
    "app",
    "",
];

const LBCTL: &[&str] = &[
    "exit",
    "declared",
    "import",
    "authority",
    "enroll",
    "connect",
    "contexts",
    "names",
    "cli",
    "output",
    "session",
    "commands",
    "",
];

#[test]
fn the_dataplanes_modules_know_only_those_below() {
    check("dataplane", DATAPLANE, FORBIDDEN);
}

#[test]
fn the_stores_modules_know_only_those_below() {
    // openraft and sled stop above the table.
    check("raft-store", RAFT_STORE, &[("table", "raft", &[])]);
}

#[test]
fn the_daemons_modules_know_only_those_below() {
    check("lbd", LBD, &[]);
}

#[test]
fn the_command_lines_modules_know_only_those_below() {
    check("lbctl", LBCTL, &[]);
}

fn check(folder: &str, order: &[&str], forbidden: &[(&str, &str, &[&str])]) {
    let imports = imports(&root().join(folder).join("src"));
    assert!(imports.len() > 5, "{folder}: hardly anything was read");
    let found = [against(&imports, order), forbidden_uses(&imports, forbidden), circles(&imports)].concat();
    assert!(found.is_empty(), "{folder}:\n  {}", found.join("\n  "));
}

/// Imports that go up.
fn against(imports: &Imports, order: &[&str]) -> Vec<String> {
    let order: Vec<Module> = order.iter().map(|name| split(name)).collect();
    let rank = |module: &Module| {
        let of = order.iter().enumerate().filter(|(_, name)| module.starts_with(name));
        of.max_by_key(|(_, name)| name.len()).map(|(rank, _)| rank)
    };
    let mut found = Vec::new();
    for (module, others) in imports {
        for other in others {
            let (from, to) = (rank(module), rank(other));
            if from.is_none() || to.is_none() || to > from {
                found.push(format!("{} knows {}, which is above it", show(module), show(other)));
            }
        }
    }
    found
}

fn forbidden_uses(imports: &Imports, forbidden: &[(&str, &str, &[&str])]) -> Vec<String> {
    let mut found = Vec::new();
    for (from, to, except) in forbidden {
        let (from, to) = (split(from), split(to));
        for (module, others) in imports.iter().filter(|(module, _)| module.starts_with(&from)) {
            let is_excepted = |other: &&Module| except.iter().any(|except| other.starts_with(&split(except)));
            let known = others.iter().filter(|other| other.starts_with(&to) && !is_excepted(other));
            found.extend(known.map(|other| format!("{} must not know {}", show(module), show(other))));
        }
    }
    found
}

/// Files that import each other in a circle: each set of files that all reach each other.
fn circles(imports: &Imports) -> Vec<String> {
    let reach: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|module| (module, reachable(imports, module))).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (module, reached) in &reach {
        let circle: BTreeSet<String> =
            reached.iter().filter(|other| reach[**other].contains(module)).map(|other| show(other)).collect();
        if circle.len() > 1 && seen.insert(circle.clone()) {
            found.push(format!("a circle: {}", circle.into_iter().collect::<Vec<_>>().join(", ")));
        }
    }
    found
}

fn reachable<'a>(imports: &'a Imports, from: &'a Module) -> BTreeSet<&'a Module> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        for other in imports.get(module).into_iter().flatten() {
            if let Some((other, _)) = imports.get_key_value(other)
                && reached.insert(other)
            {
                next.push(other);
            }
        }
    }
    reached
}

fn show(module: &Module) -> String {
    if module.is_empty() { "the crate's root".to_owned() } else { module.join("::") }
}

/// What the tests above would not forgive, put in on purpose.
#[test]
fn a_planted_violation_is_found() {
    let good = [
        ("", "mod low; mod high;"),
        ("low", "pub struct Low; #[cfg(test)] mod tests { use crate::high::High; }"),
        ("high", "pub(crate) use inner::Deep; mod inner; use crate::low::Low; pub struct High;"),
        ("high::inner", "use super::super::low; pub struct Deep;"),
    ];
    let found = |texts: &[(&str, &str)]| {
        let imports = imports_of(texts);
        [against(&imports, &["low", "high", ""]), circles(&imports)].concat()
    };
    assert_eq!(found(&good), [""; 0]);
    let with = |module: &'static str, text: &'static str| {
        let mut texts = good;
        texts.iter_mut().find(|(name, _)| *name == module).unwrap().1 = text;
        found(&texts)
    };
    let up = "low knows high, which is above it";
    for text in [
        "use crate::high::High;",
        "use crate::{high::{self, High}};",
        "fn f() { crate::high::f() }",
        "impl T for S { fn f() -> super::high::High { todo() } }",
    ] {
        assert!(with("low", text).contains(&up.to_owned()), "{text}");
    }
    // By way of a re-export.
    let deep = with("low", "use crate::high::Deep;");
    assert!(deep.contains(&"low knows high::inner, which is above it".to_owned()), "{deep:?}");
    assert_eq!(with("high::inner", "use super::High; pub struct Deep;"), [""; 0], "the parent uses nothing of it");
    let mut circle = good;
    circle[2].1 = "mod inner; use inner::Deep; pub struct High;";
    circle[3].1 = "use super::High; pub struct Deep;";
    assert_eq!(found(&circle), ["a circle: high, high::inner"]);
    let imports = imports_of(&[("io", "use crate::forward::flow;"), ("forward::flow", ""), ("forward", "")]);
    assert_eq!(forbidden_uses(&imports, FORBIDDEN), ["io must not know forward::flow"]);
}
