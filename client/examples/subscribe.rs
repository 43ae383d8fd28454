//! Prints every activity, one JSON object a line. Servers that are lost are replaced without a word.
//!
//! `cargo run -p arborcast-client --example subscribe -- HOST:PORT`

use std::env;

use arborcast_client::{Address, Identity, Options, Session};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server: Address = env::args().nth(1).unwrap_or_else(|| "localhost:3780".to_owned()).parse()?;
    let mut session = Session::login(server, &Identity::Anonymous, &Options::default()).await?;
    while let Some(activity) = session.next().await {
        println!("{}", activity?);
    }
    Ok(())
}
