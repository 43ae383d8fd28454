//! The masters' gRPC service `arborcast.registry.v1.Registry`: messages, client and server, made at build time from
//! `proto/arborcast/registry/v1/registry.proto`, where every field is documented.

pub use crate::generated::registry::*;

/// The service and everything it refers to as an encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("registry_descriptor");
