//! Where a node is in its fragment of the tree, and who may attach below it (protocol, Fragments and reigns).
//!
//! The rule that keeps cycles away: only a root attaches, only into a fragment with a smaller key, and only once that
//! fragment's root has confirmed it. So attaching always lowers the key, and a node can never come to stand above itself,
//! whatever stale advice anyone acted on.

use std::collections::BTreeMap;

use arborcast_proto::wire::message::{Applicant, RefusalReason, Target, TreePosition};
use arborcast_proto::wire::{FragmentKey, Reign};

use crate::ids::{ConnectionId, ServerId};

/// A node's place: the fragment's key, the path from its root, the parent and the children.
#[derive(Debug)]
pub(crate) struct Fragment {
    id: ServerId,
    key: FragmentKey,
    /// The ids from the root to this node, both included.
    path: Vec<ServerId>,
    parent: Option<Parent>,
    children: BTreeMap<ConnectionId, Applicant>,
}

/// The one above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) link: ConnectionId,
    pub(crate) target: Target,
}

impl Fragment {
    /// A node that has had no tree yet. Its key is larger than any that has one, so it joins and never takes over.
    pub(crate) fn new(id: ServerId) -> Self {
        let key = FragmentKey { reign: Reign::Unsettled, root: id.clone() };
        Self { path: vec![id.clone()], id, key, parent: None, children: BTreeMap::new() }
    }

    pub(crate) fn key(&self) -> &FragmentKey {
        &self.key
    }

    pub(crate) fn position(&self) -> TreePosition {
        TreePosition { key: self.key.clone(), path: self.path.clone() }
    }

    /// Links between the root and this node.
    pub(crate) fn depth(&self) -> usize {
        self.path.len().saturating_sub(1)
    }

    pub(crate) fn parent(&self) -> Option<&Parent> {
        self.parent.as_ref()
    }

    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    pub(crate) fn is_parent(&self, link: ConnectionId) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.link == link)
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = (ConnectionId, &Applicant)> {
        self.children.iter().map(|(link, child)| (*link, child))
    }

    pub(crate) fn child(&self, link: ConnectionId) -> Option<&Applicant> {
        self.children.get(&link)
    }

    pub(crate) fn child_with_id(&self, id: &str) -> Option<(ConnectionId, &Applicant)> {
        self.children().find(|(_, child)| child.request.id == id)
    }

    /// Whether this node stands below that one, or is it.
    pub(crate) fn is_below(&self, id: &str) -> bool {
        self.path.iter().any(|above| above == id)
    }

    /// Whether somebody with this key may come below this node, as far as this node can tell.
    pub(crate) fn judge(&self, applicant: &Applicant) -> Result<(), RefusalReason> {
        if self.is_below(&applicant.request.id) {
            return Err(RefusalReason::OwnSubtree);
        }
        if self.key < applicant.key { Ok(()) } else { Err(RefusalReason::KeyNotSmaller) }
    }

    /// Whether somebody of this very fragment may come below this node, as far as this node can tell.
    pub(crate) fn judge_move(&self, applicant: &Applicant) -> Result<(), RefusalReason> {
        if self.is_below(&applicant.request.id) {
            return Err(RefusalReason::OwnSubtree);
        }
        if self.key == applicant.key { Ok(()) } else { Err(RefusalReason::KeyNotSmaller) }
    }

    /// A confirmed applicant becomes a child. Returns whether that settles this node: from the first child on it is the
    /// root of a tree.
    pub(crate) fn adopt(&mut self, link: ConnectionId, child: Applicant) -> bool {
        self.children.insert(link, child);
        self.settle()
    }

    /// This node rules a tree from here on, though it be the only one in it. Returns whether it did not before.
    pub(crate) fn settle(&mut self) -> bool {
        let settles = self.key.reign == Reign::Unsettled;
        if settles {
            self.key.reign = Reign::Settled(0);
        }
        settles
    }

    /// A child is gone.
    pub(crate) fn remove_child(&mut self, link: ConnectionId) {
        self.children.remove(&link);
    }

    /// Attached below a parent that stands at `position`.
    pub(crate) fn become_child(&mut self, parent: Parent, position: TreePosition) {
        self.parent = Some(parent);
        self.place(position);
    }

    /// The parent says where it stands now. Returns whether that changes anything here.
    ///
    /// # Errors
    /// When the parent stands below this node: the second line of defence against cycles.
    pub(crate) fn follow_parent(&mut self, position: TreePosition) -> Result<bool, RefusalReason> {
        if position.path.contains(&self.id) {
            return Err(RefusalReason::OwnSubtree);
        }
        let before = (self.key.clone(), self.path.len());
        let is_same_path = self.path.split_last().is_some_and(|(_, above)| above == position.path);
        self.place(position);
        Ok(!is_same_path || before != (self.key.clone(), self.path.len()))
    }

    fn place(&mut self, position: TreePosition) {
        self.key = position.key;
        self.path = position.path;
        self.path.push(self.id.clone());
    }

    /// The parent is lost, or about to leave: this node is the root of a fragment of its own, with the next reign. A root
    /// that yields takes the next reign as well.
    pub(crate) fn become_root(&mut self) {
        self.parent = None;
        self.key = FragmentKey { reign: self.key.reign.next(), root: self.id.clone() };
        self.path = vec![self.id.clone()];
    }
}

