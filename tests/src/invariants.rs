//! What must hold after every step of a simulated run, whatever happens. It draws no randomness and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use arborcast_core::ReceivedLine;
use arborcast_proto::wire::{Credentials, Message, Secret};
use bytes::Bytes;

/// Looks at everything that crosses a wire, and panics at the first thing that must not be.
#[derive(Default)]
pub struct Invariants {
    /// Floods that have crossed each link, in either direction.
    crossed: BTreeSet<(usize, Bytes)>,
    /// The highest number each client has got from each author.
    highest: BTreeMap<(usize, String), u64>,
    winners: BTreeMap<String, Secret>,
    /// Whether servers are cut off from each other in this run, so that a name may have two owners until they meet.
    pub may_be_split: bool,
    /// Who has logged in by name.
    logins: BTreeMap<String, Vec<Secret>>,
    /// How many messages about users have crossed a link, by command.
    pub user_messages: BTreeMap<&'static str, u64>,
    /// How many messages that are no activities have crossed a link, by command, and their bytes.
    pub control_messages: BTreeMap<&'static str, (u64, u64)>,
    /// How many things were looked at, so that a test can see that something was.
    pub observations: u64,
}

impl Invariants {
    /// A line goes over a link between two servers. A flood crosses each link of a tree once: it neither echoes nor is
    /// doubled. (An activity with a name may, while servers move; who has it drops it. The tests never send the same
    /// activity or the same pair of name and secret twice.)
    pub fn on_link(&mut self, wire: usize, line: &ReceivedLine) {
        self.observations += 1;
        let ReceivedLine { bytes, message } = line;
        let message = message.as_ref().expect("servers send valid messages");
        if message.command().starts_with("USER_") {
            *self.user_messages.entry(message.command()).or_default() += 1;
        }
        if !matches!(message, Message::ActivityBroadcast { .. }) {
            let (messages, length) = self.control_messages.entry(message.command()).or_default();
            (*messages, *length) = (*messages + 1, *length + bytes.len() as u64);
        }
        let is_unique = matches!(
            message,
            Message::ActivityBroadcast { relay: None, .. } | Message::LockRequest(_) | Message::LockAllowed { .. }
        );
        if is_unique && !self.crossed.insert((wire, bytes.clone())) {
            panic!("a flood crossed link {wire} twice: {bytes:?}");
        }
    }

    /// A client gets an activity: each at most once, and each author's in order.
    pub fn on_activity(&mut self, client: usize, author: &str, number: u64) {
        self.observations += 1;
        if let Some(before) = self.highest.insert((client, author.to_owned()), number) {
            assert!(before < number, "client {client} got {author}'s activity {number} after {before}");
        }
    }

    /// A client is told that a name is its own. A name has one owner.
    pub fn on_registered(&mut self, credentials: &Credentials) {
        self.observations += 1;
        let Credentials { username, secret } = credentials;
        let winner = self.winners.entry(username.clone()).or_insert_with(|| secret.clone());
        assert!(winner == secret || self.may_be_split, "{username} was registered twice");
    }

    /// A client is told that it is in.
    pub fn on_login(&mut self, username: &str, secret: &Secret) {
        self.observations += 1;
        let logins = self.logins.entry(username.to_owned()).or_default();
        if !logins.contains(secret) {
            logins.push(secret.clone());
        }
    }

    /// Nobody has ever logged in with a pair that was not registered. To be asked when all is over.
    pub fn check_logins(&self) {
        for (username, secrets) in &self.logins {
            let winner = self.winners.get(username);
            assert!(secrets.iter().all(|secret| winner == Some(secret)), "somebody was in as {username} who never won");
        }
    }

    /// The names that were registered, with the winners' secrets.
    pub fn winners(&self) -> &BTreeMap<String, Secret> {
        &self.winners
    }
}
