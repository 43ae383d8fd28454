//! One real server among servers played by the test.

use crate::lines;
use crate::node::{Node, NodeBuilder};
use crate::peer::{FakeParent, Peer};

/// A load that no redirection will ever go to.
pub const BUSY: i64 = 1_000;

/// A real node, and a link to it that only listens. A link over which nothing was announced is not a known server, so
/// the observer takes no part in anything; what it reads tells the test what the node has already dealt with.
#[derive(Debug)]
pub struct Stage {
    /// The server under test.
    pub node: Node,
    /// The link that only listens.
    pub observer: Peer,
}

impl Stage {
    /// A node that knows no other server.
    #[track_caller]
    pub fn new() -> Self {
        Self::with(&NodeBuilder::default())
    }

    /// The same, started in a special way.
    #[track_caller]
    pub fn with(builder: &NodeBuilder) -> Self {
        Self::around(builder.start())
    }

    /// A node whose parent is played by the test as well, and the parent's end of the link. The node knows its parent,
    /// under the id `parent`, when this returns.
    #[track_caller]
    pub fn below_a_parent() -> (Self, Peer) {
        let parent = FakeParent::listen();
        let builder = NodeBuilder::default().parent(parent.address());
        let process = builder.spawn();
        let mut link = parent.accept_link();
        link.expect_announcement();
        // Before the node is asked for anything: it may wait until its parent has said something.
        let announcement = lines::server_announce("parent", BUSY, 1);
        link.send(&announcement);
        let mut stage = Self::around(builder.listening(process));
        // Once more, for the observer that has just come.
        stage.announce_line(&mut link, &announcement);
        (stage, link)
    }

    #[track_caller]
    fn around(node: Node) -> Self {
        let observer = Peer::link(node.address());
        Self { node, observer }
    }

    /// A server with a link of its own, which the node knows when this returns. It is too busy to be redirected to.
    #[track_caller]
    pub fn server(&mut self, id: &str) -> Peer {
        let mut link = Peer::link(self.node.address());
        self.announce(&mut link, id, BUSY);
        link
    }

    /// Announces a server over a link; the node knows it when this returns.
    #[track_caller]
    pub fn announce(&mut self, link: &mut Peer, id: &str, load: i64) {
        self.announce_line(link, &lines::server_announce(id, load, 1));
    }

    /// The same, with the whole line given.
    #[track_caller]
    pub fn announce_line(&mut self, link: &mut Peer, line: &str) {
        link.send(line);
        while self.observer.expect_announcement().text() != line {}
    }

    /// Sends a line that is flooded; the node has dealt with it when this returns.
    #[track_caller]
    pub fn flood(&mut self, link: &mut Peer, line: &str) {
        link.send(line);
        self.observer.expect("the flooded line", |seen| (seen.text() == line).then_some(()));
    }

    /// Asserts that the node has sent nothing more to these links: makes it pass on a line that means nothing to it, and
    /// that line must be the next to come.
    #[track_caller]
    pub fn expect_nothing_more<const LINKS: usize>(&mut self, links: [&mut Peer; LINKS]) {
        let mark = lines::lock_allowed("nobody", "nothing", "nowhere");
        self.observer.send(&mark);
        for link in links {
            link.expect_text(&mark);
        }
    }

    /// A client that asks to register a name; the node has flooded the LOCK_REQUEST when this returns.
    #[track_caller]
    pub fn registering(&mut self, username: &str, secret: &str) -> Peer {
        let mut client = Peer::connect(self.node.address());
        client.send(lines::register(username, secret));
        self.observer.expect("the LOCK_REQUEST", |line| {
            (line.command() == "LOCK_REQUEST" && line["username"] == username && line["secret"] == secret).then_some(())
        });
        client
    }
}

impl Default for Stage {
    #[track_caller]
    fn default() -> Self {
        Self::new()
    }
}
