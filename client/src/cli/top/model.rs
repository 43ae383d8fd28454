//! What `arborcast top` shows, and how keys and what it is told change it. No terminal, no network, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::terminal::line::Line;
use super::history::{Change, Entry, History, Loss, What};
use super::picture::Picture;
use super::rows::{Row, Sort, rows};

/// For how long a node that is gone stays where it was.
const SHOW_LOSSES: Duration = Duration::from_secs(60);

/// Longest text that can be searched for, in bytes.
const MAX_SOUGHT: usize = 256;

/// What comes from where the tree is seen.
#[derive(Debug)]
pub(crate) enum Update {
    /// It is seen from here now.
    Began(Box<Picture>),
    /// It is so now.
    Picture(Box<Picture>),
    /// What a master says of a node, and when by its clock.
    Change(SystemTime, Box<Change>),
    /// What happened, and when.
    Told(SystemTime, What),
    /// Nothing is seen from there, or not any more.
    Gone { source: String, reason: String },
}

/// What somebody else has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Draw everything anew.
    Redraw,
    /// End.
    Quit,
}

/// Whether the tree is seen at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    Watching,
    /// Not, since when, and why as far as it is known.
    Asking {
        since: SystemTime,
        reason: String,
    },
}

/// Which of the two parts keys move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Focus {
    Tree,
    Events,
}

/// What stays on the screen while it is paused.
#[derive(Debug)]
struct Held {
    picture: Option<Picture>,
    /// The newest entry then.
    last: u64,
}

/// Everything that is shown.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) link: Link,
    pub(crate) history: History,
    pub(crate) focus: Focus,
    pub(crate) sort: Sort,
    pub(crate) rows: Vec<Row>,
    /// The id of the marked node.
    pub(crate) selected: Option<String>,
    /// The first row that is seen.
    pub(crate) top: usize,
    /// What is typed after `/`.
    pub(crate) prompt: Option<Line>,
    pub(crate) sought: String,
    /// What the last key has brought about, until the next one.
    pub(crate) message: Option<String>,
    pub(crate) is_help_shown: bool,
    pub(crate) is_detail_shown: bool,
    pub(crate) now: SystemTime,
    picture: Option<Picture>,
    held: Option<Held>,
    folded: BTreeSet<String>,
    /// The last entry that is seen; absent: the newest.
    bottom: Option<u64>,
    tree_rows: usize,
    event_rows: usize,
}

impl Model {
    /// Nothing is seen yet.
    pub(crate) fn new(now: SystemTime) -> Self {
        Self {
            link: Link::Asking { since: now, reason: String::new() },
            history: History::default(),
            focus: Focus::Tree,
            sort: Sort::default(),
            rows: Vec::new(),
            selected: None,
            top: 0,
            prompt: None,
            sought: String::new(),
            message: None,
            is_help_shown: false,
            is_detail_shown: false,
            now,
            picture: None,
            held: None,
            folded: BTreeSet::new(),
            bottom: None,
            tree_rows: 1,
            event_rows: 1,
        }
    }

    /// Once a second.
    pub(crate) fn tick(&mut self, now: SystemTime) {
        self.now = now;
    }

    /// The tree as it is shown.
    pub(crate) fn picture(&self) -> Option<&Picture> {
        self.held.as_ref().map_or(self.picture.as_ref(), |held| held.picture.as_ref())
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.held.is_some()
    }

    /// Who is gone and still shown.
    pub(crate) fn losses(&self) -> BTreeMap<&str, &Loss> {
        self.history.losses().map(|(id, loss)| (id.as_str(), loss)).collect()
    }

