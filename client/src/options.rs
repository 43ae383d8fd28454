//! The limits and time-outs of a session.

use std::sync::Arc;
use std::time::Duration;

use arborcast_proto::wire::limits::DEFAULT_MAX_LINE;
use arborcast_tls::Tls;

/// Every knob, with its default in [`Options::default`] and nowhere else.
///
/// The most memory a session can hold, every line at its limit, is about `window_bytes` + 30 × `max_line`, and 5 MB for
/// what it has received in an extended session.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long connecting may take, name resolution included. Default 5 s. Too low fails on slow networks; too high
    /// makes a dead host look like a hang.
    pub connect_timeout: Duration,
    /// How long a server may take to answer LOGIN or REGISTER. Default 15 s. Keep it above 10 s: a server may
    /// rightfully take that long to settle a registration.
    pub answer_timeout: Duration,
    /// How long the oldest published activity may take to be acknowledged, or to come back in a plain session, while the
    /// program takes what arrives. Default 60 s. Too low gives up servers that are merely busy; it is how a frozen server
    /// is noticed.
    pub echo_timeout: Duration,
    /// How long a logout may take, from the call to the server's closing. Default 2 s.
    pub logout_timeout: Duration,
    /// The servers' line limit, in bytes: a longer message is not sent. Received lines may be twice as long, since an
    /// activity grows on its way. Default 1 MiB, the servers' default.
    pub max_line: usize,
    /// How many published activities may be on their way at once before publishing waits. Default 1024; 0 means 1. Too
    /// low costs throughput: it is what fits into one round trip.
    pub window_messages: usize,
    /// How many bytes of published activities may be on their way at once before publishing waits; one activity may
    /// exceed it. Default 4 MiB.
    pub window_bytes: usize,
    /// How many redirections are followed in a row. Default 40, which with the pauses between them takes longer than any
    /// surge of clients keeps servers sending them on; 0 follows none. Beyond it the connection counts as lost. They are
    /// counted anew once a server has kept the session for `answer_timeout`.
    pub max_redirects: u32,
    /// Whether to ask for an extended session (protocol, E1): acknowledged and resumed. Default true. Servers that don't
    /// have them ignore the question; turn it off for one that does not.
    pub extended: bool,
    /// TLS to servers and masters, if that is wanted: [`Tls::load`](crate::tls::Tls::load). Default `None`: plain.
    pub tls: Option<Arc<Tls>>,
    /// How to go on after a lost connection; `None`: not at all, then it is an error that ends the session. Default
    /// [`Reconnect::default`].
    pub reconnect: Option<Reconnect>,
}

/// How a session that has lost its connection looks for another server.
///
/// It tries, in this order, the addresses it was given, those that the masters name, those that servers have told it of,
/// and the one that it lost; each once in a round. Between two rounds there is a pause at random, which grows.
#[derive(Debug, Clone)]
pub struct Reconnect {
    /// The pause before the first round at most, before the second about. Default 100 ms.
    pub min_pause: Duration,
    /// The longest pause. Default 5 s. A server that keeps a session for so long ends the growth.
    pub max_pause: Duration,
    /// For how long to try after a loss. Default `None`: for ever. After that the session ends with the last error.
    pub give_up_after: Option<Duration>,
    /// How many servers may refuse the login, one after the other, before that is believed. Default 10. A server that has
    /// just started may not know the user yet.
    pub max_refusals: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(15),
            echo_timeout: Duration::from_secs(60),
            logout_timeout: Duration::from_secs(2),
            max_line: DEFAULT_MAX_LINE,
            window_messages: 1024,
            window_bytes: 4 << 20,
            max_redirects: 40,
            extended: true,
            tls: None,
            reconnect: Some(Reconnect::default()),
        }
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            min_pause: Duration::from_millis(100),
            max_pause: Duration::from_secs(5),
            give_up_after: None,
            max_refusals: 10,
        }
    }
}
