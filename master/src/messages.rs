//! From protobuf to what the registry works with, and back. What comes in is checked here: past this file, every report
//! and every request is within the bounds that `registry.proto` names.

use std::collections::BTreeSet;
use std::time::Duration;

use arborcast_proto::registry as pb;
use tonic::Status;

use crate::registry::Picture;
use crate::topology::balance::{Proposal, TreePlan};
use crate::topology::candidates::{Asker, Candidate};
use crate::topology::changes::{Change, Departure};
use crate::topology::faults::{Fault, FaultKind};
use crate::topology::forest::{NodeView, Tree};
use crate::topology::history::{Happening, Kind};
use crate::topology::naming::NamedServer;
use crate::topology::plan::Move;
use crate::topology::{FragmentKey, Incarnation, MoveAnswer, MoveOutcome, NodeId, Report, State};

const MAX_ID: usize = 128;
const MAX_HOSTNAME: usize = 255;
const MAX_VERSION: usize = 64;
const MAX_PATH: usize = 512;
const MAX_CHILDREN: usize = 1024;
const MAX_LEFT_OUT: usize = 256;
const MAX_SETTLED: usize = 16;
const MAX_DEPTH: u32 = 1_000_000;

/// A node's report to the master with this id.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
pub(crate) fn report(message: pb::NodeReport, master_id: &str) -> Result<Report, Status> {
    let state = state(message.state())?;
    let port = u16::try_from(message.port).ok().filter(|&port| port > 0);
    if message.depth > MAX_DEPTH {
        return Err(invalid("depth", format_args!("{} is more than {MAX_DEPTH}", message.depth)));
    }
    let counted = message.settled_tickets.len();
    if counted > MAX_SETTLED {
        return Err(invalid("settled_tickets", format_args!("has {counted} masters, and may have {MAX_SETTLED}")));
    }
    let of_this_master = message.settled_tickets.iter().find(|settled| settled.master_id == master_id);
    if message.heartbeat_interval_ms == 0 {
        return Err(invalid("heartbeat_interval_ms", "must be at least 1"));
    }
    Ok(Report {
        id: node_id("node_id", message.node_id)?,
        incarnation: Incarnation(message.incarnation),
        hostname: hostname(message.hostname)?,
        port: port.ok_or_else(|| invalid("port", format_args!("{} is not in 1..=65535", message.port)))?,
        version: text("version", message.version, 0, MAX_VERSION)?,
        key: key(message.key)?,
        parent: Some(message.parent_id).filter(|id| !id.is_empty()).map(|id| node_id("parent_id", id)).transpose()?,
        path: node_ids("path", message.path, MAX_PATH)?,
        depth: message.depth,
        children: node_ids("children", message.children, MAX_CHILDREN)?,
        max_children: message.max_children,
        load: message.load,
        state,
        heartbeat_interval: Duration::from_millis(message.heartbeat_interval_ms.into()),
        activities: message.activities,
        settled_tickets: of_this_master.map_or(0, |settled| settled.count),
        masters: message.masters,
        move_answer: message.move_answer.map(move_answer).transpose()?,
    })
}

/// Who looks for a parent.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
pub(crate) fn asker(message: pb::FindParentRequest) -> Result<Asker, Status> {
    Ok(Asker {
        id: node_id("node_id", message.node_id)?,
        incarnation: Incarnation(message.incarnation),
        key: key(message.key)?,
        leave_out: left_out(message.leave_out)?,
    })
}

/// Whom somebody does not want to hear of.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
pub(crate) fn left_out(ids: Vec<String>) -> Result<BTreeSet<NodeId>, Status> {
    Ok(node_ids("leave_out", ids, MAX_LEFT_OUT)?.into_iter().collect())
}

/// A node's id.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
pub(crate) fn node_id(field: &str, id: String) -> Result<NodeId, Status> {
    text(field, id, 1, MAX_ID).map(NodeId::from)
}

fn node_ids(field: &str, ids: Vec<String>, most: usize) -> Result<Vec<NodeId>, Status> {
    if ids.len() > most {
        return Err(invalid(field, format_args!("has {} ids, and may have {most}", ids.len())));
    }
    ids.into_iter().map(|id| node_id(field, id)).collect()
}

