//! From flags, files and the environment to an address and an identity.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arborcast_client::address::{DEFAULT_MASTER_PORT, DEFAULT_PORT};
use arborcast_client::tls::{self, Tls, Trust};
use arborcast_client::{Address, Credentials, Identity, Options, Secret, Servers};
use arborcast_proto::wire::message::ANONYMOUS;

use super::failure::Failure;

/// The options that every command takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Args {
    /// Who to log in as; without it anonymous.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// The user's secret; for `rebalance` that of the tree. Other users of this machine may see it in the list of processes; --secret-file and the
    /// environment variable ARBORCAST_SECRET do not show it.
    #[arg(short, long, global = true, env = "ARBORCAST_SECRET", hide_env_values = true)]
    secret: Option<Secret>,
    /// A file whose first line is the user's secret.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "secret")]
    secret_file: Option<PathBuf>,
    /// A server to connect to, as HOST or HOST:PORT; -rh for short. Given several times, the others are for when one can't
    /// be reached. Without it, and without --master: localhost.
    #[arg(long, global = true, value_name = "HOST")]
    remote_hostname: Vec<String>,
    /// The port of servers that are given without one; -rp for short.
    #[arg(long, global = true, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    remote_port: u16,
    /// A master to ask for the least loaded server, when no --remote-hostname is given or none can be reached. Give it once
    /// for each; the port is 7100 where none is named.
    #[arg(long, global = true, value_name = "HOST:PORT", env = "ARBORCAST_MASTERS", value_delimiter = ',')]
    master: Vec<String>,
    /// Connect over TLS, to servers and masters whose certificates are from an authority that the operating system trusts.
    #[arg(long = "tls", global = true)]
    use_tls: bool,
    /// Connect over TLS, to servers whose certificates are from the authority in this file of PEM; and to masters.
    #[arg(long, global = true, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// A certificate to show to servers, which need none of clients.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of --tls-cert.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    #[arg(skip)]
    pub(crate) tls: Option<Arc<Tls>>,
    /// End with an error when the server is lost, and don't go on at another one.
    #[arg(long, global = true)]
    no_reconnect: bool,
    /// Log to standard error what happens; RUST_LOG says it more finely.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

impl Args {
    pub(crate) fn servers(&self) -> Result<Servers, Failure> {
        // A variable that is set to nothing names nobody.
        let masters = self.master.iter().filter(|text| !text.is_empty());
        let masters = addresses(masters, DEFAULT_MASTER_PORT)?;
        let addresses = match self.remote_hostname.is_empty() && masters.is_empty() {
            true => addresses(&["localhost".to_owned()], self.remote_port)?,
            false => addresses(&self.remote_hostname, self.remote_port)?,
        };
        Ok(Servers { addresses, masters })
    }

    /// Reads the certificates, for [`options`](Self::options).
    pub(crate) fn load_tls(&mut self) -> Result<(), Failure> {
        let trust = match &self.tls_ca {
            Some(authority) => Trust::Authority(authority.clone()),
            None if self.use_tls || self.tls_cert.is_some() => Trust::System,
            None => return Ok(()),
        };
        let identity = self.tls_cert.clone().zip(self.tls_key.clone());
        let identity = identity.map(|(certificate, key)| tls::Identity { certificate, key });
        // Nobody connects to us, so nobody can mind what our certificate says.
        let settings = tls::Settings { identity, trust, name: None };
        self.tls = Some(Arc::new(Tls::load(settings)?));
        Ok(())
    }

    pub(crate) fn options(&self) -> Options {
        let mut options = Options { tls: self.tls.clone(), ..Options::default() };
        if self.no_reconnect {
            options.reconnect = None;
        }
        options
    }

    /// A secret in the environment may be there for another command: where nobody is named it says nothing.
    pub(crate) fn forget_secret_of_nobody(&mut self) {
        self.secret = self.secret.take().filter(|_| self.username.as_deref().is_some_and(|name| name != ANONYMOUS));
    }

    /// Who to log in as, when it must be possible without registering.
    pub(crate) fn identity(&self) -> Result<Identity, Failure> {
        match self.user()? {
            None => Ok(Identity::Anonymous),
            Some((username, Some(secret))) => Ok(Identity::User(Credentials { username, secret })),
            Some((username, None)) => Err(Failure::NoSecret { username }),
        }
    }

    /// The secret of the tree, for commands that need that and no user.
    pub(crate) fn cluster_secret(&self) -> Result<Secret, Failure> {
        match (&self.secret, &self.secret_file) {
            (Some(secret), _) => Ok(secret.clone()),
            (None, Some(file)) => read_secret(file),
            (None, None) => Err(Failure::NoClusterSecret),
        }
    }

    /// The user, if one is named, and the user's secret, if one is given.
    pub(crate) fn user(&self) -> Result<Option<(String, Option<Secret>)>, Failure> {
        let secret = match (&self.secret, &self.secret_file) {
            (Some(secret), _) => Some(secret.clone()),
            (None, Some(file)) => Some(read_secret(file)?),
            (None, None) => None,
        };
        match self.username.as_deref() {
            None | Some(ANONYMOUS) if secret.is_some() => Err(Failure::NoUsername),
            None | Some(ANONYMOUS) => Ok(None),
            Some(username) => Ok(Some((username.to_owned(), secret))),
        }
    }
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>, default_port: u16) -> Result<Vec<Address>, Failure> {
    let addresses = texts.into_iter().map(|text| Address::parse(text, default_port));
    addresses.collect::<Result<_, _>>().map_err(Failure::BadAddress)
}

fn read_secret(path: &Path) -> Result<Secret, Failure> {
    let text = fs::read_to_string(path).map_err(|cause| Failure::SecretFile { path: path.to_owned(), cause })?;
    match text.lines().next() {
        Some(secret) if !secret.is_empty() => Ok(secret.into()),
        _ => Err(Failure::EmptySecretFile { path: path.to_owned() }),
    }
}

/// A secret of 128 random bits.
pub(crate) fn random_secret() -> Secret {
    format!("{:032x}", rand::random::<u128>()).into()
}

/// Gives the original's one-dash names of two letters, which clap doesn't know, their long form.
pub(crate) fn with_long_names(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut only_values_follow = false;
    args.map(move |arg| {
        only_values_follow |= arg == "--";
        match arg.to_str() {
            Some(text) if !only_values_follow => long_name(text).map_or(arg, OsString::from),
            _ => arg,
        }
    })
}

fn long_name(arg: &str) -> Option<String> {
    let (name, value) = arg.split_at_checked(3)?;
    let long = match name {
        "-rh" => "--remote-hostname",
        "-rp" => "--remote-port",
        _ => return None,
    };
    (value.is_empty() || value.starts_with('=')).then(|| format!("{long}{value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_names_become_long_ones_and_nothing_else_changes() {
        for (given, expected) in [
            ("-rh h -rp 1", "--remote-hostname h --remote-port 1"),
            ("send -rh=h -rp=1", "send --remote-hostname=h --remote-port=1"),
            ("-rhx -r -h -rp1 --rh rh", "-rhx -r -h -rp1 --rh rh"),
            ("-rh h -- -rh", "--remote-hostname h -- -rh"),
        ] {
            let translated: Vec<_> = with_long_names(given.split(' ').map(OsString::from)).collect();
            assert_eq!(translated, expected.split(' ').collect::<Vec<_>>());
        }
    }

    #[test]
    fn random_secrets_are_long_and_differ() {
        assert_eq!(random_secret().expose().len(), 32);
        assert_ne!(random_secret(), random_secret());
    }
}
