//! `arborcast listen`.

use arborcast_client::Session;

use super::args::Args;
use super::failure::Failure;
use super::interrupt::Interrupt;
use super::output::print;

pub(crate) async fn run(args: &Args, count: Option<usize>) -> Result<(), Failure> {
    let session = Session::login(args.servers()?, &args.identity()?, &args.options()).await?;
    let mut interrupt = Interrupt::new()?;
    let (publisher, subscriber) = session.split();
    tokio::select! {
        printed = print(subscriber, count) => printed?,
        _ = interrupt.wait() => {}
    }
    // All that was asked for is done, whether or not the server says good-bye.
    let _ = publisher.logout().await;
    Ok(())
}
