//! What peers do wrong or can't have, and the one function from there to the answer.

use arborcast_proto::ticket::TicketFault;
use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::message::{RefusalReason, Sender};
use arborcast_proto::wire::{Message, Secret, WireError};
use thiserror::Error;

use crate::event::CloseReason;

/// Why a connection is refused. Each variant is caused by the peer alone, is answered as [`Refusal::answer`] says, and
/// ends that connection and nothing else. The `Display` text is the answer's `info`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    /// Undecodable: the line is no message.
    #[error(transparent)]
    Undecodable(#[from] WireError),

    // Misbehaved: a legal message at the wrong time or place (protocol, Who a connection is).
    /// AUTHENTICATE on a server link.
    #[error("the server is already authenticated")]
    AlreadyAuthenticated,
    /// A message between servers, from somebody who has not shown to be one.
    #[error("{command} is only accepted from an authenticated server")]
    NotAServer { command: &'static str },
    /// A message of clients, on a server link.
    #[error("{command} is only accepted from a client")]
    NotAClient { command: &'static str },
    /// REGISTER, LOGIN or AUTHENTICATE from a client that is logged in.
    #[error("{command} is not accepted after LOGIN")]
    AlreadyLoggedIn { command: &'static str },
    /// A message of the extensions over a link that does not speak them, or a plain one where they were expected.
    #[error("{command} is not accepted on this link")]
    NotExtended { command: &'static str },
    /// ACTIVITY_BROADCAST without its name, over a link where it needs one.
    #[error("ACTIVITY_BROADCAST needs origin and seq on this link")]
    Unnamed,
    /// LOGOUT from somebody who is not logged in.
    #[error("LOGOUT is only accepted after LOGIN")]
    NotLoggedIn,
    /// An answer of servers to clients, sent to a server.
    #[error("{command} is never sent to a server")]
    AnswerToAServer { command: &'static str },
    /// A second REGISTER while the first is pending.
    #[error("a registration is already under way on this connection")]
    SecondRegistration,
    /// The activity fits the line limit, its broadcast does not.
    #[error("the activity is too long to be broadcast within {max_line} bytes a line")]
    BroadcastTooLong { max_line: usize },
    /// More was sent behind an unanswered REGISTER or LOGIN than is kept.
    #[error("more than {limit} bytes were sent before the answer to REGISTER or LOGIN")]
    TooMuchAhead { limit: usize },
    /// More activities wait for their acknowledgement than a session may have.
    #[error("more than {limit} activities are not acknowledged yet")]
    TooManyUnacknowledged { limit: usize },
    /// Neither a link nor a session after the login timeout.
    #[error("neither AUTHENTICATE nor LOGIN came within {seconds} s")]
    NotIdentified { seconds: u64 },

    // Refused: an ordinary no.
    /// AUTHENTICATE with another secret.
    #[error("the supplied secret is incorrect: {}", quote(.0.expose()))]
    WrongClusterSecret(Secret),
    /// AUTHENTICATE over a connection on which servers are not taken.
    #[error("a server must connect over TLS and show a certificate of this tree")]
    NoCertificate,
    /// ACTIVITY_MESSAGE before LOGIN.
    #[error("the client must log in before it sends activities")]
    ActivityBeforeLogin,
    /// ACTIVITY_MESSAGE under another name or secret than those of the LOGIN.
    #[error("the username and secret are not those of the login")]
    OtherAuthor,
    /// LOGIN with an unknown name or a wrong secret; which of the two is nobody's business.
    #[error("attempt to login with wrong secret")]
    WrongSecret,
    /// REGISTER of a name that somebody has, or is about to have.
    #[error("{} is already registered with the system", quote(.username))]
    NameTaken { username: String },
    /// REGISTER of a name that somebody else is about to have.
    #[error("{} is being registered by somebody else at this moment", quote(.username))]
    BeingRegistered { username: String },
    /// The session's registration no longer counts.
    #[error(
        "{} was registered earlier in another part of the tree, so this registration no longer counts; register \
         another name",
        quote(.username)
    )]
    RegistrationReplaced { username: String },
    /// The record could not be written to disk.
    #[error("{} could not be registered: the server can't write it to disk: {}; try again later", quote(.username), quote(.why))]
    NotWritten { username: String, why: String },
    /// The masters keep users, and can't be asked, or can't tell.
    #[error("{} could not be registered: {}; try again later", quote(.username), quote(.why))]
    NoMaster { username: String, why: String },
    /// The masters keep users, and this server, or another one, was not told.
    #[error(
        "{} could not be registered: users of this tree are registered at its masters, and this server was started \
         without --users masters; try another one",
        quote(.username)
    )]
    AtMasters { username: String },
    /// Not all other servers agreed in time.
    #[error("{} could not be registered: not all servers answered in time; try again", quote(.username))]
    NotAgreedInTime { username: String },
    /// The name and secret are too long for the lock messages.
    #[error("the username and secret are too long to be registered")]
    CredentialsTooLong,
    /// AUTHENTICATE of a plain server while this one drains.
    #[error("this server is about to stop and takes no new links")]
    NoNewLinks,
    /// REGISTER while this server drains.
    #[error("{} could not be registered: this server is about to stop; try another one", quote(.username))]
    NoNewUsers { username: String },
    /// REGISTER or LOGIN without a ticket, where one is needed.
    #[error(
        "this server takes clients only with a ticket of a master: ask one for a server, as `arborcast --master` does"
    )]
    NoTicket,
    /// A ticket that is not good.
    #[error(transparent)]
    BadTicket(#[from] TicketFault),
    /// A ticket with which somebody was admitted before.
    #[error("the ticket was used before: ask a master for another one")]
    TicketReplayed,
    /// Secrets are verified one after the other, and as many wait as may.
    #[error("too many logins wait at this server: try again later, or another one")]
    TooManyLogins,
    /// As many tickets were used as are remembered.
    #[error("this server can't take more tickets at the moment: ask a master for another server")]
    TooManyTickets,
    /// A bound on what this server keeps is reached.
    #[error("this server can't take more registrations at the moment")]
    NoRoom,
}

