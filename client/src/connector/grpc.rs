//! The connector of real life: sessions over gRPC.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{self, BoxFuture, FutureExt};
use parking_lot::Mutex;
use reelkv_proto::v1;
use reelkv_proto::v1::admin_client::AdminClient;
use tokio::time::Instant;

use super::pool::ChannelPool;
use super::session::Session;
use super::{Connector, TransportError};
use crate::limits::MESSAGE_BYTES_MAX;

/// First and longest wait before a node that could not be reached is tried again.
const RECONNECT_FIRST: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// How long a node may take to send its map.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries requests over gRPC: one pipelined session stream per node, over a connection of its own.
#[derive(Clone, Default)]
pub struct GrpcConnector {
    links: Arc<Mutex<HashMap<String, Link>>>,
    pool: ChannelPool,
}

/// The way to one node. At most one session is open; after a failure the next waits for its time.
#[derive(Default)]
struct Link {
    session: Option<Arc<Session>>,
    failures: u32,
}

impl GrpcConnector {
    /// A connector without connections; they are made when they are needed.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with_pool(pool: ChannelPool) -> Self {
        Self {
            pool,
            ..Self::default()
        }
    }

    fn session(&self, addr: &str) -> Result<Arc<Session>, TransportError> {
        let mut links = self.links.lock();
        if !links.contains_key(addr) {
            links.insert(addr.to_owned(), Link::default());
        }
        let link = links.get_mut(addr).ok_or(TransportError::NotSent)?;
        if let Some(session) = &link.session {
            let Some(end) = session.end() else {
                return Ok(session.clone());
            };
            let failures = if end.was_useful { 0 } else { link.failures + 1 };
            let wait = match failures {
                0 => Duration::ZERO,
                _ => (RECONNECT_FIRST * (1 << failures.min(10))).min(RECONNECT_MAX),
            };
            if Instant::now() < end.at + wait {
                return Err(TransportError::NotSent);
            }
            link.failures = failures;
        }
        let session = Session::open(addr);
        link.session = Some(session.clone());
        Ok(session)
    }
}

impl Connector for GrpcConnector {
    fn call(
        &self,
        addr: &str,
        request: v1::Request,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::Response, TransportError>> {
        match self.session(addr) {
            Ok(session) => async move { session.call(request, timeout).await }.boxed(),
            Err(error) => future::ready(Err(error)).boxed(),
        }
    }

    fn directory(&self, addr: &str) -> BoxFuture<'static, Result<v1::Directory, TransportError>> {
        let (pool, addr) = (self.pool.clone(), addr.to_owned());
        async move {
            let channel = pool.channel(&addr).await?;
            let mut admin = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let asked = admin.get_directory(v1::GetDirectoryRequest { newer_than: 0 });
            let error = match tokio::time::timeout(DIRECTORY_TIMEOUT, asked).await {
                Ok(Ok(directory)) => return Ok(directory.into_inner()),
                Ok(Err(status)) => status.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            tracing::debug!(addr, error, "no directory");
            pool.forget(&addr);
            Err(TransportError::Lost)
        }
        .boxed()
    }
}
