//! What neighbours tell each other about users when a link comes up (protocol, U7).
//!
//! Whoever has got a digest sends the records of the buckets that differ, in portions: the next one when the receiver has
//! taken in the last, and says so with its digest. So a large directory never piles up before a slow link.

use std::time::Instant;

use arborcast_proto::wire::{Message, UserRecord};
use tracing::debug;

use super::records::{BUCKETS, parse_digest};
use crate::event::Action;
use crate::ids::ConnectionId;
use crate::node::Node;

/// Longest line of records (protocol, U7).
const MAX_LINE: usize = 64 << 10;

/// Bytes of records that are sent before the receiver has to ask for more.
const PORTION: usize = 1 << 20;

/// How far the records of this node have been sent over one link.
#[derive(Debug)]
pub(super) struct Exchange {
    /// The bucket that is compared next, and the last name of it that was sent.
    bucket: usize,
    after: Option<String>,
    /// Whether a digest from the other end is to come.
    is_due: bool,
}

/// Records gathered into lines.
struct Lines {
    max_line: usize,
    done: Vec<Vec<UserRecord>>,
    line: Vec<UserRecord>,
    line_bytes: usize,
    bytes: usize,
}

impl Lines {
    fn new(max_line: usize) -> Self {
        Self { max_line: max_line.min(MAX_LINE), done: Vec::new(), line: Vec::new(), line_bytes: 0, bytes: 0 }
    }

    fn push(&mut self, record: UserRecord) {
        let message = Message::UserRecords { users: vec![record.clone()], more: true };
        let bytes = message.to_line().len();
        if bytes > self.max_line {
            debug!("a record is too long for the line limit");
            return;
        }
        if self.line_bytes + bytes > self.max_line {
            self.done.push(std::mem::take(&mut self.line));
            self.line_bytes = 0;
        }
        self.line.push(record);
        self.line_bytes += bytes;
        self.bytes += bytes;
    }

    /// The messages; the last one says whether there is more.
    fn into_messages(mut self, more: bool) -> Vec<Message> {
        if !self.line.is_empty() || (more && self.done.is_empty()) {
            self.done.push(self.line);
        }
        let last = self.done.len().saturating_sub(1);
        let lines = self.done.into_iter().enumerate();
        lines.map(|(index, users)| Message::UserRecords { users, more: more && index == last }).collect()
    }
}

impl Node {
    /// An extended link came up: both ends compare what they know.
    pub(crate) fn begin_user_sync(&mut self, link: ConnectionId, out: &mut Vec<Action>) {
        self.directory.exchanges.insert(link, Exchange { bucket: 0, after: None, is_due: true });
        self.send_digest(link, out);
    }

    fn send_digest(&self, link: ConnectionId, out: &mut Vec<Action>) {
        let digest = self.directory.records.digest();
        // Another line limit than that of the neighbour would cost the link (B21); 4 KiB always hold it.
        self.send(link, &Message::UserDigest { digest }, out);
    }

    pub(super) fn on_user_digest(&mut self, link: ConnectionId, digest: &str, out: &mut Vec<Action>) {
        let exchange = self.directory.exchanges.get_mut(&link).filter(|exchange| exchange.is_due);
        let (Some(exchange), Some(theirs)) = (exchange, parse_digest(digest)) else {
            self.directory.drop_message();
            return;
        };
        exchange.is_due = false;
        let records = &self.directory.records;
        let mut lines = Lines::new(self.config.max_line);
        let differs: Vec<bool> = records.digests().zip(theirs).map(|(ours, theirs)| ours != theirs).collect();
        'portion: while exchange.bucket < BUCKETS {
            if differs.get(exchange.bucket) == Some(&true) {
                for record in records.bucket(exchange.bucket, exchange.after.as_deref()) {
                    lines.push(record.clone());
                    if lines.bytes >= PORTION {
                        exchange.after = Some(record.username.clone());
                        exchange.is_due = true;
                        break 'portion;
                    }
                }
            }
            exchange.bucket += 1;
            exchange.after = None;
        }
        let more = exchange.is_due;
        for message in lines.into_messages(more) {
            self.send(link, &message, out);
        }
    }

    pub(super) fn on_user_records(
        &mut self,
        now: Instant,
        link: ConnectionId,
        users: Vec<UserRecord>,
        more: bool,
        out: &mut Vec<Action>,
    ) {
        let mut news = Lines::new(self.config.max_line);
        let mut count = 0_usize;
        for record in users {
            if self.take_record(now, record.clone(), out) {
                news.push(record);
                count += 1;
            }
        }
        if count > 0 {
            debug!(%link, users = count, "learned of users from a neighbour");
            for message in news.into_messages(false) {
                self.send_to_extended(&message, Some(link), out);
            }
            self.write_users(out);
        }
        if more {
            self.send_digest(link, out);
        }
    }
}
