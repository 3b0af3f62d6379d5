//! The client library's side of the simulated network.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reelkv_client::{Connector, TransportError};
use reelkv_proto::v1;

use super::Network;

/// Carries the requests of a real client over the simulated network.
pub struct SimConnector {
    network: Network,
}

impl SimConnector {
    /// Over this network.
    pub fn new(network: Network) -> Self {
        Self { network }
    }
}

impl Connector for SimConnector {
    fn call(
        &self,
        addr: &str,
        request: v1::Request,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::Response, TransportError>> {
        let (network, addr) = (self.network.clone(), addr.to_owned());
        async move {
            // What is lost on the way says nothing at all; what finds nobody there is told at once.
            if network.node(&addr).is_none() {
                return Err(TransportError::NotSent);
            }
            match tokio::time::timeout(timeout, network.request(&addr, request)).await {
                Ok(Some(response)) => Ok(response),
                Ok(None) | Err(_) => Err(TransportError::Lost),
            }
        }
        .boxed()
    }

    fn directory(&self, addr: &str) -> BoxFuture<'static, Result<v1::Directory, TransportError>> {
        let (network, addr) = (self.network.clone(), addr.to_owned());
        async move { network.directory(&addr).await.ok_or(TransportError::Lost) }.boxed()
    }
}
