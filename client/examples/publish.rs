//! Publishes one activity as anonymous, and ends when no single server can lose it.
//!
//! `cargo run -p arborcast-client --example publish -- HOST:PORT '{"verb":"waves"}'`

use std::env;

use arborcast_client::{Activity, Address, Identity, Options, Session};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let server: Address = arguments.next().unwrap_or_else(|| "localhost:3780".to_owned()).parse()?;
    let activity = Activity::parse(&arguments.next().unwrap_or_else(|| r#"{"verb":"waves"}"#.to_owned()))?;
    // What arrives is of no interest here, and without a subscriber it is thrown away.
    let (publisher, _) = Session::login(server, &Identity::Anonymous, &Options::default()).await?.split();
    publisher.publish(&activity).await?;
    publisher.flush().await?;
    Ok(publisher.logout().await?)
}
