//! The seam to the network: everything a [`Client`](crate::Client) does to data passes through a
//! [`Connector`], so that a simulator can run the same client over a network of its own.

mod grpc;
mod pool;
mod session;

use std::time::Duration;

use futures::future::BoxFuture;
use reelkv_proto::v1;

pub use grpc::GrpcConnector;
pub(crate) use pool::ChannelPool;

/// Carries requests to nodes, named by `host:port`, and their answers back.
///
/// A request is delivered at most once per call: a connector never sends one twice by itself.
pub trait Connector: Send + Sync {
    /// Sends one request and waits for its answer, no longer than `timeout`. An error of the node's
    /// is an answer. The answer has the request's id.
    fn call(
        &self,
        addr: &str,
        request: v1::Request,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::Response, TransportError>>;

    /// The map as the node at `addr` knows it.
    fn directory(&self, addr: &str) -> BoxFuture<'static, Result<v1::Directory, TransportError>>;
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request certainly did not reach the node.
    #[error("the node could not be reached")]
    NotSent,
    /// The request may have been executed; the answer did not come.
    #[error("the connection was lost before the answer came")]
    Lost,
}
