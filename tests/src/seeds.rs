//! Runs that each come from one seed.

use std::ops::Range;
use std::panic::{RefUnwindSafe, catch_unwind, resume_unwind};

/// Runs one scenario for many seeds, and says which seed failed.
///
/// # Panics
/// With what the scenario panicked with.
pub fn for_seeds(seeds: Range<u64>, scenario: impl Fn(u64) + RefUnwindSafe) {
    for seed in seeds {
        if let Err(panic) = catch_unwind(|| scenario(seed)) {
            eprintln!("failed with seed {seed}");
            resume_unwind(panic);
        }
    }
}
