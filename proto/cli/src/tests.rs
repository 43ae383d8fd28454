use std::fs;
use std::path::Path;

use clap::{Parser, Subcommand};
use tempfile::TempDir;

use super::*;

/// A program with a flag of each kind.
#[derive(Debug, Parser)]
#[command(name = "program")]
struct Program {
    /// A number.
    #[arg(long, global = true, default_value_t = 1)]
    port: u16,
    /// A text.
    #[arg(short, long, global = true)]
    name: Option<String>,
    /// Several.
    #[arg(long, global = true, env = "ARBORCAST_MASTERS")]
    master: Vec<String>,
    /// A switch.
    #[arg(long, global = true)]
    fast: bool,
    /// A secret.
    #[arg(short, long, global = true, env = "ARBORCAST_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// A file instead.
    #[arg(long, global = true, conflicts_with = "secret")]
    secret_file: Option<PathBuf>,
    /// Needs another one.
    #[arg(long, requires = "name")]
    shout: bool,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Has flags of its own.
    Listen {
        /// How many.
        #[arg(long)]
        count: Option<u32>,
        /// A word.
        word: Option<String>,
    },
    /// Has none.
    Other,
}

/// The program with a command line, a file, and an environment.
struct Case {
    directory: TempDir,
    environment: Vec<(&'static str, &'static str)>,
}

