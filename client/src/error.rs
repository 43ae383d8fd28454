//! What can go wrong between a program and a tree.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::wire::WireError;
use arborcast_proto::wire::limits::quote;
use thiserror::Error;

use crate::address::{Address, AddressError};

/// Why something did not work: which server, what happened, and what to try.
///
/// As an error of a session every variant but [`TooLong`](Self::TooLong) ends it; published activities that were not
/// acknowledged by then may have been delivered or not. In [`Event::Lost`](crate::Event::Lost) it does not.
#[derive(Debug, Clone, Error)]
pub enum Error {
    /// The server closed the session because of a message's username or secret. Not normal: a session sends those it
    /// logged in with.
    #[error("{server} does not accept this session's username and secret: {}; log in again", printable(info))]
    AuthenticationFail {
        /// Who says so.
        server: Address,
        /// The server's reason.
        info: String,
    },
    /// The server redirected to something that is no address. A bug or a wrong configuration of the server.
    #[error("{server} redirects to a place that does not exist: {cause}; check how that server was started")]
    BadRedirect {
        /// Who redirects.
        server: Address,
        /// What is wrong with the target.
        cause: AddressError,
    },
    /// No connection came about.
    #[error("cannot connect to {server}: {}; is a node running there? start one with `arborcast-node`", plain(cause))]
    Connect {
        /// Who was called.
        server: Address,
        /// What the system says.
        cause: Arc<io::Error>,
    },
    /// Nobody answered in [`connect_timeout`](crate::Options::connect_timeout).
    #[error(
        "cannot connect to {server}: no answer within {after:?}; check the address, and that no firewall is between"
    )]
    ConnectTimeout {
        /// Who was called.
        server: Address,
        /// How long was waited.
        after: Duration,
    },
    /// The session ended without an error, by a logout.
    #[error("the session has ended; log in again")]
    Ended,
    /// The server closed the session because a message was not in order. A bug on one of the two sides, or an activity
    /// that is longer or deeper than that server takes.
    #[error("{server} refused a message as invalid: {}", printable(info))]
    InvalidMessage {
        /// Who refused it.
        server: Address,
        /// The server's reason.
        info: String,
    },
    /// Wrong username or secret.
    #[error("{server} refused the login: {}; check the username and the secret", printable(info))]
    LoginFailed {
        /// Who refused it.
        server: Address,
        /// The server's reason.
        info: String,
    },
    /// The connection broke, or the server closed it without saying why.
    #[error("lost the connection to {server}: {}", plain(cause))]
    Lost {
        /// Who was connected.
        server: Address,
        /// What the system says.
        cause: Arc<io::Error>,
    },
    /// No answer to a request in time. Whether the server obeyed it is not known.
    #[error("{server} did not answer {request} within {after:?}; it may be overloaded or not an arborcast node")]
    NoAnswer {
        /// Who was asked.
        server: Address,
        /// The command of the request.
        request: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// A published activity was not acknowledged within [`echo_timeout`](crate::Options::echo_timeout), or did not come
    /// back in a plain session: the server hangs, or it changes activities so much that they can't be recognised.
    #[error(
        "{server} neither acknowledged nor gave back a published activity within {after:?}; it may be overloaded or hang"
    )]
    NoEcho {
        /// Who has it.
        server: Address,
        /// How long was waited.
        after: Duration,
    },
    /// There is no server to try: no address was given, and no master names one.
    #[error("no server is known: {reason}; check that the masters and a node run, and their addresses")]
    NoServer {
        /// What the masters said.
        reason: String,
    },
    /// The name is taken, or the servers could not agree on it in time.
    #[error("{server} refused the registration: {}; choose another username, or try again", printable(info))]
    RegisterFailed {
        /// Who refused it.
        server: Address,
        /// The server's reason.
        info: String,
    },
    /// The activity was not sent, since every server would refuse it. The session goes on.
    #[error("the activity makes a message of {length} bytes, and servers take at most {limit}; split it")]
    TooLong {
        /// The length of the whole message.
        length: usize,
        /// [`max_line`](crate::Options::max_line).
        limit: usize,
    },
    /// TLS did not come about.
    #[error("cannot connect to {server}: {cause}")]
    Tls {
        /// Who was called.
        server: Address,
        /// What is wrong, and with whom.
        cause: Arc<io::Error>,
    },
    /// More redirections in a row than [`max_redirects`](crate::Options::max_redirects).
    #[error("{server} redirects again after {limit} redirections in a row; wait a little and try again")]
    TooManyRedirects {
        /// Who redirected last.
        server: Address,
        /// How many were followed.
        limit: u32,
    },
    /// The server sent something that is not a message.
    #[error("{server} does not speak the protocol: {cause}; is it an arborcast node?")]
    Undecodable {
        /// Who sent it.
        server: Address,
        /// What is wrong with it.
        cause: WireError,
    },
    /// The server sent a message that a client must not get, or not now.
    #[error("{server} does not keep to the protocol: {command} was not expected; is it an arborcast node?")]
    Unexpected {
        /// Who sent it.
        server: Address,
        /// The message's command.
        command: &'static str,
    },
    /// The server's name cannot be resolved.
    #[error("cannot find {}: {}; check the host name", server.host(), plain(cause))]
    UnknownHost {
        /// Who was looked for.
        server: Address,
        /// What the system says.
        cause: Arc<io::Error>,
    },
}

