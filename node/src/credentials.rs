//! Secrets to hashes: argon2id, in a bounded number of threads, since each takes a while and much memory by design.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use arborcast_core::Event;
use arborcast_core::TaskId;
use arborcast_proto::wire::Secret;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::net::Inbound;

/// What OWASP names as the least: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Most threads that hash at a time; each takes the memory above.
const MAX_WORKERS: usize = 8;

/// Something to hash, or to compare with a hash.
#[derive(Debug)]
pub(crate) enum Job {
    /// Make a hash.
    Hash { task: TaskId, secret: Secret },
    /// Compare with a hash, unless nobody waits for the answer any more.
    Verify { task: TaskId, secret: Secret, hash: String, forgotten: CancellationToken },
}

impl Job {
    fn run(self) -> Event {
        match self {
            Self::Hash { task, secret } => Event::SecretHashed { task, hash: hash(&secret) },
            Self::Verify { task, forgotten, .. } if forgotten.is_cancelled() => {
                Event::SecretVerified { task, verdict: None }
            }
            Self::Verify { task, secret, hash, .. } => {
                Event::SecretVerified { task, verdict: Some(is_right(&secret, &hash)) }
            }
        }
    }

    /// The answer where there is no room for another job.
    pub(crate) fn refused(self) -> Event {
        match self {
            Self::Hash { task, .. } => Event::SecretHashed { task, hash: None },
            Self::Verify { task, .. } => Event::SecretVerified { task, verdict: None },
        }
    }
}

fn argon2() -> Result<Argon2<'static>, argon2::Error> {
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(MEMORY_KIB, PASSES, LANES, None)?))
}

/// The hash of a secret with a new salt, in PHC string format.
fn hash(secret: &Secret) -> Option<String> {
    let argon2 = argon2().map_err(|error| error!(%error, "can't hash")).ok()?;
    let hash = argon2.hash_password(secret.expose().as_bytes());
    hash.map(|hash| hash.to_string()).map_err(|error| error!(%error, "can't hash a secret")).ok()
}

/// Whether this is the secret that was hashed. A hash with other parameters is compared by those.
fn is_right(secret: &Secret, hash: &str) -> bool {
    argon2().is_ok_and(|argon2| argon2.verify_password(secret.expose().as_bytes(), hash).is_ok())
}

/// Gives jobs to threads, as many at a time as there are processors, until the node ends.
pub(crate) async fn run(
    mut jobs: mpsc::Receiver<Job>,
    inbox: mpsc::Sender<Inbound>,
    threads: TaskTracker,
    ended: CancellationToken,
) {
    let workers = available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS);
    info!(workers, "secrets are hashed by");
    let workers = Arc::new(Semaphore::new(workers));
    let serve = async {
        while let Ok(worker) = Arc::clone(&workers).acquire_owned().await
            && let Some(job) = jobs.recv().await
        {
            let inbox = inbox.clone();
            threads.spawn_blocking(move || {
                // The driver being gone means that the node has stopped.
                let _ = inbox.blocking_send(Inbound::Answered(job.run()));
                drop(worker);
            });
        }
    };
    ended.run_until_cancelled(serve).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_that_was_hashed_is_right() {
        let secret = Secret::from("sesame");
        let hashed = hash(&secret).unwrap();
        assert!(hashed.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hashed}");
        assert!(is_right(&secret, &hashed));
        assert!(!is_right(&"Sesame".into(), &hashed));
        assert_ne!(hash(&secret).unwrap(), hashed, "every hash has a salt of its own");
        for nonsense in ["", "sesame", "$argon2id$v=19$m=0,t=0,p=0$AAAA$AAAA"] {
            assert!(!is_right(&secret, nonsense));
        }
    }

    #[test]
    fn hashes_of_other_parameters_are_understood() {
        let cheap = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
        let hashed = cheap.hash_password(b"sesame").unwrap().to_string();
        assert!(is_right(&"sesame".into(), &hashed));
        assert!(!is_right(&"other".into(), &hashed));
    }
}
