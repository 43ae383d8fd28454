//! The TOML file: flags by their long names, those of a subcommand in a table of its name.

use std::any::TypeId;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::num::NonZero;
use std::path::Path;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::is_configurable;
use crate::layers::{Entry, Refusal, Source};

/// A configuration is some lines; whatever is longer is none.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the whole file, whichever command is to run: what is wrong in it is said also where it is not needed today.
pub(crate) fn entries(command: &Command, path: &Path) -> Result<Vec<Entry>, Refusal> {
    let refusal = |line, what| Refusal { place: Source::File { path: path.to_owned(), line }, key: None, what };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| refusal(None, format!("cannot be opened: {error}")))?;
    let length = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    let length = length.map_err(|error| refusal(None, format!("cannot be read: {error}")))?;
    if u64::try_from(length).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(refusal(None, format!("is longer than {MAX_BYTES} bytes, which no configuration is")));
    }
    let document = Document { path, text: &text };
    let table = DeTable::parse(&text).map_err(|error| {
        let line = error.span().map(|span| document.line(span.start));
        let key = line.and_then(|line| text.lines().nth(line - 1)?.split_once('='));
        let key = key.map(|(key, _)| key.trim().to_owned());
        Refusal { key, ..refusal(line, error.message().replace('\n', "; ")) }
    })?;
    let mut entries = Vec::new();
    document.collect(command, &mut Vec::new(), table.get_ref(), &mut entries)?;
    Ok(entries)
}

struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Document<'_> {
    fn line(&self, position: usize) -> usize {
        1 + self.text.bytes().take(position).filter(|byte| *byte == b'\n').count()
    }

    fn collect(
        &self,
        command: &Command,
        path: &mut Vec<String>,
        table: &DeTable<'_>,
        entries: &mut Vec<Entry>,
    ) -> Result<(), Refusal> {
        for (key, value) in table {
            let place = Source::File { path: self.path.to_owned(), line: Some(self.line(key.span().start)) };
            let name = key.get_ref();
            let refuse = |what| Refusal { place: place.clone(), key: Some(name.to_string()), what };
            let is_it = |arg: &&Arg| arg.get_long() == Some(name) && (path.is_empty() || !arg.is_global_set());
            if let Some(arg) = command.get_arguments().filter(|arg| is_configurable(arg)).find(is_it) {
                let values = values(arg, value.get_ref()).map_err(&refuse)?;
                entries.push(Entry { path: path.clone(), arg: arg.clone(), values, place });
            } else if let (Some(subcommand), DeValue::Table(table)) =
                (command.find_subcommand(&**name), value.get_ref())
            {
                path.push(subcommand.get_name().to_owned());
                self.collect(subcommand, path, table, entries)?;
                path.pop();
            } else {
                let hint = similar(command, name).map(|known| format!("; is `{known}` meant?"));
                return Err(refuse(format!("there is no such key{}", hint.unwrap_or_default())));
            }
        }
        Ok(())
    }
}

/// What clap would propose for a flag of this name.
fn similar(command: &Command, name: &str) -> Option<String> {
    let arguments = ["".to_owned(), format!("--{name}")];
    let error = command.clone().ignore_errors(false).try_get_matches_from(arguments).err()?;
    match error.get(ContextKind::SuggestedArg)? {
        ContextValue::String(flag) => {
            let long = flag.trim_start_matches('-');
            command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(long) && is_configurable(arg))
                .then(|| long.to_owned())
        }
        _ => None,
    }
}

/// The values of one key, each as it would stand on the command line; none for a switch.
fn values(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<Option<OsString>>, String> {
    match (arg.get_action(), value) {
        (ArgAction::SetTrue | ArgAction::SetFalse, DeValue::Boolean(is_on)) => {
            Ok(if *is_on { vec![None] } else { Vec::new() })
        }
        (ArgAction::SetTrue | ArgAction::SetFalse, other) => Err(expected("true or false", other)),
        (ArgAction::Append, DeValue::Array(array)) => {
            array.iter().map(Spanned::get_ref).map(|value| scalar(arg, value).map(Some)).collect()
        }
        (_, other) => Ok(vec![Some(scalar(arg, other)?)]),
    }
}

fn scalar(arg: &Arg, value: &DeValue<'_>) -> Result<OsString, String> {
    match (kind(arg), value) {
        (Kind::Integer, DeValue::Integer(number)) if number.radix() == 10 => Ok(number.as_str().into()),
        (Kind::Integer, DeValue::Integer(number)) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string().into())
            .map_err(|error| error.to_string()),
        (Kind::Number, DeValue::Integer(number)) => Ok(number.as_str().into()),
        (Kind::Number, DeValue::Float(number)) => Ok(number.as_str().into()),
        (Kind::Boolean, DeValue::Boolean(is_on)) => Ok(is_on.to_string().into()),
        (Kind::Text, DeValue::String(text)) => Ok(text.as_ref().into()),
        (Kind::Integer, other) => Err(expected("an integer", other)),
        (Kind::Number, other) => Err(expected("a number", other)),
        (Kind::Boolean, other) => Err(expected("true or false", other)),
        (Kind::Text, other) => Err(expected("a string", other)),
    }
}

fn expected(what: &str, found: &DeValue<'_>) -> String {
    format!(
        "expected {what}, found {} {}",
        if found.is_array() || found.is_integer() { "an" } else { "a" },
        found.type_str()
    )
}

/// What a value is in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Boolean,
    Integer,
    Number,
    Text,
}

/// By what the flag is parsed into.
pub(crate) fn kind(arg: &Arg) -> Kind {
    let parsed = arg.get_value_parser().type_id();
    let is_any_of = |types: &[TypeId]| types.iter().any(|id| parsed == *id);
    let integers = [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<i32>(),
        TypeId::of::<i64>(),
        TypeId::of::<NonZero<u16>>(),
        TypeId::of::<NonZero<u32>>(),
        TypeId::of::<NonZero<u64>>(),
        TypeId::of::<NonZero<usize>>(),
    ];
    if is_any_of(&integers) {
        Kind::Integer
    } else if is_any_of(&[TypeId::of::<f64>(), TypeId::of::<f32>()]) {
        Kind::Number
    } else if is_any_of(&[TypeId::of::<bool>()]) {
        Kind::Boolean
    } else {
        Kind::Text
    }
}
