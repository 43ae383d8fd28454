//! Prints every activity, for ever: whatever happens to servers, it goes on at another one and says what is missing.
//!
//! `cargo run -p arborcast-client --example listen_and_reconnect -- MASTER [MASTER...]`, each as `HOST:PORT`.

use arborcast_client::address::DEFAULT_MASTER_PORT;
use arborcast_client::{Address, Event, Identity, Options, Servers, Session};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let masters = std::env::args().skip(1).map(|text| Address::parse(&text, DEFAULT_MASTER_PORT));
    let servers = Servers { addresses: Vec::new(), masters: masters.collect::<Result<_, _>>()? };
    let mut session = Session::login(servers, &Identity::Anonymous, &Options::default()).await?;
    while let Some(event) = session.next_event().await {
        match event? {
            Event::Activities(batch) => batch.iter().for_each(|activity| println!("{activity}")),
            Event::Lost { error, .. } => eprintln!("{error}"),
            Event::Reconnected { server, after, is_resumed: true } => {
                eprintln!("at {server} after {after:?}; what was missed follows");
            }
            Event::Reconnected { server, after, is_resumed: false } => {
                eprintln!("at {server} after {after:?}; what was published meanwhile may be missing");
            }
            Event::Gap { origin, missing } => eprintln!("at least {missing} activities of {origin} are lost"),
        }
    }
    Ok(())
}
