//! How the model of `arborcast top` looks.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget as _};

use super::super::terminal::paint::{BAR, QUIET, draw_ends, draw_help, popup};
use super::super::terminal::text::{clock, count, number, shown, tail, width};
use super::history::{Entry, Loss, Tone, What};
use super::model::{Focus, Link, Model};
use super::picture::{Node, Picture};
use super::rows::{Row, branches};
use super::table::{Column, fitting, is_worrying, loss_name};
use super::words::{duration, sentence};

/// For how long the name of a node shows that something has happened to it.
const FLASH: Duration = Duration::from_secs(5);

const HELP: [&str; 16] = [
    "↑ ↓ PgUp PgDn  mark a node, or scroll what happened",
    "Home End       the first, the last",
    "Enter          all about the marked node",
    "← →            fold and unfold what is below it",
    "f              fold everything below the second level",
    "s              sort siblings by id, clients, activities/s",
    "/ n            find a node by id or address, the next one",
    "Tab e          between the tree and what happened",
    "p Space        pause, and go on; nothing is lost meanwhile",
    "Esc            no mark, and the newest again",
    "Ctrl-L         draw everything anew",
    "q Ctrl-C       quit",
    "",
    "act/s: activities passed on in a second; seen: how long",
    "ago the node gave a sign of life, or was lost",
    "any key closes this",
];

const KEYS: &str = "↑↓ mark  Enter details  ←→ fold  / find  p pause  Tab events  ? help  q quit";

/// Header, titles, tree, what is below it, rule, what happened, keys.
type Parts = [Rect; 7];

/// How many rows of the tree and of what happened fit into an area.
pub(crate) fn seen_rows(model: &Model, area: Rect) -> (usize, usize) {
    let [_, _, tree, _, _, events, _] = parts(model, area);
    (usize::from(tree.height), usize::from(events.height))
}

/// The tree gets what it needs, and what happened at least a third, or most of it while one looks there.
fn parts(model: &Model, area: Rect) -> Parts {
    let [titles, rule, keys] =
        [(4, 1), (6, 1), (2, 1)].map(|(least, rows)| if area.height >= least { rows } else { 0 });
    let body = area.height.saturating_sub(1 + titles + rule + keys);
    let least_events = match model.focus {
        _ if rule == 0 => 0,
        Focus::Tree => body / 3,
        Focus::Events => body * 2 / 3,
    };
    let cells = |rows: usize| u16::try_from(rows).unwrap_or(u16::MAX);
    let room = body - least_events;
    let below = cells(below_tree(model).len()).min(room / 2);
    let tree = if rule == 0 { room - below } else { cells(model.rows.len()).clamp(1, room.max(1)).min(room - below) };
    let heights = [1, titles, tree, below, rule, body - tree - below, keys];
    Layout::vertical(heights.map(Constraint::Length)).areas(area)
}

/// Draws everything, and says where the cursor is, if there is one.
pub(crate) fn draw(model: &Model, area: Rect, buffer: &mut Buffer) -> Option<Position> {
    let [header, titles, tree, below, rule, events, keys] = parts(model, area);
    draw_header(model, header, buffer);
    draw_titles(titles, buffer);
    draw_tree(model, tree, buffer);
    for (row, line) in below.rows().zip(below_tree(model)) {
        line.render(row, buffer);
    }
    draw_rule(model, rule, buffer);
    draw_events(model, events, buffer);
    let cursor = draw_keys(model, keys, buffer);
    if model.is_detail_shown {
        draw_detail(model, area, buffer);
    }
    if model.is_help_shown {
        draw_help(&HELP, area, buffer);
    }
    cursor
}

