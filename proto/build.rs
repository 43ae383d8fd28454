//! Compiles the masters' service. Pure Rust all the way (`protox`), so that a fresh machine needs no `protoc`.

use std::path::PathBuf;
use std::{env, error, fs};

use protox::prost::Message as _;

const ROOT: &str = "arborcast/registry/v1/registry.proto";

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    if env::var_os("CARGO_FEATURE_REGISTRY").is_none() {
        return Ok(());
    }
    let files = protox::compile([ROOT], ["."])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("registry_descriptor.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
