//! What `arborcast tui` shows and how keys and events change it. No terminal, no session, no clock.

use std::collections::VecDeque;
use std::time::SystemTime;

use arborcast_client::{Activity, Event};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::input::what_instead;
use super::super::output::event_in_words;
use super::super::terminal::line::Line;
use super::scrollback::{Content, Id, Scrollback};

/// Longest line that can be typed or pasted, in bytes: the servers' default line limit.
const MAX_INPUT: usize = 1 << 20;

/// Longest text that is handed to the terminal for pasting, in bytes. Terminals take no more than this, and some less.
const MAX_COPY: usize = 64 << 10;

/// Over how many seconds the rate is taken.
const RATE_SECONDS: usize = 5;

/// What somebody else has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Publish it.
    Send(Activity),
    /// Hand it to the terminal for pasting.
    Copy(Vec<u8>),
    /// Draw everything anew.
    Redraw,
    /// End.
    Quit,
}

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Connected,
    /// Since when.
    Lost(SystemTime),
}

/// Where one looks while not following the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    /// The entry in the last row.
    pub(crate) bottom: Id,
    /// The entry that is marked.
    pub(crate) selected: Id,
}

/// What the line at the bottom is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prompt {
    Send,
    Search,
}

/// Everything that is shown.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) username: String,
    pub(crate) server: String,
    pub(crate) link: Link,
    pub(crate) kept: Scrollback,
    /// Absent: the newest is in the last row.
    pub(crate) hold: Option<Hold>,
    pub(crate) prompt: Prompt,
    pub(crate) sending: Line,
    pub(crate) searching: Line,
    /// The text that is searched for, shown wherever it stands.
    pub(crate) sought: String,
    /// What the last key has brought about, until the next one.
    pub(crate) message: Option<String>,
    pub(crate) is_help_shown: bool,
    /// The marked entry in full.
    pub(crate) is_detail_shown: bool,
    pub(crate) now: SystemTime,
    /// Of what was sent, how many are not acknowledged.
    pub(crate) unacknowledged: u64,
    /// How many activities have arrived at all.
    pub(crate) arrived: u64,
    /// How many are known to be missing.
    pub(crate) missing: u64,
    /// In each of the last whole seconds, how many have arrived until then.
    seconds: VecDeque<u64>,
    /// How many rows of the stream are seen.
    rows: usize,
}

impl Model {
    /// Connected.
    pub(crate) fn new(username: String, server: String, now: SystemTime) -> Self {
        Self {
            username,
            server,
            link: Link::Connected,
            kept: Scrollback::default(),
            hold: None,
            prompt: Prompt::Send,
            sending: Line::new(MAX_INPUT),
            searching: Line::new(MAX_INPUT),
            sought: String::new(),
            message: None,
            is_help_shown: false,
            is_detail_shown: false,
            now,
            unacknowledged: 0,
            arrived: 0,
            missing: 0,
            seconds: VecDeque::from([0]),
            rows: 1,
        }
    }

    /// Once a second.
    pub(crate) fn tick(&mut self, now: SystemTime) {
        self.now = now;
        self.seconds.push_back(self.arrived);
        if self.seconds.len() > RATE_SECONDS + 1 {
            self.seconds.pop_front();
        }
    }

    /// Activities a second, over the last few.
    pub(crate) fn rate(&self) -> f64 {
        match (self.seconds.front(), self.seconds.back()) {
            (Some(first), Some(last)) if self.seconds.len() > 1 => {
                (last - first) as f64 / (self.seconds.len() - 1) as f64
            }
            _ => 0.0,
        }
    }

    /// How many entries have arrived below what is seen.
    pub(crate) fn unseen(&self) -> u64 {
        let last = self.kept.last().unwrap_or_default();
        self.hold.map_or(0, |hold| last.saturating_sub(hold.bottom))
    }

    pub(crate) fn handle_event(&mut self, event: Event, now: SystemTime) {
        self.now = now;
        let words = event_in_words(&event);
        match event {
            Event::Activities(batch) => {
                self.arrived += batch.len() as u64;
                for activity in batch {
                    self.kept.push(now, Content::Activity(activity.detached()));
                }
            }
            Event::Lost { .. } => self.link = Link::Lost(now),
            Event::Reconnected { server, .. } => {
                self.link = Link::Connected;
                self.server = server.to_string();
            }
            Event::Gap { missing, .. } => self.missing = self.missing.saturating_add(missing),
        }
        if let Some(words) = words {
            self.notice(words, now);
        }
    }

