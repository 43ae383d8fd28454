//! What a node says of itself in its metrics (README, Metrics, health and logs of a node), and what happened between two
//! looks at them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use thiserror::Error;

use super::super::terminal::text::number;
use super::history::What;
use super::picture::{Node, Picture, State};
use super::words::duration;

/// Why a text is not what a node says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Unreadable {
    /// Somebody else answers there.
    #[error("no node answers there: there is no arborcast_node_info")]
    NoNode,
    /// A master answers there.
    #[error("that is a master: give the address of its gRPC service with --master")]
    Master,
}

/// One look at a node's metrics.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    id: String,
    address: String,
    version: String,
    state: State,
    /// Absent: it has none, or does not speak the extensions and so doesn't know its id.
    parent: Option<String>,
    children: BTreeSet<String>,
    root: Option<String>,
    depth: Option<u32>,
    clients: u64,
    servers: u64,
    strangers: u64,
    known_servers: u64,
    users: u64,
    published: f64,
    from_clients: f64,
    from_servers: f64,
    received_bytes: f64,
    sent_bytes: f64,
    log_bytes: f64,
    log_limit: f64,
    heals: f64,
    heal_seconds: f64,
    masters: BTreeMap<String, bool>,
}

impl Sample {
    /// Reads the answer of `/metrics`. Lines that are none of ours mean nothing.
    pub(crate) fn read(text: &str) -> Result<Self, Unreadable> {
        let metrics: Vec<Line> = text.lines().filter_map(line).collect();
        let find = |name: &str, value: &[(&str, &str)]| {
            let has = |line: &&Line| value.iter().all(|(label, value)| line.label(label) == Some(value));
            metrics.iter().filter(|line| line.name == name).find(has)
        };
        let number = |name: &str| find(name, &[]).map_or(0.0, |line| line.value);
        let of = |name: &str, label: &str, value: &str| find(name, &[(label, value)]).map_or(0.0, |line| line.value);
        let label = |name: &str, label: &str| find(name, &[])?.label(label).map(str::to_owned);
        let Some(id) = label("arborcast_node_info", "id") else {
            let is_master = metrics.iter().any(|line| line.name.starts_with("arborcast_master_"));
            return Err(if is_master { Unreadable::Master } else { Unreadable::NoNode });
        };
        let is_extended = find("arborcast_node_parent_info", &[]).is_some();
        let all = |name: &'static str| metrics.iter().filter(move |line| line.name == name);
        let states = [State::Joining, State::Live, State::Orphaned, State::Draining];
        let state = states.into_iter().find(|state| of("arborcast_node_state", "state", state.name()) > 0.0);
        let ready = if number("arborcast_node_ready") > 0.0 { State::Live } else { State::Draining };
        Ok(Self {
            id,
            address: label("arborcast_node_info", "address").unwrap_or_default(),
            version: label("arborcast_node_build_info", "version").unwrap_or_default(),
            state: state.unwrap_or(ready),
            parent: label("arborcast_node_parent_info", "parent").filter(|parent| !parent.is_empty()),
            children: all("arborcast_node_child_info")
                .filter_map(|line| line.label("child"))
                .map(str::to_owned)
                .collect(),
            root: label("arborcast_node_fragment_info", "root"),
            depth: is_extended.then(|| number("arborcast_node_depth") as u32),
            clients: of("arborcast_node_connections", "kind", "client") as u64,
            servers: of("arborcast_node_connections", "kind", "server") as u64,
            strangers: of("arborcast_node_connections", "kind", "unidentified") as u64,
            known_servers: number("arborcast_node_servers") as u64,
            users: number("arborcast_node_users") as u64,
            published: number("arborcast_node_activities_published_total"),
            from_clients: of("arborcast_node_activities_received_total", "from", "client"),
            from_servers: of("arborcast_node_activities_received_total", "from", "server"),
            received_bytes: number("arborcast_node_received_bytes_total"),
            sent_bytes: number("arborcast_node_sent_bytes_total"),
            log_bytes: all("arborcast_node_log_bytes").map(|line| line.value).sum(),
            log_limit: number("arborcast_node_log_limit_bytes"),
            heals: number("arborcast_node_heal_duration_seconds_count"),
            heal_seconds: number("arborcast_node_heal_duration_seconds_sum"),
            masters: all("arborcast_node_master_up")
                .filter_map(|line| Some((line.label("master")?.to_owned(), line.value > 0.0)))
                .collect(),
        })
    }

    /// It was started anew between the two.
    fn is_another_start(&self, before: &Self) -> bool {
        self.id != before.id || self.published < before.published || self.received_bytes < before.received_bytes
    }

