//! `arborcast register`.

use std::io::{self, Write as _};

use arborcast_client::{Credentials, register};

use super::args::{Args, random_secret};
use super::failure::Failure;
use super::output::say;

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let (username, secret) = args.user()?.ok_or(Failure::NoUsername)?;
    let servers = args.servers()?;
    let secret = match secret {
        Some(secret) => secret,
        None => {
            let secret = random_secret();
            // Before the name is taken: were its secret lost on the way, so would be the name.
            writeln!(io::stdout(), "{}", secret.expose()).map_err(Failure::Output)?;
            secret
        }
    };
    let info = register(servers, &Credentials { username, secret }, &args.options()).await?;
    say(info.replace(char::is_control, "\u{fffd}"));
    Ok(())
}
