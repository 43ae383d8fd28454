//! A registration that is under way.

use std::collections::BTreeSet;

use arborcast_proto::wire::{Denial, RegistrationId, Secret};

use crate::error::Refusal;
use crate::ids::ConnectionId;
use crate::locks::{Agreement, Allowances};

/// What a server keeps of a name that is being registered (protocol, U2, U3).
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) registration: RegistrationId,
    pub(crate) secret: Secret,
    pub(crate) asker: Asker,
    pub(crate) stage: Stage,
    /// The extended links over which USER_PREPARE was sent.
    pub(crate) asked: BTreeSet<ConnectionId>,
    /// Those of them whose vote has not come.
    pub(crate) unanswered: BTreeSet<ConnectionId>,
    /// The answers of the plain servers that were sent LOCK_REQUEST, if there are plain links.
    pub(crate) locks: Option<Agreement>,
}

/// A registration of this server that is committed, and that no neighbour has confirmed to know yet (protocol, U5).
#[derive(Debug)]
pub(crate) struct Unconfirmed {
    pub(crate) registration: RegistrationId,
    /// Whom to tell that the name is its own, as long as it is there.
    pub(crate) client: Option<ConnectionId>,
}

/// Who wants to know how it ends.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A client of this server, as long as it is there.
    Client(Option<ConnectionId>),
    /// Other extended servers; more than one only while the tree changes, none when the link is lost.
    Links(BTreeSet<ConnectionId>),
    /// A plain tree at this server's border, and who has allowed the pair there.
    Plain(Allowances),
}

/// How far it has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Votes are missing.
    Asking,
    /// This server has agreed, and waits for the outcome.
    Voted,
    /// The extended tree has agreed; the plain one at the border has not settled it yet.
    Settling,
    /// All have agreed; the secret is being hashed, and the record written.
    Completing,
}

/// Why a registration fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Somebody objects.
    Denied(Denial),
    /// A plain server objects; the plain tree at the border knows.
    DeniedByPlain,
    /// The masters could not be asked, or could not tell.
    NoMaster(String),
    /// The record could not be written.
    NotWritten(String),
}

impl Pending {
    pub(crate) fn new(registration: RegistrationId, secret: Secret, asker: Asker) -> Self {
        Self {
            registration,
            secret,
            asker,
            stage: Stage::Asking,
            asked: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            locks: None,
        }
    }

    /// Whether this link waits for our vote.
    pub(crate) fn is_asked_by(&self, link: ConnectionId) -> bool {
        matches!(&self.asker, Asker::Links(links) if links.contains(&link))
    }

    /// Whether another registration of the name, asked for over `link`, takes its place (protocol, U4).
    pub(crate) fn gives_way_to(&self, other: &RegistrationId, link: ConnectionId) -> bool {
        self.is_asked_by(link) || (self.stage == Stage::Asking && *other < self.registration)
    }

    pub(crate) fn is_agreed(&self) -> bool {
        self.unanswered.is_empty() && self.locks.as_ref().is_none_or(Agreement::is_complete)
    }

    /// Whether the plain tree at the border has been told of it.
    pub(crate) fn is_known_to_plain(&self) -> bool {
        self.locks.is_some() || matches!(self.asker, Asker::Plain(_))
    }
}

impl Failure {
    /// What other servers are told.
    pub(crate) fn denial(&self) -> Denial {
        match self {
            Self::Denied(denial) => *denial,
            Self::DeniedByPlain => Denial::Taken,
            Self::NoMaster(_) | Self::NotWritten(_) => Denial::Incomplete,
        }
    }

    /// What a client is told.
    pub(crate) fn refusal(self, username: &str) -> Refusal {
        let username = username.to_owned();
        match self {
            Self::Denied(Denial::AtMasters) => Refusal::AtMasters { username },
            Self::Denied(Denial::Incomplete) => Refusal::NotAgreedInTime { username },
            Self::Denied(Denial::NoRoom) => Refusal::NoRoom,
            Self::Denied(Denial::Pending) => Refusal::BeingRegistered { username },
            Self::Denied(Denial::Taken) | Self::DeniedByPlain => Refusal::NameTaken { username },
            Self::NoMaster(why) => Refusal::NoMaster { username, why },
            Self::NotWritten(why) => Refusal::NotWritten { username, why },
        }
    }
}
