//! Every way to end badly: one sentence each, and an exit code.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use arborcast_client::Error;
use arborcast_client::address::AddressError;
use arborcast_client::tls::TlsError;
use thiserror::Error;

use super::bench::EnterError;
use super::output::say;

/// Why the command did not do what it was asked to.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The activity on the command line is none.
    #[error("the activity is {reason}")]
    BadActivity { reason: String },
    /// A benchmark that can't be run as asked.
    #[error("{reason}")]
    BadBench { reason: String },
    /// Host or port on the command line can't be.
    #[error("{0}")]
    BadAddress(AddressError),
    /// A line of standard input is no activity.
    #[error("line {number} is {reason}; what stands before it was acknowledged ({taken}), nothing from it on was sent")]
    BadLine { number: u64, reason: String, taken: u64 },
    /// A benchmark could not go on.
    #[error(transparent)]
    Bench(#[from] EnterError),
    /// A signal ended a benchmark.
    #[error("interrupted")]
    BenchInterrupted { exit_code: u8 },
    /// The file is there but says nothing.
    #[error("there is no secret in the first line of {}", path.display())]
    EmptySecretFile { path: PathBuf },
    /// Standard input can't be read.
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    /// A signal came before everything was acknowledged.
    #[error("interrupted; {taken} of {published} activities were acknowledged")]
    Interrupted { exit_code: u8, taken: u64, published: u64 },
    /// Nobody says what the tree looks like.
    #[error("{reason}")]
    NobodyAnswers { reason: String },
    /// Nobody is named who could say what the tree looks like.
    #[error("whom to ask? Name a master with --master HOST:PORT, or a node by its --http with --node http://HOST:PORT")]
    NowhereToLook,
    /// Masters obey only who has the secret of the tree.
    #[error(
        "the secret of the tree is needed: give it with --secret-file, ARBORCAST_SECRET or -s, or only look with --dry-run"
    )]
    NoClusterSecret,
    /// No master has done what it was asked to.
    #[error("no master does it: {reason}")]
    NoMaster { reason: String },
    /// What is drawn needs a terminal to be drawn on.
    #[error("this needs a terminal: standard input and standard output must not be redirected")]
    NoTerminal,
    /// A name can't log in without its secret.
    #[error(
        "there is no secret for {username}: give it with --secret, --secret-file or ARBORCAST_SECRET, or make one with \
         `arborcast register -u {username}`"
    )]
    NoSecret { username: String },
    /// A secret needs a name.
    #[error("a username is missing: give it with -u NAME")]
    NoUsername,
    /// Standard output can't be written, for another reason than that nobody reads it.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// The system doesn't give what every program needs.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    /// The file can't be read.
    #[error("cannot read the secret from {}: {cause}", path.display())]
    SecretFile { path: PathBuf, cause: io::Error },
    /// Something between us and the server.
    #[error(transparent)]
    Session(#[from] Error),
    /// The terminal can't be used.
    #[error("cannot use the terminal: {0}")]
    Terminal(io::Error),
    /// The tree can be drawn on a terminal, or printed.
    #[error("this needs a terminal, and standard input or output is redirected: print the tree with --once or --json")]
    TopNeedsTerminal,
    /// A benchmark ended, and shows that not everything arrived as it should.
    #[error("{lost} deliveries were lost, {doubled} doubled and {out_of_order} out of order")]
    Unreliable { lost: u64, doubled: u64, out_of_order: u64 },
    /// Certificates can't be made.
    #[error("cannot make certificates: {0}")]
    NoCertificates(#[from] rcgen::Error),
    /// Certificates can't be written.
    #[error("cannot write {}: {cause}; give a directory that has none yet", path.display())]
    Unwritable { path: PathBuf, cause: io::Error },
    /// Certificates can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The session ended while there was more to send.
    #[error("{cause}; {taken} of {published} activities were acknowledged")]
    Unfinished { cause: Error, taken: u64, published: u64 },
}

impl Failure {
    /// Says it on standard error.
    pub(crate) fn report(&self) -> ExitCode {
        say(self);
        ExitCode::from(match self {
            Self::BadActivity { .. }
            | Self::BadAddress(_)
            | Self::BadBench { .. }
            | Self::EmptySecretFile { .. }
            | Self::NoClusterSecret
            | Self::NoSecret { .. }
            | Self::NoTerminal
            | Self::NoUsername
            | Self::NowhereToLook
            | Self::SecretFile { .. }
            | Self::TopNeedsTerminal => 2,
            Self::BenchInterrupted { exit_code } | Self::Interrupted { exit_code, .. } => *exit_code,
            Self::Unreliable { .. } => 3,
            Self::BadLine { .. }
            | Self::Bench(_)
            | Self::Input(_)
            | Self::NoMaster { .. }
            | Self::Output(_)
            | Self::Runtime(_)
            | Self::Session(_)
            | Self::Terminal(_)
            | Self::NobodyAnswers { .. }
            | Self::NoCertificates(_)
            | Self::Tls(_)
            | Self::Unwritable { .. }
            | Self::Unfinished { .. } => 1,
        })
    }
}
