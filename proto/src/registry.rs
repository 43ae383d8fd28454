//! The masters' gRPC service `arborcast.registry.v1.Registry`: messages, client and server, made at build time from
//! `proto/arborcast/registry/v1/registry.proto`, where every field is documented.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::indexing_slicing,
    clippy::or_fun_call,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::use_self,
    reason = "generated"
)]

tonic::include_proto!("arborcast.registry.v1");

/// The service and everything it refers to as an encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("registry_descriptor");
