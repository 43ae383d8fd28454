//! Where a session may begin, and where it may go on.

use crate::address::Address;

/// Servers, and masters that know servers. A single [`Address`] becomes one by `into`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Servers {
    /// Servers, tried in this order.
    pub addresses: Vec<Address>,
    /// Masters, asked when none of the addresses can be reached, in random order: the first that answers names the least
    /// loaded server, and gives a ticket for it. They need no secret for that. What they are asked is in `registry.proto`,
    /// AssignClient; of a master that has not got that yet ListNodes.
    pub masters: Vec<Address>,
}

impl From<Address> for Servers {
    fn from(address: Address) -> Self {
        Self { addresses: vec![address], masters: Vec::new() }
    }
}

impl From<&Address> for Servers {
    fn from(address: &Address) -> Self {
        address.clone().into()
    }
}

impl From<&Self> for Servers {
    fn from(servers: &Self) -> Self {
        servers.clone()
    }
}