impl Case {
    fn new(file: &str, environment: &[(&'static str, &'static str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("program.toml"), file).unwrap();
        Self { directory, environment: environment.to_vec() }
    }

    fn file(&self) -> String {
        self.directory.path().join("program.toml").display().to_string()
    }

    fn read(&self, line: &str) -> Result<Program, Ended> {
        let arguments = ["program", "--config", &self.file()].map(OsString::from).into_iter();
        let arguments = arguments.chain(line.split_whitespace().map(OsString::from));
        let variable =
            |name: &str| self.environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        read_with(arguments, variable, |parsed: Parsed<Program>| Ok(parsed.cli))
    }

    /// What is said about a configuration that can't be used, the folder of the file left out.
    #[track_caller]
    fn refusal(&self, line: &str) -> String {
        let ended = self.read(line).unwrap_err();
        assert_eq!(ended.exit_code(), 2, "{ended}");
        ended.to_string().replace(&format!("{}/", self.directory.path().display()), "")
    }
}

/// The value of one flag in every combination of places where it may stand.
#[test]
fn a_flag_comes_before_the_environment_that_before_the_file_and_that_before_the_default() {
    for (flag, variable, file, expected) in [
        (None, None, None, 1),
        (None, None, Some("port = 4"), 4),
        (None, Some("3"), None, 3),
        (None, Some("3"), Some("port = 4"), 3),
        (Some("--port 2"), None, None, 2),
        (Some("--port=2"), None, Some("port = 4"), 2),
        (Some("--port 2"), Some("3"), None, 2),
        (Some("--port 2"), Some("3"), Some("port = 4"), 2),
        (Some("listen --port 2"), Some("3"), Some("port = 4"), 2),
        (None, Some(""), Some("port = 4"), 4),
    ] {
        let environment: Vec<_> = variable.map(|value| ("ARBORCAST_PORT", value)).into_iter().collect();
        let case = Case::new(file.unwrap_or_default(), &environment);
        assert_eq!(case.read(flag.unwrap_or_default()).unwrap().port, expected, "{flag:?} {variable:?} {file:?}");
    }
}

#[test]
fn every_kind_of_flag_can_stand_in_the_file_and_in_the_environment() {
    let file = "port = 0x10\nname = \"n = 1\"\nmaster = [\"a\", \"b\"]\nfast = true\n[listen]\ncount = 7\n";
    let program = Case::new(file, &[]).read("listen word").unwrap();
    assert_eq!((program.port, program.name.as_deref(), program.fast), (16, Some("n = 1"), true));
    assert_eq!(program.master, ["a", "b"]);
    assert!(matches!(program.command, Some(Sub::Listen { count: Some(7), word: Some(_) })));

    let environment = [
        ("ARBORCAST_NAME", "--fast"),
        ("ARBORCAST_MASTERS", "a, b"),
        ("ARBORCAST_FAST", "yes"),
        ("ARBORCAST_LISTEN_COUNT", "7"),
    ];
    let program = Case::new("", &environment).read("listen").unwrap();
    assert_eq!((program.name.as_deref(), program.fast), (Some("--fast"), true));
    assert_eq!(program.master, ["a", "b"]);
    assert!(matches!(program.command, Some(Sub::Listen { count: Some(7), .. })));
    // Off in the environment, on in the file; and a table of another command.
    let case = Case::new("fast = true\n[listen]\ncount = 7", &[("ARBORCAST_FAST", "off")]);
    assert!(!case.read("other").unwrap().fast);
}

/// Flags of a subcommand are added behind its name, and not behind a value that looks like it, nor behind `--`.
#[test]
fn what_is_added_to_a_subcommand_stands_in_its_place() {
    let case = Case::new("[listen]\ncount = 7\n", &[]);
    for line in ["-n listen listen", "listen -n listen", "listen -- --count", "--name=listen --fast listen listen"] {
        let program = case.read(line).unwrap();
        assert!(matches!(program.command, Some(Sub::Listen { count: Some(7), .. })), "{line}");
    }
    let program = case.read("listen --count 8").unwrap();
    assert!(matches!(program.command, Some(Sub::Listen { count: Some(8), .. })));
}

/// What can't stand beside a flag that comes before it doesn't count, rather than be an error.
#[test]
fn of_two_flags_that_rule_each_other_out_the_one_that_comes_first_counts() {
    let secrets = |case: Case, line: &str| {
        let program = case.read(line).unwrap();
        (program.secret.unwrap_or_default(), program.secret_file.unwrap_or_default())
    };
    let nothing = || (String::new(), PathBuf::new());
    let of_file = || Case::new("secret-file = \"f\"", &[]);
    assert_eq!(secrets(of_file(), ""), (String::new(), "f".into()));
    assert_eq!(secrets(of_file(), "-s x"), ("x".into(), PathBuf::new()));
    let both = || Case::new("secret-file = \"f\"", &[("ARBORCAST_SECRET", "e")]);
    assert_eq!(secrets(both(), ""), ("e".into(), PathBuf::new()));
    assert_eq!(secrets(both(), "--secret-file g"), (String::new(), "g".into()));
    assert_eq!(secrets(Case::new("", &[]), ""), nothing());
    let refusal = Case::new("secret-file = \"f\"\nsecret = \"x\"", &[]).refusal("");
    assert!(refusal.contains("program.toml:") && refusal.contains("cannot be used with"), "{refusal}");
}

/// A file that says nothing useful: each is named with its line and its key.
#[test]
fn what_is_wrong_is_said_with_file_line_and_key() {
    for (file, hints) in [
        ("\nprot = 5\n", &["program.toml:2: prot: there is no such key; is `port` meant?"][..]),
        ("[listen]\ncuont = 5", &["program.toml:2: cuont: ", "`count`"]),
        ("[lisen]\ncount = 5", &["program.toml:1: lisen: there is no such key"]),
        ("[listen]\nport = 5", &["program.toml:2: port: there is no such key"]),
        ("listen = 5", &["program.toml:1: listen: "]),
        ("config = \"x\"", &["program.toml:1: config: there is no such key"]),
        ("help = true", &["program.toml:1: help: there is no such key"]),
        ("port = \"5\"", &["program.toml:1: port: expected an integer, found a string"]),
        ("port = 70000", &["program.toml:1: port: invalid value '70000'", "0..=65535"]),
        ("port = -1", &["program.toml:1: port: invalid value '-1'"]),
        ("port = [1]", &["program.toml:1: port: expected an integer, found an array"]),
        ("name = 5", &["program.toml:1: name: expected a string, found an integer"]),
        ("name = 1979-05-27", &["program.toml:1: name: expected a string"]),
        ("fast = \"yes\"", &["program.toml:1: fast: expected true or false, found a string"]),
        ("master = [\"a\", 5]", &["program.toml:1: master: expected a string"]),
        ("[listen]\ncount = \"many\"", &["program.toml:2: count: expected an integer"]),
        ("name = \"a\"\nname = \"b\"", &["program.toml:2: ", "duplicate key"]),
        ("port = 5\nname = \"half wri", &["program.toml:2: name: "]),
        ("port = 5\nname =", &["program.toml:2: name: "]),
        ("port", &["program.toml:1: "]),
        ("port = 5\n[listen", &["program.toml:2: "]),
        ("shout = true", &["--name"]),
    ] {
        let refusal = Case::new(file, &[]).refusal("");
        for hint in hints {
            assert!(refusal.contains(hint), "{file:?}: {refusal}");
        }
    }
}

#[test]
fn a_variable_that_cannot_be_used_is_named() {
    for (variable, value, hint) in [
        ("ARBORCAST_PORT", "x", "ARBORCAST_PORT: port: invalid value 'x'"),
        ("ARBORCAST_FAST", "maybe", "ARBORCAST_FAST: expected true or false"),
        ("ARBORCAST_CONFIG", "/nowhere/at/all", ""),
    ] {
        let case = Case::new("", &[(variable, value)]);
        // The flag comes before the variable for the name of the file, too.
        if hint.is_empty() {
            case.read("").unwrap();
        } else {
            let refusal = case.refusal("");
            assert!(refusal.contains(hint), "{refusal}");
        }
    }
}

#[test]
fn a_file_that_is_none_is_refused() {
    let read = |path: &Path| {
        let arguments = [OsString::from("program")];
        let ended = read_with(
            arguments,
            |name| (name == CONFIG_VARIABLE).then(|| path.into()),
            |parsed: Parsed<Program>| Ok(parsed.cli),
        );
        ended.unwrap_err().to_string()
    };
    assert!(read(Path::new("/nowhere/at/all")).contains("/nowhere/at/all: cannot be opened"));
    assert!(read(Path::new("/dev/zero")).contains("/dev/zero: is longer than"));
    let directory = tempfile::tempdir().unwrap();
    assert!(read(directory.path()).contains("cannot be read"));
    let path = directory.path().join("latin1");
    fs::write(&path, b"name = \"\xe9\"").unwrap();
    assert!(read(&path).contains("cannot be read"));
}

/// What is wrong on the command line is said as it would be without all this.
#[test]
fn the_command_line_keeps_its_errors() {
    for line in
        ["--port x", "--frobnicate", "--shout", "--secret", "nonsense", "-s x --secret-file y", "listen --count x"]
    {
        let arguments = std::iter::once("program").chain(line.split(' '));
        let expected = with_generators(with_configuration(Program::command()))
            .try_get_matches_from(arguments.clone())
            .unwrap_err();
        let ended = read_with(arguments.map(OsString::from), |_| None, |parsed: Parsed<Program>| Ok(parsed.cli));
        assert_eq!(ended.unwrap_err().to_string(), expected.to_string(), "{line}");
    }
}

#[test]
fn a_check_says_that_all_can_be_used_and_runs_nothing() {
    let case = Case::new("port = 5", &[]);
    let ended = case.read("--check-config").unwrap_err();
    assert_eq!((ended.exit_code(), ended.to_string().as_str()), (0, "the configuration can be used\n"));
    let arguments = ["program", "--check-config"].map(OsString::from);
    let ended = read_with(
        arguments,
        |_| None,
        |parsed: Parsed<Program>| {
            assert_eq!(parsed.purpose, Purpose::Check);
            Err::<(), _>(Program::command().error(ErrorKind::ValueValidation, "no good"))
        },
    );
    assert_eq!(ended.unwrap_err().exit_code(), 2);
}

#[test]
fn what_is_printed_says_where_it_comes_from_hides_secrets_and_can_be_used_as_a_file() {
    let file = "port = 5\nmaster = [\"a\\\\\", \"b\\\"\"]\n[listen]\ncount = 7\n";
    let case = Case::new(file, &[("ARBORCAST_SECRET", "hush"), ("ARBORCAST_FAST", "1")]);
    let printed = case.read("--print-config -n me listen").unwrap_err();
    assert_eq!(printed.exit_code(), 0);
    let printed = printed.to_string();
    let expected = format!(
        "port = 5  # {file}:1\nname = \"me\"  # command line\nmaster = [\"a\\\\\", \"b\\\"\"]  # {file}:2\n\
         fast = true  # ARBORCAST_FAST\n# secret = \"***\"  # ARBORCAST_SECRET\n# secret-file =\nshout = false  # default\n\
         \n[listen]\ncount = 7  # {file}:4\n",
        file = case.file()
    );
    assert_eq!(printed, expected);
    let again = Case::new(&printed, &[]).read("listen").unwrap();
    assert_eq!((again.port, again.name.as_deref(), again.fast, again.secret), (5, Some("me"), true, None));
    assert_eq!(again.master, ["a\\", "b\""]);
}

#[test]
fn completions_and_man_pages_know_all_flags() {
    let case = Case::new("", &[]);
    for shell in ["bash", "zsh", "fish"] {
        let script = case.read(&format!("--generate-completions {shell}")).unwrap_err().to_string();
        for word in ["secret-file", "check-config", "listen", "count"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.contains("generate-man"), "{shell}");
    }
    let directory = case.directory.path().join("man");
    let ended = case.read(&format!("--generate-man {}", directory.display())).unwrap_err();
    assert_eq!((ended.exit_code(), ended.to_string().as_str()), (0, ""));
    let page = fs::read_to_string(directory.join("program.1")).unwrap();
    assert!(page.contains("secret\\-file") && page.contains("check\\-config"), "{page}");
    assert!(fs::read_to_string(directory.join("program-listen.1")).unwrap().contains("count"));
    let refusal = case.refusal(&format!("--generate-man {}/x", case.file()));
    assert!(refusal.contains("cannot write man pages"), "{refusal}");
}
