//! The columns beside the tree, for the screen and for a pipe.

use std::time::{Duration, SystemTime};

use super::super::terminal::text::{number, shown};
use super::history::Loss;
use super::picture::{Node, State};

/// Fewest cells for the tree itself. Columns that leave it less are left out.
const TREE_CELLS: usize = 24;

/// What a column shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    State,
    Clients,
    Rate,
    Depth,
    Seen,
    Version,
    Address,
}

/// From left to right.
pub(crate) const COLUMNS: [Column; 7] =
    [Column::State, Column::Clients, Column::Rate, Column::Depth, Column::Seen, Column::Version, Column::Address];

/// Where there is no room for all, the first of these are there.
const MOST_WANTED: [Column; 7] =
    [Column::State, Column::Rate, Column::Clients, Column::Seen, Column::Depth, Column::Version, Column::Address];

impl Column {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Clients => "clients",
            Self::Rate => "act/s",
            Self::Depth => "depth",
            Self::Seen => "seen",
            Self::Version => "version",
            Self::Address => "address",
        }
    }

    /// How many cells it has, without the space to its left.
    pub(crate) fn cells(self) -> usize {
        match self {
            Self::State => 8,
            Self::Clients => 7,
            Self::Rate | Self::Depth | Self::Seen => 5,
            Self::Version => 7,
            Self::Address => 22,
        }
    }

    /// Whether it stands at the right of its cells.
    pub(crate) fn is_number(self) -> bool {
        matches!(self, Self::Clients | Self::Rate | Self::Depth | Self::Seen)
    }

    /// What stands there for a node.
    pub(crate) fn of_node(self, node: &Node) -> String {
        let text = match self {
            Self::State => Some(node.state.name().to_owned()),
            Self::Clients => node.clients.map(|clients| number(clients as f64)),
            Self::Rate => node.rate.map(number),
            Self::Depth => node.depth.map(|depth| number(f64::from(depth))),
            Self::Seen => node.age.map(age),
            // The name of the program says nothing new.
            Self::Version => node.version.rsplit(' ').next().map(|version| shown(version, self.cells())),
            Self::Address => Some(shown(&node.address, self.cells())),
        };
        text.unwrap_or_default()
    }

    /// What stands there for a node that is gone.
    pub(crate) fn of_loss(self, loss: &Loss, now: SystemTime) -> String {
        match self {
            Self::State => loss_name(loss).to_owned(),
            Self::Seen => age(now.duration_since(loss.at).unwrap_or_default()),
            Self::Clients | Self::Rate | Self::Depth | Self::Version | Self::Address => String::new(),
        }
    }

    /// The text in the cells of the column, with a space to its left.
    pub(crate) fn aligned(self, text: &str) -> String {
        let cells = self.cells();
        if self.is_number() { format!(" {text:>cells$}") } else { format!(" {text:<cells$}") }
    }
}

/// How a node that is gone has gone.
pub(crate) fn loss_name(loss: &Loss) -> &'static str {
    match loss {
        Loss { is_drained: true, .. } => "left",
        Loss { is_silent: true, .. } => "SILENT",
        Loss { .. } => "LOST",
    }
}

/// The columns that have room in so many cells, and how many are left for the tree.
pub(crate) fn fitting(cells: usize) -> (Vec<Column>, usize) {
    let mut left = cells;
    let mut wanted = Vec::new();
    for column in MOST_WANTED {
        let with_space = column.cells() + 1;
        if left < TREE_CELLS + with_space {
            break;
        }
        left -= with_space;
        wanted.push(column);
    }
    (COLUMNS.into_iter().filter(|column| wanted.contains(column)).collect(), left)
}

/// How a state is to be taken, at a glance.
pub(crate) fn is_worrying(state: State) -> bool {
    matches!(state, State::Orphaned | State::Draining)
}

/// `0.2s`, `12s`, `3m`, `5h`, in five cells at most.
pub(crate) fn age(age: Duration) -> String {
    match age.as_secs() {
        0..10 => format!("{:.1}s", age.as_secs_f64()),
        seconds @ 10..100 => format!("{seconds}s"),
        seconds @ 100..6000 => format!("{}m", seconds / 60),
        seconds @ 6000..360_000 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", (seconds / 86_400).min(9999)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_room_and_then_the_columns_have() {
        let (columns, left) = fitting(80);
        assert_eq!((columns, left), (COLUMNS[..6].to_vec(), 37));
        assert_eq!(fitting(120), (COLUMNS.to_vec(), 54));
        assert_eq!(fitting(40), (vec![Column::State, Column::Rate], 25));
        assert_eq!(fitting(10), (vec![], 10));
    }

    #[test]
    fn what_a_node_says_fits_its_column() {
        let node = Node {
            version: format!("\x1b[2J {}", "9".repeat(100)),
            address: "h\u{202e}:1".into(),
            clients: Some(u64::MAX),
            rate: Some(f64::INFINITY),
            depth: Some(u32::MAX),
            age: Some(Duration::MAX),
            ..Node::named("a", None)
        };
        for column in COLUMNS {
            let text = column.aligned(&column.of_node(&node));
            assert_eq!(text.chars().count(), column.cells() + 1, "{text:?}");
            assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
        }
    }
}
