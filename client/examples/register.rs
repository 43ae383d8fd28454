//! Registers a user, logs in as it on the same connection, and says hello under its name.
//!
//! `cargo run -p arborcast-client --example register -- HOST:PORT USERNAME SECRET`

use std::env;

use arborcast_client::{Activity, Address, Credentials, Error, Identity, Options, Session};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [server, username, secret] = arguments.as_slice() else {
        return Err("usage: register HOST:PORT USERNAME SECRET".into());
    };
    let server: Address = server.parse()?;
    let user = Credentials { username: username.clone(), secret: secret.as_str().into() };
    let options = Options::default();
    let session = match Session::register(server.clone(), &user, &options).await {
        // The name is taken: if it is ours, its secret lets us in.
        Err(Error::RegisterFailed { .. }) => Session::login(server, &Identity::User(user), &options).await?,
        registered => registered?,
    };
    session.publish(&Activity::parse(r#"{"verb":"says","object":"hello"}"#)?).await?;
    session.flush().await?;
    println!("{username} has said hello");
    Ok(session.logout().await?)
}
