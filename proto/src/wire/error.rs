//! What can be wrong with a line.

use thiserror::Error;

use super::limits::MAX_DEPTH;

/// Why a line is an invalid message (protocol, Transport). The `Display` text is what the peer is told as `info`; it
/// quotes at most a command or field name, never a value, so that it is safe to log as well.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// Nothing but white space before the line ending.
    #[error("the received line is empty")]
    Empty,
    /// Longer than the receiver's line limit.
    #[error("the received line is longer than {limit} bytes")]
    TooLong {
        /// The receiver's limit, in bytes without the line ending.
        limit: usize,
    },
    /// The receiver holds too many half lines for another long one.
    #[error("there is no room for another long line at the moment")]
    NoRoom,
    /// Not UTF-8.
    #[error("the received line is not UTF-8")]
    NotUtf8,
    /// Not JSON at all.
    #[error("the received line is not JSON: {0}")]
    NotJson(String),
    /// JSON perhaps, but not an object.
    #[error("the received line is not a JSON object")]
    NotAnObject,
    /// Objects or arrays nested deeper than [`MAX_DEPTH`].
    #[error("the received message is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// No `command` field.
    #[error("the received message did not contain a command")]
    NoCommand,
    /// A `command` this protocol does not have.
    #[error("the received message has an unknown command: {0}")]
    UnknownCommand(String),
    /// A field that this command requires is not there.
    #[error("the received {command} did not contain the field {field}")]
    MissingField {
        /// The message's command.
        command: &'static str,
        /// The field that is missing.
        field: &'static str,
    },
    /// A field of this command has the wrong JSON type.
    #[error("the field {field} of the received {command} is not {expected}")]
    WrongType {
        /// The message's command.
        command: &'static str,
        /// The field.
        field: &'static str,
        /// The type it should have, with its article.
        expected: &'static str,
    },
    /// A field that the protocol knows stands twice in one object, and it is not for us to choose.
    #[error("the received message contains the field {0} twice")]
    DuplicateField(&'static str),
}