    /// The entries that are seen, newest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let last = self.last_seen();
        self.history.entries().rev().skip_while(move |entry| entry.number > last).take(self.event_rows)
    }

    /// How many entries are below those that are seen.
    pub(crate) fn unseen(&self) -> u64 {
        self.history.last().saturating_sub(self.last_seen())
    }

    fn last_seen(&self) -> u64 {
        let newest = self.held.as_ref().map_or_else(|| self.history.last(), |held| held.last);
        self.bottom.unwrap_or(newest)
    }

    pub(crate) fn handle_update(&mut self, update: Update, now: SystemTime) {
        self.now = now;
        match update {
            Update::Began(picture) => {
                self.link = Link::Watching;
                self.history.begin(&picture);
                self.show(*picture);
            }
            Update::Picture(picture) => {
                self.history.settle(&picture);
                self.show(*picture);
            }
            Update::Change(at, change) => self.history.take(&change, at),
            Update::Told(at, what) => self.history.push(at, what),
            Update::Gone { source, reason } => match &mut self.link {
                Link::Asking { reason: before, .. } => *before = format!("{source}: {reason}"),
                Link::Watching => {
                    self.link = Link::Asking { since: now, reason: format!("{source}: {reason}") };
                    self.history.push(now, What::SourceLost { source, reason });
                }
            },
        }
    }

    fn show(&mut self, picture: Picture) {
        self.history.forget_losses(picture.at.checked_sub(SHOW_LOSSES).unwrap_or(SystemTime::UNIX_EPOCH));
        self.picture = Some(picture);
        if !self.is_paused() {
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        let Some(picture) = self.picture() else { return };
        self.rows = rows(picture, &self.losses(), &self.folded, self.sort);
        self.show_selected();
    }

    /// How many rows of the two parts are seen from now on.
    pub(crate) fn set_rows(&mut self, tree: usize, events: usize) {
        (self.tree_rows, self.event_rows) = (tree.max(1), events);
        self.show_selected();
    }

    /// The index of the marked row.
    pub(crate) fn selected_row(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.id == *selected)
    }

    fn show_selected(&mut self) {
        if let Some(selected) = self.selected_row() {
            self.top = self.top.clamp((selected + 1).saturating_sub(self.tree_rows), selected);
        }
        self.top = self.top.min(self.rows.len().saturating_sub(self.tree_rows));
    }

    pub(crate) fn handle_paste(&mut self, text: &str) {
        if let Some(line) = &mut self.prompt {
            line.insert(text);
        }
    }

    pub(crate) fn handle_key(&mut self, key: KeyEvent) -> Option<Effect> {
        self.message = None;
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'q') if is_control => return Some(Effect::Quit),
            KeyCode::Char('l') if is_control => return Some(Effect::Redraw),
            _ if std::mem::take(&mut self.is_help_shown) => {}
            code if self.prompt.is_some() => self.edit(code),
            KeyCode::Char('q') => return Some(Effect::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.is_help_shown = true,
            KeyCode::Char('p' | ' ') => self.pause(),
            KeyCode::Char('s') => self.sort_by(self.sort.next()),
            KeyCode::Char('/') => self.prompt = Some(Line::new(MAX_SOUGHT)),
            KeyCode::Char('n') => self.find_next(),
            KeyCode::Char('f') => self.fold_all(),
            KeyCode::Tab | KeyCode::Char('e') => self.change_focus(),
            KeyCode::Enter => self.is_detail_shown = !self.is_detail_shown && self.selected_row().is_some(),
            KeyCode::Esc => self.escape(),
            code => self.go(code),
        }
        None
    }

    fn go(&mut self, code: KeyCode) {
        let (tree, events) = (self.tree_rows as i64, self.event_rows as i64);
        let page = if self.focus == Focus::Tree { tree } else { events };
        let by = match code {
            KeyCode::Up | KeyCode::Char('k') => -1,
            KeyCode::Down | KeyCode::Char('j') => 1,
            KeyCode::PageUp => -page,
            KeyCode::PageDown => page,
            KeyCode::Home | KeyCode::Char('g') => i64::MIN,
            KeyCode::End | KeyCode::Char('G') => i64::MAX,
            KeyCode::Left => return self.fold(true),
            KeyCode::Right => return self.fold(false),
            _ => return,
        };
        match self.focus {
            Focus::Tree => self.select(by),
            Focus::Events => self.scroll(by),
        }
    }

    fn select(&mut self, by: i64) {
        let last = self.rows.len().saturating_sub(1);
        let index = match self.selected_row() {
            Some(row) => (row as i64).saturating_add(by).clamp(0, last as i64) as usize,
            None if by == i64::MAX => last,
            None => self.top,
        };
        self.selected = self.rows.get(index).map(|row| row.id.clone());
        self.show_selected();
    }

    fn scroll(&mut self, by: i64) {
        let newest = self.history.last();
        let first = self.history.entries().next().map_or(0, |entry| entry.number);
        let lowest = (first + self.event_rows as u64).saturating_sub(1).min(newest);
        let target = (self.last_seen() as i64).saturating_add(by).clamp(lowest as i64, newest as i64) as u64;
        self.bottom = (target < newest || self.is_paused()).then_some(target);
    }

    fn change_focus(&mut self) {
        self.focus = if self.focus == Focus::Tree { Focus::Events } else { Focus::Tree };
        self.bottom = None;
    }

    fn escape(&mut self) {
        if !std::mem::take(&mut self.is_detail_shown) {
            (self.selected, self.bottom, self.focus) = (None, None, Focus::Tree);
            self.sought.clear();
        }
    }

    fn pause(&mut self) {
        self.bottom = None;
        self.held = match self.held {
            Some(_) => None,
            None => Some(Held { picture: self.picture.clone(), last: self.history.last() }),
        };
        self.refresh();
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.message = Some(format!("siblings by {}", sort.name()));
        self.refresh();
    }

    /// What is below the marked node.
    fn fold(&mut self, is_folded: bool) {
        let Some(selected) = &self.selected else { return };
        if is_folded {
            self.folded.insert(selected.clone());
        } else {
            self.folded.remove(selected);
        }
        self.refresh();
    }

    /// What is below those below the roots; or nothing any more.
    fn fold_all(&mut self) {
        if self.folded.is_empty() {
            let inner = self.rows.iter().filter(|row| row.level == 1 && row.children > 0);
            self.folded = inner.map(|row| row.id.clone()).collect();
        } else {
            self.folded.clear();
        }
        self.refresh();
    }

    fn edit(&mut self, code: KeyCode) {
        let Some(line) = &mut self.prompt else { return };
        match code {
            KeyCode::Char(letter) => {
                line.insert(letter.encode_utf8(&mut [0; 4]));
            }
            KeyCode::Backspace if line.is_empty() => self.prompt = None,
            KeyCode::Backspace => line.delete_before(),
            KeyCode::Delete => line.delete_behind(),
            KeyCode::Left => line.left(),
            KeyCode::Right => line.right(),
            KeyCode::Home => line.home(),
            KeyCode::End => line.end(),
            KeyCode::Esc => self.prompt = None,
            KeyCode::Enter => {
                self.sought = line.take().to_lowercase();
                self.prompt = None;
                self.find_next();
            }
            _ => {}
        }
    }

    /// Marks the next node whose id or address has the text, and unfolds what it is in.
    fn find_next(&mut self) {
        let Some(picture) = self.picture().filter(|_| !self.sought.is_empty()) else { return };
        let all = rows(picture, &self.losses(), &BTreeSet::new(), self.sort);
        let has = |text: &str| text.to_lowercase().contains(&self.sought);
        let is_it = |row: &Row| has(&row.id) || picture.nodes.get(&row.id).is_some_and(|node| has(&node.address));
        let after = self.selected.as_ref().and_then(|id| all.iter().position(|row| row.id == *id));
        let start = after.map_or(0, |index| index + 1);
        let found = all.iter().cycle().skip(start).take(all.len()).find(|row| is_it(row)).map(|row| row.id.clone());
        let Some(found) = found else {
            self.message = Some(format!("no node has {:?} in its id or address", self.sought));
            return;
        };
        let parents = std::iter::successors(Some(found.as_str()), |id| picture.nodes.get(*id)?.parent.as_deref());
        // Bounded, since parents may go round in circles.
        let parents: Vec<String> = parents.skip(1).take(all.len()).map(str::to_owned).collect();
        parents.iter().for_each(|parent| {
            self.folded.remove(parent);
        });
        self.selected = Some(found);
        self.focus = Focus::Tree;
        self.refresh();
    }
}

