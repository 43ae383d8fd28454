//! The messages, and the one place where a line becomes one.

use std::fmt;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::de::{DeserializeOwned, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::activity::Activity;
use super::error::WireError;
use super::limits::{MAX_DEPTH, quote};
use super::quick;
use super::relay::{Have, Origin, PublicationId, RelayTag, Resume, session_id};
use super::secret::Secret;
use super::users::{Denial, RegistrationId, UserRecord};

/// The username that needs no secret and can't be registered.
pub const ANONYMOUS: &str = "anonymous";

/// One message of the plain tree protocol. Field by field as in `proto/README.md`, Messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "command", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Message {
    /// All activities of a session up to this number are acknowledged. To extended sessions only.
    ActivityAck {
        /// The highest such number.
        number: u64,
    },
    /// A client publishes.
    #[serde(skip)]
    ActivityMessage {
        /// The name the client publishes under.
        username: String,
        /// Its secret; not needed for [`ANONYMOUS`].
        secret: Option<Secret>,
        /// Which activity of the session it is, from 1; only in extended sessions.
        number: Option<u64>,
        /// What it publishes.
        activity: Activity,
    },
    /// An activity on its way to everyone.
    #[serde(skip)]
    ActivityBroadcast {
        /// Its name in an extended tree; absent in the plain form.
        relay: Option<RelayTag>,
        /// The activity, stamped with its author.
        activity: Activity,
    },
    /// A request to attach climbs from the acceptor to the root, and is answered back down the same way. Extended links
    /// only.
    AttachAnswer(AttachAnswer),
    /// Someone asks to attach below the sender; the root has to confirm. Extended links only.
    AttachRequest(AttachRequest),
    /// A dialling server proves that it belongs to the cluster.
    Authenticate {
        /// The cluster secret.
        secret: Secret,
        /// Who dials, if it speaks the extensions; a plain acceptor ignores it.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<Applicant>,
    },
    /// The peer gave a wrong secret or had none to give; the connection ends.
    AuthenticationFail {
        /// Why, for people.
        info: String,
    },
    /// The sender lives; to a child also: this is the fragment, and this the way from its root. Extended links only.
    Heartbeat {
        /// From a parent to its child.
        #[serde(skip_serializing_if = "Option::is_none")]
        tree: Option<TreePosition>,
        /// Whether the sender wants SERVER_ANNOUNCE over this link. What is left out is true.
        #[serde(skip_serializing_if = "is_true")]
        announcements: bool,
    },
    /// The peer broke the protocol; the connection ends.
    InvalidMessage {
        /// What was wrong, for people.
        info: String,
    },
    /// The dialler is the sender's child from here on. The first message on an extended link.
    LinkAccepted {
        /// The dialler's attempt.
        attempt: u64,
        /// The sender's id.
        id: String,
        /// Where the sender is in its fragment.
        tree: TreePosition,
    },
    /// The dialler only asked, and the sender would take it in at this moment; the connection ends.
    LinkPossible {
        /// The dialler's attempt.
        attempt: u64,
        /// The sender's id.
        id: String,
        /// Where the sender is in its fragment.
        tree: TreePosition,
    },
    /// The dialler can't be the sender's child; the connection ends.
    LinkRefused {
        /// The dialler's attempt.
        attempt: u64,
        /// Why, for programs.
        reason: RefusalReason,
        /// Why, for people.
        info: String,
        /// Where to try instead.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        targets: Vec<Target>,
    },
    /// A server agrees to a registration.
    LockAllowed {
        /// The registration.
        #[serde(flatten)]
        credentials: Credentials,
        /// The id of the server that agrees. Servers of the 2018 dialect leave it out.
        #[serde(skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    /// A server objects to a registration.
    LockDenied(Credentials),
    /// A server asks all others whether a registration may go ahead.
    LockRequest(Credentials),
    /// A client wants to publish and receive.
    Login {
        /// Who it is.
        username: String,
        /// Its secret; not needed for [`ANONYMOUS`].
        #[serde(skip_serializing_if = "Option::is_none")]
        secret: Option<Secret>,
        /// A wish for an extended session; plain servers ignore it.
        #[serde(skip_serializing_if = "Option::is_none")]
        resume: Option<Resume>,
        /// What a master gave to the client for this server; plain servers ignore it.
        #[serde(skip_serializing_if = "Option::is_none")]
        ticket: Option<Secret>,
    },
    /// Wrong name or secret; the connection ends.
    LoginFailed {
        /// Why, for people.
        info: String,
    },
    /// The client is in.
    LoginSuccess {
        /// For people.
        info: String,
        /// The session is an extended one, and this counts as received already; absent in plain sessions.
        #[serde(skip_serializing_if = "Option::is_none")]
        have: Option<Have>,
        /// For the next login of the same user, wherever that is.
        #[serde(skip_serializing_if = "Option::is_none")]
        proof: Option<Secret>,
        /// Other servers, for when this one is lost.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        servers: Vec<Target>,
    },
    /// The client leaves.
    Logout,
    /// The client should log in at another server; the connection ends.
    Redirect {
        /// The other server's host.
        hostname: String,
        /// The other server's port.
        port: u16,
    },
    /// A client asks for a name.
    Register {
        /// The name, and the secret that will go with it.
        #[serde(flatten)]
        credentials: Credentials,
        /// What a master gave to the client for this server; plain servers ignore it.
        #[serde(skip_serializing_if = "Option::is_none")]
        ticket: Option<Secret>,
    },
    /// The name is taken, or could not be had; the connection ends.
    RegisterFailed {
        /// Why, for people.
        info: String,
    },
    /// The name is the client's; it can log in.
    RegisterSuccess {
        /// For people.
        info: String,
    },
    /// The sender has taken in what came over this link up to here. Extended links only.
    RelayAck {
        /// Of the origins for which that has changed.
        have: Have,
    },
    /// Activities that the receiver lacks are gone. Extended links and sessions only.
    RelayGap {
        /// Whose.
        origin: Origin,
        /// The highest number of those that are gone.
        through: u64,
    },
    /// What the sender has, so that the receiver sends what it lacks. To an extended session: what counts as received.
    RelayHave {
        /// Of each origin.
        have: Have,
        /// Another such message follows, and the two belong together.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// What the receiver lacked is sent; what follows is live. Extended links only.
    RelaySynced,
    /// A server says that it lives, where, and how many clients it has.
    ServerAnnounce(ServerAnnounce),
    /// A server is gone from the tree, or about to go: nobody should be sent there. Extended links only.
    ServerLeft {
        /// The id of that server.
        id: String,
    },
    /// The sender is about to stop; its child should attach elsewhere. Extended links only.
    ServerQuit {
        /// Where to, if the sender knows: its own parent, or the successor it named.
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<Target>,
    },
    /// A registration is over without success. Extended links only.
    UserAbort {
        /// Which.
        registration: RegistrationId,
        /// The name.
        username: String,
        /// Also where it has been committed: a plain tree takes it back.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        committed: bool,
    },
    /// A name is registered. Extended links only.
    UserCommit {
        /// The new user.
        user: UserRecord,
        /// The sender wants to know when it has arrived.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        confirm: bool,
    },
    /// USER_COMMIT has arrived. Extended links only.
    UserCommitted {
        /// Which registration.
        registration: RegistrationId,
        /// The name.
        username: String,
    },
    /// Digests of all users, to find out whether both ends know the same. Extended links only.
    UserDigest {
        /// One after the other for each bucket, in hexadecimal.
        digest: String,
    },
    /// Somebody wants to register a name: may they? Extended links only.
    UserPrepare {
        /// Which registration.
        registration: RegistrationId,
        /// The name and the secret, which plain servers further on have to be told.
        #[serde(flatten)]
        credentials: Credentials,
    },
    /// Users that the receiver may not know. Extended links only.
    UserRecords {
        /// Each as it was registered.
        users: Vec<UserRecord>,
        /// There are more; the receiver asks for them with USER_DIGEST.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// The answer of a whole branch of the tree to USER_PREPARE. Extended links only.
    UserVote {
        /// Which registration.
        registration: RegistrationId,
        /// The name.
        username: String,
        /// Why not; they may if there is no reason.
        #[serde(skip_serializing_if = "Option::is_none")]
        denied: Option<Denial>,
    },
}

fn is_true(value: &bool) -> bool {
    *value
}

/// A fragment's key: the smaller one wins (protocol, Fragments and reigns). Ordered by reign, then by the root's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FragmentKey {
    /// How often parents were lost on the way here; `None` for a node that has had no tree yet, which is larger than any
    /// other.
    #[serde(default, skip_serializing_if = "Reign::is_unsettled")]
    pub reign: Reign,
    /// The root's id.
    pub root: String,
}

/// See [`FragmentKey::reign`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub enum Reign {
    /// A number that grows by one with every lost parent.
    Settled(u64),
    /// The largest possible reign.
    #[default]
    Unsettled,
}

impl Reign {
    fn is_unsettled(&self) -> bool {
        *self == Self::Unsettled
    }

    /// The reign of a fragment whose root has just lost its parent.
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Self::Settled(reign) => Self::Settled(reign.saturating_add(1)),
            Self::Unsettled => Self::Unsettled,
        }
    }
}

