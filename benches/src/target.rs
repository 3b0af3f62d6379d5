//! What is put under load.

use bytes::Bytes;
use reelkv_client::{ErrorKind, Keyspace, ScanRange};

/// Records a scan asks for.
const SCAN_RECORDS: u64 = 100;

/// A store, as one client uses it.
#[derive(Clone)]
pub enum Target {
    ReelKv(Keyspace),
    #[cfg(feature = "peers")]
    Etcd(etcd_client::KvClient),
}

/// What one operation ended with; a failure is named by its kind.
pub type Done = Result<(), String>;

impl Target {
    pub async fn put(&mut self, key: [u8; 8], value: Bytes) -> Done {
        match self {
            Self::ReelKv(keyspace) => keyspace
                .put(key, value)
                .await
                .map(drop)
                .map_err(|error| kind_of(&error)),
            #[cfg(feature = "peers")]
            Self::Etcd(kv) => kv
                .put(key, value, None)
                .await
                .map(drop)
                .map_err(|error| error.to_string()),
        }
    }

    /// Linearizable; the key must be there.
    pub async fn get(&mut self, key: [u8; 8]) -> Done {
        let is_there = match self {
            Self::ReelKv(keyspace) => keyspace
                .get(key)
                .await
                .map_err(|error| kind_of(&error))?
                .is_some(),
            #[cfg(feature = "peers")]
            Self::Etcd(kv) => {
                let got = kv.get(key, None).await.map_err(|error| error.to_string())?;
                !got.kvs().is_empty()
            }
        };
        is_there.then_some(()).ok_or_else(|| "absent".to_owned())
    }

    /// One page of up to 100 records.
    pub async fn scan(&mut self, from: [u8; 8]) -> Done {
        match self {
            Self::ReelKv(keyspace) => {
                let range = ScanRange::between(from, b"").limit(SCAN_RECORDS);
                keyspace
                    .scan_page(range)
                    .await
                    .map(drop)
                    .map_err(|error| kind_of(&error))
            }
            #[cfg(feature = "peers")]
            Self::Etcd(_) => Err("unsupported".to_owned()),
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

/// Key number `n`: 8 bytes spread evenly over the key space, so that all shards get their share.
pub fn key(n: u64) -> [u8; 8] {
    // The finalizer of splitmix64: a bijection, so keys are distinct.
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (n ^ (n >> 31)).to_be_bytes()
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
