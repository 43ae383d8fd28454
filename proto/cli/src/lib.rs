//! What the command lines of arborcast's programs share: every flag also in a TOML file and in the environment,
//! completions and man pages, and what `--version` says.
//!
//! A flag on the command line comes before a variable of the environment, that before the file, and that before the
//! default. What stands in the environment and in the file becomes arguments, so that clap's own parsers, bounds and
//! conflicts hold for it, and a flag that is added to a program is known everywhere without a word here.
//!
//! - `layers`: which of the values of a flag counts, and what is said when it can't be used.
//! - `file`, `environment`: where values stand beside the command line.
//! - `printed`: the configuration that came out, secrets masked.
//! - [`logging`]: the log of the servers.
//! - [`open_files`]: how many connections they may have.
//! - [`values`]: what node and master read in the same way.

mod environment;
mod file;
mod layers;
pub mod logging;
pub mod open_files;
mod printed;
pub mod values;

use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, value_parser};
use clap_complete::Shell;

pub use layers::Source;
use tracing::error;

/// The version of all programs, with the commit in builds that know it.
pub const VERSION: &str = env!("ARBORCAST_VERSION");

/// The ids and long names of what is added to every command line; none of it can stand in a file.
const CONFIG: &str = "config";
const CONFIG_VARIABLE: &str = "ARBORCAST_CONFIG";
const CHECK: &str = "check-config";
const PRINT: &str = "print-config";
const COMPLETIONS: &str = "generate-completions";
const MAN: &str = "generate-man";

/// A line on standard output for whoever started a server. That nobody reads it is no reason not to serve.
pub fn say(line: &str) {
    if let Err(error) = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush()) {
        error!(%error, "can't write to standard output");
    }
}

/// What a program is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run.
    Run,
    /// To say whether it could: nothing may be changed, and nothing opened that others would notice.
    Check,
}

/// A command line as it came out of all places where its values may stand.
#[derive(Debug)]
pub struct Parsed<C> {
    /// The values.
    pub cli: C,
    /// What they are for.
    pub purpose: Purpose,
    sources: layers::Sources,
}

impl<C> Parsed<C> {
    /// Where the value of a flag comes from, by its long name; none for the default.
    pub fn source(&self, long: &str) -> Option<&Source> {
        self.sources.of(&[], long)
    }
}

/// Why a program ends before it has begun.
#[derive(Debug)]
pub enum Ended {
    /// It has said what it was asked for.
    Answered(String),
    /// Clap's word: an unusable command line, or `--help` and `--version`.
    Clap(Box<clap::Error>),
}

impl Ended {
    /// 0 for an answer, 2 for what can't be used.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Answered(_) => 0,
            Self::Clap(error) => error.exit_code(),
        }
    }

    /// Prints it to the right place, and ends with the right code.
    pub fn exit(&self) -> ! {
        match self {
            Self::Answered(text) => {
                // Who closed the pipe has read enough.
                let _ = io::stdout().write_all(text.as_bytes());
                process::exit(0)
            }
            Self::Clap(error) => error.exit(),
        }
    }
}

impl Display for Ended {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(text) => formatter.write_str(text),
            Self::Clap(error) => error.fmt(formatter),
        }
    }
}

impl From<clap::Error> for Ended {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error.into())
    }
}

/// Reads a command line and what stands beside it, and makes of it what the program needs.
///
/// `check` does what clap can't: it looks at several values together. For [`Purpose::Check`] it must change nothing.
///
/// # Errors
/// What can't be used, with the place where it stands; and everything that is no reason to run, such as `--help`.
pub fn read<C: CommandFactory + FromArgMatches, T>(
    arguments: impl IntoIterator<Item = OsString>,
    check: impl FnOnce(Parsed<C>) -> Result<T, clap::Error>,
) -> Result<T, Ended> {
    read_with(arguments, |name| std::env::var_os(name), check)
}

