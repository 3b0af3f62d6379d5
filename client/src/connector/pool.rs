//! Channels for unary calls, one per node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::TransportError;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is asked for a sign of life this often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Makes a connection to `host:port`. An error means that nothing was sent.
pub(super) async fn connect(addr: &str) -> Result<Channel, TransportError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|error| {
        tracing::debug!(addr, %error, "not an address");
        TransportError::NotSent
    })?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await;
    match connected {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => {
            tracing::debug!(addr, error = &error as &dyn std::error::Error, "no connection");
            Err(TransportError::NotSent)
        }
        Err(_) => {
            tracing::debug!(addr, "no connection in time");
            Err(TransportError::NotSent)
        }
    }
}

/// Connections for unary calls; as many as there are nodes.
#[derive(Clone, Default)]
pub(crate) struct ChannelPool(Arc<Mutex<HashMap<String, Channel>>>);

impl ChannelPool {
    pub(crate) async fn channel(&self, addr: &str) -> Result<Channel, TransportError> {
        let known = self.0.lock().get(addr).cloned();
        if let Some(channel) = known {
            return Ok(channel);
        }
        let channel = connect(addr).await?;
        self.0.lock().insert(addr.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Forgets a connection that failed, so that the next one says whether the node can be reached.
    pub(crate) fn forget(&self, addr: &str) {
        self.0.lock().remove(addr);
    }
}
