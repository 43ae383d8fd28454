//! What goes into the core and what comes out.

use arborcast_proto::wire::message::Target;
use arborcast_proto::wire::{Activity, Message, Secret, UserRecord, WireError};
use bytes::{BufMut as _, Bytes, BytesMut};

use crate::directory::{AtMasters, Told, UserChange};
use crate::ids::{AttemptId, ConnectionId, TaskId, WriteId};
use crate::load::NamedServer;
use crate::moving::MoveProposal;
use crate::relay::{Piece, Source};

/// Something that happened outside.
#[derive(Debug)]
pub enum Event {
    /// Somebody connected; who it is remains to be seen.
    Accepted {
        /// A new id.
        connection: ConnectionId,
    },
    /// Somebody connected who can be a client and not a server, since servers have to show who they are first.
    AcceptedAsClient {
        /// A new id.
        connection: ConnectionId,
    },
    /// A connection that was asked for stands.
    Dialled {
        /// A new id.
        connection: ConnectionId,
        /// What it was asked for with; `None` for the configured parent of a plain node.
        attempt: Option<AttemptId>,
    },
    /// A connection that was asked for could not be made.
    DialFailed {
        /// What it was asked for with.
        attempt: AttemptId,
    },
    /// The masters have answered, those that could within a short time.
    MastersAnswered {
        /// Which question.
        attempt: AttemptId,
        /// Whom to ask to be the parent, best first.
        candidates: Vec<Target>,
    },
    /// A master knows of a fragment with a smaller key.
    Advised {
        /// Whom to ask to be the parent, best first.
        candidates: Vec<Target>,
    },
    /// A master names other servers.
    ServersNamed {
        /// The least loaded of the tree, to which clients can be sent.
        least_loaded: Vec<NamedServer>,
        /// Others, for when no master answers.
        others: Vec<Target>,
    },
    /// A master proposes another place in the same tree.
    MoveProposed(MoveProposal),
    /// The operator asks to stop without loss: children and clients are sent elsewhere first.
    Drain,
    /// A line came.
    Received {
        /// Where it came from.
        connection: ConnectionId,
        /// The line.
        line: ReceivedLine,
    },
    /// A connection is gone: the peer closed it, or it failed.
    Closed {
        /// Which one.
        connection: ConnectionId,
        /// Why, as far as the shell can tell.
        reason: CloseReason,
    },
    /// The answer to [`Action::HashSecret`].
    SecretHashed {
        /// Which.
        task: TaskId,
        /// In PHC string format; `None` if it could not be made.
        hash: Option<String>,
    },
    /// The answer to [`Action::VerifySecret`].
    SecretVerified {
        /// Which.
        task: TaskId,
        /// Whether it is the secret that was hashed; `None` if that could not be found out, since too many wait.
        verdict: Option<bool>,
    },
    /// The answer to [`Action::WriteUsers`].
    UsersWritten {
        /// Which.
        write: WriteId,
        /// Why nothing was written; `None` if all is on disk.
        error: Option<String>,
    },
    /// What the clock shows, since it may be set. Until the next such event the core adds the time that passes. For tickets,
    /// and for when a name was registered.
    ClockRead {
        /// Milliseconds since 1970.
        milliseconds_since_1970: u64,
    },
    /// The answer to [`Action::RegisterUser`].
    UserRegistered {
        /// The user.
        record: UserRecord,
        /// What came of it.
        outcome: AtMasters,
    },
    /// The answer to [`Action::LookUpUser`].
    UserLookedUp {
        /// Which.
        task: TaskId,
        /// Who has the name; `None` if nobody has it, or no master could tell.
        user: Option<UserRecord>,
    },
    /// The masters tell of users that they keep.
    UsersTold {
        /// The users.
        users: Vec<UserRecord>,
        /// Which ones they are.
        told: Told,
    },
    /// A master says that users are registered there.
    MastersKeepUsers,
    /// The time that [`Node::next_deadline`](crate::Node::next_deadline) named has come. Early and repeated calls are
    /// harmless.
    DeadlinePassed,
    /// The operator asks to stop: every connection is closed.
    Stop,
}

/// A line and what it means.
#[derive(Debug, Clone)]
pub struct ReceivedLine {
    /// The bytes as they came, line ending removed: what is flooded is passed on unchanged.
    pub bytes: Bytes,
    /// What the bytes say.
    pub message: Result<Message, WireError>,
}

impl ReceivedLine {
    /// Reads a line, line ending removed.
    pub fn read(bytes: Bytes) -> Self {
        let message = Message::parse(&bytes);
        Self { bytes, message }
    }
}

