//! The command line: what can be asked for, and how the answer becomes an exit code.
//!
//! - `args`: flags, files and the environment become an address and an identity.
//! - `bench`: the load generator.
//! - `failure`: every way to end badly, its sentence and its exit code.
//! - `certs`: certificates for trying out.
//! - `listen`, `send`, `register`, `interactive`: a file per command.
//! - `rebalance`: asking the masters to make the tree shallower.
//! - `top`, `tui`: what is looked at on a terminal; `terminal`: the screen, and what may stand on it.
//! - `input`, `output`, `interrupt`: standard input, standard output, and the signals.

mod args;
mod bench;
mod certs;
mod failure;
mod input;
mod interactive;
mod interrupt;
mod listen;
mod output;
mod rebalance;
mod register;
mod send;
mod terminal;
mod top;
mod tui;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use arborcast_cli::{Ended, Parsed, Purpose, Source};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::runtime;
use tracing_subscriber::EnvFilter;

use args::Args;
use bench::BenchArgs;
use failure::Failure;
use top::TopArgs;

const EXAMPLES: &str = "\
Without a command: prints what arrives, one JSON activity per line, and sends each JSON object typed. At the end of the \
input it waits until everything is acknowledged, and leaves. With a username and no secret it registers the name first, with \
a random secret that it prints on standard error.

When the server is lost it goes on at another one: of those given, of those that the masters know, or of those that \
servers have told it of; for ever, with pauses of up to five seconds. It says so on standard error. Extended servers \
send what was missed meanwhile. Ctrl-C ends it at any time.

Examples:
  arborcast                                    join localhost:3780 as anonymous
  arborcast -rh node1.example -rp 4000         join another server
  arborcast -rh node1.example -rh node2.example:4000         join the first that can be reached
  arborcast --master a.example:7100 --master b.example:7101  join the least loaded
  ARBORCAST_MASTERS=a.example:7100,b.example:7101 arborcast  the same
  arborcast -u aaron                           register aaron, then join
  arborcast listen | jq .verb                  what everybody does, live
  arborcast send '{\"verb\":\"waves\"}'            say one thing
  arborcast send < activities.jsonl            say many
  arborcast bench --subscribers 100            how fast is it?
  arborcast top --master a.example:7100        the tree, live

Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted while sending.";

const LISTEN_EXAMPLES: &str = "\
One JSON object per line, flushed as they arrive. Ends with exit code 0 on Ctrl-C, on SIGTERM, and when nobody reads \
its output any more. On standard error it says when the server is lost, where it goes on, and how many activities are \
missing where there is a gap.

Examples:
  arborcast listen | jq .verb
  arborcast listen --master a.example:7100
  arborcast listen --count 1
  arborcast listen -u aaron --secret-file aaron.secret -rh node1.example";

const SEND_EXAMPLES: &str = "\
Without ACTIVITY, every line of standard input is one; blank lines are skipped. The first line that is not a JSON \
object ends it: everything before that line is sent, nothing from it on, and the exit code is 1. The exit code is 0 \
only when everything is acknowledged: no single server can lose it any more. (Plain servers acknowledge nothing: there \
it is when everything came back, and after a lost connection what did not is sent again.) A lost server is replaced by \
another one, and what was not acknowledged is sent there; Ctrl-C says how much was. --no-reconnect ends with exit code 1 \
instead.

Examples:
  arborcast send --master a.example:7100 --master b.example:7101 < activities.jsonl
  arborcast send '{\"verb\":\"waves\"}'
  arborcast send -u aaron --secret-file aaron.secret < activities.jsonl
  tail -f log.jsonl | arborcast send -rh node1.example";

const REGISTER_EXAMPLES: &str = "\
Without a secret it makes a random one and prints it on standard output, alone on its line. What the server says goes \
to standard error. Another server is asked only where the one before took no connection.

