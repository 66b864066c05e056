//! What is built upon: licences and bans as `deny.toml` has them, and no dependency that nobody uses.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

use super::root;

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn rules() -> toml::Table {
    fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap()
}

/// Whether an SPDX expression can be met by what is allowed. `/` is how older manifests write OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any_of(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    match words.next() {
        Some("(") => {
            let met = any_of(words, allowed);
            words.next() == Some(")") && met
        }
        Some(licence) => match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
            Some(exception) => allowed.contains(&format!("{licence} WITH {exception}")),
            None => allowed.contains(licence),
        },
        None => false,
    }
}

#[test]
fn an_expression_is_met_by_what_is_allowed() {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0 WITH LLVM-exception", "Zlib"].map(str::to_owned));
    for met in
        ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Zlib", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_allowed(met, &allowed), "{met}");
    }
    for not_met in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(GPL-3.0 OR BSD) AND MIT", "MIT)"] {
        assert!(!is_allowed(not_met, &allowed), "{not_met}");
    }
}

#[test]
fn licences_and_bans_are_kept() {
    let (metadata, rules) = (metadata(), rules());
    let strings = |value: &toml::Value| value.as_array().unwrap().clone();
    let allowed: BTreeSet<String> =
        strings(&rules["licenses"]["allow"]).iter().map(|licence| licence.as_str().unwrap().to_owned()).collect();
    let banned: BTreeSet<String> = strings(&rules["bans"]["deny"])
        .iter()
        .map(|ban| {
            let reason = ban["reason"].as_str().unwrap_or_default();
            assert!(!reason.is_empty(), "a ban without a reason: {ban:?}");
            ban["crate"].as_str().unwrap().to_owned()
        })
        .collect();
    // Only what is built for one of our platforms, not whatever the lock file names.
    let resolved: BTreeSet<&str> = list(&metadata["resolve"], "nodes").iter().map(|node| text(node, "id")).collect();
    let packages: Vec<&Value> =
        list(&metadata, "packages").iter().filter(|package| resolved.contains(text(package, "id"))).collect();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    let mut faults = Vec::new();
    for package in packages {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if !is_allowed(licence, &allowed) {
            faults.push(format!("{name} is under {licence:?}"));
        }
        if banned.contains(name) {
            faults.push(format!("{name} is banned"));
        }
    }
    assert!(faults.is_empty(), "see deny.toml: {faults:#?}");
}

/// The words of all Rust files below a folder.
fn words_below(folder: &Path, words: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            words_below(&path, words);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            add_words(&fs::read_to_string(path).unwrap(), words);
        }
    }
}

fn add_words(text: &str, words: &mut BTreeSet<String>) {
    words.extend(text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned));
}

#[test]
fn every_dependency_is_used() {
    let not_by_name = [
        // By generated code: `include_proto!`, and prost's derive.
        ("lb-proto", "prost"),
        ("lb-proto", "tonic-prost"),
        // For their features alone, see the manifest.
        ("lb-tests", "indexmap"),
        ("lb-tests", "regex-automata"),
        ("lb-tests", "regex-syntax"),
        ("lb-tests", "zerocopy"),
    ];
    let metadata = metadata();
    let members: BTreeSet<&str> = list(&metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    let mut unused = Vec::new();
    for package in list(&metadata, "packages").iter().filter(|package| members.contains(text(package, "id"))) {
        let folder = Path::new(text(package, "manifest_path")).parent().unwrap();
        let (mut shipped, mut build) = (BTreeSet::new(), BTreeSet::new());
        words_below(&folder.join("src"), &mut shipped);
        add_words(&fs::read_to_string(folder.join("build.rs")).unwrap_or_default(), &mut build);
        let mut all = shipped.clone();
        words_below(folder, &mut all);
        for dependency in list(package, "dependencies") {
            // As it is called here.
            let name = dependency["rename"].as_str().unwrap_or_else(|| text(dependency, "name"));
            let words = match dependency["kind"].as_str() {
                None => &shipped,
                Some("build") => &build,
                _ => &all,
            };
            let of = text(package, "name");
            if !words.contains(&name.replace('-', "_")) && !not_by_name.contains(&(of, name)) {
                unused.push(format!("{of} does not use {name}"));
            }
        }
    }
    assert!(unused.is_empty(), "{unused:#?}");
}
