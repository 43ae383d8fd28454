//! Plain mode emits nothing that Part I doesn't allow: typical sessions, byte for byte.
//!
//! In a transcript `name > line` sends a line, over a new connection if the name is new; `name < line` is the next line
//! that must come there, with exactly these bytes; `name < end` is the end of its stream. `$ID` and `$PORT` are the
//! node's. When all is played, nothing more may come anywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;

use arborcast_tests::node::{Node, NodeBuilder};
use arborcast_tests::peer::{FakeParent, Peer};

/// Two server links, of which one leads to the server `other`, and clients.
const ACCEPTING: &str = r#"
link > {"command":"AUTHENTICATE","secret":"cluster-secret"}
link < {"command":"SERVER_ANNOUNCE","id":"$ID","load":0,"hostname":"127.0.0.1","port":$PORT}
leaf > {"command":"AUTHENTICATE","secret":"cluster-secret"}
leaf < {"command":"SERVER_ANNOUNCE","id":"$ID","load":0,"hostname":"127.0.0.1","port":$PORT}
link > {"command":"SERVER_ANNOUNCE","id":"other","load":0,"hostname":"other.example","port":4321}
leaf < {"command":"SERVER_ANNOUNCE","id":"other","load":0,"hostname":"other.example","port":4321}

aaron > {"command":"REGISTER","username":"aaron","secret":"s3"}
link < {"command":"LOCK_REQUEST","username":"aaron","secret":"s3"}
leaf < {"command":"LOCK_REQUEST","username":"aaron","secret":"s3"}
link > {"command":"LOCK_ALLOWED","username":"aaron","secret":"s3","server":"other"}
leaf < {"command":"LOCK_ALLOWED","username":"aaron","secret":"s3","server":"other"}
aaron < {"command":"REGISTER_SUCCESS","info":"register success for aaron"}
aaron > {"command":"LOGIN","username":"aaron","secret":"s3"}
aaron < {"command":"LOGIN_SUCCESS","info":"logged in as user aaron"}

redirected > {"command":"LOGIN","username":"aaron","secret":"s3"}
redirected < {"command":"LOGIN_SUCCESS","info":"logged in as user aaron"}
redirected < {"command":"REDIRECT","hostname":"other.example","port":4321}
redirected < end

link > {"command":"SERVER_ANNOUNCE","id":"other","load":9,"hostname":"other.example","port":4321}
leaf < {"command":"SERVER_ANNOUNCE","id":"other","load":9,"hostname":"other.example","port":4321}
guest > {"command":"LOGIN","username":"anonymous"}
guest < {"command":"LOGIN_SUCCESS","info":"logged in as user anonymous"}

aaron > {"command":"ACTIVITY_MESSAGE","username":"aaron","secret":"s3","activity":{"verb":"posts","n":1.0}}
aaron < {"command":"ACTIVITY_BROADCAST","activity":{"verb":"posts","n":1.0,"authenticated_user":"aaron"}}
guest < {"command":"ACTIVITY_BROADCAST","activity":{"verb":"posts","n":1.0,"authenticated_user":"aaron"}}
link < {"command":"ACTIVITY_BROADCAST","activity":{"verb":"posts","n":1.0,"authenticated_user":"aaron"}}
leaf < {"command":"ACTIVITY_BROADCAST","activity":{"verb":"posts","n":1.0,"authenticated_user":"aaron"}}
guest > {"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":{"authenticated_user":"aaron","n":2}}
aaron < {"command":"ACTIVITY_BROADCAST","activity":{"authenticated_user":"anonymous","n":2}}
guest < {"command":"ACTIVITY_BROADCAST","activity":{"authenticated_user":"anonymous","n":2}}
link < {"command":"ACTIVITY_BROADCAST","activity":{"authenticated_user":"anonymous","n":2}}
leaf < {"command":"ACTIVITY_BROADCAST","activity":{"authenticated_user":"anonymous","n":2}}
link > {"hops":1,"command":"ACTIVITY_BROADCAST","activity":{"n":3}}
aaron < {"hops":1,"command":"ACTIVITY_BROADCAST","activity":{"n":3}}
guest < {"hops":1,"command":"ACTIVITY_BROADCAST","activity":{"n":3}}
leaf < {"hops":1,"command":"ACTIVITY_BROADCAST","activity":{"n":3}}