#[cfg(test)]
mod tests {
    use arborcast_proto::registry::LostReason;

    use super::super::picture::tests::{node, picture};
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn model() -> Model {
        let mut model = Model::new(at(0));
        let tree = picture(&[("a", ""), ("b", "a"), ("c", "b"), ("d", "a")]);
        model.handle_update(Update::Began(Box::new(tree)), at(1));
        model.set_rows(2, 3);
        model
    }

    fn press(model: &mut Model, keys: &str) -> Option<Effect> {
        let mut effect = None;
        for key in keys.chars() {
            let code = match key {
                '^' => KeyCode::Up,
                'v' => KeyCode::Down,
                '<' => KeyCode::Left,
                '>' => KeyCode::Right,
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '~' => KeyCode::Esc,
                letter => KeyCode::Char(letter),
            };
            effect = model.handle_key(KeyEvent::new(code, KeyModifiers::NONE));
        }
        effect
    }

    fn ids(model: &Model) -> String {
        model.rows.iter().map(|row| row.id.as_str()).collect()
    }

    #[test]
    fn the_marked_node_stays_marked_and_seen() {
        let mut model = model();
        press(&mut model, "vvv");
        assert_eq!((model.selected.as_deref(), model.top), (Some("c"), 1));
        let tree = picture(&[("a", ""), ("aa", "a"), ("b", "a"), ("c", "b"), ("d", "a")]);
        model.handle_update(Update::Picture(Box::new(tree)), at(2));
        assert_eq!((model.selected.as_deref(), model.top), (Some("c"), 2));
        press(&mut model, "vvvvvvv");
        assert_eq!((model.selected.as_deref(), model.top), (Some("d"), 3));
    }

