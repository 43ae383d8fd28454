//! A string that must not be seen.

use std::fmt;

use serde::Serialize;
use subtle::ConstantTimeEq as _;

/// A user's or the cluster's secret. `Debug` prints `***`, there is no `Display`, and comparison takes the same time
/// wherever the first difference is.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Secret(Box<str>);

impl Secret {
    /// The text itself, for the wire and for nothing that is logged.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_compares_by_content_and_never_shows_itself() {
        let secret = Secret::from("hunter2");
        assert_eq!(secret, Secret::from(String::from("hunter2")));
        assert_ne!(secret, Secret::from("hunter3"));
        assert_ne!(secret, Secret::from("hunter22"));
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("hunter2").count(), 0);
    }
}
