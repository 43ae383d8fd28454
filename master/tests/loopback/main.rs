//! A master on a free port of this machine, and what nodes and people get from it. One file per promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod harness;

mod assign;
mod authorization;
mod connections;
mod drain;
mod find_parent;
mod health;
mod http;
mod other_servers;
mod process;
mod queries;
mod reflection;
mod reports;
mod stop;
mod users;
mod watch;
