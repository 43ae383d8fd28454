//! The command line of `arborcast-master`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use arborcast_cli::logging::LogFormat;
use arborcast_cli::values::{can_travel_in_a_header, host_and_port, secret_in_file};
use arborcast_cli::{Ended, Purpose};
use arborcast_proto::wire::Secret;
use arborcast_tls::Tls;
use clap::Parser;

use crate::settings::{Bounds, Settings};
use crate::topology::Limits;
use crate::users;

const EXAMPLES: &str = "\
Examples:
  Two masters on one machine, which is redundancy enough; they never talk to each other:
    arborcast-master -s SECRET
    arborcast-master -s SECRET --listen 127.0.0.1:7101
  For nodes on other machines, with the secret in a file, so that it doesn't show in the list of processes:
    arborcast-master --listen 0.0.0.0:7100 --secret-file /etc/arborcast/secret
  What it knows (any gRPC tool works, since the server describes itself):
    grpcurl -plaintext localhost:7100 list
    grpcurl -plaintext localhost:7100 describe arborcast.registry.v1.Registry
    grpcurl -plaintext localhost:7100 arborcast.registry.v1.Registry/GetTopology
    grpcurl -plaintext -d '{\"node_id\": \"tree1\"}' \\
      localhost:7100 arborcast.registry.v1.Registry/GetNode
    grpcurl -plaintext localhost:7100 arborcast.registry.v1.Registry/WatchTopology
    grpcurl -plaintext localhost:7100 grpc.health.v1.Health/Check
  Keep the users of the tree in etcd; nodes then need --users masters:
    arborcast-master --secret-file /etc/arborcast/secret \\
      --users etcd://a.example.org:2379,b.example.org:2379
  Ask a node to hand over and stop:
    grpcurl -plaintext -H 'authorization: Bearer SECRET' -d '{\"node_id\": \"tree1\"}' \\
      localhost:7100 arborcast.registry.v1.Registry/DrainNode

On standard output come only `http on ADDRESS` with --http, and `listening on ADDRESS`.
Logs go to standard error, as much as RUST_LOG asks for (info if unset).
SIGINT and SIGTERM close everything cleanly; a second one ends it at once. SIGHUP reads certificates again.
A master keeps nothing: started again, it knows the tree as soon as the nodes have reported.
Until --warm-up has passed it says NOT_SERVING to health checks.
Exit codes: 0 stopped, 1 could not start, 2 unusable command line.";

/// A registry of an arborcast tree: nodes report to it, and orphans ask it where to go. Run two of them.
#[derive(Debug, Parser)]
#[command(name = "arborcast-master", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Where to listen; port 0 takes any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7100", value_parser = host_and_port)]
    listen: (String, u16),
    /// Where to serve the live page, metrics and health over HTTP; off unless given
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    http: Option<(String, u16)>,
    /// The URL of another master's live page, for a link to it; may be given several times
    #[arg(long, value_name = "URL", requires = "http", value_parser = page_url)]
    peer_page: Vec<String>,
    /// The cluster's secret, the same as the nodes'
    #[arg(short, long, env = "ARBORCAST_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// A file that holds the cluster's secret
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    secret_file: Option<PathBuf>,
    /// For how long after the start to say that not everybody may be known: the nodes' heartbeat interval
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = warm_up)]
    warm_up: Duration,
    /// Don't propose moves that make the tree shallower; `arborcast rebalance` still does
    #[arg(long)]
    no_balance: bool,
    /// Most nodes at one time
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_nodes: u32,
    #[command(flatten)]
    users: Users,
    #[command(flatten)]
    tls: arborcast_tls::Args,
    /// Take TLS connections only
    #[arg(long, requires = "tls_cert")]
    require_tls: bool,
    /// The form of the log on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Where users are kept.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Users")]
