//! Which of the values of a flag counts: the command line's, the environment's, the file's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use thiserror::Error;

use crate::{CONFIG, CONFIG_VARIABLE, chosen, environment, file};

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On the command line.
    CommandLine,
    /// In the environment.
    Environment {
        /// The variable.
        variable: String,
    },
    /// In the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from one, where it is known.
        line: Option<usize>,
    },
}

impl Display for Source {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => formatter.write_str("command line"),
            Self::Environment { variable } => formatter.write_str(variable),
            Self::File { path, line: Some(line) } => write!(formatter, "{}:{line}", path.display()),
            Self::File { path, line: None } => path.display().fmt(formatter),
        }
    }
}

/// What can't be used, and where it stands.
#[derive(Debug, Error)]
#[error("{place}: {}{what}", key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
pub(crate) struct Refusal {
    /// Where it stands. Not what caused it.
    pub(crate) place: Source,
    pub(crate) key: Option<String>,
    pub(crate) what: String,
}

/// A flag as it stands in the environment or in the file.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The subcommand that it belongs to.
    pub(crate) path: Vec<String>,
    pub(crate) arg: Arg,
    /// One argument each: a value, or nothing but the flag. Empty for a switch that is off.
    pub(crate) values: Vec<Option<OsString>>,
    pub(crate) place: Source,
}

impl Entry {
    /// Whether it does not count any more because of a flag that comes before it: itself, or one that it can't stand beside.
    fn is_settled_by(&self, taken: &Arg, command: &Command) -> bool {
        let rules_out = |one: &Arg, other: &Arg| {
            command.get_arg_conflicts_with(one).iter().any(|arg| arg.get_id() == other.get_id())
        };
        self.arg.get_id() == taken.get_id() || rules_out(taken, &self.arg) || rules_out(&self.arg, taken)
    }

    fn arguments(&self) -> impl Iterator<Item = OsString> {
        let flag = format!("--{}", self.arg.get_long().unwrap_or_default());
        self.values.iter().map(move |value| {
            let mut argument = OsString::from(&flag);
            if let Some(value) = value {
                argument.push("=");
                argument.push(value);
            }
            argument
        })
    }
}

/// Where the values that are no defaults come from, by subcommand and long name.
#[derive(Debug, Default)]
pub(crate) struct Sources(BTreeMap<(Vec<String>, String), Source>);

impl Sources {
    fn insert(&mut self, path: &[String], arg: &Arg, source: Source) {
        self.0.insert((path.to_vec(), arg.get_long().unwrap_or_default().to_owned()), source);
    }

    pub(crate) fn of(&self, path: &[String], long: &str) -> Option<&Source> {
        self.0.get(&(path.to_vec(), long.to_owned()))
    }
}

/// Parses the arguments together with what the environment and the file add to them.
pub(crate) fn parse(
    command: &Command,
    mut arguments: Vec<OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<(ArgMatches, Sources), clap::Error> {
    let mut plain = without_variables(command.clone());
    plain.build();
    // What is wrong on the command line is said below, when all is put together.
    let lenient = plain.clone().ignore_errors(true);
    let given = lenient.clone().try_get_matches_from(&arguments).map_err(|asked_for| {
        // The help that is printed names the variables.
        command.clone().try_get_matches_from(&arguments).err().unwrap_or(asked_for)
    })?;
    let refused = |refusal: Refusal| command.clone().error(ErrorKind::ValueValidation, refusal);
    let config = given.get_one::<PathBuf>(CONFIG).cloned();
    let config = config.or_else(|| variable(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from));
    let in_file = config.map_or_else(|| Ok(Vec::new()), |path| file::entries(command, &path)).map_err(refused)?;
    let in_environment = environment::entries(command, variable).map_err(refused)?;

    let mut sources = Sources::default();
    let mut used = Vec::new();
    // The deepest subcommand first, so that the positions of the others stay what they are.
    for (path, here, matches) in chosen(&plain, &given).into_iter().rev() {
        let is_given = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let mut taken: Vec<&Arg> = here.get_arguments().filter(is_given).collect();
        for arg in &taken {
            sources.insert(&path, arg, Source::CommandLine);
        }
        for layer in [&in_environment, &in_file] {
            let free = |entry: &&Entry| entry.path == path && !taken.iter().any(|arg| entry.is_settled_by(arg, here));
            let free: Vec<&Entry> = layer.iter().filter(free).collect();
            for entry in &free {
                sources.insert(&path, &entry.arg, entry.place.clone());
                taken.extend(here.get_arguments().find(|arg| arg.get_id() == entry.arg.get_id()));
            }
            used.extend(free);
        }
        let position = position(&lenient, &arguments, path.len());
        let added: Vec<OsString> =
            used.iter().filter(|entry| entry.path == path).flat_map(|entry| entry.arguments()).collect();
        arguments.splice(position..position, added);
    }
    let matches = plain.try_get_matches_from_mut(arguments).map_err(|error| match place(&error, &used) {
        Some(entry) => {
            let text = error.to_string();
            let what = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            refused(Refusal { place: entry.place.clone(), key: entry.arg.get_long().map(str::to_owned), what })
        }
        None => error,
    })?;
    Ok((matches, sources))
}

/// Clap would read the variables of flags that something on the command line rules out.
fn without_variables(command: Command) -> Command {
    command.mut_args(|arg| arg.env(None::<&'static str>)).mut_subcommands(without_variables)
}

/// Where arguments of the subcommand at this depth may begin: right behind its name.
fn position(lenient: &Command, arguments: &[OsString], depth: usize) -> usize {
    let depth_of = |end: usize| {
        let matches = lenient.clone().try_get_matches_from(arguments.iter().take(end)).ok()?;
        Some(chosen(lenient, &matches).len() - 1)
    };
    // The program's own may begin behind its name.
    (1..=arguments.len()).find(|end| depth == 0 || depth_of(*end) == Some(depth)).unwrap_or(arguments.len())
}

/// The flag of the environment or the file that an error is about.
fn place<'a>(error: &clap::Error, used: &[&'a Entry]) -> Option<&'a Entry> {
    let named = [ContextKind::InvalidArg, ContextKind::PriorArg].into_iter().filter_map(|kind| error.get(kind));
    let named: Vec<&String> = named
        .flat_map(|value| match value {
            ContextValue::String(name) => std::slice::from_ref(name),
            ContextValue::Strings(names) => names.as_slice(),
            _ => &[],
        })
        .collect();
    used.iter().copied().find(|entry| {
        let flag = format!("--{}", entry.arg.get_long().unwrap_or_default());
        named.iter().any(|name| name.split([' ', '=', '[']).next() == Some(&flag))
    })
}