Examples:
  arborcast register -u aaron > aaron.secret && arborcast -u aaron --secret-file aaron.secret
  ARBORCAST_SECRET=... arborcast register -u aaron";

const TUI_EXAMPLES: &str = "\
The newest activities are at the bottom, the line below them is for sending: a JSON object as it is, anything else as the \
words of {\"object\": ...}. F1 shows all keys. The latest 10,000 activities are kept. Nothing that others publish reaches the \
terminal as anything but text. With a username and no secret it registers the name first. What -v logs is shown only where \
standard error is redirected.

Examples:
  arborcast tui
  arborcast tui -u aaron --secret-file aaron.secret --master a.example:7100
  arborcast tui -v 2> tui.log";
const CERTS_EXAMPLES: &str = "\
One certificate for all nodes and masters, from an authority whose key is thrown away: for trying out, not for keeping.

Examples:
  arborcast certs tls tree1.example.org tree2.example.org
  arborcast-node -s SECRET --tls-cert tls/node.pem --tls-key tls/node.key --tls-ca tls/ca.pem
  arborcast --tls-ca tls/ca.pem listen";

const REBALANCE_EXAMPLES: &str = "\
Masters started without --no-balance do this by themselves. A tree is made shallower when it is deeper by two or more than it \
has to be: one server at a time moves with everything below it, and only while nothing else happens. Servers may refuse. \
Clients notice nothing. Without --dry-run the secret of the tree is needed: --secret-file, ARBORCAST_SECRET or -s.

Examples:
  arborcast rebalance --dry-run --master a.example:7100
  arborcast rebalance --master a.example:7100 --secret-file /etc/arborcast/secret";

/// Publish to and receive from a tree of arborcast nodes.
#[derive(Parser)]
#[command(name = "arborcast", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    args: Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Measure servers: publish and receive as much as asked, and say how they did.
    #[command(after_help = bench::EXAMPLES)]
    Bench(BenchArgs),
    /// Print every activity that arrives, one per line.
    #[command(after_help = LISTEN_EXAMPLES)]
    Listen {
        /// Stop after so many activities.
        #[arg(long, value_name = "N")]
        count: Option<usize>,
    },
    /// Publish one activity, or one per line of standard input.
    #[command(after_help = SEND_EXAMPLES)]
    Send {
        /// The activity, a JSON object.
        activity: Option<String>,
    },
    /// Make certificates for trying TLS out: ca.pem, node.pem and node.key.
    #[command(after_help = CERTS_EXAMPLES)]
    Certs {
        /// Where to put them; what is there is not overwritten.
        directory: PathBuf,
        /// Host names and addresses by which nodes and masters are reached, besides those of this machine.
        names: Vec<String>,
        /// For how many days they are good.
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Ask the masters to make the tree shallower, and print how.
    #[command(after_help = REBALANCE_EXAMPLES)]
    Rebalance {
        /// Only print what they would do.
        #[arg(long)]
        dry_run: bool,
    },
    /// Register a username.
    #[command(after_help = REGISTER_EXAMPLES)]
    Register,
    /// Watch the tree: who is where, what passes through, and what happened.
    #[command(after_help = top::EXAMPLES)]
    Top(TopArgs),
    /// Watch and send activities on a full terminal screen.
    #[command(after_help = TUI_EXAMPLES)]
    Tui,
}

impl Command {
    fn has_the_screen(&self) -> bool {
        matches!(self, Self::Top(_) | Self::Tui)
    }
}

/// Everything the command does, up to its exit code.
pub(crate) fn main() -> ExitCode {
    let cli = match read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(ended) => ended.exit(),
    };
    // Log lines would stand in the middle of what is drawn.
    let is_hidden = cli.command.as_ref().is_some_and(Command::has_the_screen) && io::stderr().is_terminal();
    if !is_hidden {
        start_logging(cli.args.verbose);
    }
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return Failure::Runtime(cause).report(),
    };
    let outcome = runtime.block_on(run(cli));
    // A thread may be waiting for the next line of standard input. Nobody waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The command line, the environment and the file of `--config`.
