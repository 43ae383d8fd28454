//! Registration with locks (protocol, Registration), and the login window.

use std::time::Instant;

use arborcast_proto::wire::limits::quote;
use arborcast_proto::wire::message::ANONYMOUS;
use arborcast_proto::wire::{Credentials, Message};
use tracing::{debug, info};

use crate::config::{LOGIN_WINDOW, REGISTRATION_TIMEOUT};
use crate::error::Refusal;
use crate::event::Action;
use crate::ids::{ConnectionId, ServerId};
use crate::locks::Registration;
use crate::node::{Hold, Node};
use crate::timer::Timer;
use crate::users::Standing;

impl Node {
    /// REGISTER from a client.
    pub(crate) fn on_register(
        &mut self,
        now: Instant,
        client: ConnectionId,
        credentials: Credentials,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let is_pending = self.connections.get(&client).is_some_and(|entry| entry.hold.is_some());
        if is_pending {
            return Err(Refusal::SecondRegistration);
        }
        if self.extensions.is_some() {
            return self.on_register_in_tree(now, client, credentials, out);
        }
        let username = credentials.username.clone();
        if username == ANONYMOUS || self.users.knows(&username) || self.registrations.contains_key(&username) {
            return Err(Refusal::NameTaken { username });
        }
        if !self.locks_fit(&credentials) {
            return Err(Refusal::CredentialsTooLong);
        }
        if self.servers.len() == 0 {
            self.users.store_registered(&credentials).map_err(|_full| Refusal::NoRoom)?;
            self.confirm(now, client, &username, out);
            return Ok(());
        }
        if self.registrations.len() >= self.config.max_registrations {
            return Err(Refusal::NoRoom);
        }
        let waiting_for = self.servers.iter().map(|(id, server)| (id.clone(), server.link)).collect();
        let registration = Registration::new(credentials.secret.clone(), client, waiting_for);
        self.registrations.insert(username.clone(), registration);
        self.timers.set(Timer::Registration(username.clone()), now + REGISTRATION_TIMEOUT);
        if let Some(entry) = self.connections.get_mut(&client) {
            entry.hold = Some(Hold::Registration(username));
        }
        self.flood(&Message::LockRequest(credentials), out);
        Ok(())
    }

    /// LOCK_REQUEST from another server. The line itself has been passed on.
    pub(crate) fn on_lock_request(&mut self, now: Instant, credentials: Credentials, out: &mut Vec<Action>) {
        let Credentials { username, secret } = &credentials;
        let standing = self.users.standing(username, secret);
        let is_ours = self.registrations.get(username).is_some_and(|own| own.secret != *secret);
        let is_other = username == ANONYMOUS || standing == Standing::OtherSecret || is_ours;
        if is_other || !self.locks_fit(&credentials) || self.users.store_pending(&credentials).is_err() {
            debug!(username = quote(username), "lock denied");
            self.flood(&Message::LockDenied(credentials), out);
            return;
        }
        let username = username.clone();
        self.flood(&Message::LockAllowed { credentials, server: Some(self.config.id.clone()) }, out);
        if standing == Standing::Free {
            self.windows.entry(username.clone()).or_default();
            self.timers.set(Timer::LoginWindow(username.clone()), now + LOGIN_WINDOW);
            self.settle_if_covered(now, &username, out);
        }
    }

    /// LOCK_DENIED from another server. The line itself has been passed on.
    pub(crate) fn on_lock_denied(&mut self, now: Instant, credentials: &Credentials, out: &mut Vec<Action>) {
        self.remove_user(credentials);
        let username = &credentials.username;
        if self.registrations.get(username).is_some_and(|own| own.secret == credentials.secret) {
            self.fail_registration(now, username, &Refusal::NameTaken { username: username.clone() }, out);
        }
        self.resume_logins(now, username, out);
    }

    /// LOCK_ALLOWED from another server. The line itself has been passed on.
    pub(crate) fn on_lock_allowed(
        &mut self,
        now: Instant,
        link: ConnectionId,
        credentials: &Credentials,
        server: Option<ServerId>,
        out: &mut Vec<Action>,
    ) {
        let Credentials { username, secret } = credentials;
        if self.users.standing(username, secret) == Standing::Pending
            && server.as_ref().is_none_or(|id| self.servers.knows(id))
            && let Some(window) = self.windows.get_mut(username)
        {
            window.allow(link, server.clone());
            self.settle_if_covered(now, username, out);
        }
        if let Some(own) = self.registrations.get_mut(username).filter(|own| own.secret == *secret) {
            own.agreement.allow(link, server);
            self.complete_if_agreed(now, username, out);
        }
    }

