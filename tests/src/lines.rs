//! The lines peers send, without their line ending. Written by hand rather than by `arborcast-proto`, which is under
//! test as well.

use serde_json::{Value, json};

fn line(message: &Value) -> String {
    message.to_string()
}

/// AUTHENTICATE: a server joins.
pub fn authenticate(secret: &str) -> String {
    line(&json!({"command": "AUTHENTICATE", "secret": secret}))
}

/// REGISTER.
pub fn register(username: &str, secret: &str) -> String {
    line(&json!({"command": "REGISTER", "username": username, "secret": secret}))
}

/// LOGIN under a name.
pub fn login(username: &str, secret: &str) -> String {
    line(&json!({"command": "LOGIN", "username": username, "secret": secret}))
}

/// LOGIN without one.
pub fn login_anonymously() -> String {
    line(&json!({"command": "LOGIN", "username": "anonymous"}))
}

/// LOGIN without a name, with a ticket.
pub fn login_with_ticket(ticket: &str) -> String {
    line(&json!({"command": "LOGIN", "username": "anonymous", "ticket": ticket}))
}

/// REGISTER with a ticket.
pub fn register_with_ticket(username: &str, secret: &str, ticket: &str) -> String {
    line(&json!({"command": "REGISTER", "username": username, "secret": secret, "ticket": ticket}))
}

/// LOGOUT.
pub fn logout() -> String {
    line(&json!({"command": "LOGOUT"}))
}

/// ACTIVITY_MESSAGE under a name. `activity` is JSON text and goes in as it is.
pub fn activity(username: &str, secret: &str, activity: &str) -> String {
    let (username, secret) = (json!(username), json!(secret));
    format!(r#"{{"command":"ACTIVITY_MESSAGE","username":{username},"secret":{secret},"activity":{activity}}}"#)
}

/// ACTIVITY_MESSAGE of anybody. `activity` is JSON text and goes in as it is.
pub fn anonymous_activity(activity: &str) -> String {
    format!(r#"{{"command":"ACTIVITY_MESSAGE","username":"anonymous","activity":{activity}}}"#)
}

/// ACTIVITY_BROADCAST. `activity` is JSON text and goes in as it is.
pub fn broadcast(activity: &str) -> String {
    format!(r#"{{"command":"ACTIVITY_BROADCAST","activity":{activity}}}"#)
}

/// SERVER_ANNOUNCE of a server at 127.0.0.1.
pub fn server_announce(id: &str, load: i64, port: u16) -> String {
    line(&json!({"command": "SERVER_ANNOUNCE", "id": id, "load": load, "hostname": "127.0.0.1", "port": port}))
}

/// LOCK_REQUEST.
pub fn lock_request(username: &str, secret: &str) -> String {
    line(&json!({"command": "LOCK_REQUEST", "username": username, "secret": secret}))
}

/// LOCK_DENIED.
pub fn lock_denied(username: &str, secret: &str) -> String {
    line(&json!({"command": "LOCK_DENIED", "username": username, "secret": secret}))
}

/// LOCK_ALLOWED with the id of the server that allows.
pub fn lock_allowed(username: &str, secret: &str, server: &str) -> String {
    line(&json!({"command": "LOCK_ALLOWED", "username": username, "secret": secret, "server": server}))
}

/// LOCK_ALLOWED as servers of 2018 say it: without an id.
pub fn nameless_lock_allowed(username: &str, secret: &str) -> String {
    line(&json!({"command": "LOCK_ALLOWED", "username": username, "secret": secret}))
}

/// AUTHENTICATE of an extended server, unsettled, that is reached at 127.0.0.1, port 1.
pub fn apply(secret: &str, id: &str, incarnation: u64, attempt: u64) -> String {
    let node = json!({"protocol": 1, "id": id, "incarnation": incarnation, "attempt": attempt, "hostname": "127.0.0.1",
        "port": 1, "key": {"root": id}});
    line(&json!({"command": "AUTHENTICATE", "secret": secret, "node": node}))
}

/// LINK_REFUSED.
pub fn link_refused(attempt: u64, reason: &str) -> String {
    line(&json!({"command": "LINK_REFUSED", "attempt": attempt, "reason": reason, "info": "no"}))
}

/// LINK_ACCEPTED by a server in the fragment with the smallest of all keys.
pub fn link_accepted(attempt: u64, id: &str, path: &[&str]) -> String {
    let tree = json!({"reign": 0, "root": path[0], "path": path});
    line(&json!({"command": "LINK_ACCEPTED", "attempt": attempt, "id": id, "tree": tree}))
}