link > {"command":"LOCK_REQUEST","username":"dora","secret":"d"}
leaf < {"command":"LOCK_REQUEST","username":"dora","secret":"d"}
link < {"command":"LOCK_ALLOWED","username":"dora","secret":"d","server":"$ID"}
leaf < {"command":"LOCK_ALLOWED","username":"dora","secret":"d","server":"$ID"}
link > {"command":"LOCK_REQUEST","username":"aaron","secret":"x"}
leaf < {"command":"LOCK_REQUEST","username":"aaron","secret":"x"}
link < {"command":"LOCK_DENIED","username":"aaron","secret":"x"}
leaf < {"command":"LOCK_DENIED","username":"aaron","secret":"x"}
link > {"command":"LOCK_DENIED","username":"nobody","secret":"n"}
leaf < {"command":"LOCK_DENIED","username":"nobody","secret":"n"}
link > {"command":"LOCK_ALLOWED","username":"nobody","secret":"n"}
leaf < {"command":"LOCK_ALLOWED","username":"nobody","secret":"n"}

dora > {"command":"LOGIN","username":"dora","secret":"d"}
dora < {"command":"LOGIN_SUCCESS","info":"logged in as user dora"}
dora > {"command":"LOGOUT"}
dora < end

wrong-login > {"command":"LOGIN","username":"dora","secret":"wrong"}
wrong-login < {"command":"LOGIN_FAILED","info":"attempt to login with wrong secret"}
wrong-login < end
taken > {"command":"REGISTER","username":"aaron","secret":"x"}
taken < {"command":"REGISTER_FAILED","info":"aaron is already registered with the system"}
taken < end
wrong-server > {"command":"AUTHENTICATE","secret":"xyz"}
wrong-server < {"command":"AUTHENTICATION_FAIL","info":"the supplied secret is incorrect: xyz"}
wrong-server < end
nonsense > {}
nonsense < {"command":"INVALID_MESSAGE","info":"the received message did not contain a command"}
nonsense < end
offended > {"command":"INVALID_MESSAGE","info":"what was that"}
offended < end

aaron > {"command":"LOGOUT"}
aaron < end
"#;

/// The link to a parent, which is played by the test.
const DIALLING: &str = r#"
parent < {"command":"AUTHENTICATE","secret":"cluster-secret"}
parent < {"command":"SERVER_ANNOUNCE","id":"$ID","load":0,"hostname":"127.0.0.1","port":$PORT}
guest > {"command":"LOGIN","username":"anonymous","secret":"not needed"}
guest < {"command":"LOGIN_SUCCESS","info":"logged in as user anonymous"}
parent > {"command":"ACTIVITY_BROADCAST","activity":{"n":1}}
guest < {"command":"ACTIVITY_BROADCAST","activity":{"n":1}}
guest > {"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":{}}
guest < {"command":"ACTIVITY_BROADCAST","activity":{"authenticated_user":"anonymous"}}
parent < {"command":"ACTIVITY_BROADCAST","activity":{"authenticated_user":"anonymous"}}
guest > {"command":"LOGOUT"}
guest < end
"#;

#[track_caller]
fn play(transcript: &str, node: &Node, mut peers: BTreeMap<String, Peer>) {
    let transcript = transcript.replace("$ID", node.id()).replace("$PORT", &node.address().port().to_string());
    for step in transcript.lines().filter(|line| !line.is_empty()) {
        println!("{step}");
        let (name, rest) = step.split_once(' ').expect("a step begins with a name");
        let peer = peers.entry(name.to_owned()).or_insert_with(|| Peer::connect(node.address()));
        match rest.split_at(2) {
            ("> ", line) => peer.send(line),
            ("< ", "end") => {
                peer.expect_end();
                peers.remove(name);
            }
            ("< ", line) => peer.expect_text(line),
            _ => panic!("not a step: {step}"),
        }
    }
    for peer in peers.values_mut() {
        peer.expect_silence();
    }
}

/// Part I, all of it: what a node says to those who connect to it.
#[test]
fn what_a_node_says_to_those_who_connect() {
    play(ACCEPTING, &Node::start(), BTreeMap::new());
}

/// Part I, Servers joining: what a node says to its parent, even to one that has not announced itself.
#[test]
fn what_a_node_says_to_its_parent() {
    let parent = FakeParent::listen();
    let builder = NodeBuilder::default().parent(parent.address());
    let process = builder.spawn();
    let link = parent.accept();
    let node = builder.listening(process);
    play(DIALLING, &node, BTreeMap::from([("parent".to_owned(), link)]));
}
