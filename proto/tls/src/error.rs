//! What can be wrong with the files.

use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem;

use crate::trouble::Trouble;

/// Why certificates can't be used. The `Display` text is one plain sentence that names the file and the way out. Nothing
/// has changed when one of these comes.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is not there, or is not PEM.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A file has nothing of the kind in it.
    #[error("there is no {what} in {}: it must be PEM, and begin with -----BEGIN", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The operating system has no authorities.
    #[error("the operating system knows no certificate authorities: {why}; name one with --tls-ca")]
    NoSystemAuthorities {
        /// What it says.
        why: String,
    },
    /// A certificate and a key are not of each other, or something in them is not known here.
    #[error("{} can't be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Others would not take our certificate.
    #[error(
        "{} would be refused by the others: {}; --tls-ca is {}", path.display(), trouble.of_certificate(),
        authority.display()
    )]
    WouldBeRefused {
        /// The file.
        path: PathBuf,
        /// The authority that others trust.
        authority: PathBuf,
        /// Why.
        trouble: Trouble,
    },
}

impl TlsError {
    pub(crate) fn unusable(path: &Path, error: rustls::Error) -> Self {
        let why = match error {
            rustls::Error::InconsistentKeys(_) => "the key is not the certificate's".to_owned(),
            other => other.to_string(),
        };
        Self::Unusable { path: path.to_owned(), why }
    }
}
