//! What was acknowledged reaches everybody who stays or comes back, exactly once and in order, though any one server
//! fails (protocol, Relay; Extended sessions), in virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use arborcast_tests::promises;
use arborcast_tests::seeds::for_seeds;

#[test]
fn nothing_acknowledged_is_lost_or_doubled_when_one_server_after_the_other_fails() {
    for_seeds(0..60, |seed| {
        let seen = promises::run(seed, 8, 6);
        assert!(seen.faults == 6 && seen.published > 20 && seen.delivered == 8 * seen.published, "{seen:?}");
    });
}

#[test]
fn when_half_of_forty_servers_die_at_once_the_others_have_everything() {
    for_seeds(0..3, |seed| {
        let seen = promises::half_is_killed(seed, 40);
        assert!(seen.faults == 20 && seen.published > 10, "{seen:?}");
    });
}
