//! Tells every node of other servers, so that servers need not tell each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arborcast_proto::registry::{Advice, advice};
use tokio_util::sync::CancellationToken;
use tracing::trace;

use crate::messages;
use crate::registry::Registry;
use crate::topology::naming::{Named, Naming, PACE};

/// How much longer than a look the rest after it is at least, so that in a very large cluster, too, looking takes no more
/// than a fifth of one core.
const REST: u32 = 4;

/// But nodes that are told nothing for four seconds announce themselves to each other (protocol, B56).
const MAX_REST: Duration = Duration::from_secs(2);

/// Runs until stopped. A master that may not know everybody names nobody.
pub(crate) async fn run(registry: Arc<Registry>, stop: CancellationToken) {
    let mut naming = Naming::default();
    let mut rest = Duration::ZERO;
    while stop.run_until_cancelled(tokio::time::sleep(PACE.max(rest))).await.is_some() {
        let begin = Instant::now();
        if !registry.is_warming() {
            look(&registry, &mut naming);
        }
        rest = (REST * begin.elapsed()).min(MAX_REST);
    }
}

fn look(registry: &Registry, naming: &mut Naming) {
    let picture = registry.picture();
    for named in naming.look(&picture.topology.forest(picture.now), picture.now) {
        let Named { node, stream, least_loaded, others } = named;
        let servers = messages::other_servers(least_loaded, others);
        // To one that has no room for more it is said again soon.
        let is_told = registry.advise(stream, Advice { kind: Some(advice::Kind::Servers(servers)) });
        trace!(%node, is_told, "told of other servers");
    }
}
