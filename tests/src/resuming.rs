//! A simulated client of extended sessions (protocol, Extended sessions): it numbers what it publishes, sends again what is
//! not acknowledged, and resumes wherever it logs in. It takes nothing on trust: a hole that was not announced is a panic.

use std::collections::{BTreeMap, BTreeSet};

use arborcast_proto::wire::{Activity, Have, Message, PublicationId, RelayTag, Resume};

/// What such a client keeps over all its connections.
#[derive(Debug)]
pub struct Resuming {
    session: Box<str>,
    have: Option<Have>,
    seen: BTreeMap<Box<str>, BTreeSet<u64>>,
    unacknowledged: BTreeMap<u64, Activity>,
    published: u64,
    /// How many of its activities are acknowledged.
    pub acknowledged: u64,
    /// How many activities of others it was told are gone.
    pub missed: u64,
}

impl Resuming {
    /// A client that has not been anywhere yet.
    pub fn new(session: &str) -> Self {
        Self {
            session: session.into(),
            have: None,
            seen: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            published: 0,
            acknowledged: 0,
            missed: 0,
        }
    }

    /// Whether everything it has published is acknowledged.
    pub fn is_all_acknowledged(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// With what it logs in.
    pub fn login(&self) -> Message {
        let resume = Some(Resume { session: self.session.clone(), have: self.have.clone(), proof: None });
        Message::Login { username: "anonymous".into(), secret: None, resume, ticket: None }
    }

    /// The message for its next activity.
    pub fn publish(&mut self, activity: Activity) -> Message {
        self.published += 1;
        self.unacknowledged.insert(self.published, activity.clone());
        message(self.published, activity)
    }

    /// What it sends right after a login.
    pub fn again(&self) -> Vec<Message> {
        self.unacknowledged.iter().map(|(number, activity)| message(*number, activity.clone())).collect()
    }

    /// Whether this is an activity that is new to it.
    ///
    /// # Panics
    /// When one is missing before it, and that was not announced.
    pub fn is_new(&mut self, tag: &RelayTag) -> bool {
        let have = self.have.get_or_insert_default().entry(tag.origin.clone()).or_default();
        if tag.seq <= *have {
            return false;
        }
        assert_eq!(tag.seq, *have + 1, "a hole before {tag:?} in session {}", self.session);
        *have = tag.seq;
        match &tag.publication {
            None => true,
            Some(PublicationId { session, number }) => self.seen.entry(session.clone()).or_default().insert(*number),
        }
    }

    /// Takes in any other message.
    pub fn handle(&mut self, message: &Message) {
        match message {
            Message::LoginSuccess { have, .. } => {
                let have = have.as_ref().expect("an extended server gives an extended session");
                self.raise(have);
            }
            Message::RelayHave { have, .. } => self.raise(have),
            Message::RelayGap { origin, through } => {
                let have = self.have.get_or_insert_default().entry(origin.clone()).or_default();
                self.missed += through.saturating_sub(*have);
                *have = (*have).max(*through);
            }
            Message::ActivityAck { number } => {
                assert!(*number <= self.published, "{number} was acknowledged, and never published");
                self.unacknowledged = self.unacknowledged.split_off(&(number + 1));
                self.acknowledged = self.acknowledged.max(*number);
            }
            _ => {}
        }
    }

    fn raise(&mut self, to: &Have) {
        let have = self.have.get_or_insert_default();
        for (origin, seq) in to {
            let has = have.entry(origin.clone()).or_default();
            *has = (*has).max(*seq);
        }
    }
}

fn message(number: u64, activity: Activity) -> Message {
    Message::ActivityMessage { username: "anonymous".into(), secret: None, number: Some(number), activity }
}