#[cfg(test)]
mod tests {
    use arborcast_proto::wire::message::Request;

    use super::*;

    fn key(reign: Reign, root: &str) -> FragmentKey {
        FragmentKey { reign, root: root.into() }
    }

    fn applicant(id: &str, reign: Reign) -> Applicant {
        Applicant {
            protocol: 1,
            request: Request { id: id.into(), incarnation: 1, attempt: 1 },
            hostname: "h".into(),
            port: 1,
            key: key(reign, id),
            probe: false,
            moves: false,
        }
    }

    fn parent(link: u64) -> Parent {
        let target = Target { id: "p".into(), hostname: "h".into(), port: 1 };
        Parent { link: ConnectionId(link), target }
    }

    fn below_p() -> TreePosition {
        TreePosition { key: key(Reign::Settled(3), "r"), path: vec!["r".into(), "p".into()] }
    }

    #[test]
    fn a_fresh_node_takes_in_only_fresh_nodes_with_larger_ids_and_is_settled_by_the_first() {
        let mut fragment = Fragment::new("m".into());
        assert_eq!(fragment.judge(&applicant("a", Reign::Unsettled)), Err(RefusalReason::KeyNotSmaller));
        assert_eq!(fragment.judge(&applicant("z", Reign::Settled(9))), Err(RefusalReason::KeyNotSmaller));
        assert_eq!(fragment.judge(&applicant("z", Reign::Unsettled)), Ok(()));
        assert!(fragment.adopt(ConnectionId(1), applicant("z", Reign::Unsettled)));
        assert_eq!(fragment.key(), &key(Reign::Settled(0), "m"));
        assert!(!fragment.adopt(ConnectionId(2), applicant("y", Reign::Unsettled)));
        assert_eq!(fragment.judge(&applicant("a", Reign::Unsettled)), Ok(()), "now it has a tree");
    }

    #[test]
    fn who_loses_its_parent_rules_one_reign_later_under_its_own_name() {
        let mut fragment = Fragment::new("m".into());
        fragment.become_child(parent(1), below_p());
        assert_eq!(fragment.position().path, ["r", "p", "m"]);
        assert!(fragment.is_parent(ConnectionId(1)) && !fragment.is_root());
        fragment.become_root();
        assert_eq!(fragment.key(), &key(Reign::Settled(4), "m"));
        assert_eq!(fragment.position().path, ["m"]);
    }

    #[test]
    fn nobody_on_the_path_may_come_below() {
        let mut fragment = Fragment::new("m".into());
        fragment.become_child(parent(1), below_p());
        for id in ["r", "p", "m"] {
            assert_eq!(fragment.judge(&applicant(id, Reign::Unsettled)), Err(RefusalReason::OwnSubtree));
        }
    }

    #[test]
    fn a_parent_that_stands_below_its_child_is_found_out() {
        let mut fragment = Fragment::new("m".into());
        fragment.become_child(parent(1), below_p());
        assert_eq!(fragment.follow_parent(below_p()), Ok(false));
        let moved = TreePosition { key: key(Reign::Settled(1), "q"), path: vec!["q".into(), "p".into()] };
        assert_eq!(fragment.follow_parent(moved), Ok(true));
        assert_eq!(fragment.position().path, ["q", "p", "m"]);
        let below = TreePosition { key: key(Reign::Settled(1), "q"), path: vec!["q".into(), "m".into(), "p".into()] };
        assert_eq!(fragment.follow_parent(below), Err(RefusalReason::OwnSubtree));
    }
}
