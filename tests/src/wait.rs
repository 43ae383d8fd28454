//! Polling with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for something that should happen at once. Only a failing test takes this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

const INTERVAL: Duration = Duration::from_millis(5);

/// Asks `check` again and again until it says `Ok`. When `patience` runs out, panics with what `check` said was missing
/// the last time.
#[track_caller]
pub fn until<T>(patience: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match check() {
            Ok(found) => return found,
            Err(missing) if Instant::now() >= deadline => panic!("not within {patience:?}: {missing}"),
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}
