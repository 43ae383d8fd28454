//! The tree as rows, one below the other: each node under its parent, and who was lost where it was.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::history::Loss;
use super::picture::{Node, Picture};

/// How many levels of the tree are drawn as lines at most; of those that are deeper the last ones.
const MAX_LEVELS: usize = 24;

/// In which order the children of a node stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Sort {
    #[default]
    Id,
    Clients,
    Rate,
}

impl Sort {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Clients => "clients",
            Self::Rate => "act/s",
        }
    }

    pub(crate) fn next(self) -> Self {
        match self {
            Self::Id => Self::Clients,
            Self::Clients => Self::Rate,
            Self::Rate => Self::Id,
        }
    }
}

/// A node at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: String,
    /// How many rows are above it in the tree.
    pub(crate) level: usize,
    /// The row that it is below.
    above: Option<usize>,
    is_last: bool,
    /// How many nodes below it are not shown.
    pub(crate) folded: usize,
    /// How many nodes are directly below it, shown or not.
    pub(crate) children: usize,
}

/// All rows. A node whose parent is not known stands at the top, and so does one of each circle.
pub(crate) fn rows(
    picture: &Picture,
    losses: &BTreeMap<&str, &Loss>,
    folded: &BTreeSet<String>,
    sort: Sort,
) -> Vec<Row> {
    let lost = losses.iter().map(|(id, loss)| (*id, loss.parent.as_deref()));
    let lost = lost.filter(|(id, _)| !picture.nodes.contains_key(*id));
    let there = picture.nodes.values().map(|node| (node.id.as_str(), node.parent.as_deref()));
    let parents: BTreeMap<&str, Option<&str>> = there.chain(lost).collect();
    let mut below: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
    for (id, parent) in &parents {
        below.entry(parent.filter(|parent| parents.contains_key(parent))).or_default().push(id);
    }
    for siblings in below.values_mut() {
        match sort {
            Sort::Id => {}
            Sort::Clients => siblings.sort_by_key(|id| Reverse(picture.nodes.get(*id).and_then(|node| node.clients))),
            Sort::Rate => siblings.sort_by(|a, b| rate(picture, b).total_cmp(&rate(picture, a))),
        }
    }
    let mut walk = Walk { below, folded, seen: BTreeSet::new(), rows: Vec::with_capacity(parents.len()) };
    let tops = walk.below.get(&None).cloned().unwrap_or_default();
    tops.into_iter().for_each(|top| walk.descend(top));
    // What is left goes round in circles, where each has a parent.
    for id in parents.keys() {
        if !walk.seen.contains(id) {
            walk.descend(id);
        }
    }
    walk.rows
}

fn rate(picture: &Picture, id: &str) -> f64 {
    picture.nodes.get(id).and_then(|node: &Node| node.rate).unwrap_or_default()
}

struct Walk<'a> {
    below: BTreeMap<Option<&'a str>, Vec<&'a str>>,
    folded: &'a BTreeSet<String>,
    seen: BTreeSet<&'a str>,
    rows: Vec<Row>,
}

impl<'a> Walk<'a> {
    /// Everything from this node down. Not by recursion: trees may be deeper than a stack.
    fn descend(&mut self, top: &'a str) {
        let mut waiting = vec![(top, None, 0, true)];
        while let Some((id, above, level, is_last)) = waiting.pop() {
            if !self.seen.insert(id) {
                continue;
            }
            let children = self.below.get(&Some(id)).cloned().unwrap_or_default();
            let folded = if self.folded.contains(id) { self.skip(&children) } else { 0 };
            let index = self.rows.len();
            self.rows.push(Row { id: id.to_owned(), level, above, is_last, folded, children: children.len() });
            if folded == 0 {
                let last = children.last().copied();
                let children = children.into_iter().rev();
                waiting.extend(children.map(|child| (child, Some(index), level + 1, Some(child) == last)));
            }
        }
    }