impl Error {
    /// Whether another server, or the same one later, may do better.
    pub(crate) fn is_worth_another_try(&self) -> bool {
        match self {
            Self::BadRedirect { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Lost { .. }
            | Self::NoAnswer { .. }
            | Self::NoEcho { .. }
            | Self::NoServer { .. }
            | Self::Tls { .. }
            | Self::TooManyRedirects { .. }
            | Self::UnknownHost { .. } => true,
            Self::AuthenticationFail { .. }
            | Self::Ended
            | Self::InvalidMessage { .. }
            | Self::LoginFailed { .. }
            | Self::RegisterFailed { .. }
            | Self::TooLong { .. }
            | Self::Undecodable { .. }
            | Self::Unexpected { .. } => false,
        }
    }

    /// Whether a server has said no to a login.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::AuthenticationFail { .. } | Self::InvalidMessage { .. } | Self::LoginFailed { .. })
    }

    /// Whether nothing was sent, so that whatever it was can be asked of another server.
    pub(crate) fn is_before_the_request(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::ConnectTimeout { .. } | Self::Tls { .. } | Self::UnknownHost { .. })
    }

    /// What to tell the server in INVALID_MESSAGE, if it was the server that broke the protocol.
    pub(crate) fn complaint(&self) -> Option<String> {
        match self {
            Self::Undecodable { cause, .. } => Some(cause.to_string()),
            Self::Unexpected { command, .. } => Some(format!("a client does not expect {command} here")),
            _ => None,
        }
    }
}

/// A server's own words, fit for a terminal: short, and without control characters.
pub(crate) fn printable(info: &str) -> String {
    quote(info).replace(char::is_control, "\u{fffd}")
}

/// The system's words without its error numbers, where the kind says it all.
fn plain(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        kind @ (Kind::BrokenPipe
        | Kind::ConnectionAborted
        | Kind::ConnectionRefused
        | Kind::ConnectionReset
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::TimedOut) => kind.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_server_the_cause_and_a_way_out() {
        let server = Address::new("localhost", 3780).unwrap();
        let cause = Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert_eq!(
            Error::Connect { server, cause }.to_string(),
            "cannot connect to localhost:3780: connection refused; is a node running there? \
             start one with `arborcast-node`"
        );
    }

    #[test]
    fn a_servers_words_cannot_steer_a_terminal_or_flood_it() {
        let server = Address::new("localhost", 3780).unwrap();
        let info = format!("\u{1b}[2J\n{}", "x".repeat(100_000));
        let text = Error::LoginFailed { server, info }.to_string();
        assert!(!text.contains(char::is_control) && text.len() < 400, "{text:?}");
    }
}
