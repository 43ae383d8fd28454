//! The command line of `arborcast-node`: the original's one-dash names beside the ordinary long ones.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use arborcast_cli::logging::LogFormat;
use arborcast_cli::values::{can_travel_in_a_header, host_and_port, secret_in_file};
use arborcast_cli::{Ended, Purpose};
use arborcast_core::{Config, Extensions};
use arborcast_proto::wire::relay::MAX_ORIGIN_ID;
use arborcast_proto::wire::{Secret, limits};
use arborcast_tls::Tls;
use clap::{Parser, Subcommand, ValueEnum};
use rand::distr::{Alphanumeric, SampleString as _};

use crate::memory::Memory;
use crate::settings::{Bounds, Masters, Require, Settings, milliseconds_since_1970};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  The first server of a tree; it makes a secret and prints it:
    arborcast-node -lh tree1.example.org
  A second server below it:
    arborcast-node -lh tree2.example.org -rh tree1.example.org -s SECRET
  Three servers on one machine:
    arborcast-node -lp 3780 -s SECRET
    arborcast-node -lp 3781 -rh localhost -rp 3780 -s SECRET
    arborcast-node -lp 3782 -rh localhost -rp 3780 -s SECRET
  One of a tree whose masters keep the users, in etcd:
    arborcast-node -lh tree1.example.org --secret-file FILE --data-dir DIR \\
      --master a.example.org:7100 --users masters
  Bring the users that a node has kept so far to these masters, while that node is stopped:
    arborcast-node --secret-file FILE --data-dir DIR --master a.example.org:7100 import-users

-lh, -lp, -rh and -rp are short for the long names below.
On standard output come only the secret, if one was made, `http on ADDRESS` with --http, and
`listening on ADDRESS`. Logs go to standard error, as much as RUST_LOG asks for (info if unset).
SIGINT and SIGTERM close everything cleanly; a second one ends it at once. SIGHUP reads certificates again.
Exit codes: 0 stopped, 1 could not start or lost its parent before it joined, 2 unusable command line; those of
import-users are in its own --help.";

const IMPORT_HELP: &str = "\
Flags stand before `import-users`.

Example:
  arborcast-node --secret-file FILE --data-dir DIR --master a.example.org:7100 import-users

Exit codes: 0 all are there, 1 not all could be brought, 2 unusable command line, 3 some names are others'.";

/// Where names are registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Registrar {
    /// In the tree, by all its nodes together.
    Tree,
    /// At the masters, which keep users in etcd.
    Masters,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the users of --data-dir to the masters, say which names are others' there, and end. No node may be using
    /// the directory. Can be repeated
    #[command(
        override_usage = "arborcast-node --master HOST:PORT --secret-file FILE --data-dir DIR import-users",
        after_help = IMPORT_HELP
    )]
    ImportUsers,
}

