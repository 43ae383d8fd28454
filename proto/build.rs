//! Compiles the masters' services. Pure Rust all the way (`protox`), so that a fresh machine needs no `protoc`.

use std::path::PathBuf;
use std::{env, error, fs};

use protox::prost::Message as _;

const REGISTRY: &str = "arborcast/registry/v1/registry.proto";
const USERS: &str = "arborcast/users/v1/users.proto";

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed={REGISTRY}");
    println!("cargo::rerun-if-changed={USERS}");
    if env::var_os("CARGO_FEATURE_REGISTRY").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // Apart, since a server describes only what it serves.
    for (file, descriptor) in [(REGISTRY, "registry_descriptor.bin"), (USERS, "users_descriptor.bin")] {
        let files = protox::compile([file], ["."])?;
        fs::write(out.join(descriptor), files.encode_to_vec())?;
        tonic_prost_build::configure().compile_fds(files)?;
    }
    Ok(())
}