fn text(field: &str, text: String, least: usize, most: usize) -> Result<String, Status> {
    if !(least..=most).contains(&text.len()) {
        return Err(invalid(field, format_args!("has {} bytes, and may have {least} to {most}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(field, "has a control character"));
    }
    Ok(text)
}

fn hostname(name: String) -> Result<String, Status> {
    let name = text("hostname", name, 1, MAX_HOSTNAME)?;
    if name.contains(char::is_whitespace) {
        return Err(invalid("hostname", "has white space"));
    }
    Ok(name)
}

fn key(message: Option<pb::FragmentKey>) -> Result<FragmentKey, Status> {
    let message = message.ok_or_else(|| invalid("key", "is required"))?;
    let unsettled = message.unsettled || message.reign == u64::MAX;
    let reign = if unsettled { 0 } else { message.reign };
    Ok(FragmentKey { unsettled, reign, root: node_id("key.root_id", message.root_id)? })
}

fn state(state: pb::NodeState) -> Result<State, Status> {
    match state {
        pb::NodeState::Unspecified => Err(invalid("state", "is none that is known")),
        pb::NodeState::Joining => Ok(State::Joining),
        pb::NodeState::Live => Ok(State::Live),
        pb::NodeState::Orphaned => Ok(State::Orphaned),
        pb::NodeState::Draining => Ok(State::Draining),
    }
}

fn invalid(field: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field} {why}"))
}

fn move_answer(message: pb::MoveAnswer) -> Result<MoveAnswer, Status> {
    let (outcome, name) = move_outcome(message.outcome());
    Ok(MoveAnswer {
        number: message.number,
        target: node_id("move_answer.target_id", message.target_id)?,
        parent: node_id("move_answer.parent_id", message.parent_id)?,
        outcome,
        name,
    })
}

/// What an outcome means for a master, and what it is called.
fn move_outcome(outcome: pb::MoveOutcome) -> (MoveOutcome, &'static str) {
    match outcome {
        pb::MoveOutcome::Moved => (MoveOutcome::Moved, "moved"),
        pb::MoveOutcome::Busy => (MoveOutcome::NotNow, "busy"),
        pb::MoveOutcome::NotAttached => (MoveOutcome::NotNow, "not_attached"),
        pb::MoveOutcome::OutOfDate => (MoveOutcome::NotNow, "out_of_date"),
        pb::MoveOutcome::TreeBusy => (MoveOutcome::NotNow, "tree_busy"),
        pb::MoveOutcome::Unsettled => (MoveOutcome::NotNow, "unsettled"),
        pb::MoveOutcome::Unspecified => (MoveOutcome::NodeWontMove, "unknown"),
        pb::MoveOutcome::Draining => (MoveOutcome::NodeWontMove, "draining"),
        pb::MoveOutcome::NoGain => (MoveOutcome::NodeWontMove, "no_gain"),
        pb::MoveOutcome::OwnSubtree => (MoveOutcome::NodeWontMove, "own_subtree"),
        pb::MoveOutcome::PreferredParent => (MoveOutcome::NodeWontMove, "preferred_parent"),
        pb::MoveOutcome::Failed => (MoveOutcome::TargetWontTake, "failed"),
        pb::MoveOutcome::Refused => (MoveOutcome::TargetWontTake, "refused"),
        pb::MoveOutcome::Unreachable => (MoveOutcome::TargetWontTake, "unreachable"),
    }
}

fn move_answer_message(answer: &MoveAnswer) -> pb::MoveAnswer {
    let outcome = format!("MOVE_OUTCOME_{}", answer.name.to_uppercase());
    pb::MoveAnswer {
        number: answer.number,
        target_id: answer.target.to_string(),
        parent_id: answer.parent.to_string(),
        outcome: pb::MoveOutcome::from_str_name(&outcome).unwrap_or_default().into(),
    }
}

/// A proposal as advice.
pub(crate) fn proposal(proposal: Proposal) -> pb::MoveProposal {
    pb::MoveProposal {
        target: Some(candidate(proposal.target)),
        parent_id: proposal.parent.to_string(),
        relieves_parent: proposal.relieves_parent,
    }
}

/// Other servers as advice.
pub(crate) fn other_servers(least_loaded: Vec<NamedServer>, others: Vec<NamedServer>) -> pb::OtherServers {
    let messages = |servers: Vec<NamedServer>| servers.into_iter().map(other_server).collect();
    pb::OtherServers { least_loaded: messages(least_loaded), others: messages(others) }
}

fn other_server(server: NamedServer) -> pb::OtherServer {
    let NamedServer { id, hostname, port, load } = server;
    pb::OtherServer { node_id: id.to_string(), hostname, port: port.into(), load }
}

/// A plan for one tree.
pub(crate) fn tree_plan(plan: TreePlan) -> pb::TreePlan {
    pb::TreePlan {
        root_id: plan.tree.root.to_string(),
        nodes: u32::try_from(plan.tree.nodes).unwrap_or(u32::MAX),
        depth: plan.tree.depth,
        least_depth: plan.least_depth,
        depth_after: plan.depth_after,
        moves: plan.moves.into_iter().map(planned_move).collect(),
        waits_for: plan.waits_for.map(|obstacle| obstacle.to_string()).unwrap_or_default(),
    }
}

fn planned_move(planned: Move) -> pb::PlannedMove {
    pb::PlannedMove {
        node_id: planned.node.to_string(),
        from_id: planned.from.to_string(),
        to_id: planned.to.to_string(),
        depth_before: planned.depth_before,
        depth_after: planned.depth_after,
        nodes: planned.nodes,
        relieves_parent: planned.relieves_parent,
    }
}

/// Candidates as advice, or as an answer.
pub(crate) fn candidates(candidates: Vec<Candidate>) -> Vec<pb::Candidate> {
    candidates.into_iter().map(candidate).collect()
}

fn candidate(candidate: Candidate) -> pb::Candidate {
    pb::Candidate {
        node_id: candidate.id.to_string(),
        hostname: candidate.hostname,
        port: candidate.port.into(),
        key: Some(key_message(&candidate.key)),
        depth: candidate.depth,
        load: candidate.load,
        free_slots: candidate.free_slots,
    }
}

/// What a piece of advice is called in metrics.
pub(crate) fn advice_kind(kind: &pb::advice::Kind) -> &'static str {
    match kind {
        pb::advice::Kind::Welcome(_) => "welcome",
        pb::advice::Kind::Fragment(_) => "fragment",
        pb::advice::Kind::Drain(_) => "drain",
        pb::advice::Kind::Move(_) => "move",
        pb::advice::Kind::Servers(_) => "servers",
    }
}

/// The whole picture.
pub(crate) fn topology(picture: &Picture, master_id: &str) -> pb::Topology {
    let forest = picture.topology.forest(picture.now);
    let trees = forest.trees();
    let faults = picture.topology.faults(&forest, &trees, picture.now);
    pb::Topology {
        master_id: master_id.to_owned(),
        uptime: Some(duration(picture.uptime)),
        warming: picture.warming,
        at: Some(picture.at.into()),
        nodes: forest.nodes().map(|(_, entry)| node(&forest.view(entry))).collect(),
        fragments: trees.into_iter().map(fragment).collect(),
        faults: faults.named.into_iter().map(fault).collect(),
        faults_left_out: count(faults.left_out),
    }
}

/// One node.
pub(crate) fn node(view: &NodeView) -> pb::Node {
    pb::Node {
        report: Some(pb::NodeReport { activities: view.traffic.total(), ..report_message(&view.report) }),
        age: Some(duration(view.age)),
        registered_for: Some(duration(view.registered_for)),
        drain_requested: view.drain_requested,
        tree_root_id: view.tree_root.as_ref().map(NodeId::to_string).unwrap_or_default(),
        activities_per_second: view.traffic.per_second(),
    }
}

/// Something that happened, for people.
pub(crate) fn happening(happening: &Happening) -> pb::Happening {
    let (kind, node, text) = happening.what.words();
    let kind = match kind {
        Kind::MasterStarted => pb::HappeningKind::MasterStarted,
        Kind::Joined => pb::HappeningKind::Joined,
        Kind::Lost => pb::HappeningKind::Lost,
        Kind::Reattached => pb::HappeningKind::Reattached,
        Kind::Drained => pb::HappeningKind::Drained,
    };
    pb::Happening {
        number: happening.number,
        at: Some(happening.at.into()),
        kind: kind.into(),
        node_id: node.map(NodeId::to_string).unwrap_or_default(),
        text,
    }
}

/// Something that happened at a time.
pub(crate) fn change(at: std::time::SystemTime, change: &Change) -> pb::TopologyChange {
    let empty = pb::TopologyChange { at: Some(at.into()), ..Default::default() };
    let of_node = |kind: pb::ChangeKind, view: &NodeView| pb::TopologyChange {
        kind: kind.into(),
        node_id: view.report.id.to_string(),
        node: Some(node(view)),
        ..empty.clone()
    };
    match change {
        Change::Joined(view) => of_node(pb::ChangeKind::Joined, view),
        Change::Changed(view) => of_node(pb::ChangeKind::Changed, view),
        Change::Reparented { node: view, old_parent } => pb::TopologyChange {
            old_parent_id: old_parent.as_ref().map(NodeId::to_string).unwrap_or_default(),
            ..of_node(pb::ChangeKind::Reparented, view)
        },
        Change::Lost { id, how } => {
            let reason = match how {
                Departure::Ended => pb::LostReason::StreamEnded,
                Departure::Drained => pb::LostReason::Drained,
                Departure::Silent => pb::LostReason::Silent,
            };
            let (kind, node_id) = (pb::ChangeKind::Lost.into(), id.to_string());
            pb::TopologyChange { kind, node_id, lost_reason: reason.into(), ..empty }
        }
    }
}

fn report_message(report: &Report) -> pb::NodeReport {
    let ids = |ids: &[NodeId]| ids.iter().map(NodeId::to_string).collect();
    pb::NodeReport {
        node_id: report.id.to_string(),
        incarnation: report.incarnation.0,
        hostname: report.hostname.clone(),
        port: report.port.into(),
        version: report.version.clone(),
        key: Some(key_message(&report.key)),
        parent_id: report.parent.as_ref().map(NodeId::to_string).unwrap_or_default(),
        path: ids(&report.path),
        depth: report.depth,
        children: ids(&report.children),
        max_children: report.max_children,
        load: report.load,
        state: state_message(report.state).into(),
        heartbeat_interval_ms: u32::try_from(report.heartbeat_interval.as_millis()).unwrap_or(u32::MAX),
        move_answer: report.move_answer.as_ref().map(move_answer_message),
        activities: report.activities,
        settled_tickets: Vec::new(),
        masters: report.masters,
    }
}

fn key_message(key: &FragmentKey) -> pb::FragmentKey {
    pb::FragmentKey { reign: key.reign, root_id: key.root.to_string(), unsettled: key.unsettled }
}

fn state_message(state: State) -> pb::NodeState {
    match state {
        State::Joining => pb::NodeState::Joining,
        State::Live => pb::NodeState::Live,
        State::Orphaned => pb::NodeState::Orphaned,
        State::Draining => pb::NodeState::Draining,
    }
}

fn fragment(tree: Tree) -> pb::Fragment {
    pb::Fragment {
        root_id: tree.root.to_string(),
        key: Some(key_message(&tree.key)),
        nodes: count(tree.nodes),
        depth: tree.depth,
        load: tree.load,
        missing_parent_id: tree.missing_parent.as_ref().map(NodeId::to_string).unwrap_or_default(),
    }
}

fn fault(fault: Fault) -> pb::Fault {
    let kind = match fault.kind {
        FaultKind::DuplicateId => pb::FaultKind::DuplicateId,
        FaultKind::Disagreement => pb::FaultKind::Disagreement,
        FaultKind::Cycle => pb::FaultKind::Cycle,
        FaultKind::Silent => pb::FaultKind::Silent,
        FaultKind::SeveralFragments => pb::FaultKind::SeveralFragments,
        FaultKind::MissingParent => pb::FaultKind::MissingParent,
    };
    let node_ids = fault.nodes.iter().map(NodeId::to_string).collect();
    pb::Fault { kind: kind.into(), node_ids, detail: fault.detail }
}

/// Half the range of what protobuf's durations hold is more than half the age of the universe in milliseconds.
pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or_default()
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> pb::NodeReport {
        pb::NodeReport {
            node_id: "n".into(),
            incarnation: 7,
            hostname: "host".into(),
            port: 65_535,
            version: "test".into(),
            key: Some(pb::FragmentKey { reign: 3, root_id: "r".into(), unsettled: false }),
            parent_id: "p".into(),
            path: vec!["r".into(), "p".into(), "n".into()],
            depth: 2,
            children: vec!["c".into()],
            max_children: 4,
            load: 9,
            state: pb::NodeState::Live.into(),
            heartbeat_interval_ms: 250,
            activities: 11,
            settled_tickets: Vec::new(),
            masters: 2,
            move_answer: Some(pb::MoveAnswer {
                number: 3,
                target_id: "t".into(),
                parent_id: "p".into(),
                outcome: pb::MoveOutcome::PreferredParent.into(),
            }),
        }
    }

    #[test]
    fn a_report_goes_through_unchanged() {
        assert_eq!(report_message(&report(valid(), "m").unwrap()), valid());
        let root = pb::NodeReport { parent_id: String::new(), state: pb::NodeState::Joining.into(), ..valid() };
        assert_eq!(report_message(&report(root.clone(), "m").unwrap()), root);
    }

    #[test]
    fn of_the_tickets_that_a_node_counts_those_of_this_master_are_taken() {
        let settled = |master_id: &str, count| pb::SettledTickets { master_id: master_id.into(), count };
        let message = || pb::NodeReport { settled_tickets: vec![settled("m", 7), settled("n", u64::MAX)], ..valid() };
        let of = |master_id| report(message(), master_id).unwrap().settled_tickets;
        assert_eq!((of("m"), of("n"), of("x")), (7, u64::MAX, 0));
    }

    #[test]
    fn each_broken_bound_is_refused_by_name() {
        type Break = fn(&mut pb::NodeReport);
        let breaks: [(&str, Break); 22] = [
            ("node_id", |report| report.node_id.clear()),
            ("node_id", |report| report.node_id = "x".repeat(129)),
            ("node_id", |report| report.node_id = "a\nb".into()),
            ("hostname", |report| report.hostname.clear()),
            ("hostname", |report| report.hostname = "x".repeat(256)),
            ("hostname", |report| report.hostname = "two hosts".into()),
            ("port", |report| report.port = 0),
            ("port", |report| report.port = 65_536),
            ("version", |report| report.version = "x".repeat(65)),
            ("key", |report| report.key = None),
            ("key.root_id", |report| report.key = Some(pb::FragmentKey::default())),
            ("parent_id", |report| report.parent_id = "x".repeat(129)),
            ("path", |report| report.path = vec!["x".into(); 513]),
            ("path", |report| report.path = vec![String::new()]),
            ("depth", |report| report.depth = 1_000_001),
            ("children", |report| report.children = vec!["x".into(); 1025]),
            ("children", |report| report.children = vec!["\0".into()]),
            ("state", |report| report.state = 0),
            ("state", |report| report.state = 99),
            ("state", |report| report.state = -1),
            ("heartbeat_interval_ms", |report| report.heartbeat_interval_ms = 0),
            ("settled_tickets", |report| report.settled_tickets = vec![pb::SettledTickets::default(); 17]),
        ];
        for (field, make) in breaks {
            let mut message = valid();
            make(&mut message);
            let status = report(message, "m").unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with(&format!("{field} ")), "{field}: {}", status.message());
        }
    }

    #[test]
    fn the_longest_valid_report_fits_into_the_longest_message() {
        use arborcast_proto::registry::NodeReport;
        let id = || "x".repeat(MAX_ID);
        let longest = NodeReport {
            node_id: id(),
            hostname: "h".repeat(MAX_HOSTNAME),
            version: "v".repeat(MAX_VERSION),
            parent_id: id(),
            path: vec![id(); MAX_PATH],
            children: vec![id(); MAX_CHILDREN],
            settled_tickets: vec![pb::SettledTickets { master_id: id(), count: u64::MAX }; MAX_SETTLED],
            ..valid()
        };
        let bytes: usize = longest.path.iter().chain(&longest.children).map(|id| id.len() + 3).sum();
        assert!(bytes + MAX_SETTLED * (MAX_ID + 16) + 2048 < crate::settings::MAX_MESSAGE);
        report(longest, "m").unwrap();
    }

    #[test]
    fn the_largest_reign_means_unsettled() {
        let unsettled = key(Some(pb::FragmentKey { reign: u64::MAX, root_id: "r".into(), unsettled: false })).unwrap();
        assert!(unsettled.unsettled);
        assert_eq!(key(Some(pb::FragmentKey { reign: 5, root_id: "r".into(), unsettled: true })).unwrap(), unsettled);
        assert!(
            key(Some(pb::FragmentKey { reign: u64::MAX - 1, root_id: "r".into(), ..Default::default() })).unwrap()
                < unsettled
        );
    }

    #[test]
    fn who_asks_for_a_parent_is_checked_too() {
        let request = || pb::FindParentRequest {
            node_id: "n".into(),
            incarnation: 1,
            key: valid().key,
            leave_out: vec!["x".into(); MAX_LEFT_OUT],
        };
        assert_eq!(asker(request()).unwrap().leave_out.len(), 1);
        for broken in [
            pb::FindParentRequest { node_id: String::new(), ..request() },
            pb::FindParentRequest { key: None, ..request() },
            pb::FindParentRequest { leave_out: vec!["x".into(); MAX_LEFT_OUT + 1], ..request() },
        ] {
            assert_eq!(asker(broken).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