    #[test]
    fn subtrees_are_folded_and_what_is_sought_is_unfolded() {
        let mut model = model();
        press(&mut model, "vv<");
        assert_eq!((ids(&model).as_str(), model.rows[1].folded), ("abd", 1));
        press(&mut model, "/C\n");
        assert_eq!((ids(&model).as_str(), model.selected.as_deref()), ("abcd", Some("c")));
        press(&mut model, "f");
        assert_eq!(ids(&model), "abd");
        press(&mut model, "f/zzz\n");
        assert_eq!(ids(&model), "abcd");
        assert!(model.message.is_some());
    }

    #[test]
    fn while_it_is_paused_nothing_moves_and_nothing_is_lost() {
        let mut model = model();
        press(&mut model, "p");
        let change = Change::Lost { id: "d".into(), reason: LostReason::StreamEnded };
        model.handle_update(Update::Change(at(3), Box::new(change)), at(3));
        model.handle_update(Update::Picture(Box::new(picture(&[("a", "")]))), at(3));
        assert_eq!((ids(&model).as_str(), model.unseen(), model.entries().count()), ("abcd", 1, 1));
        press(&mut model, "p");
        assert_eq!((ids(&model).as_str(), model.unseen(), model.entries().count()), ("ad", 0, 2));
    }

    #[test]
    fn events_are_scrolled_and_stand_still_then() {
        let mut model = model();
        for number in 0..10 {
            let change = Change::Seen(node(&format!("n{number}"), "a"));
            model.handle_update(Update::Change(at(2), Box::new(change)), at(2));
        }
        let numbers = |model: &Model| model.entries().map(|entry| entry.number).collect::<Vec<_>>();
        assert_eq!(numbers(&model), [11, 10, 9]);
        press(&mut model, "\t^^");
        model.handle_update(Update::Told(at(3), What::Restarted { node: "x".into() }), at(3));
        assert_eq!((numbers(&model), model.unseen()), (vec![9, 8, 7], 3));
        press(&mut model, "g");
        assert_eq!(numbers(&model), [3, 2, 1]);
        press(&mut model, "G");
        assert_eq!(numbers(&model), [12, 11, 10]);
    }

    #[test]
    fn a_source_that_is_gone_is_told_once() {
        let mut model = model();
        for reason in ["refused", "timed out"] {
            model.handle_update(Update::Gone { source: "master m:1".into(), reason: reason.into() }, at(5));
        }
        assert_eq!(model.link, Link::Asking { since: at(5), reason: "master m:1: timed out".into() });
        assert_eq!(model.history.last(), 2, "watching, gone");
        assert_eq!(ids(&model), "abcd", "what was seen last stays");
    }

    #[test]
    fn q_quits_unless_it_is_typed() {
        let mut model = model();
        assert_eq!(press(&mut model, "/q"), None);
        assert_eq!(press(&mut model, "~?q"), None, "any key closes the help");
        assert_eq!(press(&mut model, "q"), Some(Effect::Quit));
    }
}
