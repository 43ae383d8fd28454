//! The tree once, as text and as JSON, for a pipe.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::super::terminal::text::{clock, count, number, shown, width};
use super::picture::Picture;
use super::rows::{Sort, branches, rows};
use super::table::COLUMNS;

/// Longest line of what comes from outside, in cells.
const MAX_CELLS: usize = 1000;

/// For people: the tree in lines, nothing of which is an instruction to a terminal.
pub(crate) fn text(picture: &Picture) -> String {
    let rows = rows(picture, &BTreeMap::new(), &BTreeSet::new(), Sort::Id);
    let names: Vec<String> =
        rows.iter().map(|row| format!("{}{}", branches(&rows, row), shown(&row.id, MAX_CELLS))).collect();
    let cells = names.iter().map(|name| width(name)).max().unwrap_or_default().max("node".len());
    let warming = if picture.is_warming { ", warming up: it may not know everybody yet" } else { "" };
    let mut lines = vec![format!(
        "{} at {} UTC: {}, {}, {} clients, {} activities/s{warming}",
        shown(&picture.source, MAX_CELLS),
        clock(picture.at),
        count(picture.nodes.len(), "node"),
        count(picture.trees(), "tree"),
        number(picture.clients() as f64),
        number(picture.rate()),
    )];
    let titles = COLUMNS.map(|column| column.aligned(column.title())).concat();
    lines.push(format!("{:<cells$} {titles}", "node").trim_end().to_owned());
    for (row, name) in rows.iter().zip(&names) {
        let Some(node) = picture.nodes.get(&row.id) else { continue };
        let fill = " ".repeat(cells.saturating_sub(width(name)));
        let columns = COLUMNS.map(|column| column.aligned(&column.of_node(node))).concat();
        lines.push(format!("{name}{fill} {columns}").trim_end().to_owned());
    }
    lines.extend(picture.facts.iter().map(|(name, text)| format!("{name}: {}", shown(text, MAX_CELLS))));
    lines.extend(picture.faults.iter().map(|fault| format!("! {}", shown(fault, MAX_CELLS))));
    lines.push(String::new());
    lines.join("\n")
}

/// For programs: one object on one line. What is not known is null.
pub(crate) fn json(picture: &Picture) -> String {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let nodes: Vec<Value> = picture
        .nodes
        .values()
        .map(|node| {
            json!({
                "id": node.id,
                "parent": node.parent,
                "state": Some(node.state.name()).filter(|name| !name.is_empty()),
                "address": Some(&node.address).filter(|address| !address.is_empty()),
                "version": Some(&node.version).filter(|version| !version.is_empty()),
                "clients": node.clients,
                "depth": node.depth,
                "activities_per_second": node.rate,
                "seen_milliseconds_ago": node.age.map(millis),
            })
        })
        .collect();
    let whole = json!({
        "source": picture.source,
        "at_milliseconds": millis(picture.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        "warming": picture.is_warming,
        "trees": picture.trees(),
        "nodes": nodes,
        "faults": picture.faults,
    });
    format!("{whole}\n")
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::picture;
    use super::*;

    #[test]
    fn a_pipe_gets_the_tree_in_lines() {
        let mut tree = picture(&[("a", ""), ("b\x1b[2J", "a")]);
        tree.faults = vec!["bad".into()];
        let text = text(&tree);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "master m:1 at 00:00:00 UTC: 2 nodes, 1 tree, 0 clients, 0 activities/s");
        assert_eq!(lines[1], "node      state    clients act/s depth  seen version address");
        assert_eq!(lines[2], "a         live           0");
        assert_eq!(lines[3], "└─ b␛[2J  live           0");
        assert_eq!(lines[4], "! bad");
    }

    #[test]
    fn a_program_gets_one_object() {
        let text = json(&picture(&[("a", ""), ("b\x1b", "a")]));
        assert!(text.ends_with('\n') && text.lines().count() == 1 && !text.contains('\x1b'));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["nodes"][1]["parent"], &value["nodes"][0]["parent"]), (&json!("a"), &Value::Null));
        assert_eq!((&value["trees"], &value["nodes"][0]["state"]), (&json!(1), &json!("live")));
    }
}
