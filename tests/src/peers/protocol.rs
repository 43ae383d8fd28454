//! What a client says to each kind of server. As little as each protocol allows.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::lines;
use crate::wait::PATIENCE;

/// How many bytes every activity has, whoever carries it.
pub const ACTIVITY_BYTES: usize = 128;

/// Digits of the time that an activity carries.
const STAMP_DIGITS: usize = 20;

/// What stands before the time.
const STAMP_KEY: &[u8] = b"\"sent\":\"";

/// The one subject, or topic, of all activities where there is such a thing.
const SUBJECT: &str = "a";

/// For how long a server of a tree may send a client elsewhere that it has let in.
const REDIRECTION: Duration = Duration::from_millis(20);

/// How a client and a server speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Our plain protocol. Publishers are subscribers as well, as they always are.
    Plain,
    /// Our extended sessions, whose activities are numbered and acknowledged.
    Acknowledged,
    /// NATS core.
    Nats,
    /// MQTT 3.1.1, QoS 0.
    Mqtt,
    /// Internet Relay Chat: everybody is in one channel, but for who only publishes.
    Irc,
    /// Nothing is said; bytes come.
    Raw,
}

/// The activity that was published at that time.
pub fn activity(stamp: u64) -> String {
    let activity = format!(r#"{{"verb":"post","sent":"{stamp:0STAMP_DIGITS$}","object":"{}"}}"#, "something".repeat(8));
    let (head, _) = activity.split_at(ACTIVITY_BYTES - 2);
    format!("{head}\"}}")
}

impl Protocol {
    /// Whether who publishes also gets what is published, so that publishers count as subscribers.
    pub fn publishers_subscribe(self) -> bool {
        matches!(self, Self::Plain | Self::Acknowledged)
    }

    /// Whether activities are numbered, so that no two publications are the same, and deliveries have different lengths.
    pub fn counts_activities(self) -> bool {
        self == Self::Acknowledged
    }

    /// Appends an activity, the `number`th of its publisher, as it sends it.
    pub fn put_publication(self, number: u64, activity: &str, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = match self {
            Self::Plain | Self::Raw => {
                writeln!(out, r#"{{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":{activity}}}"#)
            }
            Self::Acknowledged => {
                let head = r#""command":"ACTIVITY_MESSAGE","username":"anonymous""#;
                writeln!(out, r#"{{{head},"number":{number},"activity":{activity}}}"#)
            }
            Self::Nats => write!(out, "PUB {SUBJECT} {ACTIVITY_BYTES}\r\n{activity}\r\n"),
            Self::Mqtt => out.write_all(&mqtt_publish(activity)),
            Self::Irc => write!(out, "PRIVMSG #{SUBJECT} :{activity}\r\n"),
        };
    }

    /// What a subscriber gets for one activity. Of the same length for all of them, but for [`Self::Acknowledged`].
    pub fn delivery(self, stamp: u64) -> Vec<u8> {
        let activity = activity(stamp);
        match self {
            Self::Nats => format!("MSG {SUBJECT} 1 {ACTIVITY_BYTES}\r\n{activity}\r\n").into_bytes(),
            Self::Mqtt => mqtt_publish(&activity),
            // One publisher at most is measured, who is called p0; the rest of its name is the same for all here.
            Self::Irc => format!(":p0!~{SUBJECT}@127.0.0.1 PRIVMSG #{SUBJECT} :{activity}\r\n").into_bytes(),
            Self::Plain | Self::Acknowledged | Self::Raw => {
                let members = &activity[..activity.len() - 1];
                format!(
                    "{{\"command\":\"ACTIVITY_BROADCAST\",\"activity\":{members},\
                     \"authenticated_user\":\"anonymous\"}}}}\n"
                )
                .into_bytes()
            }
        }
    }

    /// Where in a delivery the time stands.
    pub fn stamp_range(self) -> std::ops::Range<usize> {
        let delivery = self.delivery(0);
        let key = delivery.windows(STAMP_KEY.len()).position(|window| window == STAMP_KEY).expect("it is there");
        let start = key + STAMP_KEY.len();
        start..start + STAMP_DIGITS
    }

    /// A client that gets everything; `None` if the server sends it elsewhere. `session` names it among the others.
    ///
    /// # Errors
    /// When the connection breaks, or the server says something else than yes.
    pub fn subscribe(self, address: SocketAddr, session: &str, is_tree: bool) -> io::Result<Option<TcpStream>> {
        let mut stream = self.log_in(address, session)?;
        match self {
            Self::Plain | Self::Acknowledged if is_tree => {
                stream.set_read_timeout(Some(REDIRECTION))?;
                let is_in = matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(is_in.then_some(stream));
            }
            Self::Plain | Self::Acknowledged | Self::Raw => {}
            Self::Nats => {
                stream.write_all(format!("SUB {SUBJECT} 1\r\nPING\r\n").as_bytes())?;
                expect_end(&mut stream, b"PONG\r\n")?;
            }
            Self::Mqtt => {
                stream.write_all(&[0x82, 6, 0, 1, 0, 1, SUBJECT.as_bytes()[0], 0])?;
                expect_end(&mut stream, &[0x90, 3, 0, 1, 0])?;
            }
            Self::Irc => {
                stream.write_all(format!("JOIN #{SUBJECT}\r\n").as_bytes())?;
                expect_end(&mut stream, b":End of NAMES list\r\n")?;
            }
        }
        Ok(Some(stream))
    }

    /// A client that only publishes.
    ///
    /// # Errors
    /// As for [`subscribe`](Self::subscribe).
    pub fn log_in(self, address: SocketAddr, session: &str) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        match self {
            Self::Raw => {}
            Self::Plain => {
                stream.write_all(format!("{}\n", lines::login_anonymously()).as_bytes())?;
                expect_success(&mut stream)?;
            }
            Self::Acknowledged => {
                let resume =
                    format!(r#"{{"command":"LOGIN","username":"anonymous","resume":{{"session":"{session}"}}}}"#);
                stream.write_all(format!("{resume}\n").as_bytes())?;
                expect_success(&mut stream)?;
            }
            Self::Nats => {
                // Without `protocol` the server sends no news of other servers in between.
                stream.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":0}\r\nPING\r\n")?;
                expect_end(&mut stream, b"PONG\r\n")?;
            }
            Self::Mqtt => {
                let mut connect = vec![0x10, 0, 0, 4];
                connect.extend_from_slice(b"MQTT\x04\x02\x00\x00");
                connect.extend_from_slice(&u16::try_from(session.len()).unwrap_or_default().to_be_bytes());
                connect.extend_from_slice(session.as_bytes());
                connect[1] = u8::try_from(connect.len() - 2).map_err(io::Error::other)?;
                stream.write_all(&connect)?;
                expect_end(&mut stream, &[0x20, 2, 0, 0])?;
            }
            Self::Irc => {
                stream.write_all(format!("NICK {session}\r\nUSER {SUBJECT} 0 * :{session}\r\n").as_bytes())?;
                expect_end(&mut stream, b":End of MOTD command\r\n")?;
            }
        }
        Ok(stream)
    }
}

/// PUBLISH, QoS 0.
fn mqtt_publish(activity: &str) -> Vec<u8> {
    let length = 2 + SUBJECT.len() + activity.len();
    // The length in two times seven bits: it is between 128 and 16,383.
    let mut packet = vec![0x30, (length % 128) as u8 | 0x80, (length / 128) as u8, 0, SUBJECT.len() as u8];
    packet.extend_from_slice(SUBJECT.as_bytes());
    packet.extend_from_slice(activity.as_bytes());
    packet
}

fn expect_success(stream: &mut TcpStream) -> io::Result<()> {
    let answer = expect_end(stream, b"\n")?;
    if answer.windows(13).any(|window| window == b"LOGIN_SUCCESS") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
}

/// Reads until this has come. Nothing else comes behind it before something is published.
fn expect_end(stream: &mut TcpStream, end: &[u8]) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(end) {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::other(format!("closed after {:?}", String::from_utf8_lossy(&answer))));
        }
        answer.extend_from_slice(&buffer[..read]);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_activity_has_its_length_and_its_time_where_they_are_looked_for() {
        for protocol in [Protocol::Plain, Protocol::Nats, Protocol::Mqtt, Protocol::Irc, Protocol::Raw] {
            let delivery = protocol.delivery(123);
            assert_eq!(&delivery[protocol.stamp_range()], b"00000000000000000123");
            assert_eq!(delivery.len(), protocol.delivery(u64::MAX).len());
        }
        assert_eq!(activity(5).len(), ACTIVITY_BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&activity(5)).is_ok());
    }
}
