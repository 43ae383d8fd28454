//! What happened lately; and which nodes are gone, and what the last heal of each node was: what metrics tell of one by one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::topology::NodeId;
use crate::topology::history::{Happening, MAX_EVENTS, What};

/// How many of each are remembered; the oldest are forgotten first.
const MOST: usize = 100;

/// Shared by who sees what happens and who is asked.
#[derive(Debug, Default)]
pub(crate) struct Chronicle(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    happenings: VecDeque<Happening>,
    gone: BTreeMap<NodeId, Gone>,
    heals: BTreeMap<NodeId, Heal>,
}

/// A node that is no longer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// When this master noticed.
    pub(crate) at: SystemTime,
    /// `lost`, `silent` or `drained`.
    pub(crate) how: &'static str,
}

/// A node that lost its parent, and has found its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heal {
    /// When it was over.
    pub(crate) at: SystemTime,
    /// The parent that it had, if that is known.
    pub(crate) from: Option<NodeId>,
    /// The parent that it has; none for a root.
    pub(crate) to: Option<NodeId>,
    /// For how long it had none.
    pub(crate) took: Duration,
}

impl Chronicle {
    /// Writes down what happened.
    pub(crate) fn take(&self, happening: &Happening) {
        let at = happening.at;
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.happenings.len() >= MAX_EVENTS {
            pages.happenings.pop_front();
        }
        pages.happenings.push_back(happening.clone());
        match &happening.what {
            What::Joined { node, .. } => drop(pages.gone.remove(node)),
            What::Lost { node, is_silent } => {
                let how = if *is_silent { "silent" } else { "lost" };
                pages.gone.insert(node.clone(), Gone { at, how });
            }
            What::Drained { node } => drop(pages.gone.insert(node.clone(), Gone { at, how: "drained" })),
            What::Reattached { node, from, to, after } => {
                let heal = Heal { at, from: from.clone(), to: Some(to.clone()), took: *after };
                pages.heals.insert(node.clone(), heal);
            }
            What::BecameRoot { node, after } => {
                pages.heals.insert(node.clone(), Heal { at, from: None, to: None, took: *after });
            }
            What::MasterStarted
            | What::Attached { .. }
            | What::Orphaned { .. }
            | What::Moved { .. }
            | What::Draining { .. } => {}
        }
        forget_oldest(&mut pages.gone, |gone| gone.at);
        forget_oldest(&mut pages.heals, |heal| heal.at);
    }

    /// What happened since the one with this number, oldest first.
    pub(crate) fn since(&self, number: u64) -> Vec<Happening> {
        let pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.happenings.iter().filter(|happening| happening.number > number).cloned().collect()
    }

    /// Who is gone, and the last heals.
    pub(crate) fn read(&self) -> (BTreeMap<NodeId, Gone>, BTreeMap<NodeId, Heal>) {
        let pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (pages.gone.clone(), pages.heals.clone())
    }
}

fn forget_oldest<T>(entries: &mut BTreeMap<NodeId, T>, at: impl Fn(&T) -> SystemTime) {
    if entries.len() > MOST
        && let Some(oldest) = entries.iter().min_by_key(|(_, entry)| at(entry)).map(|(id, _)| id.clone())
    {
        entries.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happen(chronicle: &Chronicle, second: u64, what: What) {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        chronicle.take(&Happening { number: second, at, what });
    }

    #[test]
    fn who_comes_back_is_no_longer_gone_and_heals_stay() {
        let chronicle = Chronicle::default();
        let id = || NodeId::from("a");
        happen(&chronicle, 1, What::Lost { node: id(), is_silent: true });
        assert_eq!(chronicle.read().0[&id()].how, "silent");
        let after = Duration::from_millis(7);
        happen(&chronicle, 2, What::Reattached { node: "b".into(), from: Some(id()), to: "c".into(), after });
        happen(&chronicle, 3, What::Joined { node: id(), was_there: false, parent: None });
        let (gone, heals) = chronicle.read();
        assert!(gone.is_empty());
        assert_eq!((heals[&NodeId::from("b")].to.clone(), heals[&NodeId::from("b")].took), (Some("c".into()), after));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let chronicle = Chronicle::default();
        for second in 0..150 {
            happen(&chronicle, second, What::Lost { node: format!("{}", 1000 - second).into(), is_silent: false });
        }
        let (gone, _) = chronicle.read();
        assert_eq!(gone.len(), MOST);
        assert!(gone.contains_key(&NodeId::from("851")) && !gone.contains_key(&NodeId::from("1000")));
    }
}