fn read_with<C: CommandFactory + FromArgMatches, T>(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
    check: impl FnOnce(Parsed<C>) -> Result<T, clap::Error>,
) -> Result<T, Ended> {
    let visible = with_configuration(C::command());
    let command = with_generators(visible.clone());
    let (matches, sources) = layers::parse(&command, arguments.into_iter().collect(), variable)?;
    if let Some(shell) = matches.get_one::<Shell>(COMPLETIONS) {
        return Err(Ended::Answered(completions(visible, *shell)));
    }
    if let Some(directory) = matches.get_one::<PathBuf>(MAN) {
        return man(visible, directory).and_then(|text| Err(Ended::Answered(text)));
    }
    if matches.get_flag(PRINT) {
        return Err(Ended::Answered(printed::toml(&command, &matches, &sources)));
    }
    let purpose = if matches.get_flag(CHECK) { Purpose::Check } else { Purpose::Run };
    let cli = C::from_arg_matches(&matches).map_err(|error| error.format(&mut command.clone()))?;
    let made = check(Parsed { cli, purpose, sources })?;
    match purpose {
        Purpose::Run => Ok(made),
        Purpose::Check => Err(Ended::Answered("the configuration can be used\n".to_owned())),
    }
}

/// The command with what all programs have.
fn with_configuration(command: Command) -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).global(true).help_heading("Configuration");
    command.version(VERSION).args([
        flag(CONFIG).value_name("FILE").value_parser(value_parser!(PathBuf)).env(CONFIG_VARIABLE).hide_env(true).help(
            "A TOML file with flags by their long names, such as `secret-file = \"/etc/secret\"`. Environment variables, such as \
             ARBORCAST_SECRET_FILE, come before it, and flags before them",
        ),
        flag(CHECK).action(ArgAction::SetTrue).help("Say whether all this can be used, by the exit code too, and end"),
        flag(PRINT).action(ArgAction::SetTrue).conflicts_with(CHECK).help(
            "Print what is in effect as such a file, with where each value comes from and without secrets, and end",
        ),
    ])
}

/// The command with what packagers need, which nobody else is told of.
fn with_generators(command: Command) -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).global(true).hide(true);
    command.args([
        flag(COMPLETIONS).value_name("SHELL").value_parser(value_parser!(Shell)),
        flag(MAN).value_name("DIR").value_parser(value_parser!(PathBuf)),
    ])
}

fn completions(mut command: Command, shell: Shell) -> String {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a page for the program and one for each of its subcommands.
fn man(mut command: Command, directory: &PathBuf) -> Result<String, Ended> {
    let written =
        std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command.clone(), directory));
    match written {
        Ok(()) => Ok(String::new()),
        Err(error) => {
            let why = format!("cannot write man pages to {}: {error}", directory.display());
            Err(command.error(ErrorKind::Io, why).into())
        }
    }
}

/// Whether a flag can stand in a file and in the environment.
fn is_configurable(arg: &Arg) -> bool {
    let never = [CONFIG, CHECK, PRINT, COMPLETIONS, MAN, "help", "version"];
    arg.get_long().is_some_and(|long| !never.contains(&long))
}

/// All flags that can stand in a file and in the environment, with the subcommand that each belongs to.
fn flags(command: &Command) -> Vec<(Vec<String>, &Arg)> {
    fn collect<'a>(command: &'a Command, path: &[String], flags: &mut Vec<(Vec<String>, &'a Arg)>) {
        let own = command.get_arguments().filter(|arg| path.is_empty() || !arg.is_global_set());
        flags.extend(own.filter(|arg| is_configurable(arg)).map(|arg| (path.to_vec(), arg)));
        for subcommand in command.get_subcommands() {
            collect(subcommand, &[path, &[subcommand.get_name().to_owned()]].concat(), flags);
        }
    }
    let mut all = Vec::new();
    collect(command, &[], &mut all);
    all
}

/// The chain of subcommands that was chosen, each with its matches, the program itself first.
fn chosen<'a>(command: &'a Command, matches: &'a ArgMatches) -> Vec<(Vec<String>, &'a Command, &'a ArgMatches)> {
    let mut levels = vec![(Vec::new(), command, matches)];
    while let Some((path, command, matches)) = levels.last()
        && let Some((name, below)) = matches.subcommand()
        && let Some(subcommand) = command.find_subcommand(name)
    {
        let path = path.iter().cloned().chain([subcommand.get_name().to_owned()]).collect();
        levels.push((path, subcommand, below));
    }
    levels
}

#[cfg(test)]
mod tests;
