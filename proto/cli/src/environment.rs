//! The variables of the environment.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use crate::flags;
use crate::layers::{Entry, Refusal, Source};

/// The variable of a flag, where none is named for it: `--log-bytes` is ARBORCAST_LOG_BYTES, and `arborcast listen --count`
/// is ARBORCAST_LISTEN_COUNT.
fn variable_of(path: &[String], arg: &Arg) -> String {
    let named = arg.get_env().and_then(|name| name.to_str()).map(str::to_owned);
    named.unwrap_or_else(|| {
        let words = path.iter().map(String::as_str).chain(arg.get_long());
        words.fold("ARBORCAST".to_owned(), |name, word| format!("{name}_{word}")).replace('-', "_").to_uppercase()
    })
}

/// What stands in the environment, for all commands. A variable that is set to nothing says nothing.
pub(crate) fn entries(command: &Command, variable: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Entry>, Refusal> {
    let mut entries = Vec::new();
    for (path, arg) in flags(command) {
        let name = variable_of(&path, arg);
        let Some(value) = variable(&name).filter(|value| !value.is_empty()) else { continue };
        let place = Source::Environment { variable: name };
        match values(arg, value) {
            Ok(values) => entries.push(Entry { path, arg: arg.clone(), values, place }),
            Err(what) => return Err(Refusal { place, key: None, what }),
        }
    }
    Ok(entries)
}

/// The values of one variable: a switch is on or off, and what can be given several times stands between commas.
fn values(arg: &Arg, value: OsString) -> Result<Vec<Option<OsString>>, String> {
    match arg.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse => match value.to_str().map(str::to_ascii_lowercase).as_deref() {
            Some("true" | "1" | "yes" | "on") => Ok(vec![None]),
            Some("false" | "0" | "no" | "off") => Ok(Vec::new()),
            _ => Err(format!("expected true or false, found {value:?}")),
        },
        ArgAction::Append => match value.to_str() {
            Some(text) => Ok(text.split(',').map(|part| Some(part.trim().into())).collect()),
            None => Ok(vec![Some(value)]),
        },
        _ => Ok(vec![Some(value)]),
    }
}
