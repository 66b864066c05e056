//! Compiles the private records with protox: no `protoc` is needed on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let records = protox::compile(["record.proto"], ["proto"])?;
    // Ordered maps: what is encoded is the same on every node.
    prost_build::Config::new().btree_map(["."]).compile_fds(records)?;
    Ok(())
}
