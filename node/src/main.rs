//! `arborcast-node`: reads the command line, runs one node, and says how it ended.

use std::io::{self, Write as _};
use std::process::ExitCode;

use arborcast_cli::{logging, open_files, say};
use arborcast_node::cli::{Cli, Parsed};
use arborcast_node::import::import_users;
use arborcast_node::{NodeError, Server};
use arborcast_serve::shutdown::StopSignals;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Some users could not be brought to the masters, since their names are others' there.
const CONFLICTS: u8 = 3;

fn main() -> ExitCode {
    let parsed = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    logging::start(parsed.log_format);
    // Where the operating system does not let us have more files we do with those it gives.
    match open_files::make_room(parsed.settings.bounds.max_connections) {
        Ok(limit) => debug!(limit, "open files"),
        Err(error) => debug!(%error, "can't raise the limit of open files"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) if parsed.imports_users => runtime.block_on(import(parsed)),
        Ok(runtime) => runtime.block_on(run(parsed)).map(|()| ExitCode::SUCCESS),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "arborcast-node: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Parsed { settings, made_secret, .. }: Parsed) -> Result<(), Box<dyn std::error::Error>> {
    let signals = StopSignals::install()?;
    let stop = CancellationToken::new();
    let forwarder = tokio::spawn(signals.forward(stop.clone()));
    let outcome = async {
        let server = tokio::select! {
            () = stop.cancelled() => return Ok::<(), NodeError>(()),
            server = Server::start(settings) => server?,
        };
        if let Some(secret) = made_secret {
            say(&format!("secret: {}", secret.expose()));
        }
        if let Some(address) = server.http_address() {
            say(&format!("http on {address}"));
        }
        say(&format!("listening on {}", server.address()));
        server.run(stop.clone()).await
    };
    let outcome = outcome.await;
    forwarder.abort();
    Ok(outcome?)
}

/// Brings users to the masters. Names that are others' there stand on standard output.
async fn import(Parsed { settings, .. }: Parsed) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let tell = |line: &str| drop(writeln!(io::stderr(), "{line}"));
    let imported = import_users(settings, |done, all| tell(&format!("{done} of {all} users"))).await?;
    for name in &imported.conflicts {
        say(&format!("conflict: {name}"));
    }
    tell(&format!("the masters have {} users of this directory", imported.users));
    if imported.conflicts.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    tell(&format!("{} names are there with other credentials, and were left as they are", imported.conflicts.len()));
    Ok(ExitCode::from(CONFLICTS))
}
