//! How gRPC gets its connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::{Protocol, Stream, Tls};

type Call = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

/// Makes the connections of a channel, each with the certificates that are right when it begins. Bound them in time.
#[derive(Debug, Clone)]
pub struct Connector(Arc<Tls>);

/// For `Endpoint::connect_with_connector_lazy` of an endpoint whose scheme is `http`.
pub fn connector(tls: Arc<Tls>) -> Connector {
    Connector(tls)
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Call;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Call {
        let tls = Arc::clone(&self.0);
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            // An IPv6 address stands in brackets there, and nowhere else.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(host, stream, Protocol::Grpc).await?))
        })
    }
}
