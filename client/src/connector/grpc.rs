//! The connector of real life: sessions over gRPC.

use std::time::Duration;

use futures::future::BoxFuture;
use reelkv_proto::v1;

use super::{Connector, TransportError};

/// Carries requests over gRPC: one pipelined session stream per node.
#[derive(Clone, Default)]
pub struct GrpcConnector {}

impl GrpcConnector {
    /// A connector without connections; they are made when they are needed.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Connector for GrpcConnector {
    fn call(
        &self,
        addr: &str,
        request: v1::Request,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::Response, TransportError>> {
        let _ = (addr, request, timeout);
        todo!()
    }

    fn directory(&self, addr: &str) -> BoxFuture<'static, Result<v1::Directory, TransportError>> {
        let _ = addr;
        todo!()
    }
}
