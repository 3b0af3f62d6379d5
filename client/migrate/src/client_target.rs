//! The store itself as a target of import and verification.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};
use reelkv_client::{Client, CreateKeyspace, Error, ErrorKind, Keyspace, ScanRange};
use tokio::time::Instant;

use crate::target::{Row, ScanPage, Target, TargetResult};

/// Puts that one `put_many` has under way; the client gathers them into session messages.
const PUTS_IN_FLIGHT: usize = 256;

/// Scan pages are about this large.
const PAGE_BYTES: u32 = 1 << 20;

/// How long one call tries again before it gives up: an election or a restart is no reason to end an import.
const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(200);

/// Writes and reads through a [`Client`], trying again for a minute what may succeed later.
pub struct ClientTarget {
    client: Client,
    open: Mutex<HashMap<String, Keyspace>>,
}

impl ClientTarget {
    /// A target on a connected client.
    pub fn new(client: Client) -> ClientTarget {
        ClientTarget {
            client,
            open: Mutex::default(),
        }
    }

    async fn keyspace(&self, name: &str) -> Result<Keyspace, Error> {
        if let Some(keyspace) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(keyspace.clone());
        }
        let keyspace = patiently(|| self.client.keyspace(name)).await?;
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), keyspace.clone());
        Ok(keyspace)
    }

    async fn exists(&self, name: &str) -> Result<bool, Error> {
        match self.keyspace(name).await {
            Ok(_) => Ok(true),
            Err(error) if *error.kind() == ErrorKind::UnknownKeyspace => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn ensure(&self, name: &str, split_keys: Vec<Bytes>) -> Result<(), Error> {
        if self.exists(name).await? {
            return Ok(());
        }
        // Without split keys one piece: left open, the cluster would cut the range evenly, which helps no tuple.
        let options = CreateKeyspace {
            shards: split_keys.is_empty().then_some(1),
            split_keys,
        };
        let made = patiently(|| async {
            match self.client.create_keyspace(name, options.clone()).await {
                // Someone else made it, or an earlier try of ours did.
                Err(error) if *error.kind() == ErrorKind::AlreadyExists => Ok(None),
                other => other.map(Some),
            }
        });
        if let Some(keyspace) = made.await? {
            self.open
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(name.to_owned(), keyspace);
        }
        Ok(())
    }

    async fn put_all(&self, name: &str, rows: Vec<Row>) -> Result<(), Error> {
        let keyspace = &self.keyspace(name).await?;
        let puts = rows.into_iter().map(|(key, value)| async move {
            patiently(|| keyspace.put(&key, value.clone())).await.map(drop)
        });
        stream::iter(puts)
            .buffer_unordered(PUTS_IN_FLIGHT)
            .try_collect()
            .await
    }

    async fn page(&self, name: &str, from: Bytes, until: Option<Bytes>) -> Result<ScanPage, Error> {
        let keyspace = self.keyspace(name).await?;
        // No limit in rows: to the client that is the end of the scan, not of a page.
        let range = ScanRange::between(from, until.unwrap_or_default()).page_bytes(PAGE_BYTES);
        let page = patiently(|| keyspace.scan_page(range.clone())).await?;
        let rows = page
            .records
            .into_iter()
            .map(|record| (record.key, record.value))
            .collect();
        Ok(ScanPage {
            rows,
            next: page.rest.map(|rest| rest.start),
        })
    }
}

/// Does it again while that may help. What is done here may be done twice: it writes the same bytes to the same key.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(attempt: impl Fn() -> F) -> Result<T, Error> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let pause = match error.kind() {
            ErrorKind::Busy { retry_after } => *retry_after,
            ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => PAUSE,
            _ => return Err(error),
        };
        if Instant::now() + pause >= give_up {
            return Err(error);
        }
        tracing::debug!(%error, "the store did not do it; trying again");
        tokio::time::sleep(pause).await;
    }
}

impl Target for ClientTarget {
    fn ensure_keyspace<'a>(
        &'a self,
        name: &'a str,
        split_keys: Vec<Bytes>,
    ) -> BoxFuture<'a, TargetResult<()>> {
        async move { Ok(self.ensure(name, split_keys).await?) }.boxed()
    }

    fn keyspace_exists<'a>(&'a self, name: &'a str) -> BoxFuture<'a, TargetResult<bool>> {
        async move { Ok(self.exists(name).await?) }.boxed()
    }

    fn put_many<'a>(&'a self, keyspace: &'a str, rows: Vec<Row>) -> BoxFuture<'a, TargetResult<()>> {
        async move { Ok(self.put_all(keyspace, rows).await?) }.boxed()
    }

    fn scan<'a>(
        &'a self,
        keyspace: &'a str,
        from: Bytes,
        until: Option<Bytes>,
        _limit: usize,
    ) -> BoxFuture<'a, TargetResult<ScanPage>> {
        async move { Ok(self.page(keyspace, from, until).await?) }.boxed()
    }

    fn get<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<Option<Bytes>>> {
        async move {
            let keyspace = self.keyspace(keyspace).await?;
            let record = patiently(|| keyspace.get(&key)).await?;
            Ok(record.map(|record| record.value))
        }
        .boxed()
    }

    fn delete<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<()>> {
        async move {
            let keyspace = self.keyspace(keyspace).await?;
            patiently(|| keyspace.delete(&key)).await?;
            Ok(())
        }
        .boxed()
    }
}
