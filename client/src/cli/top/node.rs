//! Watches one node by its metrics.

use std::time::{Duration, SystemTime};

use arborcast_client::Address;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::metrics::Sample;
use super::model::Update;
use super::picture::Picture;

/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// What people call it.
fn name(node: &Address) -> String {
    format!("node {node}")
}

/// Says what there is to see until nobody listens any more.
pub(crate) async fn follow(node: Address, updates: mpsc::Sender<Update>) {
    let mut seconds = interval(INTERVAL);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<(Sample, Instant)> = None;
    let mut is_seen = false;
    loop {
        seconds.tick().await;
        let news = match sample(&node).await {
            Err(reason) => {
                is_seen = false;
                vec![Update::Gone { source: name(&node), reason }]
            }
            Ok(sample) => {
                let (at, now) = (SystemTime::now(), Instant::now());
                let earlier = before.as_ref().map(|(sample, at)| (sample, now.duration_since(*at)));
                let picture = Box::new(sample.picture(&name(&node), earlier, at));
                let told = before.as_ref().map(|(before, _)| sample.news(before)).unwrap_or_default();
                let shown = if is_seen { Update::Picture(picture) } else { Update::Began(picture) };
                is_seen = true;
                before = Some((sample, now));
                std::iter::once(shown).chain(told.into_iter().map(|what| Update::Told(at, what))).collect()
            }
        };
        for update in news {
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }
}

/// What a node says, with the rates of one second.
///
/// # Errors
/// In words for people, when it does not answer, or somebody else does.
pub(crate) async fn look(node: &Address) -> Result<Picture, String> {
    let begin = Instant::now();
    let looked = async {
        let first = sample(node).await?;
        tokio::time::sleep_until(begin + INTERVAL).await;
        let second = sample(node).await?;
        Ok(second.picture(&name(node), Some((&first, begin.elapsed())), SystemTime::now()))
    };
    looked.await.map_err(|reason: String| format!("no node at {node}: {reason}"))
}

async fn sample(node: &Address) -> Result<Sample, String> {
    let answer = timeout(ANSWER_TIMEOUT, get(node)).await;
    let text = answer.map_err(|_| "it does not answer in time".to_owned())??;
    Sample::read(&text).map_err(|error| error.to_string())
}

async fn get(node: &Address) -> Result<String, String> {
    let stream = TcpStream::connect((node.host(), node.port())).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let exchange = async {
        let request = Request::get("/metrics").header(header::HOST, node.to_string()).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    };
    // The connection moves the bytes of the exchange, and may end only after its answer.
    let ends = async {
        let ended = connection.await;
        let reason = ended.map_or_else(|error| error.to_string(), |()| "it has closed the connection".to_owned());
        std::future::pending::<()>().await;
        Err(reason)
    };
    tokio::select! {
        biased;
        done = exchange => done,
        ended = ends => ended,
    }
}