impl From<u64> for Reign {
    fn from(reign: u64) -> Self {
        Self::Settled(reign)
    }
}

impl From<Reign> for u64 {
    fn from(reign: Reign) -> Self {
        match reign {
            Reign::Settled(reign) => reign,
            Reign::Unsettled => Self::MAX,
        }
    }
}

/// One attempt of one run of one node to attach; late answers to another are nobody's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Request {
    /// The requester's id.
    pub id: String,
    /// Which run of the requester; larger is later.
    pub incarnation: u64,
    /// Which of its attempts; larger is later.
    pub attempt: u64,
}

/// Where a server can be dialled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub id: String,
    /// Its host.
    pub hostname: String,
    /// Its port.
    pub port: u16,
}

/// What an extended node says of itself when it dials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applicant {
    /// The version of the extensions it speaks.
    pub protocol: u32,
    /// This attempt.
    #[serde(flatten)]
    pub request: Request,
    /// Where others reach it: its host.
    pub hostname: String,
    /// Its port.
    pub port: u16,
    /// The key of the fragment whose root it is, or in which it is if it only asks.
    pub key: FragmentKey,
    /// Whether it only asks if it would be taken in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,
    /// Whether it only asks because it is about to move within this very tree, whose root has to allow that.
    #[serde(default, rename = "move", skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
}

impl Applicant {
    /// Where the applicant itself can be dialled.
    pub fn target(&self) -> Target {
        Target { id: self.request.id.clone(), hostname: self.hostname.clone(), port: self.port }
    }
}

/// A place in a fragment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreePosition {
    /// The fragment's key.
    #[serde(flatten)]
    pub key: FragmentKey,
    /// The ids from the root to the sender, both included.
    pub path: Vec<String>,
}

/// On its way up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Who asks.
    pub applicant: Applicant,
    /// The ids from the acceptor to the sender, both included: the way back.
    pub trail: Vec<String>,
}

/// On its way down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachAnswer {
    /// What is answered.
    pub request: Request,
    /// The way that is still to go; the acceptor is first, the next node last.
    pub trail: Vec<String>,
    /// Why not; confirmed if there is no reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusalReason>,
}

/// Why an attachment is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RefusalReason {
    /// The sender is about to stop.
    Draining,
    /// No place for another child.
    Full,
    /// The requester's id is the acceptor's, or that of another live child.
    IdInUse,
    /// The requester's key is the smaller one, so it is for the others to join.
    KeyNotSmaller,
    /// Another server of this tree is moving.
    Moving,
    /// The requester is on the way from the acceptor to the root.
    OwnSubtree,
    /// The requester speaks another version of the extensions.
    Protocol,
    /// The way to the root was lost meanwhile.
    Unconfirmed,
    /// A reason that a later version has and this one does not.
    #[serde(other)]
    Other,
}

/// Who sends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Whoever answers a request, or refuses one; a server gets none of these that it has to obey.
    Answerer,
    /// A client.
    Client,
    /// A server that dials another.
    Dialler,
    /// A server, over a link on which both ends speak the extensions.
    ExtendedServer,
    /// A server, over any link.
    Server,
}

/// A username and the secret that proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's secret.
    pub secret: Secret,
}

/// What a server says of itself in SERVER_ANNOUNCE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerAnnounce {
    /// The server's id, unique in the tree.
    pub id: String,
    /// How many clients are logged in. An integer in JSON; beyond the range of `i64` it is taken as the nearest bound.
    pub load: i64,
    /// Where clients reach it.
    pub hostname: String,
    /// The port there. An integer in JSON; what is not a port is kept as it is and never redirected to.
    pub port: i64,
}

impl Message {
    /// Reads one line, line ending removed. Unknown fields are ignored, and so are known fields that the command does
    /// not have.
    ///
    /// INVALID_MESSAGE and AUTHENTICATION_FAIL are recognised whatever their form, since they must never be answered.
    ///
    /// # Errors
    /// The first thing that is wrong with the line; its `Display` is fit to be sent back.
    pub fn parse(line: &Bytes) -> Result<Self, WireError> {
        let text = std::str::from_utf8(line).map_err(|_| WireError::NotUtf8)?;
        match text.trim_ascii_start().as_bytes().first() {
            None => return Err(WireError::Empty),
            Some(b'{') => {}
            Some(_) => {
                return Err(match serde_json::from_str::<IgnoredAny>(text) {
                    Ok(_) => WireError::NotAnObject,
                    Err(error) => WireError::NotJson(error.to_string()),
                });
            }
        }
        if let Some(message) = quick::parse(text, line).filter(|_| !is_deeper_than(MAX_DEPTH, line)) {
            return Ok(message);
        }
        Self::parse_any(text, line)
    }

    /// Reads an object, whatever its form.
    fn parse_any(text: &str, line: &Bytes) -> Result<Self, WireError> {
        let fields = Fields::read(text)?;
        let command = fields.command()?;
        if !matches!(&*command, "INVALID_MESSAGE" | "AUTHENTICATION_FAIL") {
            if let Some(field) = fields.duplicate {
                return Err(WireError::DuplicateField(field));
            }
            if is_deeper_than(MAX_DEPTH, line) {
                return Err(WireError::TooDeep);
            }
        }
        fields.message(&command, line)
    }

    /// The message's name on the wire.
    pub fn command(&self) -> &'static str {
        match self {
            Self::ActivityAck { .. } => "ACTIVITY_ACK",
            Self::ActivityBroadcast { .. } => "ACTIVITY_BROADCAST",
            Self::ActivityMessage { .. } => "ACTIVITY_MESSAGE",
            Self::AttachAnswer(_) => "ATTACH_ANSWER",
            Self::AttachRequest(_) => "ATTACH_REQUEST",
            Self::Authenticate { .. } => "AUTHENTICATE",
            Self::AuthenticationFail { .. } => "AUTHENTICATION_FAIL",
            Self::Heartbeat { .. } => "HEARTBEAT",
            Self::InvalidMessage { .. } => "INVALID_MESSAGE",
            Self::LinkAccepted { .. } => "LINK_ACCEPTED",
            Self::LinkPossible { .. } => "LINK_POSSIBLE",
            Self::LinkRefused { .. } => "LINK_REFUSED",
            Self::LockAllowed { .. } => "LOCK_ALLOWED",
            Self::LockDenied(_) => "LOCK_DENIED",
            Self::LockRequest(_) => "LOCK_REQUEST",
            Self::Login { .. } => "LOGIN",
            Self::LoginFailed { .. } => "LOGIN_FAILED",
            Self::LoginSuccess { .. } => "LOGIN_SUCCESS",
            Self::Logout => "LOGOUT",
            Self::Redirect { .. } => "REDIRECT",
            Self::Register { .. } => "REGISTER",
            Self::RegisterFailed { .. } => "REGISTER_FAILED",
            Self::RegisterSuccess { .. } => "REGISTER_SUCCESS",
            Self::RelayAck { .. } => "RELAY_ACK",
            Self::RelayGap { .. } => "RELAY_GAP",
            Self::RelayHave { .. } => "RELAY_HAVE",
            Self::RelaySynced => "RELAY_SYNCED",
            Self::ServerAnnounce(_) => "SERVER_ANNOUNCE",
            Self::ServerLeft { .. } => "SERVER_LEFT",
            Self::ServerQuit { .. } => "SERVER_QUIT",
            Self::UserAbort { .. } => "USER_ABORT",
            Self::UserCommit { .. } => "USER_COMMIT",
            Self::UserCommitted { .. } => "USER_COMMITTED",
            Self::UserDigest { .. } => "USER_DIGEST",
            Self::UserPrepare { .. } => "USER_PREPARE",
            Self::UserRecords { .. } => "USER_RECORDS",
            Self::UserVote { .. } => "USER_VOTE",
        }
    }

    /// Who sends such a message, and so where it is out of place.
    pub fn sender(&self) -> Sender {
        match self {
            Self::ActivityMessage { .. } | Self::Login { .. } | Self::Logout | Self::Register { .. } => Sender::Client,
            Self::Authenticate { .. } => Sender::Dialler,
            Self::ActivityBroadcast { .. }
            | Self::LockAllowed { .. }
            | Self::LockDenied(_)
            | Self::LockRequest(_)
            | Self::ServerAnnounce(_) => Sender::Server,
            Self::AttachAnswer(_)
            | Self::AttachRequest(_)
            | Self::Heartbeat { .. }
            | Self::LinkAccepted { .. }
            | Self::LinkPossible { .. }
            | Self::LinkRefused { .. }
            | Self::RelayAck { .. }
            | Self::RelayGap { .. }
            | Self::RelayHave { .. }
            | Self::RelaySynced
            | Self::ServerLeft { .. }
            | Self::ServerQuit { .. }
            | Self::UserAbort { .. }
            | Self::UserCommit { .. }
            | Self::UserCommitted { .. }
            | Self::UserDigest { .. }
            | Self::UserPrepare { .. }
            | Self::UserRecords { .. }
            | Self::UserVote { .. } => Sender::ExtendedServer,
            Self::ActivityAck { .. }
            | Self::AuthenticationFail { .. }
            | Self::InvalidMessage { .. }
            | Self::LoginFailed { .. }
            | Self::LoginSuccess { .. }
            | Self::Redirect { .. }
            | Self::RegisterFailed { .. }
            | Self::RegisterSuccess { .. } => Sender::Answerer,
        }
    }

    /// The line for this message, `\n` included.
    pub fn to_line(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        match self {
            Self::ActivityBroadcast { relay, activity } => {
                match relay {
                    Some(relay) => drop(put_broadcast_head(&mut out, relay)),
                    None => out.put_slice(PLAIN_BROADCAST_HEAD),
                }
                put_activity(&mut out, activity);
            }
            Self::ActivityMessage { username, secret, number, activity } => {
                let command = self.command();
                put_head(&mut out, &MessageHead { command, username, secret: secret.as_ref(), number: *number });
                put_activity(&mut out, activity);
            }
            // Serialising strings and integers into memory has no way to fail.
            other => drop(serde_json::to_writer((&mut out).writer(), other)),
        }
        out.put_u8(b'\n');
        out.freeze()
    }
}

