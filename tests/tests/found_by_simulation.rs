//! What `cargo simulate` has found, by name.
//!
//! When a seed fails, add it here as `storm_SEED_of_NODES`, or better under a name that says what went wrong, and leave it
//! when it is mended. A seed means something only as long as the simulator draws in the same order: when that changes,
//! the seeds here are just more seeds. So what a seed has shown should become a scenario of its own as well, in
//! `healing_simulation.rs` or here.

use arborcast_tests::storm;

/// It took an orphan more than the half minute that the simulator looked on to ask all the servers that it remembered, most
/// of them dead: no fault of the orphan, but of the simulator, which now waits until it has.
#[test]
fn storm_78_of_50_ends_with_a_root_that_asks_everybody_it_remembers() {
    storm::run(78, 50);
}

/// A server whose parent drains keeps the link to it, over which both still relay, while it confirms those who come below
/// it; where the draining one is among them, that closes a circle (protocol, Q4). These seeds do so in a server that does
/// not leave the former parent.
#[test]
fn a_drain_and_a_crash_that_meet_close_no_circle_of_relaying_links() {
    for seed in [351, 542, 572, 634, 637, 1042] {
        storm::run(seed, 12);
    }
}
