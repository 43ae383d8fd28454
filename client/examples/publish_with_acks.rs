//! Publishes a thousand activities, and ends when no single server can lose any of them; kill servers meanwhile.
//!
//! `cargo run -p arborcast-client --example publish_with_acks -- SERVER [SERVER...]`, each as `HOST:PORT`.

use std::time::Duration;

use arborcast_client::{Activity, Identity, Options, Servers, Session};
use tokio::time::interval;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addresses = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let servers = Servers { addresses, masters: Vec::new() };
    // Without a subscriber what arrives is thrown away, and need not be taken.
    let (publisher, _) = Session::login(servers, &Identity::Anonymous, &Options::default()).await?.split();
    let publishing = async {
        for number in 0..1000 {
            // Waits while too many are on their way, and while there is no server.
            publisher.publish(&Activity::parse(&format!(r#"{{"number":{number}}}"#))?).await?;
        }
        publisher.flush().await?;
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    let watching = async {
        let mut ticks = interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            println!("{} of {} acknowledged, at {}", publisher.taken(), publisher.published(), publisher.server());
        }
    };
    tokio::select! {
        published = publishing => published?,
        () = watching => {}
    }
    println!("all {} acknowledged", publisher.taken());
    Ok(publisher.logout().await?)
}