    /// Passes over all that is below, and counts it.
    fn skip(&mut self, children: &[&'a str]) -> usize {
        let mut waiting = children.to_vec();
        let mut count = 0;
        while let Some(id) = waiting.pop() {
            if self.seen.insert(id) {
                count += 1;
                waiting.extend(self.below.get(&Some(id)).into_iter().flatten());
            }
        }
        count
    }
}

/// The lines to the left of a row.
pub(crate) fn branches(rows: &[Row], row: &Row) -> String {
    let mut parts = Vec::new();
    if row.level > 0 {
        parts.push(if row.is_last { "└─ " } else { "├─ " });
    }
    let mut above = row.above.and_then(|index| rows.get(index));
    while let Some(row) = above.filter(|row| row.level > 0) {
        if parts.len() >= MAX_LEVELS {
            parts.push("… ");
            break;
        }
        parts.push(if row.is_last { "   " } else { "│  " });
        above = row.above.and_then(|index| rows.get(index));
    }
    parts.reverse();
    parts.concat()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::picture::tests::picture;
    use super::*;

    fn drawn(picture: &Picture, losses: &[(&str, &str)], folded: &[&str], sort: Sort) -> Vec<String> {
        let loss = |parent: &str| Loss {
            at: SystemTime::UNIX_EPOCH,
            is_silent: false,
            is_drained: false,
            parent: Some(parent.to_owned()),
        };
        let losses: Vec<(&str, Loss)> = losses.iter().map(|(id, parent)| (*id, loss(parent))).collect();
        let losses = losses.iter().map(|(id, loss)| (*id, loss)).collect();
        let folded = folded.iter().map(|id| (*id).to_owned()).collect();
        let rows = rows(picture, &losses, &folded, sort);
        rows.iter().map(|row| format!("{}{}", branches(&rows, row), row.id)).collect()
    }

    #[test]
    fn every_node_stands_below_its_parent() {
        let tree = picture(&[("a", ""), ("b", "a"), ("c", "b"), ("d", "b"), ("e", "a"), ("f", "e")]);
        let expected = ["a", "├─ b", "│  ├─ c", "│  └─ d", "└─ e", "   └─ f"];
        assert_eq!(drawn(&tree, &[], &[], Sort::Id), expected);
        assert_eq!(drawn(&tree, &[], &["b"], Sort::Id), ["a", "├─ b", "└─ e", "   └─ f"]);
    }

    #[test]
    fn who_was_lost_stands_where_it_was() {
        let tree = picture(&[("a", ""), ("c", "b"), ("x", "unknown")]);
        assert_eq!(drawn(&tree, &[("b", "a"), ("z", "gone")], &[], Sort::Id), ["a", "└─ b", "   └─ c", "x", "z"]);
    }

    #[test]
    fn the_busiest_can_stand_first() {
        let mut tree = picture(&[("a", ""), ("b", "a"), ("c", "a"), ("d", "a")]);
        tree.nodes.get_mut("c").unwrap().clients = Some(7);
        tree.nodes.get_mut("d").unwrap().rate = Some(0.5);
        assert_eq!(drawn(&tree, &[], &[], Sort::Clients), ["a", "├─ c", "├─ b", "└─ d"]);
        assert_eq!(drawn(&tree, &[], &[], Sort::Rate), ["a", "├─ d", "├─ b", "└─ c"]);
    }

    #[test]
    fn circles_are_drawn_once_and_folded_ones_too() {
        let tree = picture(&[("a", "c"), ("b", "a"), ("c", "b"), ("d", "d")]);
        assert_eq!(drawn(&tree, &[], &[], Sort::Id), ["a", "└─ b", "   └─ c", "d"]);
        assert_eq!(drawn(&tree, &[], &["b"], Sort::Id).len(), 3);
    }

    #[test]
    fn very_deep_trees_are_drawn() {
        let ids: Vec<String> = (0..20_000).map(|number| format!("n{number:05}")).collect();
        let chain: Vec<(&str, &str)> =
            ids.iter().map(String::as_str).zip(std::iter::once("").chain(ids.iter().map(String::as_str))).collect();
        let rows = rows(&picture(&chain), &BTreeMap::new(), &BTreeSet::new(), Sort::Id);
        assert_eq!((rows.len(), rows[19_999].level), (20_000, 19_999));
        assert!(branches(&rows, &rows[19_999]).chars().count() < 3 * (MAX_LEVELS + 1));
    }
}