    /// Says something between the activities.
    pub(crate) fn notice(&mut self, words: String, now: SystemTime) {
        self.kept.push(now, Content::Notice(words));
    }

    /// How many rows of the stream are seen from now on.
    pub(crate) fn set_rows(&mut self, rows: usize) {
        self.rows = rows.max(1);
        self.show_selected();
    }

    pub(crate) fn handle_paste(&mut self, text: &str) {
        let line = self.line();
        if !line.insert(text) {
            self.message = Some(format!("not pasted: it is longer than {} KiB", MAX_INPUT >> 10));
        }
    }

    pub(crate) fn handle_key(&mut self, key: KeyEvent) -> Option<Effect> {
        self.message = None;
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if std::mem::take(&mut self.is_help_shown) && !is_control {
            return None;
        }
        match key.code {
            KeyCode::Char(letter) if is_control => return self.handle_control(letter.to_ascii_lowercase()),
            KeyCode::F(1) => self.is_help_shown = true,
            KeyCode::F(2) => self.toggle_detail(),
            KeyCode::Enter => return self.enter(),
            KeyCode::Esc => self.escape(),
            KeyCode::Up if self.prompt == Prompt::Search => self.search_up(),
            KeyCode::Down if self.prompt == Prompt::Search => self.search_down(),
            KeyCode::Up => self.select(-1),
            KeyCode::Down => self.select(1),
            KeyCode::PageUp => self.select(-self.page()),
            KeyCode::PageDown => self.select(self.page()),
            KeyCode::Home if is_control => self.select(i64::MIN),
            KeyCode::End if is_control => self.follow(),
            code => self.edit(code),
        }
        None
    }

    fn handle_control(&mut self, letter: char) -> Option<Effect> {
        match letter {
            'c' | 'q' => return Some(Effect::Quit),
            'd' if self.line().is_empty() => return Some(Effect::Quit),
            'l' => return Some(Effect::Redraw),
            'y' => return self.copy(),
            'f' => self.prompt = Prompt::Search,
            'o' => self.toggle_detail(),
            'p' if self.hold.is_some() => self.follow(),
            'p' => self.select(0),
            'a' => self.line().home(),
            'e' => self.line().end(),
            'd' => self.line().delete_behind(),
            'h' => self.line().delete_before(),
            'w' => self.line().delete_word(),
            'u' => self.line().delete_to_start(),
            'k' => self.line().delete_to_end(),
            _ => {}
        }
        None
    }

    fn edit(&mut self, code: KeyCode) {
        let line = self.line();
        match code {
            KeyCode::Char(letter) => {
                let has_room = line.insert(letter.encode_utf8(&mut [0; 4]));
                self.message = (!has_room).then(|| "the line is full".into());
            }
            KeyCode::Backspace => line.delete_before(),
            KeyCode::Delete => line.delete_behind(),
            KeyCode::Left => line.left(),
            KeyCode::Right => line.right(),
            KeyCode::Home => line.home(),
            KeyCode::End => line.end(),
            _ => {}
        }
    }

    fn line(&mut self) -> &mut Line {
        match self.prompt {
            Prompt::Send => &mut self.sending,
            Prompt::Search => &mut self.searching,
        }
    }

    fn enter(&mut self) -> Option<Effect> {
        if self.prompt == Prompt::Search {
            self.search_up();
            return None;
        }
        let text = self.sending.text().trim();
        if text.is_empty() {
            return None;
        }
        match activity_of(text) {
            Ok(activity) => {
                self.sending.take();
                Some(Effect::Send(activity))
            }
            Err(reason) => {
                self.message = Some(format!("not sent: it is {reason}"));
                None
            }
        }
    }

    /// Puts back what could not be sent, and says why.
    pub(crate) fn refuse(&mut self, activity: &Activity, reason: &str) {
        self.message = Some(format!("not sent: {reason}"));
        if self.sending.is_empty() {
            self.sending.set(String::from_utf8_lossy(activity.as_bytes()).into_owned());
        }
    }

