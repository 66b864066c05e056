//! The crates' directions, read from their manifests, and where unsafe code may be.

use std::fs;

use super::root;

/// The `[dependencies]` of a crate.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let name = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned();
    section.lines().map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let forbidden: &[(&str, &[&str])] = &[
        ("proto", &["lb-raft-store", "lb-dataplane", "openraft", "sled"]),
        ("raft-store", &["lb-proto", "lb-dataplane", "tonic"]),
        ("dataplane", &["lb-proto", "lb-raft-store", "tokio", "tonic", "openraft", "prost"]),
        ("lbctl", &["lb-raft-store", "lb-dataplane", "openraft", "sled"]),
        ("lbd", &["openraft", "sled", "io-uring"]),
    ];
    for (folder, names) in forbidden {
        let known = dependencies(folder);
        assert!(!known.is_empty(), "{folder}");
        for name in *names {
            assert!(!known.iter().any(|dependency| dependency == name), "{folder} knows {name}");
        }
    }
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    let allowed = ["dataplane/src/io/", "tests/src/sys/"];
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !relative.starts_with("target") && !relative.starts_with('.') {
                    folders.push(path);
                }
            } else if relative.ends_with(".rs") && !allowed.iter().any(|at| relative.starts_with(at)) {
                let text = fs::read_to_string(&path).unwrap();
                let code = |line: &&str| !line.trim_start().starts_with("//");
                let opens = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
                // The words in this very test are in quotes.
                let is_unsafe = |line: &str| opens.iter().any(|word| line.contains(word)) && !line.contains('"');
                if text.lines().filter(code).any(is_unsafe) {
                    found.push(relative);
                }
            }
        }
    }
    assert!(found.is_empty(), "unsafe code in {found:?}");
}