/// The first fields of ACTIVITY_MESSAGE. The activity, whose bytes must not be touched, follows as the last one.
#[derive(Serialize)]
struct MessageHead<'a> {
    command: &'static str,
    username: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
}

/// Appends everything of an ACTIVITY_BROADCAST line up to its activity, which must follow, and after it `}` and `\n`.
/// Returns the length of what it appended, without the field name `activity` and what is around it: the rest of the line,
/// put behind [`PLAIN_BROADCAST_HEAD`], is the same activity in the plain form.
pub fn put_broadcast_head(out: &mut BytesMut, relay: &RelayTag) -> usize {
    let before = out.len();
    out.put_slice(PLAIN_BROADCAST_HEAD);
    out.put_slice(b",\"origin\":");
    put_origin(&relay.origin, out);
    out.put_slice(b",\"seq\":");
    put_number(relay.seq, out);
    if let Some(PublicationId { session, number }) = &relay.publication {
        out.put_slice(b",\"session\":");
        put_string(session, out);
        out.put_slice(b",\"number\":");
        put_number(*number, out);
    }
    out.len() - before
}

/// What an ACTIVITY_BROADCAST in the plain form begins with; the activity and what is around it follows.
pub const PLAIN_BROADCAST_HEAD: &[u8] = b"{\"command\":\"ACTIVITY_BROADCAST\"";

/// Appends an object without its closing brace.
fn put_head(out: &mut BytesMut, head: &impl Serialize) {
    // Serialising strings and integers into memory has no way to fail.
    drop(serde_json::to_writer((&mut *out).writer(), head));
    out.truncate(out.len().saturating_sub(1));
}

fn put_origin(origin: &Origin, out: &mut BytesMut) {
    if needs_escapes(&origin.id) {
        // As above.
        return drop(serde_json::to_writer(out.writer(), origin));
    }
    out.put_u8(b'"');
    put_number(origin.incarnation, out);
    out.put_u8(b'/');
    out.put_slice(origin.id.as_bytes());
    out.put_u8(b'"');
}

fn put_number(number: u64, out: &mut BytesMut) {
    // As above.
    drop(serde_json::to_writer(out.writer(), &number));
}

/// Appends a JSON string.
pub(super) fn put_string(text: &str, out: &mut BytesMut) {
    if needs_escapes(text) {
        // As above; were it to fail, the line would be cut short and refused by its receiver.
        return drop(serde_json::to_writer(out.writer(), text));
    }
    out.put_u8(b'"');
    out.put_slice(text.as_bytes());
    out.put_u8(b'"');
}

/// Nearly no name does, and then its bytes are what stands in JSON.
fn needs_escapes(text: &str) -> bool {
    text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\')
}

fn put_activity(out: &mut BytesMut, activity: &Activity) {
    out.put_slice(ACTIVITY_KEY);
    out.put_slice(activity.as_bytes());
    out.put_u8(b'}');
}

/// What stands between the head of a message and its activity.
pub const ACTIVITY_KEY: &[u8] = b",\"activity\":";