    fn escape(&mut self) {
        if self.is_detail_shown {
            self.is_detail_shown = false;
        } else if self.prompt == Prompt::Search {
            self.prompt = Prompt::Send;
            self.searching.take();
            self.sought.clear();
        } else {
            self.follow();
        }
    }

    fn toggle_detail(&mut self) {
        self.is_detail_shown = !self.is_detail_shown;
        if self.is_detail_shown && self.hold.is_none() {
            self.select(0);
        }
    }

    fn follow(&mut self) {
        self.hold = None;
        self.is_detail_shown = false;
    }

    fn page(&self) -> i64 {
        i64::try_from(self.rows.saturating_sub(1).max(1)).unwrap_or(i64::MAX)
    }

    /// Marks the entry so many rows further down, or up. Going down from the newest is following it.
    fn select(&mut self, down: i64) {
        let (first, Some(last)) = (self.kept.first(), self.kept.last()) else { return };
        let hold = self.held().unwrap_or(Hold { bottom: last, selected: last });
        if down > 0 && hold.selected >= last {
            return self.follow();
        }
        let selected = hold.selected.saturating_add_signed(down).clamp(first, last);
        self.hold = Some(Hold { selected, ..hold });
        self.show_selected();
    }

    /// Moves what is seen as little as possible, so that the marked entry is in it, and nothing that is kept no longer.
    fn show_selected(&mut self) {
        let (first, Some(last), Some(hold)) = (self.kept.first(), self.kept.last(), self.hold) else { return };
        let above = self.rows as u64 - 1;
        let selected = hold.selected.clamp(first, last);
        let lowest = (first + above).min(last);
        let bottom = hold.bottom.clamp(selected, selected.saturating_add(above)).clamp(lowest, last);
        self.hold = Some(Hold { bottom, selected });
    }

    /// Where one looks, of what is kept still. The oldest may have gone since the last key.
    pub(crate) fn held(&self) -> Option<Hold> {
        let (first, last, hold) = (self.kept.first(), self.kept.last()?, self.hold?);
        let bottom = hold.bottom.clamp((first + self.rows as u64 - 1).min(last), last);
        Some(Hold { bottom, selected: hold.selected.max(first) })
    }

    fn search_up(&mut self) {
        self.search(|kept, from, sought| kept.find_before(from, sought));
    }

    fn search_down(&mut self) {
        self.search(|kept, from, sought| kept.find_behind(from, sought));
    }

    fn search(&mut self, find: impl FnOnce(&Scrollback, Id, &str) -> Option<Id>) {
        self.sought = self.searching.text().to_owned();
        let Some(last) = self.kept.last().filter(|_| !self.sought.is_empty()) else { return };
        // The newest itself is looked at first.
        let from = self.held().map_or(last + 1, |hold| hold.selected);
        match find(&self.kept, from, &self.sought) {
            Some(found) => {
                let hold = self.held().unwrap_or(Hold { bottom: last, selected: last });
                self.hold = Some(Hold { selected: found, ..hold });
                self.show_selected();
            }
            None => self.message = Some("no more found: ↑ looks above, ↓ below the marked row".into()),
        }
    }

    fn copy(&mut self) -> Option<Effect> {
        let id = self.held().map(|hold| hold.selected).or_else(|| self.kept.last())?;
        let text = self.kept.get(id)?.text();
        if text.len() > MAX_COPY {
            self.message = Some(format!("not copied: it is longer than {} KiB", MAX_COPY >> 10));
            return None;
        }
        let text = text.to_vec();
        self.message = Some(format!("{} bytes copied, if this terminal can (OSC 52)", text.len()));
        Some(Effect::Copy(text))
    }
}

