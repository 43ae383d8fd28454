//! `arborcast rebalance`: what the masters would do to make the tree shallower, and asking them to do it.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use arborcast_client::{Address, Secret};
use arborcast_proto::registry::registry_client::RegistryClient;
use arborcast_proto::registry::{PlannedMove, RebalanceRequest, RebalanceResponse, TreePlan};
use arborcast_tls::{Tls, connector};
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::args::Args;
use super::failure::Failure;
use super::output::say;
use super::top::masters::words;

/// How long connecting to a master may take, and its answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks one master after the other until one answers, and prints its plan.
pub(crate) async fn run(args: &Args, dry_run: bool) -> Result<(), Failure> {
    let masters = args.servers()?.masters;
    let secret = if dry_run { None } else { Some(args.cluster_secret()?) };
    let mut reasons = Vec::new();
    for master in masters {
        match ask(&master, args.tls.as_ref(), secret.as_ref()).await {
            Ok(answer) => return show(&master, &answer, dry_run),
            Err(status) => reasons.push(format!("{master}: {}", words(&status))),
        }
    }
    let reason = if reasons.is_empty() { "give one with --master HOST:PORT".to_owned() } else { reasons.join("; ") };
    Err(Failure::NoMaster { reason })
}

async fn ask(master: &Address, tls: Option<&Arc<Tls>>, secret: Option<&Secret>) -> Result<RebalanceResponse, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{master}"));
    let endpoint = endpoint.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
    let channel = match tls {
        Some(tls) => endpoint.connect_with_connector_lazy(connector(Arc::clone(tls))),
        None => endpoint.connect_lazy(),
    };
    let mut request = Request::new(RebalanceRequest { dry_run: secret.is_none() });
    if let Some(secret) = secret {
        let bearer = MetadataValue::try_from(format!("Bearer {}", secret.expose()));
        let mut bearer = bearer.map_err(|_| Status::invalid_argument("the secret is not printable ASCII"))?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
    }
    Ok(RegistryClient::new(channel).rebalance(request).await?.into_inner())
}

fn show(master: &Address, answer: &RebalanceResponse, dry_run: bool) -> Result<(), Failure> {
    if answer.warming {
        say(format_args!("{master} has only just started, and may not know everybody yet"));
    }
    let text: String = answer.trees.iter().map(tree_in_words).collect();
    match io::stdout().write_all(text.as_bytes()) {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.map_err(Failure::Output)?,
    }
    let is_needed = answer.trees.iter().any(|tree| !tree.moves.is_empty());
    if dry_run && is_needed && !answer.balances {
        say(format_args!("{master} does not balance by itself; without --dry-run it would do this"));
    } else if !dry_run && is_needed {
        say(format_args!("{master} proposes these moves now, one after the other"));
    }
    Ok(())
}

fn tree_in_words(tree: &TreePlan) -> String {
    let TreePlan { root_id, nodes, depth, least_depth, depth_after, moves, waits_for } = tree;
    let mut text = format!("tree of {}: {nodes} nodes, depth {depth}, at least {least_depth}", shown(root_id));
    match moves.len() {
        0 => text += "; nothing to move\n",
        1 => text += &format!("; depth {depth_after} after 1 move\n"),
        count => text += &format!("; depth {depth_after} after {count} moves\n"),
    }
    text.extend(moves.iter().map(move_in_words));
    if !moves.is_empty() && !waits_for.is_empty() {
        text += &format!("  not at this moment: {}\n", shown(waits_for));
    }
    text
}

fn move_in_words(planned: &PlannedMove) -> String {
    let PlannedMove { node_id, from_id, to_id, depth_before, depth_after, nodes, relieves_parent } = planned;
    let below = match nodes.saturating_sub(1) {
        0 => String::new(),
        below => format!(" and {below} below it"),
    };
    let why = if *relieves_parent { " (which has too many children)" } else { "" };
    format!(
        "  {}{below}: from {}{why} to {}, depth {depth_before} to {depth_after}\n",
        shown(node_id),
        shown(from_id),
        shown(to_id)
    )
}

/// Ids come from other people's machines, and go to a terminal.
fn shown(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_said_in_words_without_control_characters() {
        let planned = PlannedMove {
            node_id: "n\u{1b}4".into(),
            from_id: "n3".into(),
            to_id: "n0".into(),
            depth_before: 4,
            depth_after: 1,
            nodes: 4,
            relieves_parent: false,
        };
        let tree = TreePlan {
            root_id: "n0".into(),
            nodes: 8,
            depth: 7,
            least_depth: 3,
            depth_after: 4,
            moves: vec![planned.clone(), PlannedMove { nodes: 1, relieves_parent: true, ..planned }],
            waits_for: "the tree has only just changed".into(),
        };
        assert_eq!(
            tree_in_words(&tree),
            "tree of n0: 8 nodes, depth 7, at least 3; depth 4 after 2 moves\n  \
             n\u{fffd}4 and 3 below it: from n3 to n0, depth 4 to 1\n  \
             n\u{fffd}4: from n3 (which has too many children) to n0, depth 4 to 1\n  \
             not at this moment: the tree has only just changed\n"
        );
        let still = TreePlan { depth: 1, least_depth: 1, depth_after: 1, moves: Vec::new(), ..tree };
        assert_eq!(tree_in_words(&still), "tree of n0: 8 nodes, depth 1, at least 1; nothing to move\n");
    }
}
