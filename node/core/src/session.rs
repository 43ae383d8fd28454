//! Strangers and clients: who they are and what they may send (protocol, Who a connection is).

use std::time::Instant;

use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::message::{ANONYMOUS, Applicant};
use arborcast_proto::wire::{Message, Resume, Secret};
use tracing::debug;

use crate::error::Refusal;
use crate::event::{Action, CloseReason, ReceivedLine};
use crate::ids::ConnectionId;
use crate::link::Link;
use crate::node::{Hold, Node, Role};
use crate::publishing::{ExtendedSession, Submission};
use crate::timer::Timer;
use crate::users::Standing;

/// A logged-in client.
#[derive(Debug)]
pub(crate) struct Session {
    username: String,
    /// What it logged in with; `anonymous` needs none.
    secret: Option<Secret>,
    /// If it is an extended session.
    pub(crate) extended: Option<Box<ExtendedSession>>,
    /// It gets activities.
    pub(crate) is_subscribed: bool,
}

impl Session {
    /// Whether this session may publish under that name (protocol, Activities).
    pub(crate) fn may_publish_as(&self, username: &str, secret: Option<&Secret>) -> bool {
        username == ANONYMOUS || (username == self.username && secret == self.secret.as_ref())
    }
}

impl Node {
    pub(crate) fn on_stranger_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        match message {
            Message::Authenticate { secret, node } => self.on_authenticate(now, connection, secret, node, out),
            Message::Register { credentials, .. } if self.is_draining() => {
                Err(Refusal::NoNewUsers { username: credentials.username })
            }
            Message::Register { credentials, ticket } => {
                self.admit(now, connection, ticket.as_ref())?;
                self.on_register(now, connection, credentials, out)
            }
            Message::Login { username, secret, resume, ticket } => {
                self.admit(now, connection, ticket.as_ref())?;
                self.on_login(now, connection, username, secret, resume, out)
            }
            Message::Logout => Err(Refusal::NotLoggedIn),
            Message::ActivityMessage { .. } => Err(Refusal::ActivityBeforeLogin),
            other => Err(Refusal::out_of_place_before_or_in_a_session(&other)),
        }
    }

    pub(crate) fn on_client_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        match message {
            Message::ActivityMessage { username, secret, number, activity } => {
                self.on_activity(now, connection, Submission { username, secret, number, activity }, out)
            }
            Message::Logout => {
                self.close(now, connection, CloseReason::LoggedOut, out);
                Ok(())
            }
            other => Err(Refusal::out_of_place_before_or_in_a_session(&other)),
        }
    }

    fn on_authenticate(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        secret: Secret,
        node: Option<Applicant>,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        if secret != self.config.secret {
            return Err(Refusal::WrongClusterSecret(secret));
        }
        if self.clients_only.contains(&connection) {
            return Err(Refusal::NoCertificate);
        }
        match node.filter(|_| self.extensions.is_some()) {
            Some(applicant) => self.on_applicant(now, connection, applicant, out),
            None if self.is_draining() => return Err(Refusal::NoNewLinks),
            None => self.become_link(now, connection, Link::from_plain_child(now), out),
        }
        Ok(())
    }

    fn on_login(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        username: String,
        secret: Option<Secret>,
        resume: Option<Resume>,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let shown = resume.as_ref().and_then(|resume| resume.proof.as_ref());
        if let (Some(secret), Some(shown)) = (&secret, shown) {
            self.take_in_proof(&username, secret, shown);
        }
        match self.standing_at_login(connection, &username, secret.as_ref()) {
            Standing::Registered => {
                self.become_session(now, connection, username, secret, resume, out);
                Ok(())
            }
            Standing::Pending => {
                debug!(%connection, username, "login held until the registration is settled");
                let hold = Hold::Login(username.clone());
                self.hold_login(connection, hold, Message::Login { username, secret, resume, ticket: None });
                Ok(())
            }
            Standing::Unverified => {
                let given = secret.as_ref().ok_or(Refusal::WrongSecret)?;
                let hold = self.begin_verification(connection, &username, given, out).ok_or(Refusal::WrongSecret)?;
                self.hold_login(connection, hold, Message::Login { username, secret, resume, ticket: None });
                Ok(())
            }
            Standing::Free => {
                let hold = self.begin_lookup(connection, &username, out).ok_or(Refusal::WrongSecret)?;
                self.hold_login(connection, hold, Message::Login { username, secret, resume, ticket: None });
                Ok(())
            }
            Standing::OtherSecret => Err(Refusal::WrongSecret),
        }
    }

    fn standing_at_login(&mut self, connection: ConnectionId, username: &str, secret: Option<&Secret>) -> Standing {
        if self.extensions.is_some() {
            return self.standing_in_directory(connection, username, secret);
        }
        let Some(secret) = secret.filter(|_| username != ANONYMOUS) else {
            return if username == ANONYMOUS { Standing::Registered } else { Standing::OtherSecret };
        };
        let being_registered = self.registrations.get(username).is_some_and(|own| own.secret == *secret);
        match self.users.standing(username, secret) {
            Standing::Free if being_registered => Standing::Pending,
            standing => standing,
        }
    }

    /// The LOGIN is handled once more when what it waits for is there.
    fn hold_login(&mut self, connection: ConnectionId, hold: Hold, login: Message) {
        if let Some(entry) = self.connections.get_mut(&connection) {
            let line = ReceivedLine { bytes: login.to_line(), message: Ok(login) };
            if let Hold::Login(username) = &hold {
                self.held_logins.entry(username.clone()).or_default().insert(connection);
            }
            entry.wait_again(hold, line);
        }
    }

    /// Answers the logins that were held for this name, now that its fate is known.
    pub(crate) fn resume_logins(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        for connection in self.held_logins.remove(username).unwrap_or_default() {
            self.resume(now, connection, out);
        }
    }

    /// The sessions of a user, each with the secret it logged in with.
    pub(crate) fn sessions_of(&self, username: &str) -> Vec<(ConnectionId, Secret)> {
        let secret = |role: &Role| match role {
            Role::Client(session) if session.username == username => session.secret.clone(),
            _ => None,
        };
        let connections = self.connections.iter();
        connections.filter_map(|(connection, entry)| Some((*connection, secret(&entry.role)?))).collect()
    }

    fn become_session(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        username: String,
        secret: Option<Secret>,
        resume: Option<Resume>,
        out: &mut Vec<Action>,
    ) {
        let info = format!("logged in as user {}", quote(&username));
        let (session, have) = resume.filter(|_| self.relay.is_some()).map(|it| (it.session, it.have)).unzip();
        let have = have.flatten();
        let proof = self.proof_for(&username, secret.as_ref());
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        let extended = session.map(|id| Box::new(ExtendedSession::new(id, have.is_some())));
        entry.role = Role::Client(Session { username, secret, extended, is_subscribed: false });
        self.sessions += 1;
        self.counters.logins += 1;
        self.timers.stop(&Timer::Identify(connection));
        let (welcome, more) = self.welcome(connection, info, proof);
        self.send(connection, &welcome, out);
        let is_sent_here = self.settle_ticket(connection);
        let elsewhere = match self.is_draining() {
            true => self.servers.least_loaded(),
            // Its master has looked at the loads of all servers already.
            false if is_sent_here => None,
            false => self.servers.redirect(self.load()),
        };
        match elsewhere {
            Some((hostname, port)) => {
                self.send(connection, &Message::Redirect { hostname, port }, out);
                self.close(now, connection, CloseReason::Redirected, out);
            }
            None if self.is_draining() => self.close(now, connection, CloseReason::Stopping, out),
            None => {
                for message in more {
                    self.send(connection, &message, out);
                }
                self.subscribe_session(now, connection, have, out);
            }
        }
    }
}
