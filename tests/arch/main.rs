//! Who may know whom: between crates by their manifests, between modules by their imports. A picture of the structure is
//! only true while a test holds it.

mod contract;
mod crates;
mod dependencies;
mod modules;
mod source;

use std::path::Path;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