/// One server of an arborcast broadcast tree: clients connect to it, and every activity reaches every client of every
/// server.
#[derive(Debug, Parser)]
#[command(name = "arborcast-node", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Local hostname: where others reach this server, as announced to them [-lh]
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    local_hostname: String,
    /// Local port; 0 takes any free one [-lp]
    #[arg(long, value_name = "PORT", default_value_t = 3780)]
    local_port: u16,
    /// Remote hostname: the parent server to join; without it this is the first server of a tree [-rh]
    #[arg(long, value_name = "HOST")]
    remote_hostname: Option<String>,
    /// Remote port: the parent server's [-rp]
    #[arg(long, value_name = "PORT", default_value_t = 3780, requires = "remote_hostname")]
    remote_port: u16,
    /// The tree's secret; the first server makes one if it is not given
    #[arg(short, long, env = "ARBORCAST_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// A file that holds the tree's secret, so that it doesn't show in the list of processes
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    secret_file: Option<PathBuf>,
    /// Time between two announcements, in milliseconds
    #[arg(short, long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    activity_interval: u64,
    /// Address to listen on; by default 127.0.0.1 if the local hostname is localhost, that address if it is an IP
    /// address of this machine's loopback, and otherwise all addresses
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// What this server calls itself; unique in the tree. Random if not given
    #[arg(long, value_name = "ID", value_parser = node_id)]
    id: Option<String>,
    /// Longest line in bytes
    #[arg(long, value_name = "BYTES", default_value_t = limits::DEFAULT_MAX_LINE, value_parser = max_line)]
    max_line: usize,
    /// Bytes kept of what was broadcast; who falls further behind is closed
    #[arg(long, value_name = "BYTES", default_value_t = Bounds::default().log_bytes, value_parser = clap::value_parser!(u64).range(65_536..=1 << 40))]
    log_bytes: u64,
    /// How long activities are kept for servers and clients that come back, with --master or --extended
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    retention: Duration,
    /// Most connections at one time
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    max_connections: u32,
    /// How long a connection may take to log in or to authenticate, such as 60s or 500ms
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    login_timeout: Duration,
    /// Where to answer /metrics, /healthz and /readyz over HTTP; port 0 takes any free one. Nowhere if not given
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    http: Option<(String, u16)>,
    #[command(flatten)]
    tls: arborcast_tls::Args,
    /// For whom TLS is required: for `links` to other servers, or for `all`; plain connections are taken otherwise
    #[arg(long, value_name = "WHOM", value_enum, requires = "tls_cert")]
    require_tls: Option<Require>,
    /// Connect to the server of -rh without TLS, and to no other: for one that knows none
    #[arg(long, requires_all = ["remote_hostname", "tls_ca"])]
    plain_parent: bool,
    /// The form of the log on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// A master's address; may be given several times. With masters the node finds its place, and a new one when its
    /// parent is lost, by itself, and -rh is only where it begins
    #[arg(long, value_name = "HOST:PORT", env = "ARBORCAST_MASTERS", value_parser = master_address)]
    master: Vec<String>,
    /// Speak the extensions also without masters: find a new parent among the servers that are remembered
    #[arg(long)]
    extended: bool,
    /// Go back below the server of -rh whenever it would take this one in; needs --master or --extended
    #[arg(long, requires = "remote_hostname")]
    prefer_parent: bool,
    /// Take only clients that a master has sent here, with a ticket; needs --master
    #[arg(long, requires = "master")]
    require_tickets: bool,
    /// Most child servers
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_children: u32,
    /// Time between two heartbeats to a neighbour
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = humantime::parse_duration)]
    heartbeat_interval: Duration,
    /// Silence after which a neighbour is given up; at least three intervals
    #[arg(long, value_name = "DURATION", default_value = "1500ms", value_parser = humantime::parse_duration)]
    heartbeat_timeout: Duration,
    /// A directory in which the node keeps its id, the servers it knows, and the users of the tree for its next run
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where names are registered: the same for all nodes of a tree. `masters` needs masters that were started with
    /// --users, and holds also while none of them can be reached
    #[arg(long, value_name = "WHERE", value_enum, default_value = "tree")]
    users: Registrar,
    #[command(subcommand)]
    command: Option<Command>,
}

fn master_address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("a master is given as HOST:PORT")?;
    let is_right =
        !host.is_empty() && !text.contains(['/', '@', ' ']) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if is_right { Ok(text.to_owned()) } else { Err(format!("{text} is not HOST:PORT")) }
}

/// What others, masters among them, take for an id.
fn node_id(text: &str) -> Result<String, String> {
    if (1..=MAX_ORIGIN_ID).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("an id has 1 to {MAX_ORIGIN_ID} bytes"))
    }
}

fn max_line(text: &str) -> Result<usize, String> {
    let bytes = text.parse::<usize>().map_err(|error| error.to_string())?;
    let allowed = limits::MIN_MAX_LINE..=1 << 30;
    if allowed.contains(&bytes) { Ok(bytes) } else { Err(format!("{bytes} is not in {allowed:?}")) }
}

/// What the command line asks for.
#[derive(Debug)]
pub struct Parsed {
    /// The settings.
    pub settings: Settings,
    /// The secret, if one was made because none was given: the operator has to be told.
    pub made_secret: Option<Secret>,
    /// The form of the log.
    pub log_format: LogFormat,
    /// Whether users are brought to the masters, and nothing else.
    pub imports_users: bool,
}

