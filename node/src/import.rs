//! Bringing the users of a data directory to the masters that keep them from now on. It can be repeated: who is there
//! already stays as they are.

use std::sync::Arc;
use std::time::Duration;

use arborcast_core::AtMasters;
use arborcast_proto::wire::UserRecord;
use arborcast_proto::wire::limits::quote;
use arborcast_tls::Tls;
use futures_util::stream::{self, StreamExt as _};
use thiserror::Error;
use tokio::time::Instant;

use crate::error::NodeError;
use crate::registry::Client;
use crate::settings::Settings;
use crate::store::{Store, StoreError};
use crate::users::register;

/// Users that are on their way at one time.
const AT_ONCE: usize = 32;

/// How long one user may take before all is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two words about how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Why not all users could be brought. What was brought stays; the same again brings the rest.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The users can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data directory has no users.
    #[error("there are no users in {0}: give the --data-dir of a node that has been running with it")]
    NoUsers(String),
    /// The certificates can't be used.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// No master could say what came of a user.
    #[error(
        "stopped after {done} of {all} users: {username} could not be registered: {why}; the same again brings the rest"
    )]
    Stopped {
        /// How many were brought, or found to be another's.
        done: usize,
        /// How many there are.
        all: usize,
        /// The user, quoted.
        username: String,
        /// What the masters say.
        why: String,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Users that the masters have, since now or since before.
    pub users: usize,
    /// The names that are there with other credentials, quoted, in their order.
    pub conflicts: Vec<String>,
}

/// Brings all users of the data directory to the masters. `progress` is told now and then how many of how many are done.
///
/// # Errors
/// When it can't go on.
pub async fn import_users(settings: Settings, mut progress: impl FnMut(usize, usize)) -> Result<Imported, ImportError> {
    let tls = settings.tls.map(Tls::load).transpose().map_err(NodeError::from)?.map(Arc::new);
    let masters = settings.masters.unwrap_or_default();
    let path = masters.users.unwrap_or_default();
    if !path.exists() {
        return Err(ImportError::NoUsers(path.display().to_string()));
    }
    let unreadable = StoreError::Unreadable { path: path.clone(), why: "it can't be read".to_owned() };
    let opened = tokio::task::spawn_blocking(move || Store::open(path)).await;
    let (store, users) = opened.map_err(|_panic| unreadable)??;
    // Nobody else changes it meanwhile: the file is held as long as the store is.
    let clients = masters.addresses.iter().filter_map(|address| Client::new(address, &settings.core, tls.as_ref()));
    let clients: Vec<Client> = clients.collect();
    let outcome = bring(&clients, users, &mut progress).await;
    drop(store);
    outcome
}

async fn bring(
    masters: &[Client],
    users: Vec<UserRecord>,
    progress: &mut impl FnMut(usize, usize),
) -> Result<Imported, ImportError> {
    let all = users.len();
    let mut outcomes = stream::iter(users)
        .map(|user| async move {
            let outcome = register(masters, &user, Instant::now() + PATIENCE).await;
            (user, outcome)
        })
        .buffer_unordered(AT_ONCE);
    let (mut done, mut conflicts, mut said) = (0, Vec::new(), Instant::now());
    while let Some((user, outcome)) = outcomes.next().await {
        match outcome {
            AtMasters::Registered => {}
            AtMasters::Taken(_) => conflicts.push(quote(&user.username)),
            AtMasters::Unknown(why) => {
                return Err(ImportError::Stopped { done, all, username: quote(&user.username), why });
            }
        }
        done += 1;
        if said.elapsed() >= PROGRESS_EVERY {
            progress(done, all);
            said = Instant::now();
        }
    }
    conflicts.sort_unstable();
    Ok(Imported { users: all - conflicts.len(), conflicts })
}
