//! Nothing acknowledged is lost, nothing is doubled, on real servers under faults. `cargo chaos` runs for longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use arborcast_tests::chaos::{self, Plan};

#[test]
fn whatever_happens_to_one_server_after_the_other_all_that_is_acknowledged_arrives_once_and_in_order() {
    let plan = Plan {
        seed: 1,
        time: Duration::from_secs(12),
        servers: 7,
        publishers: 3,
        subscribers: 5,
        pause: Duration::from_millis(10),
    };
    let report = chaos::run(&plan, |what| println!("{what}"));
    assert!(report.is_clean() && report.published > 100, "{report:#?}");
    assert!(report.faults.values().sum::<u64>() > 0, "{report:#?}");
}