impl Cli {
    /// Reads and checks the command line, the environment and the file of `--config`.
    ///
    /// # Errors
    /// What can't be used, and what is no reason to run, such as `--help`; its `exit` prints it to the right place with
    /// the right code.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Ended> {
        let arguments = arguments.into_iter().map(one_dash_to_long);
        arborcast_cli::read(arguments, |parsed: arborcast_cli::Parsed<Self>| parsed.cli.check(parsed.purpose))
    }

    fn check(self, purpose: Purpose) -> Result<Parsed, clap::Error> {
        let given = match &self.secret_file {
            None => self.secret.clone(),
            Some(file) => Some(secret_in_file("--secret-file", file).map_err(|why| unusable(&why))?),
        };
        let parent = self.remote_hostname.clone().map(|host| (host, self.remote_port));
        if parent.is_some() && given.is_none() {
            return Err(unusable(
                "-rh needs the secret of the tree to join: give it with --secret-file, ARBORCAST_SECRET or -s",
            ));
        }
        let made_secret = given.is_none().then(|| Secret::from(random_text(24)));
        let secret = given.map(Secret::from).or_else(|| made_secret.clone()).unwrap_or_else(|| "".into());
        let bind = SocketAddr::new(self.bind.unwrap_or_else(|| self.default_bind()), self.local_port);
        let is_extended = self.extended || !self.master.is_empty();
        if self.heartbeat_interval.is_zero() || self.heartbeat_timeout < 3 * self.heartbeat_interval {
            return Err(unusable("--heartbeat-timeout must be at least three times --heartbeat-interval"));
        }
        if !is_extended && self.prefer_parent {
            return Err(unusable("--prefer-parent needs --master or --extended: a plain node never moves"));
        }
        if !is_extended && self.data_dir.is_some() {
            return Err(unusable("--data-dir needs --master or --extended: a plain node has nothing to keep there"));
        }
        let imports_users = matches!(self.command, Some(Command::ImportUsers));
        if self.users == Registrar::Masters && self.master.is_empty() {
            return Err(unusable("--users masters needs --master"));
        }
        if imports_users && (self.master.is_empty() || self.data_dir.is_none() || made_secret.is_some()) {
            return Err(unusable("import-users needs --master, --data-dir and the tree's secret, before it"));
        }
        if is_extended {
            can_travel_in_a_header(secret.expose()).map_err(|why| unusable(&why))?;
        }
        // An import is no run of a node.
        let purpose = if imports_users { Purpose::Check } else { purpose };
        let memory = self.data_dir.as_deref().map(|directory| remember(directory, purpose));
        let memory = memory.transpose().map_err(|why| unusable(&why))?;
        let (path, memory) = memory.unzip();
        let memory = memory.unwrap_or_default();
        let id = self.id.or_else(|| Some(memory.id).filter(|id| !id.is_empty())).unwrap_or_else(|| random_text(20));
        // A later run has a larger one, as long as the clock goes forward; with a data directory always.
        let incarnation = milliseconds_since_1970().max(memory.incarnation.saturating_add(1));
        if let Some(path) = path.as_ref().filter(|_| purpose == Purpose::Run) {
            let memory = Memory { id: id.clone(), incarnation, servers: memory.servers.clone() };
            memory.save(path).map_err(|error| unusable(&format!("cannot write {}: {error}", path.display())))?;
        }
        if !self.master.is_empty() && id.contains(char::is_control) {
            return Err(unusable("masters take no --id with control characters"));
        }
        let extensions = is_extended.then(|| Extensions {
            heartbeat_interval: self.heartbeat_interval,
            heartbeat_timeout: self.heartbeat_timeout,
            max_children: usize::try_from(self.max_children).unwrap_or(usize::MAX),
            parent: parent.clone(),
            prefer_parent: self.prefer_parent,
            has_masters: !self.master.is_empty(),
            remembered: memory.servers,
            log_bytes: self.log_bytes,
            retention: self.retention,
            requires_tickets: self.require_tickets,
            users_at_masters: self.users == Registrar::Masters,
            ..Extensions::new(incarnation, rand::random())
        });
        let masters = is_extended.then_some(Masters {
            addresses: self.master,
            memory: path,
            users: self.data_dir.as_deref().map(Store::path),
        });
        let plain_server = parent.clone().filter(|_| self.plain_parent);
        // A node that speaks the extensions dials when the core asks for it.
        let parent = parent.filter(|_| !is_extended);
        let tls = self.tls.settings(Some(self.local_hostname.clone()));
        if purpose == Purpose::Check {
            tls.clone().map(Tls::load).transpose().map_err(|error| unusable(&error.to_string()))?;
        }
        let core = Config {
            extensions,
            announce_interval: Duration::from_millis(self.activity_interval),
            max_line: self.max_line,
            login_timeout: self.login_timeout.max(Duration::from_millis(1)),
            ..Config::new(id, self.local_hostname, self.local_port, secret)
        };
        let bounds = Bounds {
            log_bytes: self.log_bytes,
            max_connections: usize::try_from(self.max_connections).unwrap_or(usize::MAX),
            max_half_line_bytes: Bounds::default().max_half_line_bytes.max(64 * self.max_line),
            max_waiting_bytes: Bounds::default().max_waiting_bytes.max(4 * self.max_line),
        };
        Ok(Parsed {
            settings: Settings {
                core,
                bind,
                parent,
                bounds,
                http: self.http,
                tls,
                require_tls: self.require_tls,
                plain_server,
                masters,
            },
            made_secret,
            log_format: self.log_format,
            imports_users,
        })
    }

    /// A node that tells others `localhost` has nothing to do on the network.
    fn default_bind(&self) -> IpAddr {
        match self.local_hostname.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => address,
            Ok(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            Err(_) if self.local_hostname == "localhost" => Ipv4Addr::LOCALHOST.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        }
    }
}