    /// The node, its parent and its children, and what else it says. Rates need an earlier look, so long ago.
    pub(crate) fn picture(&self, source: &str, before: Option<(&Self, Duration)>, at: SystemTime) -> Picture {
        let before = before.filter(|(before, passed)| !self.is_another_start(before) && !passed.is_zero());
        let rate = |count: fn(&Self) -> f64| {
            before.map(|(before, passed)| (count(self) - count(before)).max(0.0) / passed.as_secs_f64())
        };
        let own = Node {
            state: self.state,
            address: self.address.clone(),
            version: self.version.clone(),
            clients: Some(self.clients),
            depth: self.depth,
            rate: rate(|sample| sample.published),
            age: Some(Duration::ZERO),
            ..Node::named(&self.id, self.parent.as_deref())
        };
        let above = self.parent.iter().map(|parent| Node {
            depth: self.depth.and_then(|depth| depth.checked_sub(1)),
            ..Node::named(parent, None)
        });
        let below = self.children.iter().map(|child| Node {
            depth: self.depth.and_then(|depth| depth.checked_add(1)),
            ..Node::named(child, Some(&self.id))
        });
        let nodes = above.chain(below).chain(std::iter::once(own));
        Picture {
            source: source.to_owned(),
            start: self.id.clone(),
            at,
            is_warming: false,
            nodes: nodes.map(|node| (node.id.clone(), node)).collect(),
            faults: Vec::new(),
            facts: self.facts(rate),
        }
    }

    fn facts(&self, rate: impl Fn(fn(&Self) -> f64) -> Option<f64>) -> Vec<(&'static str, String)> {
        let per_second = |count| rate(count).map_or_else(|| "-".to_owned(), |rate| format!("{}/s", number(rate)));
        let mut facts = vec![
            ("connections", format!("{} clients, {} servers, {} others", self.clients, self.servers, self.strangers)),
            ("activities", {
                let (clients, servers) =
                    (per_second(|sample| sample.from_clients), per_second(|sample| sample.from_servers));
                let passed_on = number(self.published);
                format!("{clients} from clients, {servers} from servers; {passed_on} passed on since its start")
            }),
            ("bytes", {
                let (received, sent) =
                    (per_second(|sample| sample.received_bytes), per_second(|sample| sample.sent_bytes));
                format!(
                    "{received} in, {sent} out; {} of {} in each log",
                    number(self.log_bytes),
                    number(self.log_limit)
                )
            }),
            ("knows", format!("{} other servers, {} users", self.known_servers, self.users)),
        ];
        if let Some(root) = &self.root {
            let mean = Duration::try_from_secs_f64(self.heal_seconds / self.heals.max(1.0)).unwrap_or_default();
            let healed = if self.heals > 0.0 { format!(", {} on average", duration(mean)) } else { String::new() };
            facts.push(("tree", format!("that of {root}; re-attached {} times{healed}", number(self.heals))));
        }
        if !self.masters.is_empty() {
            let master =
                |(address, is_up): (&String, &bool)| format!("{address} {}", if *is_up { "up" } else { "DOWN" });
            let masters: Vec<String> = self.masters.iter().map(master).collect();
            facts.push(("masters", masters.join(", ")));
        }
        facts
    }

    /// What has happened since the look before. How long it was without a parent is what the node itself says, where it
    /// was so only once between the two.
    pub(crate) fn news(&self, before: &Self) -> Vec<What> {
        let node = || self.id.clone();
        if self.is_another_start(before) {
            return vec![What::Restarted { node: node() }];
        }
        let mut news = Vec::new();
        let left = before.children.difference(&self.children);
        news.extend(left.map(|child| What::ChildLeft { node: node(), child: child.clone() }));
        news.extend(self.moved(before));
        let came = self.children.difference(&before.children);
        news.extend(came.map(|child| What::ChildCame { node: node(), child: child.clone() }));
        if self.state == State::Draining && before.state != State::Draining {
            news.push(What::Draining { node: node() });
        }
        for (master, is_up) in &self.masters {
            let master = master.clone();
            match (before.masters.get(&master), is_up) {
                (Some(true), false) => news.push(What::MasterLost { node: node(), master }),
                (Some(false), true) => news.push(What::MasterBack { node: node(), master }),
                _ => {}
            }
        }
        news
    }