fn draw_header(model: &Model, area: Rect, buffer: &mut Buffer) {
    let source = model.picture().map_or("", |picture| &picture.source);
    let (sign, style) = match (&model.link, model.picture()) {
        (Link::Asking { since, .. }, _) => {
            let away = model.now.duration_since(*since).unwrap_or_default().as_secs();
            let sign = if model.picture().is_some() { "○ gone" } else { "○ asking" };
            (format!("{sign}, {away} s"), BAR.fg(Color::LightYellow))
        }
        (Link::Watching, Some(picture)) if picture.is_warming => {
            ("◐ warming up".to_owned(), BAR.fg(Color::LightYellow))
        }
        (Link::Watching, _) => ("● watching".to_owned(), BAR.fg(Color::LightGreen)),
    };
    let mut right = Vec::new();
    if let Some(picture) = model.picture() {
        let trees = count(picture.trees(), "tree");
        right.push(format!(" {}  ", count(picture.nodes.len(), "node")).into());
        right.push(if picture.trees() > 1 { trees.fg(Color::LightYellow).bold() } else { trees.into() });
        right.push(format!("  {} clients  {}/s ", number(picture.clients() as f64), number(picture.rate())).into());
    }
    if area.width >= 100 {
        right.push(format!(" {} UTC ", clock(model.now)).into());
    }
    let taken: usize = right.iter().map(Span::width).sum();
    let name = if area.width >= 100 { " arborcast top  " } else { " top  " };
    let room = usize::from(area.width).saturating_sub(taken + name.len() + width(&sign) + 1);
    let source = shown(source, room.max(8));
    let space = if source.is_empty() { "" } else { " " };
    let left = vec![name.bold(), source.into(), space.into(), Span::styled(sign, style.add_modifier(Modifier::BOLD))];
    draw_ends(left, right, BAR, area, buffer);
}

fn draw_titles(area: Rect, buffer: &mut Buffer) {
    let (columns, left) = fitting(usize::from(area.width));
    let mut text = format!("{:<left$}", "node");
    columns.iter().for_each(|column| text.push_str(&column.aligned(column.title())));
    Line::from(shown(&text, usize::from(area.width)))
        .style(QUIET.add_modifier(Modifier::UNDERLINED))
        .render(area, buffer);
}

