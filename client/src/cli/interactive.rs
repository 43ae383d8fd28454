//! `arborcast` without a command: prints what arrives, sends what is typed.

use std::io::{self, Write as _};

use arborcast_client::{Credentials, Error, Publisher, Session};
use tokio_util::sync::CancellationToken;

use super::args::{Args, random_secret};
use super::failure::Failure;
use super::input::Lines;
use super::interrupt::Interrupt;
use super::output::{print, say};

pub(crate) async fn run(args: &Args) -> Result<(), Failure> {
    let (publisher, subscriber) = join(args).await?.split();
    let mut interrupt = Interrupt::new()?;
    let no_reader = CancellationToken::new();
    let printing = async {
        let printed = print(subscriber, None).await;
        no_reader.cancel();
        printed
    };
    let typing = async {
        let sent = send_lines(&publisher, &no_reader).await;
        // All is taken or failed by now, whether or not the server says good-bye.
        let _ = publisher.logout().await;
        sent
    };
    tokio::select! {
        // The order matters: when the session ends both fail, and this says it once.
        (printed, typed) = async { tokio::join!(printing, typing) } => printed.and(typed),
        _ = interrupt.wait() => {
            let _ = publisher.logout().await;
            Ok(())
        }
    }
}

/// Logs in; a user without a secret is registered first.
pub(super) async fn join(args: &Args) -> Result<Session, Failure> {
    let (servers, options) = (args.servers()?, args.options());
    if let Some((username, None)) = args.user()? {
        let secret = random_secret();
        // Before the name is taken: were its secret lost on the way, so would be the name.
        let _ = writeln!(io::stderr(), "secret: {}", secret.expose());
        return Ok(Session::register(servers, &Credentials { username, secret }, &options).await?);
    }
    Ok(Session::login(servers, &args.identity()?, &options).await?)
}

/// Sends every line until the input ends or nobody reads the output, and waits until all is acknowledged.
async fn send_lines(publisher: &Publisher, no_reader: &CancellationToken) -> Result<(), Failure> {
    let mut lines = Lines::of_stdin();
    while let Some(Some(line)) = no_reader.run_until_cancelled(lines.next()).await.transpose()? {
        let sent = match line.activity {
            Err(reason) => Err(format!("it is {reason}")),
            Ok(activity) => match publisher.publish(&activity).await {
                Err(error @ Error::TooLong { .. }) => Err(error.to_string()),
                sent => Ok(sent?),
            },
        };
        if let Err(reason) = sent {
            say(format_args!("line {} was not sent: {reason}", line.number));
        }
    }
    Ok(publisher.flush().await?)
}