    pub(crate) fn on_registration_timeout(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        let Some(registration) = self.registrations.get(username) else { return };
        let credentials = Credentials { username: username.to_owned(), secret: registration.secret.clone() };
        info!(username = quote(username), "not all servers agreed to a registration in time");
        self.abandon_registration(now, credentials, Refusal::NotAgreedInTime { username: username.to_owned() }, out);
    }

    /// A link is lost: what its servers agreed to, and whom they were waited for, changes.
    pub(crate) fn on_allowances_lost(&mut self, now: Instant, link: ConnectionId, out: &mut Vec<Action>) {
        for window in self.windows.values_mut() {
            window.forget_link(link);
        }
        for registration in self.registrations.values_mut() {
            registration.agreement.forget_link(link);
        }
        self.settle_covered_windows(now, out);
        for username in self.registrations.keys().cloned().collect::<Vec<_>>() {
            self.complete_if_agreed(now, &username, out);
        }
    }

    pub(crate) fn settle_covered_windows(&mut self, now: Instant, out: &mut Vec<Action>) {
        for username in self.windows.keys().cloned().collect::<Vec<_>>() {
            self.settle_if_covered(now, &username, out);
        }
    }

    /// Nobody can object any more once all known servers but one, the originator, have agreed. Where no server is known
    /// nothing can be concluded, and the time has to pass.
    fn settle_if_covered(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        let Some(window) = self.windows.get(username) else { return };
        let known = self.servers.iter().map(|(id, server)| (id, server.link));
        if self.servers.len() > 0 && window.missing(known) <= 1 {
            self.settle(now, username, out);
        }
    }

    /// A pending pair is registered for good.
    pub(crate) fn settle(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        self.close_window(username);
        self.users.settle(username);
        self.resume_logins(now, username, out);
    }

    fn complete_if_agreed(&mut self, now: Instant, username: &str, out: &mut Vec<Action>) {
        let Some(registration) = self.registrations.get(username).filter(|own| own.agreement.is_complete()) else {
            return;
        };
        let credentials = Credentials { username: username.to_owned(), secret: registration.secret.clone() };
        if self.users.store_registered(&credentials).is_err() {
            self.abandon_registration(now, credentials, Refusal::NoRoom, out);
            return;
        }
        let client = self.take_registration(username).and_then(|registration| registration.client);
        if let Some(client) = client {
            self.confirm(now, client, username, out);
            self.resume(now, client, out);
        }
        self.settle(now, username, out);
    }

    /// Tells the client that the name is its own; it can log in on the same connection.
    pub(crate) fn confirm(&mut self, now: Instant, client: ConnectionId, username: &str, out: &mut Vec<Action>) {
        self.counters.registered += 1;
        let info = format!("register success for {}", quote(username));
        self.send(client, &Message::RegisterSuccess { info }, out);
        self.restart_login_timeout(now, client);
    }

    /// Gives a registration up and makes sure that nobody keeps its pair.
    fn abandon_registration(
        &mut self,
        now: Instant,
        credentials: Credentials,
        refusal: Refusal,
        out: &mut Vec<Action>,
    ) {
        self.remove_user(&credentials);
        self.fail_registration(now, &credentials.username, &refusal, out);
        self.resume_logins(now, &credentials.username, out);
        self.flood(&Message::LockDenied(credentials), out);
    }

    fn fail_registration(&mut self, now: Instant, username: &str, refusal: &Refusal, out: &mut Vec<Action>) {
        if let Some(client) = self.take_registration(username).and_then(|registration| registration.client) {
            self.refuse(now, client, refusal, out);
        }
    }

    fn take_registration(&mut self, username: &str) -> Option<Registration> {
        self.timers.stop(&Timer::Registration(username.to_owned()));
        self.registrations.remove(username)
    }

    fn remove_user(&mut self, credentials: &Credentials) {
        if self.users.remove(credentials) {
            self.close_window(&credentials.username);
        }
    }

    fn close_window(&mut self, username: &str) {
        self.windows.remove(username);
        self.timers.stop(&Timer::LoginWindow(username.to_owned()));
    }

    /// Whether the longest lock message of this pair, LOCK_ALLOWED, stays within the line limit; one that does not
    /// would cost links all over the tree.
    pub(crate) fn locks_fit(&self, credentials: &Credentials) -> bool {
        let server = Some(self.config.id.clone());
        let allowed = Message::LockAllowed { credentials: credentials.clone(), server };
        allowed.to_line().len() - 1 <= self.config.max_line
    }
}