/// What the shell has to do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Send one line, `\n` included, to one connection: after everything published so far, before anything later.
    Send {
        /// To whom.
        connection: ConnectionId,
        /// What.
        line: Bytes,
    },
    /// Give the connection everything that is published in this form from now on.
    Subscribe {
        /// To whom.
        connection: ConnectionId,
        /// In which form.
        form: Form,
        /// Whether that is another server.
        is_link: bool,
        /// Whether it also gets what happened before this node was in the tree.
        takes_history: bool,
    },
    /// Append an activity to the broadcast log: for every subscribed connection but the one it came from.
    Publish {
        /// The activity.
        publication: Publication,
        /// The link it came over; `None` if it came from a client, who gets it back like everybody else.
        from: Option<ConnectionId>,
    },
    /// The same in an extended tree, where there is a log for each form.
    Relay {
        /// The line in the extended form, `\n` included.
        line: Bytes,
        /// How much of it has to be replaced by [`PLAIN_BROADCAST_HEAD`](arborcast_proto::wire::message::PLAIN_BROADCAST_HEAD)
        /// for the plain form; `None` if it does not go out in the plain form.
        head: Option<usize>,
        /// Where it came from.
        source: Source,
    },
    /// Send these to one connection that is subscribed to the extended form: after everything published so far, before
    /// anything later.
    Replay {
        /// To whom.
        connection: ConnectionId,
        /// What, in this order.
        pieces: Vec<Piece>,
    },
    /// Close the connection once all that was sent and published to it so far is on its way. The core has forgotten it.
    Close {
        /// Which one.
        connection: ConnectionId,
        /// Why, for the log and the counters.
        reason: CloseReason,
    },
    /// Ask all masters for a parent.
    AskMasters {
        /// What the answer has to carry.
        attempt: AttemptId,
    },
    /// Connect to another server.
    Dial {
        /// What the outcome has to carry.
        attempt: AttemptId,
        /// Where.
        target: Target,
    },
    /// Hash a secret with argon2id.
    HashSecret {
        /// What the answer has to carry.
        task: TaskId,
        /// The secret.
        secret: Secret,
    },
    /// Find out whether this is the secret that was hashed.
    VerifySecret {
        /// What the answer has to carry.
        task: TaskId,
        /// The secret.
        secret: Secret,
        /// In PHC string format.
        hash: String,
    },
    /// Nobody waits for the answer to this any more. It may be given nevertheless.
    Forget {
        /// What the answer would have to carry.
        task: TaskId,
    },
    /// Write users to disk, all or none. There is one write at a time.
    WriteUsers {
        /// What the answer has to carry.
        write: WriteId,
        /// In this order.
        changes: Vec<UserChange>,
    },
    /// Register this user at the masters, who say in the end whether the name is theirs.
    RegisterUser {
        /// The user; the answer has to carry it.
        record: UserRecord,
    },
    /// Ask the masters who has a name.
    LookUpUser {
        /// What the answer has to carry.
        task: TaskId,
        /// The name.
        username: String,
    },
    /// Nobody is left who needs this node: it can end.
    Drained,
    /// The node can't do what it was started for: end with an error.
    GiveUp(GiveUp),
}

/// How an activity looks on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As in the plain protocol.
    Plain,
    /// With its name in an extended tree.
    Extended,
}

/// An activity that is on its way to everyone.
#[derive(Debug, Clone)]
pub enum Publication {
    /// From a client of this node: it becomes an ACTIVITY_BROADCAST here.
    Authored {
        /// What the client wrote.
        activity: Activity,
        /// What `authenticated_user` will say.
        username: String,
    },
    /// From another server: the line as it came, line ending removed.
    Forwarded(Bytes),
}

impl Publication {
    /// Appends the ACTIVITY_BROADCAST line, `\n` included.
    pub fn write_to(&self, out: &mut BytesMut) {
        match self {
            Self::Authored { activity, username } => activity.write_broadcast(username, out),
            Self::Forwarded(line) => {
                out.reserve(line.len() + 1);
                out.put_slice(line);
                out.put_u8(b'\n');
            }
        }
    }
}

/// Why a connection ended. The names are those of the log and the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloseReason {
    /// The peer got AUTHENTICATION_FAIL.
    AuthenticationFail,
    /// Reading or writing failed, a reset included.
    Failed,
    /// The peer got INVALID_MESSAGE.
    InvalidMessage,
    /// The client logged out.
    LoggedOut,
    /// The client got LOGIN_FAILED.
    LoginFailed,
    /// The peer did not say in time who it is.
    LoginTimeout,
    /// The peer closed the connection.
    PeerClosed,
    /// The peer sent INVALID_MESSAGE or AUTHENTICATION_FAIL.
    PeerRefused,
    /// The client was sent to another server.
    Redirected,
    /// The client got REGISTER_FAILED.
    RegisterFailed,
    /// The other server was left for another parent.
    Moved,
    /// The server got LINK_REFUSED.
    LinkRefused,
    /// The server asked whether it would be taken in, and got LINK_POSSIBLE.
    Probed,
    /// Nothing was heard over the link for too long.
    Silent,
    /// This node is stopping.
    Stopping,
    /// The peer reads too slowly: the log no longer holds what it has to get next, or its answers pile up.
    TooSlow,
}

impl CloseReason {
    /// A name for the counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::AuthenticationFail => "authentication_fail",
            Self::Failed => "failed",
            Self::InvalidMessage => "invalid_message",
            Self::LoggedOut => "logged_out",
            Self::LoginFailed => "login_failed",
            Self::LoginTimeout => "login_timeout",
            Self::PeerClosed => "peer_closed",
            Self::PeerRefused => "peer_refused",
            Self::Redirected => "redirected",
            Self::RegisterFailed => "register_failed",
            Self::Moved => "moved",
            Self::LinkRefused => "link_refused",
            Self::Probed => "probed",
            Self::Silent => "silent",
            Self::Stopping => "stopping",
            Self::TooSlow => "too_slow",
        }
    }
}

/// Why a node can't go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GiveUp {
    /// The configured parent sent AUTHENTICATION_FAIL or INVALID_MESSAGE as its first message, with this info.
    ParentRefused {
        /// The parent's words.
        info: String,
    },
    /// The configured parent closed the connection, or broke the protocol, before it said anything of use.
    ParentClosed,
}