/// The original's names have one dash and two letters, which clap would take for two flags.
fn one_dash_to_long(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else { return argument };
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let long = match name {
        "-lh" => "--local-hostname",
        "-lp" => "--local-port",
        "-rh" => "--remote-hostname",
        "-rp" => "--remote-port",
        _ => return argument,
    };
    value.map_or_else(|| long.into(), |value| format!("{long}={value}").into())
}

/// The memory of the run before, and where it is kept.
fn remember(directory: &Path, purpose: Purpose) -> Result<(PathBuf, Memory), String> {
    let path = Memory::path(directory);
    if purpose == Purpose::Run {
        fs::create_dir_all(directory)
            .map_err(|error| format!("cannot make --data-dir {}: {error}", directory.display()))?;
    }
    let memory = Memory::load(&path)
        .map_err(|error| format!("cannot use {}: {error}; remove it, or give another --data-dir", path.display()))?;
    Ok((path, memory))
}

fn unusable(why: &str) -> clap::Error {
    <Cli as clap::CommandFactory>::command().error(clap::error::ErrorKind::ValueValidation, why)
}

/// Letters and digits from the operating system's randomness; 24 of them are 142 bits.
fn random_text(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Parsed, Ended> {
        Cli::read(std::iter::once("arborcast-node").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_originals_names_and_the_long_ones_mean_the_same() {
        let short = read("-lh 127.0.0.1 -lp 1 -rh there -rp=2 -s x -a 100 --id me").unwrap().settings;
        let long = read(
            "--local-hostname 127.0.0.1 --local-port 1 --remote-hostname there --remote-port 2 --secret x \
             --activity-interval 100 --id me",
        );
        assert_eq!(format!("{short:?}"), format!("{:?}", long.unwrap().settings));
        assert_eq!(short.parent, Some(("there".into(), 2)));
        assert_eq!(short.bind, "127.0.0.1:1".parse().unwrap());
        assert_eq!(short.core.announce_interval, Duration::from_millis(100));
    }

    #[test]
    fn the_defaults_are_those_of_the_original() {
        let Parsed { settings, made_secret, .. } = read("").unwrap();
        assert_eq!(settings.bind, "127.0.0.1:3780".parse().unwrap());
        assert_eq!(settings.core.announce_interval, Duration::from_secs(5));
        assert_eq!(settings.parent, None);
        assert!(made_secret.unwrap().expose().len() >= 22);
        assert_eq!(read("-rh there -s x").unwrap().settings.parent, Some(("there".into(), 3780)));
    }

    #[test]
    fn a_node_with_a_name_for_others_listens_to_others() {
        assert_eq!(read("-lh tree1.example.org").unwrap().settings.bind, "0.0.0.0:3780".parse().unwrap());
        assert_eq!(read("-lh 127.0.0.7").unwrap().settings.bind, "127.0.0.7:3780".parse().unwrap());
        assert_eq!(read("-lh x --bind 127.0.0.1").unwrap().settings.bind, "127.0.0.1:3780".parse().unwrap());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_way_out() {
        for (line, hint) in [
            ("-rh there", "-s"),
            ("-lp 70000", "70000"),
            ("-a 0", "10"),
            ("--max-line 5", "4096"),
            ("--login-timeout soon", "soon"),
            ("--frobnicate", "--frobnicate"),
            ("--secret-file /nowhere/at/all -lp 1", "/nowhere/at/all"),
            ("-s x --id=", "128"),
            ("-s x --check-config --tls-cert /nowhere/at/all --tls-key /nowhere", "/nowhere/at/all"),
            ("-s x --extended --require-tickets", "--master"),
            ("-s x --extended --prefer-parent", "--remote-hostname"),
            ("-s x -rh there --prefer-parent", "--extended"),
            ("-s x --extended --users masters", "--master"),
            ("-s x --master a:1 import-users", "--data-dir"),
            ("--master a:1 --data-dir /nowhere import-users", "secret"),
        ] {
            let error = read(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(hint), "{line}: {error}");
        }
    }
}