fn read(arguments: impl Iterator<Item = OsString>) -> Result<Cli, Ended> {
    arborcast_cli::read(args::with_long_names(arguments), |mut parsed: Parsed<Cli>| {
        let is_about_the_tree = matches!(parsed.cli.command, Some(Command::Rebalance { .. }));
        if !is_about_the_tree && matches!(parsed.source("secret"), Some(Source::Environment { .. })) {
            parsed.cli.args.forget_secret_of_nobody();
        }
        if parsed.purpose == Purpose::Check {
            let unusable = |why: Failure| Cli::command().error(ErrorKind::ValueValidation, why);
            parsed.cli.args.servers().map_err(unusable)?;
            if !is_about_the_tree {
                parsed.cli.args.user().map_err(unusable)?;
            }
            parsed.cli.args.load_tls().map_err(unusable)?;
        }
        Ok(parsed.cli)
    })
}

async fn run(mut cli: Cli) -> Result<(), Failure> {
    cli.args.load_tls()?;
    match cli.command {
        Some(Command::Bench(bench)) => bench::run(&cli.args, &bench).await,
        Some(Command::Listen { count }) => listen::run(&cli.args, count).await,
        Some(Command::Send { activity }) => send::run(&cli.args, activity.as_deref()).await,
        Some(Command::Certs { directory, names, days }) => certs::run(&directory, &names, days),
        Some(Command::Rebalance { dry_run }) => rebalance::run(&cli.args, dry_run).await,
        Some(Command::Register) => register::run(&cli.args).await,
        Some(Command::Top(top)) => top::run(&cli.args, &top).await,
        Some(Command::Tui) => tui::run(&cli.args).await,
        None => interactive::run(&cli.args).await,
    }
}

/// Quiet, unless asked by `-v` or by RUST_LOG.
fn start_logging(verbose: bool) {
    let by_flag = if verbose { "arborcast=debug,arborcast_client=debug" } else { "off" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(by_flag));
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for line in ["-u aaron -rh far -rp 4000 listen --count 3", "listen -u aaron --count 3 -rp=4000 -rh=far"] {
            let cli = parse(line);
            assert!(matches!(cli.command, Some(Command::Listen { count: Some(3) })));
            assert_eq!(cli.args.username.as_deref(), Some("aaron"));
            assert_eq!(servers(&cli), "far:4000");
        }
    }

    #[test]
    fn servers_and_masters_stand_beside_each_other_and_localhost_for_neither() {
        for (line, expected) in [
            ("listen", "localhost:3780"),
            ("listen -rp 4000", "localhost:4000"),
            ("-rh a -rh b:1 listen -rp 2", "a:2 b:1"),
            ("-rh ::1", "[::1]:3780"),
            ("listen --master m --master n:1", "| m:7100 n:1"),
            ("listen --master m,n:1 -rh a", "a:3780 | m:7100 n:1"),
            ("listen --master=", "localhost:3780"),
        ] {
            assert_eq!(servers(&parse(line)), expected, "{line}");
        }
        for wrong in ["--master m:x", "-rh a:x", "-rh a/b"] {
            assert!(parse(wrong).args.servers().is_err(), "{wrong}");
        }
    }

    fn parse(line: &str) -> Cli {
        read(std::iter::once("arborcast").chain(line.split(' ')).map(Into::into)).unwrap()
    }

    fn servers(cli: &Cli) -> String {
        let servers = cli.args.servers().unwrap();
        let masters = servers.masters.iter().map(ToString::to_string);
        let bar = (!servers.masters.is_empty()).then(|| "|".to_owned());
        let all: Vec<_> = servers.addresses.iter().map(ToString::to_string).chain(bar).chain(masters).collect();
        all.join(" ")
    }
}
