//! Compiles the .proto files with protox: no `protoc` is needed on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let public = ["lb/v1/table.proto", "lb/v1/cluster.proto", "lb/v1/node.proto"];
    println!("cargo:rerun-if-changed=lb");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For reflection: the operators' services, without the nodes' own.
    fs::write(out.join("descriptors.bin"), protox::compile(public, ["."])?.encode_to_vec())?;
    let all = protox::compile(public.into_iter().chain(["lb/v1/raft.proto"]), ["."])?;
    tonic_prost_build::configure().compile_fds(all)?;
    Ok(())
}