struct Users {
    /// Keep the users of the tree in etcd, 3.4 or later, as `etcd://HOST:2379`, with more members behind commas. The
    /// same for all masters; all nodes need `--users masters`
    #[arg(long = "users", value_name = "URL", value_parser = members)]
    members: Option<Members>,
    /// What the keys in etcd begin with. Trees that share one etcd need different ones
    #[arg(long = "users-prefix", value_name = "KEY", default_value = "/arborcast/", requires = "members", value_parser = prefix)]
    prefix: String,
    /// The name to use etcd with, if it wants one
    #[arg(long = "users-login", value_name = "NAME", requires = "password_file")]
    login: Option<String>,
    /// A file that holds the password of --users-login
    #[arg(long = "users-password-file", value_name = "FILE", requires_all = ["login", "members"])]
    password_file: Option<PathBuf>,
    /// The authority of etcd's certificates. With it etcd is reached over TLS
    #[arg(long = "users-ca", value_name = "FILE", requires = "members")]
    authority: Option<PathBuf>,
    /// The certificate to show to etcd, if it wants one
    #[arg(long = "users-cert", value_name = "FILE", requires_all = ["authority", "key"])]
    certificate: Option<PathBuf>,
    /// The key of --users-cert
    #[arg(long = "users-key", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Members(Vec<String>);

impl Users {
    fn settings(self) -> Result<Option<users::Settings>, String> {
        let Self { members, prefix, login, password_file, authority, certificate, key } = self;
        let Some(Members(members)) = members else { return Ok(None) };
        let password = password_file.map(|file| secret_in_file("--users-password-file", &file)).transpose()?;
        let login = login.zip(password.map(Secret::from));
        let tls = authority.map(|authority| arborcast_tls::Settings {
            identity: certificate.zip(key).map(|(certificate, key)| arborcast_tls::Identity { certificate, key }),
            trust: arborcast_tls::Trust::Authority(authority),
            name: None,
        });
        Ok(Some(users::Settings { members, prefix, login, tls }))
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub struct Parsed {
    /// The host to listen on.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Where the live page is served, if it is.
    pub http: Option<(String, u16)>,
    /// The live pages of other masters.
    pub peer_pages: Vec<String>,
    /// The settings.
    pub settings: Settings,
    /// TLS, if it is offered.
    pub tls: Option<arborcast_tls::Settings>,
    /// Whether plain connections are closed.
    pub require_tls: bool,
    /// The form of the log.
    pub log_format: LogFormat,
}

impl Cli {
    /// Reads and checks the command line, the environment and the file of `--config`.
    ///
    /// # Errors
    /// What can't be used, and what is no reason to run, such as `--help`; its `exit` prints it to the right place with
    /// the right code.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Ended> {
        arborcast_cli::read(arguments, |parsed: arborcast_cli::Parsed<Self>| parsed.cli.check(parsed.purpose))
    }

    fn check(self, purpose: Purpose) -> Result<Parsed, clap::Error> {
        let secret = match (self.secret_file, self.secret) {
            (Some(file), _) => secret_in_file("--secret-file", &file).map_err(|why| unusable(&why))?,
            (None, Some(secret)) => secret,
            (None, None) => {
                return Err(unusable(
                    "the cluster's secret is needed: give it with --secret-file, ARBORCAST_SECRET or -s",
                ));
            }
        };
        if secret.is_empty() {
            return Err(unusable("the secret is empty: give the cluster's with --secret-file, ARBORCAST_SECRET or -s"));
        }
        can_travel_in_a_header(&secret).map_err(|why| unusable(&why))?;
        let defaults = Settings::new(Secret::from(secret));
        let bounds = bounds_for(usize::try_from(self.max_nodes).unwrap_or(usize::MAX));
        let users = self.users.settings().map_err(|why| unusable(&why))?;
        let settings = Settings { warm_up: self.warm_up, balances: !self.no_balance, users, bounds, ..defaults };
        let (host, port) = self.listen;
        let tls = self.tls.settings(None);
        if tls.as_ref().is_some_and(|tls| tls.identity.is_none()) {
            return Err(unusable("--tls-ca needs --tls-cert and --tls-key: without them a master takes no TLS"));
        }
        if purpose == Purpose::Check {
            for tls in tls.iter().chain(settings.users.iter().filter_map(|users| users.tls.as_ref())) {
                Tls::load(tls.clone()).map_err(|error| unusable(&error.to_string()))?;
            }
        }
        let (http, peer_pages) = (self.http, self.peer_page);
        Ok(Parsed {
            host,
            port,
            http,
            peer_pages,
            settings,
            tls,
            require_tls: self.require_tls,
            log_format: self.log_format,
        })
    }
}

/// The bounds that go with a number of nodes: each keeps a connection and a stream, and lists about a hundred ids.
fn bounds_for(nodes: usize) -> Bounds {
    let defaults = Bounds::default();
    let listed_ids = defaults.topology.listed_ids.max(nodes.saturating_mul(100));
    Bounds {
        topology: Limits { nodes, listed_ids },
        connections: defaults.connections.max(nodes.saturating_mul(2)),
        report_streams: nodes.saturating_add(1_000),
        ..defaults
    }
}

fn page_url(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        Err("a URL that begins with http:// or https://".into())
    }
}

fn warm_up(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let most = Duration::from_secs(60);
    if duration <= most {
        Ok(duration)
    } else {
        Err(format!("{text} is more than {}", humantime::format_duration(most)))
    }
}

fn members(text: &str) -> Result<Members, String> {
    users::members(text).map(Members)
}

/// With a `/` at its end, so that no prefix is the beginning of another by chance.
fn prefix(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || text.contains(char::is_control) {
        return Err("a prefix is 1 to 256 bytes of text".into());
    }
    Ok(if text.ends_with('/') { text.to_owned() } else { format!("{text}/") })
}

fn unusable(why: &str) -> clap::Error {
    <Cli as clap::CommandFactory>::command().error(clap::error::ErrorKind::ValueValidation, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Parsed, Ended> {
        Cli::read(std::iter::once("arborcast-master").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn a_secret_is_all_that_is_needed() {
        let Parsed { host, port, settings, .. } = read("-s x").unwrap();
        assert_eq!((host.as_str(), port), ("127.0.0.1", 7100));
        assert_eq!(settings.warm_up, Duration::from_secs(2));
        assert!(settings.balances && !read("-s x --no-balance").unwrap().settings.balances);
        assert_eq!(settings.secret, "x".into());
        assert_ne!(settings.master_id, read("-s x").unwrap().settings.master_id, "each start has its own id");
    }

    #[test]
    fn users_are_kept_nowhere_unless_told() {
        assert!(read("-s x").unwrap().settings.users.is_none());
        let users = read("-s x --users etcd://a,b:1 --users-prefix /mine").unwrap().settings.users.unwrap();
        assert_eq!((users.members, users.prefix.as_str()), (vec!["a:2379".into(), "b:1".into()], "/mine/"));
    }

    #[test]
    fn addresses_are_hosts_and_ports() {
        for (text, host, port) in [("h:0", "h", 0), ("[::1]:7100", "::1", 7100), ("0.0.0.0:1", "0.0.0.0", 1)] {
            let parsed = read(&format!("-s x --listen {text}")).unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_way_out() {
        for (line, hint) in [
            ("--listen h:1 --secret-file /nowhere/at/all", "/nowhere/at/all"),
            ("-s x --listen 7100", "127.0.0.1:7100"),
            ("-s x --listen h:70000", "70000"),
            ("-s x --listen ::1:7100", "[::1]:7100"),
            ("-s x --listen :7100", "127.0.0.1:7100"),
            ("-s grün", "ASCII"),
            ("-s x --tls-ca /nowhere", "--tls-cert"),
            ("-s x --check-config --tls-cert /nowhere/at/all --tls-key /nowhere", "/nowhere/at/all"),
            ("-s x --check-config --users etcd://a --users-ca /nowhere/at/all", "/nowhere/at/all"),
            ("-s x --warm-up soon", "soon"),
            ("-s x --warm-up 2h", "1m"),
            ("-s x --max-nodes 0", "0"),
            ("-s x --users a:2379", "etcd://HOST:2379"),
            ("-s x --users etcd://me:word@a", "--users-password-file"),
            ("-s x --users-prefix /x/", "--users <URL>"),
            ("-s x --users etcd://a --users-login me", "--users-password-file"),
            ("-s x --users etcd://a --users-login me --users-password-file /nowhere/at/all", "/nowhere/at/all"),
            ("--secret=", "-s"),
            ("--frobnicate", "--frobnicate"),
        ] {
            let error = read(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn the_bounds_grow_with_the_nodes() {
        assert_eq!(format!("{:?}", bounds_for(10_000).topology), format!("{:?}", Limits::default()));
        let bounds = bounds_for(100_000);
        assert!(bounds.connections > 100_000 && bounds.report_streams > 100_000);
    }
}
