//! The configuration that came out, as a file that says the same.

use std::ffi::OsStr;
use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::file::{Kind, kind};
use crate::layers::{Source, Sources};
use crate::{chosen, is_configurable};

/// Everything that is set, each line with where it comes from. What has no value, and secrets, stand in comments, so that the
/// text can be used as a file.
pub(crate) fn toml(command: &Command, matches: &ArgMatches, sources: &Sources) -> String {
    let mut text = String::new();
    for (path, command, matches) in chosen(command, matches) {
        let own = |arg: &&Arg| is_configurable(arg) && (path.is_empty() || !arg.is_global_set());
        let lines = command.get_arguments().filter(own).map(|arg| line(arg, matches, sources.of(&path, long(arg))));
        let lines: String = lines.collect();
        if !path.is_empty() && !lines.is_empty() {
            let _ = writeln!(text, "\n[{}]", path.join("."));
        }
        text.push_str(&lines);
    }
    text
}

fn line(arg: &Arg, matches: &ArgMatches, source: Option<&Source>) -> String {
    let values: Vec<&OsStr> = matches.get_raw(arg.get_id().as_str()).map(Iterator::collect).unwrap_or_default();
    let value = match (arg.get_action(), values.as_slice()) {
        (ArgAction::SetTrue | ArgAction::SetFalse, _) => matches.get_flag(arg.get_id().as_str()).to_string(),
        (_, []) => return format!("# {} =\n", long(arg)),
        _ if arg.is_hide_env_values_set() => {
            let place = source.map(ToString::to_string).unwrap_or_default();
            return format!("# {} = \"***\"  # {place}\n", long(arg));
        }
        (ArgAction::Append, values) => {
            let values: Vec<String> = values.iter().map(|value| scalar(arg, value)).collect();
            format!("[{}]", values.join(", "))
        }
        (_, [value, ..]) => scalar(arg, value),
    };
    let place = source.map_or_else(|| "default".to_owned(), ToString::to_string);
    format!("{} = {value}  # {place}\n", long(arg))
}

fn long(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_default()
}

fn scalar(arg: &Arg, value: &OsStr) -> String {
    let text = value.to_string_lossy();
    if kind(arg) == Kind::Text { quoted(&text) } else { text.into_owned() }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
