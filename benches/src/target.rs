//! What is put under load.

use bytes::Bytes;
use reelkv_client::{ErrorKind, Keyspace, ScanRange};

/// A store, as one client uses it.
#[derive(Clone)]
pub enum Target {
    ReelKv(Keyspace),
    #[cfg(feature = "peers")]
    Etcd(Box<etcd_client::KvClient>),
    #[cfg(feature = "peers")]
    Postgres(std::sync::Arc<PostgresSession>),
    #[cfg(feature = "peers")]
    Redis(redis::aio::MultiplexedConnection),
}

/// A connection to PostgreSQL with what it has prepared.
#[cfg(feature = "peers")]
pub struct PostgresSession {
    pub client: tokio_postgres::Client,
    /// `$1` key, `$2` value.
    pub put: tokio_postgres::Statement,
    /// `$1` key.
    pub get: tokio_postgres::Statement,
    /// `$1` first key, `$2` number of records.
    pub scan: tokio_postgres::Statement,
}

/// As long as those of the figures for peers.
pub type Key = [u8; 16];

/// What one operation ended with; a failure is named by its kind.
pub type Done = Result<(), String>;

impl Target {
    pub async fn put(&mut self, key: Key, value: Bytes) -> Done {
        match self {
            Self::ReelKv(keyspace) => keyspace
                .put(key, value)
                .await
                .map(drop)
                .map_err(|error| kind_of(&error)),
            #[cfg(feature = "peers")]
            Self::Etcd(kv) => kv.put(key, value, None).await.map(drop).map_err(said),
            #[cfg(feature = "peers")]
            Self::Postgres(session) => session
                .client
                .execute(&session.put, &[&&key[..], &&value[..]])
                .await
                .map(drop)
                .map_err(said),
            #[cfg(feature = "peers")]
            Self::Redis(connection) => redis::cmd("SET")
                .arg(&key[..])
                .arg(&value[..])
                .query_async::<()>(connection)
                .await
                .map_err(said),
        }
    }

    /// Linearizable; the key must be there.
    pub async fn get(&mut self, key: Key) -> Done {
        let is_there = match self {
            Self::ReelKv(keyspace) => keyspace
                .get(key)
                .await
                .map_err(|error| kind_of(&error))?
                .is_some(),
            #[cfg(feature = "peers")]
            Self::Etcd(kv) => !kv.get(key, None).await.map_err(said)?.kvs().is_empty(),
            #[cfg(feature = "peers")]
            Self::Postgres(session) => {
                let rows = session.client.query(&session.get, &[&&key[..]]).await;
                rows.map_err(said)?
                    .first()
                    .is_some_and(|row| row.try_get::<_, &[u8]>(0).is_ok())
            }
            #[cfg(feature = "peers")]
            Self::Redis(connection) => redis::cmd("GET")
                .arg(&key[..])
                .query_async::<Option<Vec<u8>>>(connection)
                .await
                .map_err(said)?
                .is_some(),
        };
        is_there.then_some(()).ok_or_else(|| "absent".to_owned())
    }

    /// Up to `records` records in key order; of ReelKV one page, which ends with its shard.
    pub async fn scan(&mut self, from: Key, records: u64) -> Done {
        match self {
            Self::ReelKv(keyspace) => {
                let range = ScanRange::between(from, b"").limit(records);
                keyspace
                    .scan_page(range)
                    .await
                    .map(drop)
                    .map_err(|error| kind_of(&error))
            }
            #[cfg(feature = "peers")]
            Self::Etcd(kv) => {
                let page = etcd_client::GetOptions::new()
                    .with_from_key()
                    .with_limit(records as i64);
                kv.get(from, Some(page)).await.map(drop).map_err(said)
            }
            #[cfg(feature = "peers")]
            Self::Postgres(session) => {
                let limit = records as i64;
                let rows = session.client.query(&session.scan, &[&&from[..], &limit]).await;
                rows.map(drop).map_err(said)
            }
            #[cfg(feature = "peers")]
            Self::Redis(_) => Err("unsupported".to_owned()),
        }
    }
}

fn kind_of(error: &reelkv_client::Error) -> String {
    let name = match error.kind() {
        ErrorKind::Busy { .. } => "busy",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::OutcomeUnknown => "outcome_unknown",
        ErrorKind::Integrity { .. } => "integrity",
        ErrorKind::InvalidArgument { .. } => "invalid_argument",
        _ => "other",
    };
    name.to_owned()
}

#[cfg(feature = "peers")]
fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Key number `n`: spread evenly over the key space, so that all shards get their share.
pub fn key(n: u64) -> Key {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed(n).to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

/// The finalizer of splitmix64: a bijection.
pub fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_distinct_and_even() {
        let mut keys: Vec<_> = (0..64_000).map(key).collect();
        let mut per_shard = [0; 8];
        keys.iter()
            .for_each(|key| per_shard[usize::from(key[0] / 32)] += 1);
        assert!(
            per_shard.iter().all(|&count| (7_500..8_500).contains(&count)),
            "{per_shard:?}"
        );
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 64_000);
    }
}