    fn moved(&self, before: &Self) -> Option<What> {
        let node = self.id.clone();
        let heals = self.heals - before.heals;
        let took = Duration::try_from_secs_f64(self.heal_seconds - before.heal_seconds).ok();
        let after = took.filter(|_| heals == 1.0);
        let was_lost = heals > 0.0;
        match (before.parent.clone(), self.parent.clone()) {
            (Some(from), Some(to)) if from == to && !was_lost => None,
            (from, Some(to)) if was_lost => Some(What::Reattached { node, from, to, after }),
            (Some(from), Some(to)) => Some(What::Moved { node, from, to }),
            (None, Some(to)) => Some(What::Attached { node, to }),
            (Some(_), None) if self.state == State::Live => Some(What::BecameRoot { node, after: None }),
            (Some(from), None) => Some(What::Orphaned { node, from: Some(from) }),
            (None, None) if before.state == State::Orphaned && self.state == State::Live => {
                Some(What::BecameRoot { node, after: None })
            }
            (None, None) => None,
        }
    }
}

/// One line of the text format of Prometheus: a name, labels, a value.
struct Line {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Line {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

fn line(text: &str) -> Option<Line> {
    let end = text.find(['{', ' '])?;
    let (name, rest) = text.split_at_checked(end).filter(|(name, _)| name.starts_with("arborcast_"))?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Line { name: name.to_owned(), labels, value })
}

/// Labels up to the brace that ends them, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => match characters.next()? {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
        labels.push((name.to_owned(), value));
        rest = characters.as_str();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP arborcast_node_info Who this node is.
arborcast_node_info{id=\"b \\\"q\\\" {x}\\n\",address=\"h:1\"} 1
arborcast_node_build_info{version=\"0.1.0\"} 1
arborcast_node_state{state=\"draining\"} 0
arborcast_node_state{state=\"live\"} 1
arborcast_node_parent_info{parent=\"a\"} 1
arborcast_node_child_info{child=\"c\"} 1
arborcast_node_child_info{child=\"d\"} 1
arborcast_node_fragment_info{reign=\"0\",root=\"a\"} 1
arborcast_node_depth 1
arborcast_node_connections{kind=\"client\"} 12
arborcast_node_activities_published_total 100
arborcast_node_received_bytes_total 5
arborcast_node_heal_duration_seconds_sum 1.5
arborcast_node_heal_duration_seconds_count 2
arborcast_node_heal_duration_seconds_bucket{le=\"+Inf\"} 2
arborcast_node_master_up{master=\"m:1\"} 1
another_metric{x=\"y
arborcast_node_broken{x=\"y
";

    fn sample() -> Sample {
        Sample::read(TEXT).unwrap()
    }

    #[test]
    fn metrics_are_a_picture_of_the_node_and_its_neighbours() {
        let before = sample();
        let now = Sample { published: 150.0, ..sample() };
        let picture = now.picture("node h:2", Some((&before, Duration::from_secs(2))), SystemTime::UNIX_EPOCH);
        let own = &picture.nodes["b \"q\" {x}\n"];
        assert_eq!((own.parent.as_deref(), own.state, own.clients), (Some("a"), State::Live, Some(12)));
        assert_eq!((own.rate, own.depth, own.address.as_str()), (Some(25.0), Some(1), "h:1"));
        assert_eq!(picture.nodes.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b \"q\" {x}\n", "c", "d"]);
        assert_eq!((picture.nodes["c"].depth, picture.trees()), (Some(2), 1));
        assert!(picture.facts.contains(&("masters", "m:1 up".into())), "{:?}", picture.facts);
        assert!(picture.facts.contains(&("tree", "that of a; re-attached 2 times, 750 ms on average".into())));
    }

    #[test]
    fn what_happened_between_two_looks_is_told() {
        let before = sample();
        let mut now = sample();
        now.parent = Some("r".into());
        (now.heals, now.heal_seconds) = (3.0, 1.546);
        now.children = BTreeSet::from(["d".into(), "e".into()]);
        now.masters.insert("m:1".into(), false);
        let told = now.news(&before).iter().map(|what| super::super::words::sentence(what, 200)).collect::<Vec<_>>();
        let node = "b \"q\" {x}␊";
        assert_eq!(
            told,
            [
                format!("c is no longer below {node}: lost, or elsewhere"),
                format!("{node} re-attached from a to r in 46 ms"),
                format!("e came below {node}"),
                format!("{node} has lost the master m:1"),
            ]
        );
        assert_eq!(before.news(&before), []);
        let again = Sample { published: 1.0, ..sample() };
        assert!(matches!(again.news(&before)[..], [What::Restarted { .. }]));
    }

    #[test]
    fn what_is_no_node_is_said() {
        assert_eq!(Sample::read("<html>"), Err(Unreadable::NoNode));
        assert_eq!(Sample::read("arborcast_master_fragments 1"), Err(Unreadable::Master));
    }
}
