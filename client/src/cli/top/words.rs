//! What happened, as a sentence that fits, with nothing in it that is an instruction to a terminal.

use std::time::Duration;

use super::super::terminal::text::{count, shown, width};
use super::history::What;

/// Cells for each name, longest first: ids are cut before the end of a sentence is, where it says how long something took.
const NAME_CELLS: [usize; 6] = [128, 40, 28, 20, 14, 9];

/// The sentence in at most so many cells.
pub(crate) fn sentence(what: &What, cells: usize) -> String {
    let mut text = String::new();
    // Where the end is what somebody else says, that is cut.
    let tries = if matches!(what, What::SourceLost { .. }) { 1 } else { NAME_CELLS.len() };
    for name_cells in NAME_CELLS.into_iter().take(tries) {
        text = words(what, |name| shown(name, name_cells));
        if width(&text) <= cells {
            return text;
        }
    }
    shown(&text, cells)
}

fn words(what: &What, name: impl Fn(&str) -> String) -> String {
    let below = |parent: &Option<String>| parent.as_ref().map_or_else(String::new, |up| format!(" below {}", name(up)));
    let from = |from: &Option<String>| from.as_ref().map_or_else(String::new, |from| format!(" from {}", name(from)));
    match what {
        What::Watching { source, nodes, trees } => {
            format!("watching {}: {} in {}", name(source), count(*nodes, "node"), count(*trees, "tree"))
        }
        What::SourceLost { source, reason } => format!("{} is gone: {}", name(source), shown(reason, 200)),
        What::SourceRestarted { source } => format!("{} has started anew", name(source)),
        What::Joined { node, parent, away_for: None } => format!("{} joined{}", name(node), below(parent)),
        What::Joined { node, parent, away_for: Some(away) } => {
            format!("{} is back after {}{}", name(node), duration(*away), below(parent))
        }
        What::Attached { node, to } => format!("{} attached to {}", name(node), name(to)),
        What::Orphaned { node, from: Some(from) } => format!("{} has lost its parent {}", name(node), name(from)),
        What::Orphaned { node, from: None } => format!("{} looks for a parent", name(node)),
        What::Reattached { node, from: before, to, after } => {
            format!("{} re-attached{} to {}{}", name(node), from(before), name(to), took(" in", *after))
        }
        What::Moved { node, from, to } => format!("{} moved from {} to {}", name(node), name(from), name(to)),
        What::BecameRoot { node, after } => format!("{} is the root now{}", name(node), took(", after", *after)),
        What::Draining { node } => format!("{} is draining", name(node)),
        What::Drained { node } => format!("{} has drained and left", name(node)),
        What::Lost { node, is_silent, parent, children, clients } => {
            let how = if *is_silent { "has fallen silent" } else { "is lost" };
            let place =
                parent.as_ref().map_or_else(|| "the root".to_owned(), |parent| format!("below {}", name(parent)));
            let children = if *children == 1 { "1 child".to_owned() } else { format!("{children} children") };
            let clients = count(usize::try_from(*clients).unwrap_or(usize::MAX), "client");
            format!("{} {how}; it was {place}, with {children}, {clients}", name(node))
        }
        What::Healed { lost, children: 1, after } => {
            format!("healed {} after {} was lost: its child has a place", duration(*after), name(lost))
        }
        What::Healed { lost, children, after } => {
            let all = if *children == 2 { "both".to_owned() } else { format!("all {children}") };
            format!("healed {} after {} was lost: {all} children have a place", duration(*after), name(lost))
        }
        What::ChildCame { node, child } => format!("{} came below {}", name(child), name(node)),
        What::ChildLeft { node, child } => {
            format!("{} is no longer below {}: lost, or elsewhere", name(child), name(node))
        }
        What::MasterLost { node, master } => format!("{} has lost the master {}", name(node), name(master)),
        What::MasterBack { node, master } => format!("{} has the master {} again", name(node), name(master)),
        What::Remembered { text, .. } => shown(text, 400),
        What::Restarted { node } => format!("{} has started anew", name(node)),
    }
}

fn took(word: &str, after: Option<Duration>) -> String {
    after.map_or_else(|| " while nobody was watching".to_owned(), |after| format!("{word} {}", duration(after)))
}

/// `46 ms`, `3.2 s`, `2 min`, `5 h`.
pub(crate) fn duration(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        millis @ 1000..100_000 => format!("{:.1} s", millis as f64 / 1000.0),
        millis @ 100_000..7_200_000 => format!("{} min", millis / 60_000),
        millis => format!("{} h", millis / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_before_how_long_it_took_is() {
        let what = |name: &str| What::Reattached {
            node: format!("{name}3"),
            from: Some(format!("{name}1")),
            to: format!("{name}2"),
            after: Some(Duration::from_millis(46)),
        };
        assert_eq!(sentence(&what("tree-"), 65), "tree-3 re-attached from tree-1 to tree-2 in 46 ms");
        let long = sentence(&what(&"x".repeat(100)), 65);
        assert!(long.ends_with(" in 46 ms") && width(&long) <= 65, "{long}");
        assert!(width(&sentence(&what("tree-"), 10)) <= 10);
        let hostile = sentence(&what("\x1b[2J\u{202e}"), 200);
        assert!(!hostile.contains(|c: char| c.is_control() || c == '\u{202e}'), "{hostile}");
    }

    #[test]
    fn durations_are_short() {
        for (millis, expected) in
            [(0, "0 ms"), (999, "999 ms"), (3240, "3.2 s"), (150_000, "2 min"), (7_200_000, "2 h")]
        {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        }
    }
}
