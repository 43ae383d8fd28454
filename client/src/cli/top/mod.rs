//! `arborcast top`: the tree and its rates on a terminal, as a master sees it or one of its nodes.
//!
//! - Pure: `picture` (the tree at one moment), `history` (what happened), `words` (that as sentences), `metrics` (what a node
//!   says of itself), `rows` and `table` (the tree as rows, and its columns), `model` (what is shown, and how it changes),
//!   `view` (how it looks), `plain` (how it looks in a pipe).
//! - `masters`, `node`: where what is shown comes from.
//!
//! This file has the loop between these, the terminal and the clock.

mod history;
pub(in crate::cli) mod masters;
mod metrics;
mod model;
mod node;
mod picture;
mod plain;
mod rows;
mod table;
mod view;
mod words;

use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use arborcast_client::Address;
use arborcast_client::address::AddressError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::args::Args;
use super::failure::Failure;
use super::terminal::{Input, Screen};
use model::{Effect, Model, Update};
use picture::Picture;

/// Between two pictures on the screen. What happens meanwhile is on the next one.
const FRAME: Duration = Duration::from_millis(50);

/// How much of what is seen waits to be shown, at most. Whoever watches waits then.
const MAX_WAITING: usize = 64;

/// The port of a node's `--http` in the README, where none is named.
const HTTP_PORT: u16 = 9780;

pub(crate) const EXAMPLES: &str = "\
Above is the tree, below it what happened, newest last: who joined, was lost, drained or moved, and how long each node that \
lost its parent took to have another one, by the clock of the master. Who is gone stays where it was for a minute. ? shows \
all keys; the terminal is given back however it ends. When a master is gone the next one is watched, for ever.

With --node, what one node says of itself and its neighbours over its --http; no master is asked.

Examples:
  arborcast top --master a.example:7100 --master b.example:7101
  arborcast top --node http://127.0.0.1:9780
  arborcast top --once --master a.example:7100            the tree as text, into a pipe
  arborcast top --json --master a.example:7100 | jq '.nodes[] | select(.state != \"live\")'

Exit codes: 0 done, 1 nobody answers (--once, --json), 2 wrong usage.";

#[derive(clap::Args)]
pub(crate) struct TopArgs {
    /// Look at this one node, at the address of its --http, and ask no master.
    #[arg(long, value_name = "http://HOST:PORT")]
    node: Option<String>,
    /// Print the tree once, and end.
    #[arg(long)]
    once: bool,
    /// Print the tree once, as a JSON object, and end.
    #[arg(long)]
    json: bool,
}

/// Where the tree is seen.
enum Source {
    Masters(Vec<Address>),
    Node(Address),
}

pub(crate) async fn run(args: &Args, top: &TopArgs) -> Result<(), Failure> {
    let source = source(args, top)?;
    if top.once || top.json {
        return print(&source, args, top.json).await;
    }
    Screen::check().map_err(|_| Failure::TopNeedsTerminal)?;
    let (updates, shown) = mpsc::channel(MAX_WAITING);
    let mut followers = JoinSet::new();
    match source {
        Source::Masters(masters) => followers.spawn(masters::follow(masters, args.tls.clone(), updates)),
        Source::Node(node) => followers.spawn(node::follow(node, updates)),
    };
    // Dropping the followers ends them.
    Ui { screen: Screen::open()?, model: Model::new(SystemTime::now()), updates: shown }.run().await
}

fn source(args: &Args, top: &TopArgs) -> Result<Source, Failure> {
    if let Some(node) = &top.node {
        return node_address(node).map(Source::Node).map_err(Failure::BadAddress);
    }
    let masters = args.servers()?.masters;
    if masters.is_empty() { Err(Failure::NowhereToLook) } else { Ok(Source::Masters(masters)) }
}

/// Where a node's `--http` is, written as an address or as a URL. It has no TLS.
fn node_address(text: &str) -> Result<Address, AddressError> {
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    Address::parse(bare.strip_suffix("/metrics").unwrap_or(bare), HTTP_PORT)
}

async fn print(source: &Source, args: &Args, is_json: bool) -> Result<(), Failure> {
    let looked = match source {
        Source::Masters(masters) => masters::look(masters, args.tls.as_ref()).await,
        Source::Node(node) => node::look(node).await,
    };
    let picture: Picture = looked.map_err(|reason| Failure::NobodyAnswers { reason })?;
    let text = if is_json { plain::json(&picture) } else { plain::text(&picture) };
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Failure::Output),
    }
}

/// The program while it has the terminal.
struct Ui {
    screen: Screen,
    model: Model,
    updates: mpsc::Receiver<Update>,
}

impl Ui {
    /// Until one quits.
    async fn run(mut self) -> Result<(), Failure> {
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut next_frame = Some(Instant::now());
        loop {
            tokio::select! {
                // What a person does comes first, and pictures before more of what happens.
                biased;
                input = self.screen.input() => {
                    if !self.handle_input(input)? {
                        return Ok(());
                    }
                }
                () = sleep_until(next_frame.unwrap_or_else(Instant::now)), if next_frame.is_some() => {
                    self.draw()?;
                    next_frame = None;
                    continue;
                }
                _ = seconds.tick() => self.model.tick(SystemTime::now()),
                update = self.updates.recv() => match update {
                    Some(update) => self.model.handle_update(update, SystemTime::now()),
                    // Whoever watches goes on for ever, unless it has panicked.
                    None => return Err(Failure::NobodyAnswers { reason: "a part of the program has failed".into() }),
                }
            }
            next_frame = next_frame.or_else(|| Some(Instant::now() + FRAME));
        }
    }

    fn draw(&mut self) -> Result<(), Failure> {
        let model = &mut self.model;
        self.screen.draw(|frame| {
            let (tree, events) = view::seen_rows(model, frame.area());
            model.set_rows(tree, events);
            if let Some(cursor) = view::draw(model, frame.area(), frame.buffer_mut()) {
                frame.set_cursor_position(cursor);
            }
        })
    }

    /// Says whether to go on.
    fn handle_input(&mut self, input: Input) -> Result<bool, Failure> {
        match input {
            Input::End => return Ok(false),
            Input::Resize => {}
            Input::Paste(text) => self.model.handle_paste(&text),
            Input::Key(key) => match self.model.handle_key(key) {
                None => {}
                Some(Effect::Quit) => return Ok(false),
                Some(Effect::Redraw) => self.screen.clear()?,
            },
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_in_any_way() {
        for (text, expected) in [
            ("http://127.0.0.1:1", "127.0.0.1:1"),
            ("http://h:1/metrics", "h:1"),
            ("h", "h:9780"),
            ("http://[::1]:1/", "[::1]:1"),
        ] {
            assert_eq!(node_address(text).unwrap().to_string(), expected);
        }
        assert!(node_address("https://h:1").is_err());
    }
}
