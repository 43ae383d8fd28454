//! The limits and time-outs of a session.

use std::time::Duration;

use arborcast_proto::wire::limits::DEFAULT_MAX_LINE;

/// Every knob, with its default in [`Options::default`] and nowhere else.
///
/// The most memory a session can hold, every line at its limit, is about 2 × `window_bytes` + 30 × `max_line`.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long connecting may take, name resolution included. Default 5 s. Too low fails on slow networks; too high
    /// makes a dead host look like a hang.
    pub connect_timeout: Duration,
    /// How long a server may take to answer LOGIN or REGISTER. Default 15 s. Keep it above 10 s: a server may
    /// rightfully take that long to settle a registration.
    pub answer_timeout: Duration,
    /// How long the oldest published activity may take to come back while the program takes what arrives. Default
    /// 60 s. Too low fails on a server that is merely busy; it is how a frozen server is noticed.
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
    /// surge of clients keeps servers sending them on; 0 makes a redirection an error. They are counted anew once a
    /// server has kept the session for `answer_timeout`.
    pub max_redirects: u32,
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
        }
    }
}
