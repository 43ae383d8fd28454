//! Compiles the part of etcd's API that is used. Pure Rust all the way (`protox`): the crates for etcd need `protoc`.

use std::error;

const ETCD: &str = "etcd/rpc.proto";

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed={ETCD}");
    let files = protox::compile([ETCD], ["."])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
