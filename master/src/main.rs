//! `arborcast-master`: reads the command line, runs one master, and says how it ended.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use arborcast_cli::{logging, open_files, say};
use arborcast_master::cli::{Cli, Parsed};
use arborcast_master::http::Page;
use arborcast_master::{connections, listen, secured, serve_with_page};
use arborcast_serve::shutdown::StopSignals;
use arborcast_tls::{Acceptor, Protocol, Tls, hangups, reload_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

fn main() -> ExitCode {
    let parsed = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    logging::start(parsed.log_format);
    // Where the operating system does not let us have more files we do with those it gives.
    match open_files::make_room(parsed.settings.bounds.connections) {
        Ok(limit) => debug!(limit, "open files"),
        Err(error) => debug!(%error, "can't raise the limit of open files"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(parsed)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "arborcast-master: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(
    Parsed { host, port, http, peer_pages, settings, tls, require_tls, .. }: Parsed,
) -> Result<(), Box<dyn std::error::Error>> {
    let tls = tls.map(Tls::load).transpose()?.map(Arc::new).filter(|tls| tls.is_offered());
    let acceptor = tls.map(|tls| Acceptor {
        tls,
        protocol: Protocol::Grpc,
        requires_tls: require_tls,
        patience: settings.bounds.handshake_timeout,
        handshakes: Arc::default(),
    });
    let signals = StopSignals::install()?;
    let stop = CancellationToken::new();
    let forwarder = tokio::spawn(signals.forward(stop.clone()));
    let page = match http {
        Some((host, port)) => {
            let page = Page::bind(&host, port, peer_pages).await?;
            say(&format!("http on {}", page.address()?));
            Some(match acceptor.clone() {
                Some(acceptor) => page.over_tls(acceptor),
                None => page,
            })
        }
        None => None,
    };
    let listener = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        listener = listen(&host, port) => listener?,
    };
    say(&format!("listening on {}", listener.local_addr()?));
    let outcome = match acceptor {
        None => serve_with_page(connections(listener), settings, page, stop).await,
        Some(acceptor) => {
            let reloader = tokio::spawn(reload_at(hangups()?, Arc::clone(&acceptor.tls)));
            let outcome = serve_with_page(secured(connections(listener), acceptor), settings, page, stop).await;
            reloader.abort();
            outcome
        }
    };
    forwarder.abort();
    Ok(outcome?)
}