impl Refusal {
    /// For a message that strangers and clients have no business to send (protocol, Who a connection is).
    pub(crate) fn out_of_place_before_or_in_a_session(message: &Message) -> Self {
        let command = message.command();
        match message.sender() {
            Sender::Answerer => Self::AnswerToAServer { command },
            Sender::Client | Sender::Dialler => Self::AlreadyLoggedIn { command },
            Sender::ExtendedServer | Sender::Server => Self::NotAServer { command },
        }
    }

    /// The same for a server link.
    pub(crate) fn out_of_place_on_a_link(message: &Message) -> Self {
        let command = message.command();
        match message.sender() {
            Sender::Answerer => Self::AnswerToAServer { command },
            Sender::Client => Self::NotAClient { command },
            Sender::Dialler => Self::AlreadyAuthenticated,
            Sender::ExtendedServer | Sender::Server => Self::NotExtended { command },
        }
    }

    /// A name for the counters.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "undecodable",
            Self::AlreadyAuthenticated => "already_authenticated",
            Self::NotAServer { .. } => "not_a_server",
            Self::NotAClient { .. } => "not_a_client",
            Self::AlreadyLoggedIn { .. } => "already_logged_in",
            Self::NotExtended { .. } => "not_extended",
            Self::Unnamed => "unnamed",
            Self::NotLoggedIn => "not_logged_in",
            Self::AnswerToAServer { .. } => "answer_to_a_server",
            Self::SecondRegistration => "second_registration",
            Self::BroadcastTooLong { .. } => "broadcast_too_long",
            Self::TooMuchAhead { .. } => "too_much_ahead",
            Self::TooManyUnacknowledged { .. } => "too_many_unacknowledged",
            Self::NotIdentified { .. } => "not_identified",
            Self::WrongClusterSecret(_) => "wrong_cluster_secret",
            Self::NoCertificate => "no_certificate",
            Self::ActivityBeforeLogin => "activity_before_login",
            Self::OtherAuthor => "other_author",
            Self::WrongSecret => "wrong_secret",
            Self::NameTaken { .. } => "name_taken",
            Self::BeingRegistered { .. } => "being_registered",
            Self::RegistrationReplaced { .. } => "registration_replaced",
            Self::NotWritten { .. } => "not_written",
            Self::NoMaster { .. } => "no_master",
            Self::AtMasters { .. } => "at_masters",
            Self::NotAgreedInTime { .. } => "not_agreed_in_time",
            Self::CredentialsTooLong => "credentials_too_long",
            Self::NoNewLinks => "no_new_links",
            Self::NoNewUsers { .. } => "no_new_users",
            Self::NoTicket => "no_ticket",
            Self::BadTicket(TicketFault::Expired) => "ticket_expired",
            Self::BadTicket(TicketFault::Foreign) => "ticket_foreign",
            Self::BadTicket(TicketFault::Forged) => "ticket_forged",
            Self::BadTicket(TicketFault::Malformed) => "ticket_malformed",
            Self::BadTicket(TicketFault::TooFarAhead) => "ticket_too_far_ahead",
            Self::TicketReplayed => "ticket_replayed",
            Self::TooManyLogins => "too_many_logins",
            Self::TooManyTickets => "too_many_tickets",
            Self::NoRoom => "no_room",
        }
    }

    /// A name for the counters, of what a refused applicant is told.
    pub(crate) fn attachment_name(reason: RefusalReason) -> &'static str {
        match reason {
            RefusalReason::Draining => "draining",
            RefusalReason::Other => "other",
            RefusalReason::Protocol => "protocol",
            RefusalReason::Full => "full",
            RefusalReason::IdInUse => "id_in_use",
            RefusalReason::KeyNotSmaller => "key_not_smaller",
            RefusalReason::Moving => "moving",
            RefusalReason::OwnSubtree => "own_subtree",
            RefusalReason::Unconfirmed => "unconfirmed",
        }
    }

    /// What a refused applicant is told, for people.
    pub(crate) fn attachment_info(reason: RefusalReason) -> &'static str {
        match reason {
            RefusalReason::Draining => "this server is about to stop",
            RefusalReason::Other => "no reason that this server knows",
            RefusalReason::Protocol => "this server speaks another version of the extensions",
            RefusalReason::Full => "this server has no place for another child",
            RefusalReason::IdInUse => "another server with this id is there",
            RefusalReason::KeyNotSmaller => "the fragment here does not rule the asking one",
            RefusalReason::Moving => "another server of this tree is moving",
            RefusalReason::OwnSubtree => "the asking server is above this one",
            RefusalReason::Unconfirmed => "the root of this fragment has not confirmed in time",
        }
    }

    /// What the peer is told, and why its connection ends.
    pub(crate) fn answer(&self) -> (Message, CloseReason) {
        let info = self.to_string();
        match self {
            Self::Undecodable(_)
            | Self::AlreadyAuthenticated
            | Self::NotAServer { .. }
            | Self::NotAClient { .. }
            | Self::AlreadyLoggedIn { .. }
            | Self::NotExtended { .. }
            | Self::NotLoggedIn
            | Self::AnswerToAServer { .. }
            | Self::SecondRegistration
            | Self::BroadcastTooLong { .. }
            | Self::TooManyUnacknowledged { .. }
            | Self::Unnamed
            | Self::NoNewLinks
            | Self::NoTicket
            | Self::BadTicket(_)
            | Self::TicketReplayed
            | Self::TooManyTickets
            | Self::TooMuchAhead { .. } => (Message::InvalidMessage { info }, CloseReason::InvalidMessage),
            Self::NotIdentified { .. } => (Message::InvalidMessage { info }, CloseReason::LoginTimeout),
            Self::WrongClusterSecret(_)
            | Self::NoCertificate
            | Self::ActivityBeforeLogin
            | Self::OtherAuthor
            | Self::RegistrationReplaced { .. } => {
                (Message::AuthenticationFail { info }, CloseReason::AuthenticationFail)
            }
            Self::TooManyLogins | Self::WrongSecret => (Message::LoginFailed { info }, CloseReason::LoginFailed),
            Self::NameTaken { .. }
            | Self::BeingRegistered { .. }
            | Self::NotWritten { .. }
            | Self::NoMaster { .. }
            | Self::AtMasters { .. }
            | Self::NotAgreedInTime { .. }
            | Self::CredentialsTooLong
            | Self::NoNewUsers { .. }
            | Self::NoRoom => (Message::RegisterFailed { info }, CloseReason::RegisterFailed),
        }
    }
}
