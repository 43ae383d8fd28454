//! The `arborcast` command: listen, send and register from a shell.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