/// Whether objects and arrays are nested deeper than `limit`. `json` must be well-formed.
pub(super) fn is_deeper_than(limit: usize, json: &[u8]) -> bool {
    // Few lines hold as many brackets as the limit; for all others counting is enough.
    if memchr::memchr2_iter(b'{', b'[', json).nth(limit).is_none() {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// Every field any message has, as raw JSON: which of them count, and with which type, is known once the command is.
#[derive(Default)]
struct Fields<'a> {
    command: Option<&'a RawValue>,
    activity: Option<&'a RawValue>,
    announcements: Option<&'a RawValue>,
    applicant: Option<&'a RawValue>,
    attempt: Option<&'a RawValue>,
    committed: Option<&'a RawValue>,
    confirm: Option<&'a RawValue>,
    denied: Option<&'a RawValue>,
    digest: Option<&'a RawValue>,
    have: Option<&'a RawValue>,
    hostname: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    info: Option<&'a RawValue>,
    load: Option<&'a RawValue>,
    more: Option<&'a RawValue>,
    node: Option<&'a RawValue>,
    number: Option<&'a RawValue>,
    origin: Option<&'a RawValue>,
    port: Option<&'a RawValue>,
    proof: Option<&'a RawValue>,
    reason: Option<&'a RawValue>,
    refused: Option<&'a RawValue>,
    registration: Option<&'a RawValue>,
    request: Option<&'a RawValue>,
    resume: Option<&'a RawValue>,
    secret: Option<&'a RawValue>,
    seq: Option<&'a RawValue>,
    server: Option<&'a RawValue>,
    servers: Option<&'a RawValue>,
    session: Option<&'a RawValue>,
    target: Option<&'a RawValue>,
    targets: Option<&'a RawValue>,
    through: Option<&'a RawValue>,
    ticket: Option<&'a RawValue>,
    trail: Option<&'a RawValue>,
    tree: Option<&'a RawValue>,
    user: Option<&'a RawValue>,
    username: Option<&'a RawValue>,
    users: Option<&'a RawValue>,
    duplicate: Option<&'static str>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum FieldName {
    Command,
    Activity,
    Announcements,
    Applicant,
    Attempt,
    Committed,
    Confirm,
    Denied,
    Digest,
    Have,
    Hostname,
    Id,
    Info,
    Load,
    More,
    Node,
    Number,
    Origin,
    Port,
    Proof,
    Reason,
    Refused,
    Registration,
    Request,
    Resume,
    Secret,
    Seq,
    Server,
    Servers,
    Session,
    Target,
    Targets,
    Through,
    Ticket,
    Trail,
    Tree,
    User,
    Username,
    Users,
    #[serde(other)]
    Unknown,
}

/// The fields that the plain protocol has, of which none may stand twice.
const PLAIN_FIELDS: [&str; 10] =
    ["command", "activity", "hostname", "id", "info", "load", "port", "secret", "server", "username"];

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, WireError> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key()? {
                    let Some((name, slot)) = fields.slot(&name) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let is_twice = slot.replace(map.next_value()?).is_some();
                    // What the plain protocol does not know is none of its business.
                    if is_twice && PLAIN_FIELDS.contains(&name) {
                        fields.duplicate = Some(name);
                    }
                }
                Ok(fields)
            }
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let fields = json.deserialize_map(FieldsVisitor).and_then(|fields| json.end().map(|()| fields));
        fields.map_err(|error| WireError::NotJson(error.to_string()))
    }

    fn slot(&mut self, name: &FieldName) -> Option<(&'static str, &mut Option<&'a RawValue>)> {
        Some(match name {
            FieldName::Command => ("command", &mut self.command),
            FieldName::Activity => ("activity", &mut self.activity),
            FieldName::Announcements => ("announcements", &mut self.announcements),
            FieldName::Applicant => ("applicant", &mut self.applicant),
            FieldName::Attempt => ("attempt", &mut self.attempt),
            FieldName::Committed => ("committed", &mut self.committed),
            FieldName::Confirm => ("confirm", &mut self.confirm),
            FieldName::Denied => ("denied", &mut self.denied),
            FieldName::Digest => ("digest", &mut self.digest),
            FieldName::Have => ("have", &mut self.have),
            FieldName::Hostname => ("hostname", &mut self.hostname),
            FieldName::Id => ("id", &mut self.id),
            FieldName::Info => ("info", &mut self.info),
            FieldName::Load => ("load", &mut self.load),
            FieldName::More => ("more", &mut self.more),
            FieldName::Node => ("node", &mut self.node),
            FieldName::Number => ("number", &mut self.number),
            FieldName::Origin => ("origin", &mut self.origin),
            FieldName::Port => ("port", &mut self.port),
            FieldName::Proof => ("proof", &mut self.proof),
            FieldName::Reason => ("reason", &mut self.reason),
            FieldName::Refused => ("refused", &mut self.refused),
            FieldName::Registration => ("registration", &mut self.registration),
            FieldName::Request => ("request", &mut self.request),
            FieldName::Resume => ("resume", &mut self.resume),
            FieldName::Secret => ("secret", &mut self.secret),
            FieldName::Seq => ("seq", &mut self.seq),
            FieldName::Server => ("server", &mut self.server),
            FieldName::Servers => ("servers", &mut self.servers),
            FieldName::Session => ("session", &mut self.session),
            FieldName::Target => ("target", &mut self.target),
            FieldName::Targets => ("targets", &mut self.targets),
            FieldName::Through => ("through", &mut self.through),
            FieldName::Ticket => ("ticket", &mut self.ticket),
            FieldName::Trail => ("trail", &mut self.trail),
            FieldName::Tree => ("tree", &mut self.tree),
            FieldName::User => ("user", &mut self.user),
            FieldName::Username => ("username", &mut self.username),
            FieldName::Users => ("users", &mut self.users),
            FieldName::Unknown => return None,
        })
    }

    fn command(&self) -> Result<String, WireError> {
        let raw = self.command.ok_or(WireError::NoCommand)?;
        let wrong = WireError::WrongType { command: "message", field: "command", expected: "a string" };
        serde_json::from_str(raw.get()).map_err(|_| wrong)
    }

    fn message(&self, command: &str, line: &Bytes) -> Result<Message, WireError> {
        let of = |command| Of { command, fields: self, line };
        Ok(match command {
            "ACTIVITY_ACK" => Message::ActivityAck { number: of("ACTIVITY_ACK").object("number", self.number)? },
            "ACTIVITY_BROADCAST" => {
                let of = of("ACTIVITY_BROADCAST");
                Message::ActivityBroadcast { relay: of.relay(), activity: of.activity()? }
            }
            "ACTIVITY_MESSAGE" => {
                let of = of("ACTIVITY_MESSAGE");
                let (username, secret) = of.login()?;
                // Whoever speaks the plain protocol may have a field of that name for reasons of its own.
                let number = of.optional_object("number", self.number).unwrap_or_default();
                Message::ActivityMessage { username, secret, number, activity: of.activity()?.check_keys()? }
            }
            "ATTACH_ANSWER" => {
                let of = of("ATTACH_ANSWER");
                Message::AttachAnswer(AttachAnswer {
                    request: of.object("request", self.request)?,
                    trail: of.object("trail", self.trail)?,
                    refused: of.optional_object("refused", self.refused)?,
                })
            }
            "ATTACH_REQUEST" => {
                let of = of("ATTACH_REQUEST");
                Message::AttachRequest(AttachRequest {
                    applicant: of.object("applicant", self.applicant)?,
                    trail: of.object("trail", self.trail)?,
                })
            }
            "AUTHENTICATE" => {
                let of = of("AUTHENTICATE");
                // A plain dialler may have a field of that name for reasons of its own.
                let node = of.optional_object("node", self.node).unwrap_or_default();
                Message::Authenticate { secret: of.secret()?, node }
            }
            // Whatever their form: what they say is only logged.
            "AUTHENTICATION_FAIL" => {
                Message::AuthenticationFail { info: of("AUTHENTICATION_FAIL").info().unwrap_or_default() }
            }
            "HEARTBEAT" => {
                let of = of("HEARTBEAT");
                Message::Heartbeat {
                    tree: of.optional_object("tree", self.tree)?,
                    announcements: of.optional_object("announcements", self.announcements)?.unwrap_or(true),
                }
            }
            "INVALID_MESSAGE" => Message::InvalidMessage { info: of("INVALID_MESSAGE").info().unwrap_or_default() },
            "LINK_ACCEPTED" => {
                let of = of("LINK_ACCEPTED");
                Message::LinkAccepted {
                    attempt: of.object("attempt", self.attempt)?,
                    id: of.string("id", self.id)?,
                    tree: of.object("tree", self.tree)?,
                }
            }
            "LINK_POSSIBLE" => {
                let of = of("LINK_POSSIBLE");
                Message::LinkPossible {
                    attempt: of.object("attempt", self.attempt)?,
                    id: of.string("id", self.id)?,
                    tree: of.object("tree", self.tree)?,
                }
            }
            "LINK_REFUSED" => {
                let of = of("LINK_REFUSED");
                Message::LinkRefused {
                    attempt: of.object("attempt", self.attempt)?,
                    reason: of.object("reason", self.reason)?,
                    info: of.info()?,
                    targets: of.optional_object("targets", self.targets)?.unwrap_or_default(),
                }
            }
            "LOCK_ALLOWED" => {
                let of = of("LOCK_ALLOWED");
                Message::LockAllowed {
                    credentials: of.credentials()?,
                    server: of.optional_string("server", self.server)?,
                }
            }
            "LOCK_DENIED" => Message::LockDenied(of("LOCK_DENIED").credentials()?),
            "LOCK_REQUEST" => Message::LockRequest(of("LOCK_REQUEST").credentials()?),
            "LOGIN" => {
                let of = of("LOGIN");
                let (username, secret) = of.login()?;
                Message::Login {
                    username,
                    secret,
                    resume: of.optional_object("resume", self.resume).unwrap_or_default(),
                    ticket: of.ticket(),
                }
            }
            "LOGIN_FAILED" => Message::LoginFailed { info: of("LOGIN_FAILED").info()? },
            "LOGIN_SUCCESS" => {
                let of = of("LOGIN_SUCCESS");
                let have = of.optional_object("have", self.have).unwrap_or_default();
                let proof = of.optional_object::<String>("proof", self.proof).unwrap_or_default().map(Secret::from);
                let servers = of.optional_object("servers", self.servers).unwrap_or_default();
                Message::LoginSuccess { info: of.info()?, have, proof, servers: servers.unwrap_or_default() }
            }
            "LOGOUT" => Message::Logout,
            "REDIRECT" => of("REDIRECT").redirect()?,
            "REGISTER" => {
                let of = of("REGISTER");
                Message::Register { credentials: of.credentials()?, ticket: of.ticket() }
            }
            "REGISTER_FAILED" => Message::RegisterFailed { info: of("REGISTER_FAILED").info()? },
            "REGISTER_SUCCESS" => Message::RegisterSuccess { info: of("REGISTER_SUCCESS").info()? },
            "RELAY_ACK" => Message::RelayAck { have: of("RELAY_ACK").object("have", self.have)? },
            "RELAY_GAP" => {
                let of = of("RELAY_GAP");
                Message::RelayGap {
                    origin: of.object("origin", self.origin)?,
                    through: of.object("through", self.through)?,
                }
            }
            "RELAY_HAVE" => {
                let of = of("RELAY_HAVE");
                let more = of.optional_object("more", self.more)?.unwrap_or_default();
                Message::RelayHave { have: of.object("have", self.have)?, more }
            }
            "RELAY_SYNCED" => Message::RelaySynced,
            "SERVER_ANNOUNCE" => Message::ServerAnnounce(of("SERVER_ANNOUNCE").announce()?),
            "SERVER_LEFT" => {
                let of = of("SERVER_LEFT");
                Message::ServerLeft { id: of.string("id", self.id)? }
            }
            "SERVER_QUIT" => Message::ServerQuit { target: of("SERVER_QUIT").optional_object("target", self.target)? },
            "USER_ABORT" => {
                let of = of("USER_ABORT");
                Message::UserAbort {
                    committed: of.optional_object("committed", self.committed)?.unwrap_or_default(),
                    registration: of.object("registration", self.registration)?,
                    username: of.string("username", self.username)?,
                }
            }
            "USER_COMMIT" => {
                let of = of("USER_COMMIT");
                let confirm = of.optional_object("confirm", self.confirm)?.unwrap_or_default();
                Message::UserCommit { user: of.object("user", self.user)?, confirm }
            }
            "USER_COMMITTED" => {
                let of = of("USER_COMMITTED");
                Message::UserCommitted {
                    registration: of.object("registration", self.registration)?,
                    username: of.string("username", self.username)?,
                }
            }
            "USER_DIGEST" => Message::UserDigest { digest: of("USER_DIGEST").string("digest", self.digest)? },
            "USER_PREPARE" => {
                let of = of("USER_PREPARE");
                Message::UserPrepare {
                    registration: of.object("registration", self.registration)?,
                    credentials: of.credentials()?,
                }
            }
            "USER_RECORDS" => {
                let of = of("USER_RECORDS");
                let more = of.optional_object("more", self.more)?.unwrap_or_default();
                Message::UserRecords { users: of.object("users", self.users)?, more }
            }
            "USER_VOTE" => {
                let of = of("USER_VOTE");
                Message::UserVote {
                    registration: of.object("registration", self.registration)?,
                    username: of.string("username", self.username)?,
                    denied: of.optional_object("denied", self.denied)?,
                }
            }
            unknown => return Err(WireError::UnknownCommand(quote(unknown))),
        })
    }
}

