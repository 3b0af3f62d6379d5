//! The options of a client.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{Client, Shared};
use crate::connector::{ChannelPool, Connector, GrpcConnector};
use crate::error::{Error, Result};
use crate::routing::Addr;

/// How long a call may take when nobody says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

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

    /// Connects; see [`Client::connect`]. `InvalidArgument` when no address was given.
    pub async fn build(self) -> Result<Client> {
        let seeds = checked(self.addrs)?;
        let timeout = self.timeout.unwrap_or(TIMEOUT_DEFAULT);
        let pool = ChannelPool::default();
        let over_grpc = || Arc::new(GrpcConnector::with_pool(pool.clone())) as Arc<dyn Connector>;
        let connector = self.connector.unwrap_or_else(over_grpc);
        let shared = Shared::new(
            connector,
            pool,
            seeds,
            timeout,
            self.seed.unwrap_or_else(random_seed),
        );
        if !self.lazy {
            shared.fetch_directory(Instant::now() + timeout, || true).await?;
        }
        Ok(Client { shared })
    }
}

/// The door to chance: everything random in a client comes from this seed.
#[allow(clippy::disallowed_methods)]
fn random_seed() -> u64 {
    rand::random()
}

fn checked(addrs: Vec<String>) -> Result<Vec<Addr>> {
    if addrs.is_empty() {
        return Err(Error::invalid("addrs", "no address of a node was given"));
    }
    let has_port = |addr: &str| {
        let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        port.is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    };
    match addrs.iter().find(|addr| !has_port(addr)) {
        Some(addr) => Err(Error::invalid(
            "addrs",
            format!("{addr:?} is not of the form host:port"),
        )),
        None => Ok(addrs.iter().map(|addr| Addr::from(addr.as_str())).collect()),
    }
}