/// What is sent for a line: the JSON object that it is, or else its words in one.
fn activity_of(text: &str) -> Result<Activity, String> {
    if text.starts_with('{') {
        return Activity::parse(text).map_err(|error| what_instead(&error));
    }
    let object = serde_json::json!({ "object": text }).to_string();
    Activity::parse(&object).map_err(|error| what_instead(&error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arborcast_client::Address;

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn model() -> Model {
        let mut model = Model::new("aaron".into(), "tree1:3780".into(), START);
        model.set_rows(10);
        model
    }

    fn arrive(model: &mut Model, numbers: std::ops::Range<u32>) {
        let activities = numbers.map(|n| Activity::parse(&format!(r#"{{"n":{n}}}"#)).unwrap()).collect();
        model.handle_event(Event::Activities(activities), START);
    }

    fn press(model: &mut Model, code: KeyCode) -> Option<Effect> {
        model.handle_key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn control(model: &mut Model, letter: char) -> Option<Effect> {
        model.handle_key(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL))
    }

    fn enter(model: &mut Model, text: &str) -> Option<Effect> {
        text.chars().for_each(|letter| assert_eq!(press(model, KeyCode::Char(letter)), None));
        press(model, KeyCode::Enter)
    }

    #[test]
    fn json_is_sent_as_it_is_and_everything_else_as_words() {
        for (typed, sent) in [
            (r#" {"verb":"post","n":1.0} "#, r#"{"verb":"post","n":1.0}"#),
            ("hello \"you\"", r#"{"object":"hello \"you\""}"#),
            ("[1]", r#"{"object":"[1]"}"#),
        ] {
            let mut model = model();
            let expected = Effect::Send(Activity::parse(sent).unwrap());
            assert_eq!(enter(&mut model, typed), Some(expected), "{typed}");
            assert!(model.sending.is_empty());
        }
        assert_eq!(enter(&mut model(), "   "), None);
    }

    #[test]
    fn what_is_no_activity_stays_in_the_line_with_the_reason() {
        let mut model = model();
        assert_eq!(enter(&mut model, r#"{"verb""#), None);
        assert_eq!(model.sending.text(), r#"{"verb""#);
        assert!(model.message.as_ref().is_some_and(|message| message.contains("not JSON")), "{:?}", model.message);
        press(&mut model, KeyCode::Backspace);
        assert_eq!(model.message, None);
    }

    #[test]
    fn what_can_not_be_sent_comes_back_unless_something_else_is_being_typed() {
        let activity = Activity::parse("{}").unwrap();
        let mut model = model();
        model.refuse(&activity, "no");
        assert_eq!(model.sending.text(), "{}");
        model.sending.set("other".into());
        model.refuse(&activity, "no");
        assert_eq!(model.sending.text(), "other");
    }

    #[test]
    fn pasted_lines_become_one_and_too_much_is_not_pasted() {
        let mut model = model();
        model.handle_paste("{\n \"a\": 1\r\n}");
        assert_eq!(press(&mut model, KeyCode::Enter), Some(Effect::Send(Activity::parse(r#"{  "a": 1  }"#).unwrap())));
        model.handle_paste(&"x".repeat(MAX_INPUT + 1));
        assert!(model.sending.is_empty() && model.message.is_some());
    }

    #[test]
    fn looking_up_holds_the_view_while_more_arrives_and_down_follows_again() {
        let mut model = model();
        arrive(&mut model, 0..30);
        assert_eq!(model.held(), None);
        press(&mut model, KeyCode::Up);
        assert_eq!(model.held(), Some(Hold { bottom: 29, selected: 28 }));
        arrive(&mut model, 30..50);
        assert_eq!((model.held(), model.unseen()), (Some(Hold { bottom: 29, selected: 28 }), 20));
        press(&mut model, KeyCode::PageUp);
        assert_eq!(model.held(), Some(Hold { bottom: 28, selected: 19 }));
        for _ in 0..3 {
            press(&mut model, KeyCode::PageUp);
        }
        assert_eq!(model.held(), Some(Hold { bottom: 9, selected: 0 }));
        for _ in 0..7 {
            press(&mut model, KeyCode::PageDown);
        }
        assert_eq!(model.held(), None, "past the newest it follows");
    }

    #[test]
    fn a_pause_is_ended_by_the_same_key_or_by_escape() {
        let mut model = model();
        arrive(&mut model, 0..3);
        for end in ['p', '\x1b'] {
            control(&mut model, 'p');
            assert_eq!(model.held(), Some(Hold { bottom: 2, selected: 2 }));
            if end == 'p' {
                control(&mut model, 'p')
            } else {
                press(&mut model, KeyCode::Esc)
            };
            assert_eq!(model.held(), None);
        }
    }

    #[test]
    fn what_is_held_is_always_among_what_is_kept() {
        let mut model = model();
        arrive(&mut model, 0..20);
        model.handle_key(KeyEvent::new(KeyCode::Home, KeyModifiers::CONTROL));
        assert_eq!(model.held(), Some(Hold { bottom: 9, selected: 0 }));
        let kept = super::super::scrollback::MAX_ENTRIES as u32;
        arrive(&mut model, 20..kept + 100);
        assert_eq!(model.held(), Some(Hold { bottom: 109, selected: 100 }));
        press(&mut model, KeyCode::Down);
        assert_eq!(model.held(), Some(Hold { bottom: 109, selected: 101 }));
    }

    #[test]
    fn a_smaller_terminal_still_shows_the_marked_row() {
        let mut model = model();
        arrive(&mut model, 0..30);
        press(&mut model, KeyCode::PageUp);
        assert_eq!(model.held(), Some(Hold { bottom: 29, selected: 20 }));
        model.set_rows(4);
        assert_eq!(model.held(), Some(Hold { bottom: 23, selected: 20 }));
        model.set_rows(0);
        assert_eq!(model.held(), Some(Hold { bottom: 20, selected: 20 }));
    }

    #[test]
    fn a_search_goes_from_match_to_match() {
        let mut model = model();
        arrive(&mut model, 0..40);
        control(&mut model, 'f');
        assert_eq!(enter(&mut model, r#""N":3"#), None);
        let selected = |model: &Model| model.held().map(|hold| hold.selected);
        assert_eq!(selected(&model), Some(39));
        press(&mut model, KeyCode::Up);
        assert_eq!(selected(&model), Some(38));
        for _ in 0..9 {
            press(&mut model, KeyCode::Enter);
        }
        assert_eq!((selected(&model), model.message.is_none()), (Some(3), true));
        press(&mut model, KeyCode::Enter);
        assert_eq!((selected(&model), model.message.is_none()), (Some(3), false));
        press(&mut model, KeyCode::Down);
        assert_eq!(selected(&model), Some(30));
        press(&mut model, KeyCode::Esc);
        assert_eq!((model.prompt, model.sought.as_str()), (Prompt::Send, ""));
    }

    #[test]
    fn the_marked_activity_is_copied_or_the_newest_and_none_that_is_too_long() {
        let mut model = model();
        assert_eq!(control(&mut model, 'y'), None);
        arrive(&mut model, 0..3);
        assert_eq!(control(&mut model, 'y'), Some(Effect::Copy(br#"{"n":2}"#.to_vec())));
        press(&mut model, KeyCode::Up);
        assert_eq!(control(&mut model, 'y'), Some(Effect::Copy(br#"{"n":1}"#.to_vec())));
        press(&mut model, KeyCode::Esc);
        let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(MAX_COPY));
        model.handle_event(Event::Activities(vec![Activity::parse(&long).unwrap()]), START);
        assert_eq!(control(&mut model, 'y'), None);
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut model = model();
        assert_eq!(model.rate(), 0.0);
        for second in 1..=3 {
            arrive(&mut model, 0..10);
            model.tick(START + Duration::from_secs(second));
        }
        assert_eq!(model.rate(), 10.0);
        for second in 4..=10 {
            model.tick(START + Duration::from_secs(second));
        }
        assert_eq!(model.rate(), 0.0);
    }

    #[test]
    fn a_lost_server_and_the_next_one_are_told() {
        let mut model = model();
        let server: Address = "tree2:3780".parse().unwrap();
        model.handle_event(Event::Gap { origin: "7/n".into(), missing: 3 }, START);
        assert_eq!((model.missing, model.link), (3, Link::Connected));
        let after = Duration::from_millis(1500);
        model.handle_event(Event::Reconnected { server, after, is_resumed: true }, START);
        assert_eq!((model.server.as_str(), model.kept.len()), ("tree2:3780", 2));
        let last = model.kept.get(1).unwrap();
        assert_eq!(last.row().text, "back at tree2:3780 after 1.5 s");
    }

    #[test]
    fn one_can_always_quit() {
        let mut model = model();
        for (letter, typed) in [('c', "x"), ('q', "x"), ('d', "")] {
            model.sending.set(typed.into());
            model.is_help_shown = true;
            assert_eq!(control(&mut model, letter), Some(Effect::Quit));
        }
        model.sending.set("x".into());
        assert_eq!(control(&mut model, 'd'), None);
    }
}