/// The fields as one command sees them.
struct Of<'a> {
    command: &'static str,
    fields: &'a Fields<'a>,
    line: &'a Bytes,
}

impl Of<'_> {
    fn wrong(&self, field: &'static str, expected: &'static str) -> WireError {
        WireError::WrongType { command: self.command, field, expected }
    }

    fn missing(&self, field: &'static str) -> WireError {
        WireError::MissingField { command: self.command, field }
    }

    fn optional_string(&self, field: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, WireError> {
        raw.map(|raw| serde_json::from_str(raw.get()).map_err(|_| self.wrong(field, "a string"))).transpose()
    }

    fn string(&self, field: &'static str, raw: Option<&RawValue>) -> Result<String, WireError> {
        self.optional_string(field, raw)?.ok_or_else(|| self.missing(field))
    }

    /// A field whose form is that of a type of the extensions. Unknown members of it are ignored.
    fn optional_object<T: DeserializeOwned>(
        &self,
        field: &'static str,
        raw: Option<&RawValue>,
    ) -> Result<Option<T>, WireError> {
        raw.map(|raw| serde_json::from_str(raw.get()).map_err(|_| self.wrong(field, "of its type"))).transpose()
    }

    fn object<T: DeserializeOwned>(&self, field: &'static str, raw: Option<&RawValue>) -> Result<T, WireError> {
        self.optional_object(field, raw)?.ok_or_else(|| self.missing(field))
    }

    fn integer(&self, field: &'static str, raw: Option<&RawValue>) -> Result<i64, WireError> {
        let digits = raw.ok_or_else(|| self.missing(field))?.get();
        let (negative, magnitude) = digits.strip_prefix('-').map_or((false, digits), |rest| (true, rest));
        if magnitude.is_empty() || !magnitude.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.wrong(field, "an integer"));
        }
        Ok(digits.parse().unwrap_or(if negative { i64::MIN } else { i64::MAX }))
    }

    fn info(&self) -> Result<String, WireError> {
        self.string("info", self.fields.info)
    }

    fn secret(&self) -> Result<Secret, WireError> {
        self.string("secret", self.fields.secret).map(Secret::from)
    }

    fn credentials(&self) -> Result<Credentials, WireError> {
        Ok(Credentials { username: self.string("username", self.fields.username)?, secret: self.secret()? })
    }

    /// One of another form is none: a plain client may have a field of that name for reasons of its own.
    fn ticket(&self) -> Option<Secret> {
        self.optional_string("ticket", self.fields.ticket).ok().flatten().map(Secret::from)
    }

    /// A username, and the secret that only [`ANONYMOUS`] can do without.
    fn login(&self) -> Result<(String, Option<Secret>), WireError> {
        let username = self.string("username", self.fields.username)?;
        let secret = self.optional_string("secret", self.fields.secret)?;
        if secret.is_none() && username != ANONYMOUS {
            return Err(self.missing("secret"));
        }
        Ok((username, secret.map(Secret::from)))
    }

    fn activity(&self) -> Result<Activity, WireError> {
        let raw = self.fields.activity.ok_or_else(|| self.missing("activity"))?.get();
        if !raw.starts_with('{') {
            return Err(self.wrong("activity", "an object"));
        }
        Ok(Activity::from_checked(self.line.slice_ref(raw.as_bytes())))
    }

    /// The name that an activity has in an extended tree. Where it is not whole there is none: in the plain protocol
    /// fields of these names mean nothing.
    fn relay(&self) -> Option<RelayTag> {
        let origin = serde_json::from_str(self.fields.origin?.get()).ok()?;
        let seq = serde_json::from_str(self.fields.seq?.get()).ok().filter(|seq| *seq > 0)?;
        let publication = self.fields.session.zip(self.fields.number).and_then(|(session, number)| {
            let session = session_id(&mut serde_json::Deserializer::from_str(session.get())).ok()?;
            Some(PublicationId { session, number: serde_json::from_str(number.get()).ok()? })
        });
        Some(RelayTag { origin, seq, publication })
    }

    fn announce(&self) -> Result<ServerAnnounce, WireError> {
        Ok(ServerAnnounce {
            id: self.string("id", self.fields.id)?,
            load: self.integer("load", self.fields.load)?,
            hostname: self.string("hostname", self.fields.hostname)?,
            port: self.integer("port", self.fields.port)?,
        })
    }

    fn redirect(&self) -> Result<Message, WireError> {
        let hostname = self.string("hostname", self.fields.hostname)?;
        let port = self.integer("port", self.fields.port)?;
        let port = u16::try_from(port).map_err(|_| self.wrong("port", "a port number"))?;
        Ok(Message::Redirect { hostname, port })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    fn parse(line: &str) -> Result<Message, WireError> {
        Message::parse(&Bytes::copy_from_slice(line.as_bytes()))
    }

    fn credentials() -> Credentials {
        Credentials { username: "aaron".into(), secret: "s3".into() }
    }

    fn request() -> Request {
        Request { id: "n2".into(), incarnation: 5, attempt: 3 }
    }

    fn applicant(reign: Reign) -> Applicant {
        let key = FragmentKey { reign, root: "n2".into() };
        Applicant { protocol: 1, request: request(), hostname: "h".into(), port: 3780, key, probe: false, moves: false }
    }

    fn origin() -> Origin {
        Origin { id: "n1".into(), incarnation: 5 }
    }

    fn have() -> Have {
        Have::from([(origin(), 17)])
    }

    fn tag(publication: Option<PublicationId>) -> RelayTag {
        RelayTag { origin: origin(), seq: 17, publication }
    }

    fn registration() -> RegistrationId {
        RegistrationId { at: 5, server: "n1".into(), number: 2 }
    }

    fn user() -> UserRecord {
        UserRecord { username: "aaron".into(), hash: "$argon2id$x".into(), registration: registration() }
    }

    fn position() -> TreePosition {
        let key = FragmentKey { reign: Reign::Settled(0), root: "n0".into() };
        TreePosition { key, path: vec!["n0".into(), "n1".into()] }
    }

    /// Pieces of activities, from which both valid and invalid ones are made, usual and unusual.
    const PIECES: [&str; 29] = [
        r#"{"command":"ACTIVITY_MESSAGE","username":""#,
        r#"{"command":"ACTIVITY_BROADCAST""#,
        r#"{"command": "ACTIVITY_MESSAGE""#,
        "anonymous\"",
        "aaron\"",
        r#","secret":"s3""#,
        r#","secret":null"#,
        r#","number":3"#,
        r#","number":0"#,
        r#","number":03"#,
        r#","number":3.0"#,
        r#","number":99999999999999999999"#,
        r#","origin":"5/n1""#,
        r#","origin":"n1""#,
        r#","origin":"5/n\u0031""#,
        r#","seq":17"#,
        r#","seq":0"#,
        r#","session":"s","number":3"#,
        r#","session":"","number":3"#,
        r#","username":"x""#,
        r#","activity":{"n":1.0}"#,
        r#","activity": {"a":{"b":["}"]}} "#,
        r#","activity":{"\ud800":1}"#,
        r#","activity":{"a":1e}"#,
        r#","activity":[]"#,
        r#","activity":{}}"#,
        "}",
        " ",
        "\\",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_quick_way_reads_what_the_long_way_reads(
            head in select(&PIECES[..3]),
            name in select(&["anonymous\"", "aaron\"", "", "a\\n\"", "ü\""][..]),
            pieces in prop::collection::vec(select(&PIECES[5..]), 0..5),
            activity in select(&PIECES[20..26]),
            cut in prop::option::weighted(0.1, any::<Index>()),
        ) {
            let mut line = [head, name, &pieces.concat(), activity, "}"].concat();
            if let Some(cut) = cut {
                let at = cut.index(line.len());
                if line.is_char_boundary(at) && line.is_char_boundary(at + 1) {
                    line.remove(at);
                }
            }
            let bytes = Bytes::from(line);
            let text = std::str::from_utf8(&bytes).unwrap();
            if let Some(message) = quick::parse(text, &bytes) {
                prop_assert_eq!(Message::parse_any(text, &bytes), Ok(message));
            }
        }
    }

    #[test]
    fn the_usual_forms_are_read_the_quick_way() {
        for line in [
            r#"{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":{"n":1.0}}"#,
            r#"{"command":"ACTIVITY_MESSAGE","username":"aaron","secret":"s3","number":3,"activity":{}}"#,
            r#"{"command":"ACTIVITY_BROADCAST","activity":{"n":"}"}}"#,
            r#"{"command":"ACTIVITY_BROADCAST","origin":"5/n1","seq":17,"activity":{}}"#,
            r#"{"command":"ACTIVITY_BROADCAST","origin":"5/n1","seq":17,"session":"s","number":3,"activity":{}}"#,
        ] {
            let bytes = Bytes::from(line);
            let message = quick::parse(line, &bytes).unwrap();
            assert_eq!(message.to_line(), format!("{line}\n"));
            assert_eq!(Message::parse_any(line, &bytes), Ok(message));
        }
    }

    #[test]
    fn names_that_need_escapes_are_written_with_them() {
        let id = "a\"\\\n".into();
        let publication = Some(PublicationId { session: "s\t".into(), number: 1 });
        let activity = Activity::parse("{}").unwrap();
        let message = Message::ActivityBroadcast {
            relay: Some(RelayTag { origin: Origin { id, incarnation: 5 }, seq: 1, publication }),
            activity,
        };
        let line = message.to_line();
        assert_eq!(Message::parse(&line.slice(..line.len() - 1)), Ok(message));
    }

    #[test]
    fn the_smaller_reign_wins_then_the_smaller_root_and_unsettled_is_the_largest() {
        let key = |reign, root: &str| FragmentKey { reign, root: root.into() };
        let mut keys = [
            key(Reign::Unsettled, "a"),
            key(Reign::Settled(u64::MAX), "a"),
            key(Reign::Settled(1), "a"),
            key(Reign::Settled(0), "b"),
            key(Reign::Settled(0), "a"),
        ];
        keys.sort();
        let reigns = keys.map(|key| (key.reign, key.root));
        let expected =
            [(0, "a"), (0, "b"), (1, "a"), (u64::MAX, "a")].map(|(r, id)| (Reign::Settled(r), id.to_owned()));
        assert_eq!(reigns[..4], expected);
        assert_eq!(reigns[4].0, Reign::Unsettled);
    }

    /// One of each, with the exact bytes it has on the wire.
    fn examples() -> Vec<(Message, &'static str)> {
        let info = || String::from("text");
        let activity = || Activity::parse(r#"{"n":1.0}"#).unwrap();
        vec![
            (
                Message::ActivityMessage {
                    username: "aaron".into(),
                    secret: Some("s3".into()),
                    number: None,
                    activity: activity(),
                },
                r#"{"command":"ACTIVITY_MESSAGE","username":"aaron","secret":"s3","activity":{"n":1.0}}"#,
            ),
            (
                Message::ActivityMessage {
                    username: ANONYMOUS.into(),
                    secret: None,
                    number: Some(3),
                    activity: activity(),
                },
                r#"{"command":"ACTIVITY_MESSAGE","username":"anonymous","number":3,"activity":{"n":1.0}}"#,
            ),
            (Message::ActivityAck { number: 3 }, r#"{"command":"ACTIVITY_ACK","number":3}"#),
            (
                Message::ActivityBroadcast { relay: None, activity: activity() },
                r#"{"command":"ACTIVITY_BROADCAST","activity":{"n":1.0}}"#,
            ),
            (
                Message::ActivityBroadcast { relay: Some(tag(None)), activity: activity() },
                r#"{"command":"ACTIVITY_BROADCAST","origin":"5/n1","seq":17,"activity":{"n":1.0}}"#,
            ),
            (
                Message::ActivityBroadcast {
                    relay: Some(tag(Some(PublicationId { session: "c0ffee".into(), number: 3 }))),
                    activity: activity(),
                },
                r#"{"command":"ACTIVITY_BROADCAST","origin":"5/n1","seq":17,"session":"c0ffee","number":3,"activity":{"n":1.0}}"#,
            ),
            (Message::RelayAck { have: have() }, r#"{"command":"RELAY_ACK","have":{"5/n1":17}}"#),
            (
                Message::RelayGap { origin: origin(), through: 9 },
                r#"{"command":"RELAY_GAP","origin":"5/n1","through":9}"#,
            ),
            (Message::RelayHave { have: have(), more: false }, r#"{"command":"RELAY_HAVE","have":{"5/n1":17}}"#),
            (Message::RelayHave { have: Have::new(), more: true }, r#"{"command":"RELAY_HAVE","have":{},"more":true}"#),
            (Message::RelaySynced, r#"{"command":"RELAY_SYNCED"}"#),
            (
                Message::UserAbort { registration: registration(), username: "aaron".into(), committed: false },
                r#"{"command":"USER_ABORT","registration":{"at":5,"server":"n1","number":2},"username":"aaron"}"#,
            ),
            (
                Message::UserAbort { registration: registration(), username: "aaron".into(), committed: true },
                r#"{"command":"USER_ABORT","registration":{"at":5,"server":"n1","number":2},"username":"aaron","committed":true}"#,
            ),
            (
                Message::UserCommit { user: user(), confirm: false },
                r#"{"command":"USER_COMMIT","user":{"username":"aaron","hash":"$argon2id$x","registration":{"at":5,"server":"n1","number":2}}}"#,
            ),
            (
                Message::UserCommit { user: user(), confirm: true },
                r#"{"command":"USER_COMMIT","user":{"username":"aaron","hash":"$argon2id$x","registration":{"at":5,"server":"n1","number":2}},"confirm":true}"#,
            ),
            (
                Message::UserCommitted { registration: registration(), username: "aaron".into() },
                r#"{"command":"USER_COMMITTED","registration":{"at":5,"server":"n1","number":2},"username":"aaron"}"#,
            ),
            (Message::UserDigest { digest: "00ff".into() }, r#"{"command":"USER_DIGEST","digest":"00ff"}"#),
            (
                Message::UserPrepare { registration: registration(), credentials: credentials() },
                r#"{"command":"USER_PREPARE","registration":{"at":5,"server":"n1","number":2},"username":"aaron","secret":"s3"}"#,
            ),
            (
                Message::UserRecords { users: vec![user()], more: false },
                r#"{"command":"USER_RECORDS","users":[{"username":"aaron","hash":"$argon2id$x","registration":{"at":5,"server":"n1","number":2}}]}"#,
            ),
            (
                Message::UserRecords { users: Vec::new(), more: true },
                r#"{"command":"USER_RECORDS","users":[],"more":true}"#,
            ),
            (
                Message::UserVote { registration: registration(), username: "aaron".into(), denied: None },
                r#"{"command":"USER_VOTE","registration":{"at":5,"server":"n1","number":2},"username":"aaron"}"#,
            ),
            (
                Message::UserVote {
                    registration: registration(),
                    username: "aaron".into(),
                    denied: Some(Denial::Taken),
                },
                r#"{"command":"USER_VOTE","registration":{"at":5,"server":"n1","number":2},"username":"aaron","denied":"TAKEN"}"#,
            ),
            (Message::Authenticate { secret: "s3".into(), node: None }, r#"{"command":"AUTHENTICATE","secret":"s3"}"#),
            (
                Message::Authenticate { secret: "s3".into(), node: Some(applicant(Reign::Settled(7))) },
                r#"{"command":"AUTHENTICATE","secret":"s3","node":{"protocol":1,"id":"n2","incarnation":5,"attempt":3,"hostname":"h","port":3780,"key":{"reign":7,"root":"n2"}}}"#,
            ),
            (
                Message::AttachRequest(AttachRequest {
                    applicant: applicant(Reign::Unsettled),
                    trail: vec!["n1".into()],
                }),
                r#"{"command":"ATTACH_REQUEST","applicant":{"protocol":1,"id":"n2","incarnation":5,"attempt":3,"hostname":"h","port":3780,"key":{"root":"n2"}},"trail":["n1"]}"#,
            ),
            (
                Message::AttachAnswer(AttachAnswer { request: request(), trail: vec![], refused: None }),
                r#"{"command":"ATTACH_ANSWER","request":{"id":"n2","incarnation":5,"attempt":3},"trail":[]}"#,
            ),
            (
                Message::AttachAnswer(AttachAnswer {
                    request: request(),
                    trail: vec!["n1".into()],
                    refused: Some(RefusalReason::OwnSubtree),
                }),
                r#"{"command":"ATTACH_ANSWER","request":{"id":"n2","incarnation":5,"attempt":3},"trail":["n1"],"refused":"OWN_SUBTREE"}"#,
            ),
            (Message::Heartbeat { tree: None, announcements: true }, r#"{"command":"HEARTBEAT"}"#),
            (
                Message::Heartbeat { tree: None, announcements: false },
                r#"{"command":"HEARTBEAT","announcements":false}"#,
            ),
            (
                Message::Heartbeat { tree: Some(position()), announcements: true },
                r#"{"command":"HEARTBEAT","tree":{"reign":0,"root":"n0","path":["n0","n1"]}}"#,
            ),
            (
                Message::LinkAccepted { attempt: 3, id: "n1".into(), tree: position() },
                r#"{"command":"LINK_ACCEPTED","attempt":3,"id":"n1","tree":{"reign":0,"root":"n0","path":["n0","n1"]}}"#,
            ),
            (
                Message::Authenticate {
                    secret: "s3".into(),
                    node: Some(Applicant { probe: true, ..applicant(Reign::Settled(7)) }),
                },
                r#"{"command":"AUTHENTICATE","secret":"s3","node":{"protocol":1,"id":"n2","incarnation":5,"attempt":3,"hostname":"h","port":3780,"key":{"reign":7,"root":"n2"},"probe":true}}"#,
            ),
            (
                Message::LinkPossible { attempt: 3, id: "n1".into(), tree: position() },
                r#"{"command":"LINK_POSSIBLE","attempt":3,"id":"n1","tree":{"reign":0,"root":"n0","path":["n0","n1"]}}"#,
            ),
            (
                Message::LinkRefused { attempt: 3, reason: RefusalReason::Unconfirmed, info: info(), targets: vec![] },
                r#"{"command":"LINK_REFUSED","attempt":3,"reason":"UNCONFIRMED","info":"text"}"#,
            ),
            (
                Message::LinkRefused {
                    attempt: 3,
                    reason: RefusalReason::Full,
                    info: info(),
                    targets: vec![Target { id: "n4".into(), hostname: "h".into(), port: 3781 }],
                },
                r#"{"command":"LINK_REFUSED","attempt":3,"reason":"FULL","info":"text","targets":[{"id":"n4","hostname":"h","port":3781}]}"#,
            ),
            (Message::ServerLeft { id: "n4".into() }, r#"{"command":"SERVER_LEFT","id":"n4"}"#),
            (Message::ServerQuit { target: None }, r#"{"command":"SERVER_QUIT"}"#),
            (
                Message::ServerQuit { target: Some(Target { id: "n0".into(), hostname: "h".into(), port: 3780 }) },
                r#"{"command":"SERVER_QUIT","target":{"id":"n0","hostname":"h","port":3780}}"#,
            ),
            (Message::AuthenticationFail { info: info() }, r#"{"command":"AUTHENTICATION_FAIL","info":"text"}"#),
            (Message::InvalidMessage { info: info() }, r#"{"command":"INVALID_MESSAGE","info":"text"}"#),
            (
                Message::LockAllowed { credentials: credentials(), server: Some("id".into()) },
                r#"{"command":"LOCK_ALLOWED","username":"aaron","secret":"s3","server":"id"}"#,
            ),
            (
                Message::LockAllowed { credentials: credentials(), server: None },
                r#"{"command":"LOCK_ALLOWED","username":"aaron","secret":"s3"}"#,
            ),
            (Message::LockDenied(credentials()), r#"{"command":"LOCK_DENIED","username":"aaron","secret":"s3"}"#),
            (Message::LockRequest(credentials()), r#"{"command":"LOCK_REQUEST","username":"aaron","secret":"s3"}"#),
            (
                Message::Login { username: "aaron".into(), secret: Some("s3".into()), resume: None, ticket: None },
                r#"{"command":"LOGIN","username":"aaron","secret":"s3"}"#,
            ),
            (
                Message::Login { username: ANONYMOUS.into(), secret: None, resume: None, ticket: None },
                r#"{"command":"LOGIN","username":"anonymous"}"#,
            ),
            (
                Message::Login {
                    username: ANONYMOUS.into(),
                    secret: None,
                    resume: Some(Resume { session: "c0ffee".into(), have: Some(have()), proof: Some("00ff".into()) }),
                    ticket: Some("a.b.c".into()),
                },
                r#"{"command":"LOGIN","username":"anonymous","resume":{"session":"c0ffee","have":{"5/n1":17},"proof":"00ff"},"ticket":"a.b.c"}"#,
            ),
            (Message::LoginFailed { info: info() }, r#"{"command":"LOGIN_FAILED","info":"text"}"#),
            (
                Message::LoginSuccess { info: info(), have: None, proof: None, servers: vec![] },
                r#"{"command":"LOGIN_SUCCESS","info":"text"}"#,
            ),
            (
                Message::LoginSuccess {
                    info: info(),
                    have: Some(have()),
                    proof: Some("00ff".into()),
                    servers: vec![Target { id: "n0".into(), hostname: "h".into(), port: 3780 }],
                },
                r#"{"command":"LOGIN_SUCCESS","info":"text","have":{"5/n1":17},"proof":"00ff","servers":[{"id":"n0","hostname":"h","port":3780}]}"#,
            ),
            (Message::Logout, r#"{"command":"LOGOUT"}"#),
            (
                Message::Redirect { hostname: "h".into(), port: 3780 },
                r#"{"command":"REDIRECT","hostname":"h","port":3780}"#,
            ),
            (
                Message::Register { credentials: credentials(), ticket: None },
                r#"{"command":"REGISTER","username":"aaron","secret":"s3"}"#,
            ),
            (
                Message::Register { credentials: credentials(), ticket: Some("a.b.c".into()) },
                r#"{"command":"REGISTER","username":"aaron","secret":"s3","ticket":"a.b.c"}"#,
            ),
            (Message::RegisterFailed { info: info() }, r#"{"command":"REGISTER_FAILED","info":"text"}"#),
            (Message::RegisterSuccess { info: info() }, r#"{"command":"REGISTER_SUCCESS","info":"text"}"#),
            (
                Message::ServerAnnounce(ServerAnnounce { id: "x".into(), load: 2, hostname: "h".into(), port: 3780 }),
                r#"{"command":"SERVER_ANNOUNCE","id":"x","load":2,"hostname":"h","port":3780}"#,
            ),
        ]
    }

    #[test]
    fn every_message_has_these_bytes_and_comes_back_from_them() {
        for (message, line) in examples() {
            assert_eq!(std::str::from_utf8(&message.to_line()).unwrap(), format!("{line}\n"));
            assert_eq!(parse(line).unwrap(), message);
            assert!(line.starts_with(&format!(r#"{{"command":"{}""#, message.command())));
        }
    }

    #[test]
    fn a_reason_of_a_later_version_is_a_refusal_like_any() {
        let line = r#"{"command":"LINK_REFUSED","attempt":3,"reason":"MOON_PHASE","info":"text"}"#;
        let refused =
            Message::LinkRefused { attempt: 3, reason: RefusalReason::Other, info: "text".into(), targets: vec![] };
        assert_eq!(parse(line), Ok(refused));
    }

    #[test]
    fn field_order_white_space_and_unknown_fields_mean_nothing() {
        let spaced = r#" { "secret" : "s3" , "x":[{"command":"LOGOUT"}], "port":"not ours", "username":"aaron", "command":"LOGIN" } "#;
        assert_eq!(
            parse(spaced).unwrap(),
            Message::Login { username: "aaron".into(), secret: Some("s3".into()), resume: None, ticket: None }
        );
    }

    #[test]
    fn each_way_to_be_invalid_is_told_apart() {
        use WireError as E;
        let wrong = |command, field, expected| E::WrongType { command, field, expected };
        for (line, error) in [
            ("", E::Empty),
            ("  \t", E::Empty),
            ("[]", E::NotAnObject),
            ("5", E::NotAnObject),
            (r#"["LOGIN"]"#, E::NotAnObject),
            ("{}", E::NoCommand),
            (r#"{"Command":"LOGOUT"}"#, E::NoCommand),
            (r#"{"command":5}"#, wrong("message", "command", "a string")),
            (r#"{"command":null}"#, wrong("message", "command", "a string")),
            (r#"{"command":"logout"}"#, E::UnknownCommand("logout".into())),
            (r#"{"command":"LOGOUT","command":"LOGOUT"}"#, E::DuplicateField("command")),
            (r#"{"command":"LOGIN"}"#, E::MissingField { command: "LOGIN", field: "username" }),
            (r#"{"command":"LOGIN","username":"aaron"}"#, E::MissingField { command: "LOGIN", field: "secret" }),
            (r#"{"command":"LOGIN","username":"anonymous","secret":5}"#, wrong("LOGIN", "secret", "a string")),
            (r#"{"command":"LOGIN","username":"anonymous","secret":null}"#, wrong("LOGIN", "secret", "a string")),
            (r#"{"command":"LOGIN","username":["a"],"secret":"x"}"#, wrong("LOGIN", "username", "a string")),
            (
                r#"{"command":"LOCK_ALLOWED","username":"a","secret":"b","server":7}"#,
                wrong("LOCK_ALLOWED", "server", "a string"),
            ),
            (
                r#"{"command":"SERVER_ANNOUNCE","id":"a","load":1.0,"hostname":"h","port":1}"#,
                wrong("SERVER_ANNOUNCE", "load", "an integer"),
            ),
            (
                r#"{"command":"SERVER_ANNOUNCE","id":"a","load":1,"hostname":"h","port":"1"}"#,
                wrong("SERVER_ANNOUNCE", "port", "an integer"),
            ),
            (
                r#"{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":[]}"#,
                wrong("ACTIVITY_MESSAGE", "activity", "an object"),
            ),
            (
                r#"{"command":"ACTIVITY_BROADCAST"}"#,
                E::MissingField { command: "ACTIVITY_BROADCAST", field: "activity" },
            ),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
        for line in
            ["hello", "{", r#"{"command":"LOGOUT"} x"#, r#"{"command":"LOGOUT",}"#, "{'command':'LOGOUT'}", "nul"]
        {
            assert!(matches!(parse(line), Err(E::NotJson(_))), "{line}");
        }
        assert_eq!(Message::parse(&Bytes::from_static(b"{\"command\":\"LOGOUT\",\"x\":\"\xff\"}")), Err(E::NotUtf8));
    }

    #[test]
    fn fields_of_the_extensions_mean_nothing_where_they_have_another_form() {
        let broadcast = |tag: &str| parse(&format!(r#"{{"command":"ACTIVITY_BROADCAST",{tag}"activity":{{}}}}"#));
        for tag in [
            "",
            r#""origin":"5/n1","#,
            r#""seq":5,"#,
            r#""origin":5,"seq":5,"#,
            r#""origin":"5/n1","seq":0,"#,
            r#""origin":"5/n1","seq":-1,"#,
            r#""origin":["5/n1"],"seq":"1","session":{},"number":[],"#,
        ] {
            let expected = Message::ActivityBroadcast { relay: None, activity: Activity::parse("{}").unwrap() };
            assert_eq!(broadcast(tag).unwrap(), expected, "{tag}");
        }
        let login = parse(r#"{"command":"LOGIN","username":"anonymous","resume":[1]}"#).unwrap();
        assert_eq!(login, Message::Login { username: ANONYMOUS.into(), secret: None, resume: None, ticket: None });
        for ticket in ["7", "null", r#"{"a":1}"#, r#"["a.b.c"]"#] {
            let line = format!(r#"{{"command":"LOGIN","username":"anonymous","ticket":{ticket}}}"#);
            assert_eq!(parse(&line).unwrap(), login, "{line}");
        }
    }

    #[test]
    fn a_refusal_is_recognised_whatever_its_form() {
        let deep = format!(r#"{{"command":"INVALID_MESSAGE","info":{}1{}}}"#, "[".repeat(300), "]".repeat(300));
        for line in [r#"{"command":"INVALID_MESSAGE"}"#, r#"{"info":5,"info":6,"command":"INVALID_MESSAGE"}"#, &deep] {
            assert_eq!(parse(line).unwrap(), Message::InvalidMessage { info: String::new() });
        }
        let fail = parse(r#"{"command":"AUTHENTICATION_FAIL","info":[]}"#).unwrap();
        assert_eq!(fail, Message::AuthenticationFail { info: String::new() });
    }

    #[test]
    fn nesting_is_bounded_without_recursion() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            parse(&format!(r#"{{"command":"ACTIVITY_BROADCAST","activity":{{"a":{open}"[[[\"[[["{close}}}}}"#))
        };
        assert!(nested(MAX_DEPTH - 2).is_ok());
        assert_eq!(nested(MAX_DEPTH - 1), Err(WireError::TooDeep));
        assert_eq!(nested(400_000), Err(WireError::TooDeep));
        let flat = format!(r#"{{"command":"LOGOUT","x":[{}1]}}"#, "[],".repeat(1000));
        assert_eq!(parse(&flat), Ok(Message::Logout));
    }

    #[test]
    fn integers_out_of_range_are_taken_as_the_nearest_bound() {
        let load = |text: &str| match parse(&format!(
            r#"{{"command":"SERVER_ANNOUNCE","id":"a","load":{text},"hostname":"h","port":1}}"#
        )) {
            Ok(Message::ServerAnnounce(announce)) => announce.load,
            other => panic!("{other:?}"),
        };
        assert_eq!(load("9223372036854775808"), i64::MAX);
        assert_eq!(load("-99999999999999999999999"), i64::MIN);
        assert_eq!(load("-3"), -3);
    }

    #[test]
    fn an_answer_never_shows_a_value_and_quotes_a_command_only_in_part() {
        let error = parse(&format!(r#"{{"command":"{}"}}"#, "x".repeat(100_000))).unwrap_err();
        assert!(error.to_string().len() < 300);
        let error = parse(r#"{"command":"LOGIN","username":"a","secret":["hunter2"]}"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
        let error = parse(r#"{"command":"LOGIN","username":"a","secret":"hunter2"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }

    proptest! {
        #[test]
        fn strings_of_any_content_survive_the_round_trip(username in "\\PC*", secret in ".*", server in any::<Option<String>>()) {
            let credentials = Credentials { username, secret: secret.into() };
            for message in [
                Message::Register { credentials: credentials.clone(), ticket: None },
                Message::LockAllowed { credentials, server },
            ] {
                let line = message.to_line();
                let line = line.slice(..line.len() - 1);
                prop_assert!(!line.contains(&b'\n'));
                prop_assert_eq!(Message::parse(&line), Ok(message));
            }
        }

        #[test]
        fn a_mutated_line_is_refused_or_read_and_never_panics(
            which in any::<Index>(), edits in prop::collection::vec((any::<Index>(), any::<u8>(), 0_u8..3), 1..6),
        ) {
            let mut examples = examples();
            let (_, line) = examples.remove(which.index(examples.len()));
            let mut bytes = line.as_bytes().to_vec();
            for (at, byte, edit) in edits {
                let at = at.index(bytes.len().max(1));
                match edit {
                    0 if at < bytes.len() => bytes[at] = byte,
                    1 if at < bytes.len() => { bytes.remove(at); }
                    _ => bytes.insert(at.min(bytes.len()), byte),
                }
            }
            if let Ok(message) = Message::parse(&Bytes::from(bytes)) {
                let line = message.to_line();
                prop_assert_eq!(Message::parse(&line.slice(..line.len() - 1)), Ok(message));
            }
        }
    }
}
