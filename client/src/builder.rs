//! The options of a client.

use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::connector::Connector;
use crate::error::Result;

/// Options of a [`Client`].
#[derive(Default)]
pub struct ClientBuilder {
    addrs: Vec<String>,
    timeout: Option<Duration>,
    connector: Option<Arc<dyn Connector>>,
    seed: Option<u64>,
    lazy: bool,
}

impl ClientBuilder {
    /// Nodes to begin with, each `host:port`; the others are learned from them.
    pub fn addrs(mut self, addrs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.addrs.extend(addrs.into_iter().map(Into::into));
        self
    }

    /// How long a call may take, all its tries included; 10 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Another network than gRPC, for simulation. Admin calls other than the directory still use gRPC.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = Some(connector);
        self
    }

    /// Seed of the back-off's jitter, so that a simulated run can be repeated; random by default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Do not contact a node in `build`, but when the first call needs one.
    pub fn lazy(mut self) -> Self {
        self.lazy = true;
        self
    }

    /// Connects; see [`Client::connect`].
    pub async fn build(self) -> Result<Client> {
        let _ = (self.addrs, self.timeout, self.connector, self.seed, self.lazy);
        todo!()
    }
}
