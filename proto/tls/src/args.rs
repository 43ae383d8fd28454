//! The flags of a server.

use std::path::PathBuf;

use crate::{Identity, Settings, Trust};

/// What a server is told about TLS.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// This server's certificate, and those between it and the authority: a file of PEM. With it TLS is taken at the
    /// port where plain connections are
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authority of this tree's certificates: a server that comes over TLS must show one of it, and a node's
    /// connections to other servers and to masters are TLS
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

impl Args {
    /// The settings of a server that others know by this name; `None` where TLS was not asked for.
    pub fn settings(self, name: Option<String>) -> Option<Settings> {
        let Self { tls_cert, tls_key, tls_ca } = self;
        let identity = tls_cert.zip(tls_key).map(|(certificate, key)| Identity { certificate, key });
        let trust = tls_ca.map_or(Trust::Nobody, Trust::Authority);
        (identity.is_some() || trust != Trust::Nobody).then_some(Settings { identity, trust, name })
    }
}
