//! Where a server listens.

use std::fmt;
use std::str::FromStr;

use arborcast_proto::wire::limits::quote;
use thiserror::Error;

/// The port of a server that says no other (protocol, Command line of the original).
pub const DEFAULT_PORT: u16 = 3780;

/// The port of a master that says no other.
pub const DEFAULT_MASTER_PORT: u16 = 7100;

/// The longest name DNS has.
const MAX_HOST: usize = 253;

/// A host and a port that a connection can be tried to; safe to print, wherever it came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

/// Why something is not an address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Empty, too long, or with characters that no host name and no IP address has.
    #[error("{0:?} is not a host name")]
    Host(String),
    /// Not a number from 1 to 65535.
    #[error("{0:?} is not a port from 1 to 65535")]
    Port(String),
}

impl Address {
    /// The address of `host`, a name or an IP address without brackets, at `port`.
    ///
    /// # Errors
    /// When no connection could ever be tried to it.
    pub fn new(host: impl Into<String>, port: u16) -> Result<Self, AddressError> {
        let host = host.into();
        let fits = |character: char| character.is_alphanumeric() || "-._:%".contains(character);
        if host.is_empty() || host.len() > MAX_HOST || !host.chars().all(fits) {
            return Err(AddressError::Host(quote(&host)));
        }
        if port == 0 {
            return Err(AddressError::Port("0".into()));
        }
        Ok(Self { host, port })
    }

    /// Reads `host`, `host:port`, `[ipv6]:port` or a bare IPv6 address, with this port where there is none.
    ///
    /// # Errors
    /// When no connection could ever be tried to it.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, AddressError> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or(port))),
            None => match text.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (text, None),
            },
        };
        let port = port.map_or(Ok(default_port), |port| port.parse().map_err(|_| AddressError::Port(quote(port))));
        Self::new(host, port?)
    }

    /// The host name or IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// As [`Address::parse`], with [`DEFAULT_PORT`].
impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text, DEFAULT_PORT)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_an_address_is_read() {
        for (text, host, port) in [
            ("localhost:4000", "localhost", 4000),
            ("localhost", "localhost", DEFAULT_PORT),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]:65535", "::1", 65535),
            ("[::1]", "::1", DEFAULT_PORT),
            ("fe80::1%eth0", "fe80::1%eth0", DEFAULT_PORT),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_cannot_be_connected_to_is_refused() {
        for text in
            ["", ":3780", "host:", "host:0", "host:65536", "host:x", "a b", "a/b", "[::1", "[::1]x", "a\u{1b}[2J"]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
        assert!(Address::new("a".repeat(254), 1).is_err());
    }

    #[test]
    fn an_error_never_carries_control_characters() {
        let error = Address::new("\u{1b}[2J", 1).unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'));
    }
}
