//! The gRPC service `arborcast.users.v1.Users` of masters that keep users: messages, client and server, made at build time
//! from `proto/arborcast/users/v1/users.proto`, where every field is documented.

pub use crate::generated::users::*;
use crate::wire::{RegistrationId, UserRecord};

/// The service and everything it refers to as an encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("users_descriptor");

impl From<UserRecord> for User {
    fn from(UserRecord { username, hash, registration }: UserRecord) -> Self {
        let RegistrationId { at, server, number } = registration;
        Self { username, hash, registration: Some(Registration { at, server, number }) }
    }
}

impl User {
    /// The same as it goes over links; `None` if it says nothing of its registration.
    pub fn into_record(self) -> Option<UserRecord> {
        let Registration { at, server, number } = self.registration?;
        let registration = RegistrationId { at, server, number };
        Some(UserRecord { username: self.username, hash: self.hash, registration })
    }
}
