//! What the build makes of the `.proto` files.

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

pub mod registry {
    tonic::include_proto!("arborcast.registry.v1");
}

pub mod users {
    tonic::include_proto!("arborcast.users.v1");
}