fn draw_tree(model: &Model, area: Rect, buffer: &mut Buffer) {
    let Some(picture) = model.picture() else {
        let reason = match &model.link {
            Link::Asking { reason, .. } if !reason.is_empty() => format!("{reason}; trying again"),
            Link::Asking { .. } | Link::Watching => "asking".to_owned(),
        };
        let words = shown(&reason, usize::from(area.width));
        return Paragraph::new(Line::from(words).fg(Color::Yellow).centered()).render(area, buffer);
    };
    if model.rows.is_empty() {
        return Line::from("nobody is known here yet").style(QUIET).render(area, buffer);
    }
    let losses = model.losses();
    let flashes = flashes(model);
    let selected = model.selected_row();
    for (index, (row, area)) in model.rows.iter().skip(model.top).zip(area.rows()).enumerate() {
        let loss = losses.get(row.id.as_str()).copied();
        draw_row(model, picture, row, loss, &flashes, area, buffer);
        if selected == Some(model.top + index) {
            buffer.set_style(area, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
}

fn draw_row(
    model: &Model,
    picture: &Picture,
    row: &Row,
    loss: Option<&Loss>,
    flashes: &BTreeMap<&str, Tone>,
    area: Rect,
    buffer: &mut Buffer,
) {
    let (columns, cells) = fitting(usize::from(area.width));
    let node = picture.nodes.get(&row.id);
    let style = match (node, loss) {
        (Some(_), _) => flashes.get(row.id.as_str()).map_or_else(Style::new, |tone| style(*tone)),
        (None, Some(Loss { is_drained: true, .. })) => QUIET,
        (None, _) => style(Tone::Bad),
    };
    let folded = if row.folded > 0 { format!(" +{}", number(row.folded as f64)) } else { String::new() };
    // Of a deep tree the end of the lines, so that something of the name is seen.
    let branches = tail_of_branches(&branches(&model.rows, row), cells / 2);
    let name = shown(&row.id, cells.saturating_sub(width(&branches) + width(&folded)));
    let fill = " ".repeat(cells.saturating_sub(width(&branches) + width(&name) + width(&folded)));
    let mut spans = vec![Span::styled(branches, QUIET), Span::styled(name, style), folded.fg(Color::Cyan), fill.into()];
    spans.extend(columns.into_iter().map(|column| match (node, loss) {
        (Some(node), _) => Span::styled(column.aligned(&column.of_node(node)), column_style(column, node)),
        (None, Some(loss)) => Span::styled(column.aligned(&column.of_loss(loss, picture.at)), style),
        (None, None) => Span::raw(column.aligned("")),
    }));
    Line::from(spans).render(area, buffer);
}

fn tail_of_branches(branches: &str, cells: usize) -> String {
    if width(branches) <= cells { branches.to_owned() } else { tail(branches, cells) }
}

fn column_style(column: Column, node: &Node) -> Style {
    match column {
        Column::State if is_worrying(node.state) => style(Tone::Worrying),
        Column::State => Style::new().fg(Color::Green),
        // More than a heartbeat or two; whoever is silent for longer is lost.
        Column::Seen if node.age.is_some_and(|age| age > Duration::from_secs(1)) => style(Tone::Worrying),
        Column::Version | Column::Address => QUIET,
        Column::Clients | Column::Rate | Column::Depth | Column::Seen => Style::new(),
    }
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => Style::new().fg(Color::Green).add_modifier(Modifier::BOLD),
        Tone::Worrying => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

/// To which nodes something has happened just now.
fn flashes(model: &Model) -> BTreeMap<&str, Tone> {
    let since = model.picture().and_then(|picture| picture.at.checked_sub(FLASH)).unwrap_or(SystemTime::UNIX_EPOCH);
    let recent = model.history.entries().rev().take(1000).take_while(|entry| entry.at >= since);
    let mut flashes = BTreeMap::new();
    for Entry { what, .. } in recent {
        if let What::Joined { node, .. }
        | What::Attached { node, .. }
        | What::Orphaned { node, .. }
        | What::Reattached { node, .. }
        | What::Moved { node, .. }
        | What::BecameRoot { node, .. }
        | What::Draining { node } = what
        {
            let tone = if what.tone() == Tone::Plain { Tone::Good } else { what.tone() };
            flashes.entry(node.as_str()).or_insert(tone);
        }
    }
    flashes
}

/// What is wrong, and what a node has to say of itself.
fn below_tree(model: &Model) -> Vec<Line<'static>> {
    let Some(picture) = model.picture() else { return Vec::new() };
    let mut faults = picture.faults.iter();
    let first = faults.next().filter(|_| !picture.is_warming).map(|fault| {
        let more = if faults.len() > 0 { format!(" (and {} more)", faults.len()) } else { String::new() };
        Line::from(format!("! {}{more}", shown(fault, 200))).style(style(Tone::Worrying))
    });
    let fact = |(name, text): &(&'static str, String)| {
        Line::from(vec![Span::styled(format!("  {name:<12}"), QUIET), shown(text, 300).into()])
    };
    first.into_iter().chain(picture.facts.iter().map(fact)).collect()
}

fn draw_rule(model: &Model, area: Rect, buffer: &mut Buffer) {
    let mut left = vec![Span::raw("─ ")];
    match model.focus {
        Focus::Tree => left.push("what happened".into()),
        Focus::Events => left.push("what happened".bold().fg(Color::Cyan)),
    }
    if model.is_paused() {
        left.push(" ─ ".into());
        left.push("paused".bold().fg(Color::Yellow));
    }
    if let Link::Asking { reason, .. } = &model.link
        && model.picture().is_some()
    {
        left.push(format!(" ─ {}", shown(reason, 60)).fg(Color::Yellow));
    }
    left.push(" ".into());
    let mut right = Vec::new();
    if model.unseen() > 0 {
        right.push(format!(" {} below ─", number(model.unseen() as f64)).fg(Color::Yellow));
    }
    if area.height > 0 {
        buffer.set_string(area.x, area.y, "─".repeat(usize::from(area.width)), QUIET);
    }
    draw_ends(left, right, QUIET, area, buffer);
}

/// The newest at the bottom.
fn draw_events(model: &Model, area: Rect, buffer: &mut Buffer) {
    let entries: Vec<&Entry> = model.entries().collect();
    for (row, entry) in area.rows().zip(entries.into_iter().rev()) {
        let (time, cells) = (stamp(entry.at), usize::from(area.width));
        let room = cells.saturating_sub(width(&time) + 3);
        let tone = entry.what.tone();
        let sign = match tone {
            Tone::Plain => "·",
            Tone::Good => "✓",
            Tone::Worrying => "!",
            Tone::Bad => "✗",
        };
        let text = format!("{sign} {}", sentence(&entry.what, room));
        Line::from(vec![Span::styled(format!("{time} "), QUIET), Span::styled(text, style(tone))]).render(row, buffer);
    }
}

/// `12:03:44.123`
fn stamp(at: SystemTime) -> String {
    let millis = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_millis();
    format!("{}.{millis:03}", clock(at))
}

fn draw_keys(model: &Model, area: Rect, buffer: &mut Buffer) -> Option<Position> {
    let cells = usize::from(area.width);
    let Some(prompt) = &model.prompt else {
        let line = match &model.message {
            Some(message) => Line::from(shown(message, cells)).fg(Color::Yellow),
            None => Line::from(shown(KEYS, cells)).style(QUIET),
        };
        line.render(area, buffer);
        return None;
    };
    let (before, behind) = prompt.halves();
    let before = tail(before, cells.saturating_sub(3));
    let x = area.x + u16::try_from(2 + width(&before)).unwrap_or(u16::MAX).min(area.width.saturating_sub(1));
    let behind = shown(behind, cells.saturating_sub(2 + width(&before)));
    Line::from(vec!["/ ".bold().fg(Color::Magenta), before.into(), behind.into()]).render(area, buffer);
    Some(Position { x, y: area.y })
}

fn draw_detail(model: &Model, area: Rect, buffer: &mut Buffer) {
    let (Some(picture), Some(index)) = (model.picture(), model.selected_row()) else { return };
    let Some(row) = model.rows.get(index) else { return };
    let cells = area.width.min(72);
    let room = usize::from(cells.saturating_sub(15));
    let losses = model.losses();
    let lines = match (picture.nodes.get(&row.id), losses.get(row.id.as_str())) {
        (Some(node), _) => detail_of_node(node, row, picture),
        (None, Some(loss)) => detail_of_loss(loss, picture),
        (None, None) => return,
    };
    let lines: Vec<Line<'_>> = lines
        .into_iter()
        .map(|(name, text)| Line::from(vec![Span::styled(format!("{name:<10} "), QUIET), shown(&text, room).into()]))
        .collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
    let (x, y) = (area.x + (area.width - cells) / 2, area.y + (area.height - height) / 2);
    let title = format!(" {} ", shown(&row.id, usize::from(cells.saturating_sub(4))));
    popup(&title, lines, Rect { x, y, width: cells, height }, buffer);
}

fn detail_of_node(node: &Node, row: &Row, picture: &Picture) -> Vec<(&'static str, String)> {
    let up = std::iter::successors(node.parent.as_deref(), |id| picture.nodes.get(*id)?.parent.as_deref());
    // Bounded, since parents may go round in circles.
    let path: Vec<&str> = up.take(16).collect();
    let path = if path.is_empty() { "a root".to_owned() } else { path.join(" < ") };
    let number_of = |value: Option<f64>| value.map_or_else(|| "not known".to_owned(), number);
    vec![
        ("state", node.state.name().to_owned()),
        ("address", node.address.clone()),
        ("version", node.version.clone()),
        ("below", path),
        ("children", row.children.to_string()),
        ("depth", node.depth.map_or_else(|| "not known".to_owned(), |depth| depth.to_string())),
        ("clients", node.clients.map_or_else(|| "not known".to_owned(), |clients| clients.to_string())),
        ("passes on", format!("{} activities/s", number_of(node.rate))),
        ("seen", node.age.map_or_else(|| "not known".to_owned(), |age| format!("{} ago", duration(age)))),
        ("known for", node.known_for.map_or_else(|| "not known".to_owned(), duration)),
    ]
}

fn detail_of_loss(loss: &Loss, picture: &Picture) -> Vec<(&'static str, String)> {
    let ago = picture.at.duration_since(loss.at).unwrap_or_default();
    vec![
        ("state", loss_name(loss).to_lowercase()),
        ("when", format!("{} UTC, {} ago", stamp(loss.at), duration(ago))),
        ("was below", loss.parent.clone().unwrap_or_else(|| "nobody: it was a root".to_owned())),
    ]
}

#[cfg(test)]
mod tests {
    use arborcast_proto::registry::LostReason;

    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::super::history::Change;
    use super::super::model::Update;
    use super::super::picture::tests::{node, picture};
    use super::super::rows::Sort;
    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(43_424_000 + millis)
    }

    fn watching(mut tree: Picture) -> Model {
        tree.at = at(0);
        let mut model = Model::new(at(0));
        model.handle_update(Update::Began(Box::new(tree)), at(0));
        model
    }

    fn rows(model: &mut Model, width: u16, height: u16) -> Vec<String> {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        let (tree, events) = seen_rows(model, area);
        model.set_rows(tree, events);
        draw(model, area, &mut buffer);
        let row = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
        buffer.content().chunks(usize::from(width.max(1))).map(row).collect()
    }

    fn change(model: &mut Model, millis: u64, change: Change) {
        model.handle_update(Update::Change(at(millis), Box::new(change)), at(millis));
    }

    #[test]
    fn a_screen_says_who_died_what_moved_where_and_how_long_it_took() {
        let tree = [("tree-0", ""), ("tree-1", "tree-0"), ("tree-2", "tree-0"), ("tree-3", "tree-1")];
        let mut model = watching(picture(&tree));
        change(&mut model, 100, Change::Lost { id: "tree-1".into(), reason: LostReason::StreamEnded });
        change(&mut model, 146, Change::Seen(node("tree-3", "tree-2")));
        let after = [("tree-0", ""), ("tree-2", "tree-0"), ("tree-3", "tree-2")];
        model.handle_update(Update::Picture(Box::new(Picture { at: at(1300), ..picture(&after) })), at(1300));
        let rows = rows(&mut model, 80, 24);
        println!("{}", rows.join("\n"));
        assert!(rows[0].starts_with(" top  master m:1 ● watching"), "{}", rows[0]);
        assert!(rows[0].ends_with(" 3 nodes  1 tree  0 clients  0/s "), "{}", rows[0]);
        assert!(rows[2].starts_with("tree-0 "), "{}", rows[2]);
        assert!(rows[3].starts_with("├─ tree-1 ") && rows[3].contains(" LOST ") && rows[3].contains(" 1.2s"));
        assert!(rows[5].starts_with("   └─ tree-3 ") && rows[5].contains(" live "), "{}", rows[5]);
        let told: Vec<&str> = rows[7..11].iter().map(|row| row.trim_end()).collect();
        assert_eq!(
            told,
            [
                "12:03:44.000 · watching master m:1: 4 nodes in 1 tree",
                "12:03:44.100 ✗ tree-1 is lost; it was below tree-0, with 1 child, 0 clients",
                "12:03:44.146 ✓ tree-3 re-attached from tree-1 to tree-2 in 46 ms",
                "12:03:44.146 ✓ healed 46 ms after tree-1 was lost: its child has a place",
            ]
        );
        assert!(rows[23].contains("q quit"));
    }

    #[test]
    fn several_trees_faults_and_a_master_that_is_gone_are_seen() {
        let faults = vec!["b names a parent that is not known".into(), "another".into()];
        let mut model = watching(Picture { faults, ..picture(&[("a", ""), ("b", "gone")]) });
        let reason = "Connection refused".into();
        model.handle_update(Update::Gone { source: "master m:1".into(), reason }, at(2000));
        model.tick(at(9500));
        let rows = rows(&mut model, 80, 24);
        assert!(rows[0].contains("○ gone, 7 s") && rows[0].contains("2 trees"), "{}", rows[0]);
        assert!(rows[4].starts_with("! b names a parent that is not known (and 1 more)"), "{}", rows[4]);
        assert!(rows[5].contains("master m:1: Connection refused"), "{}", rows[5]);
        assert!(rows[7].contains("✗ master m:1 is gone: Connection refused"), "{}", rows[7]);
    }

    #[test]
    fn hostile_names_are_text() {
        let hostile = "\x1b[2J\u{202e}\u{9b}\x07";
        let mut tree = picture(&[("a", hostile), (hostile, "")]);
        tree.source = hostile.into();
        tree.faults = vec![hostile.into()];
        tree.facts = vec![("fact", hostile.into())];
        let node = tree.nodes.get_mut(hostile).unwrap();
        (node.address, node.version) = (hostile.into(), hostile.into());
        let mut model = watching(tree);
        change(&mut model, 1, Change::Lost { id: "a".into(), reason: LostReason::Silent });
        change(&mut model, 2, Change::Lost { id: hostile.into(), reason: LostReason::Silent });
        model.handle_update(Update::Gone { source: hostile.into(), reason: hostile.into() }, at(2));
        for is_detail_shown in [false, true] {
            model.selected = Some(hostile.into());
            model.is_detail_shown = is_detail_shown;
            for (width, height) in [(80, 24), (200, 50)] {
                let rows = rows(&mut model, width, height);
                let is_bad = |c: char| c.is_control() || c == '\u{202e}';
                assert!(rows.iter().all(|row| !row.contains(is_bad)), "{rows:?}");
                assert!(rows.iter().any(|row| row.contains("␛[2J")));
            }
        }
    }

    #[test]
    fn no_size_is_too_small() {
        let chain: Vec<String> = (0..60).map(|number| format!("日本-{number:02}")).collect();
        let parents = std::iter::once("").chain(chain.iter().map(String::as_str));
        let tree: Vec<(&str, &str)> = chain.iter().map(String::as_str).zip(parents).collect();
        let mut model = watching(Picture { facts: vec![("fact", "x".repeat(99)); 9], ..picture(&tree) });
        for focus in [Focus::Tree, Focus::Events] {
            model.focus = focus;
            for (width, height) in [(0, 0), (1, 1), (3, 2), (10, 5), (20, 3), (20, 6), (40, 12), (300, 100)] {
                for key in [KeyCode::Down, KeyCode::Enter, KeyCode::Char('/'), KeyCode::Esc, KeyCode::F(1)] {
                    model.handle_key(KeyEvent::new(key, KeyModifiers::NONE));
                    rows(&mut model, width, height);
                }
            }
        }
        (model.sort, model.is_help_shown) = (Sort::Rate, false);
        model.selected = chain.last().cloned();
        let rows = rows(&mut model, 80, 24);
        assert!(rows.iter().any(|row| row.contains("日本-59") || row.contains("日 本 -59")), "{}", rows.join("\n"));
    }

    #[test]
    fn before_anybody_answers_it_says_whom_it_asks() {
        let mut model = Model::new(at(0));
        rows(&mut model, 80, 24);
        let reason = "Connection refused".into();
        model.handle_update(Update::Gone { source: "master m:1".into(), reason }, at(500));
        let rows = rows(&mut model, 80, 24);
        assert!(rows.iter().any(|row| row.contains("master m:1: Connection refused; trying again")), "{rows:?}");
    }
}
