//! Why TLS did not come about, in words for people.

use std::fmt;
use std::io;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The peer's certificate is no longer valid.
    Expired,
    /// The peer's certificate is not valid yet.
    NotYetValid,
    /// The peer's certificate is for other names.
    WrongName,
    /// The peer's certificate is of nobody who is trusted here.
    UnknownAuthority,
    /// The peer's certificate is wrong in another way.
    BadCertificate(String),
    /// The peer does not like what we have shown; these are its words.
    RefusedByPeer(String),
    /// The peer does not speak TLS.
    NotTls,
    /// Anything else that rustls says.
    Other(String),
}

impl Trouble {
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(wrong) => Self::of_certificate_error(wrong),
            Error::AlertReceived(alert) => Self::RefusedByPeer(said_by(*alert)),
            Error::InvalidMessage(_) => Self::NotTls,
            other => Self::Other(other.to_string()),
        }
    }

    fn of_certificate_error(wrong: &CertificateError) -> Self {
        match wrong {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
            // Two authorities of the same name look like one, but for the signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
            other => Self::BadCertificate(other.to_string()),
        }
    }

    /// A name for counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongName => "wrong_name",
            Self::UnknownAuthority => "unknown_authority",
            Self::BadCertificate(_) => "bad_certificate",
            Self::RefusedByPeer(_) => "refused_by_peer",
            Self::NotTls => "not_tls",
            Self::Other(_) => "other",
        }
    }

    /// What is wrong with the certificate that it is about.
    pub(crate) fn of_certificate(&self) -> String {
        match self {
            Self::Expired => "it has expired".to_owned(),
            Self::NotYetValid => "it is not valid yet (or a clock is wrong)".to_owned(),
            Self::WrongName => "it is not for the name by which others reach this one".to_owned(),
            Self::UnknownAuthority => "it is not signed by that authority".to_owned(),
            Self::BadCertificate(why) | Self::RefusedByPeer(why) | Self::Other(why) => why.clone(),
            Self::NotTls => "it is none".to_owned(),
        }
    }
}

fn said_by(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => "our certificate has expired".to_owned(),
        AlertDescription::CertificateRequired => "it needs a certificate, which we have not".to_owned(),
        AlertDescription::UnknownCA => "it does not trust the authority of our certificate".to_owned(),
        other => format!("{other:?}"),
    }
}

/// A handshake that failed, with whom.
#[derive(Debug)]
struct Failed {
    trouble: Trouble,
    host: Option<String>,
}

impl std::error::Error for Failed {}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = self.host.as_deref().unwrap_or("the peer");
        match &self.trouble {
            Trouble::Expired => write!(f, "TLS: the certificate of {who} has expired"),
            Trouble::NotYetValid => write!(f, "TLS: the certificate of {who} is not valid yet, or a clock is wrong"),
            Trouble::WrongName => write!(f, "TLS: the certificate there is not for the name {who}"),
            Trouble::UnknownAuthority => {
                write!(f, "TLS: the certificate of {who} is not from an authority that is trusted here (--tls-ca)")
            }
            Trouble::BadCertificate(why) => write!(f, "TLS: the certificate of {who} is no good: {why}"),
            Trouble::RefusedByPeer(why) => write!(f, "TLS: refused by {who}: {why}"),
            Trouble::NotTls => write!(f, "TLS: {who} does not speak it"),
            Trouble::Other(why) => write!(f, "TLS with {who}: {why}"),
        }
    }
}

/// Puts what rustls says into words.
pub(crate) fn explain(error: io::Error, host: Option<&str>) -> io::Error {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) else { return error };
    io::Error::new(error.kind(), Failed { trouble: Trouble::of(cause), host: host.map(str::to_owned) })
}

/// The reason for which TLS did not come about, if it is that. Of a connection that stood too.
pub fn trouble_of(error: &io::Error) -> Option<Trouble> {
    let cause = error.get_ref()?;
    let failed = cause.downcast_ref::<Failed>().map(|failed| failed.trouble.clone());
    failed.or_else(|| cause.downcast_ref::<Error>().map(Trouble::of))
}
