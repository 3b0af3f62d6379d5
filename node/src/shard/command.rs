//! What is proposed to the log, and what is asked of the leader.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use reelkv_proto::types::Version;
use reelkv_proto::v1;

/// The body of a normal log entry, with its encoding: encoded once by the leader, decoded once
/// by each follower, shared from there on.
#[derive(Clone)]
pub struct Command {
    encoded: Bytes,
    body: Arc<v1::EntryBody>,
}

impl Command {
    /// Encodes a body.
    pub fn new(body: v1::EntryBody) -> Self {
        Self {
            encoded: body.encode_to_vec().into(),
            body: Arc::new(body),
        }
    }

    /// Decodes what a leader encoded.
    ///
    /// # Errors
    /// Fails on bytes no leader wrote; checksums have been verified before.
    pub fn decode(encoded: Bytes) -> Result<Self, prost::DecodeError> {
        let body = Arc::new(v1::EntryBody::decode(encoded.clone())?);
        Ok(Self { encoded, body })
    }

    /// The bytes that travel and are stored.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// What they say.
    pub fn body(&self) -> &v1::EntryBody {
        &self.body
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.body.first_version;
        write!(
            f,
            "Command(versions {first}..{})",
            first + self.body.effects.len() as u64
        )
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A write as the leader evaluates it; limits and checksums were verified at the edge.
#[derive(Clone, Debug)]
pub struct Write {
    /// Absent: executed at most once per request sent, with no memory of it.
    pub token: Option<v1::Token>,
    /// What to do.
    pub kind: WriteKind,
}

/// The kinds of writes.
#[derive(Clone, Debug)]
pub enum WriteKind {
    /// Puts and deletes of distinct keys, all or nothing.
    Operations(Vec<WriteOperation>),
    /// Adds to an integer.
    Add {
        /// Stored key.
        key: Bytes,
        /// What to add.
        delta: i64,
    },
    /// Opens a writer's memory.
    OpenIncarnation,
    /// Takes the next replica id.
    AllocateReplicaId,
    /// Gives the (empty) range from `end` on away.
    NarrowTo {
        /// The shard's new end.
        end: Bytes,
        /// Version of the view in which the range was seen to hold no records.
        empty_at: Version,
    },
    /// Forgets unused writers' memories.
    ExpireIncarnations {
        /// The shard's time, in milliseconds since 1970.
        now_ms: u64,
    },
    /// Moves the logged time on.
    Tick,
    /// Has every replica take a view at this entry, for them to compare what they hold from here on.
    Marker {
        /// Stored key.
        start: Bytes,
    },
    /// Deletes those of these keys whose records have expired by the time it is evaluated.
    RemoveExpired {
        /// Stored keys.
        keys: Vec<Bytes>,
    },
}

/// One put or delete.
#[derive(Clone, Debug)]
pub struct WriteOperation {
    /// Stored key.
    pub key: Bytes,
    /// `Some` puts value and client CRC; `None` deletes.
    pub put: Option<(Bytes, u32)>,
    /// For a put: how long it lives from the time it is logged, in milliseconds; 0 for ever.
    pub ttl_ms: u64,
    /// What must hold for the whole write to happen.
    pub condition: Option<v1::condition::Kind>,
}

/// The answer to a write that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteResult {
    /// Version of its first effect.
    pub version: Version,
    /// The sum, for an addition.
    pub sum: Option<i64>,
}

impl Write {
    /// Stored keys whose present state the evaluation needs: those under a condition or an addition,
    /// and those to be removed if they have expired.
    pub fn judged_keys(&self) -> impl Iterator<Item = &Bytes> {
        let (operations, others) = self.parts();
        let judged = operations.iter().filter(|op| op.condition.is_some());
        judged.map(|op| &op.key).chain(others)
    }

    /// Stored keys it writes.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let (operations, others) = self.parts();
        operations.iter().map(|op| &op.key).chain(others)
    }

    /// Its operations, and keys that it judges and writes otherwise.
    fn parts(&self) -> (&[WriteOperation], &[Bytes]) {
        match &self.kind {
            WriteKind::Operations(operations) => (operations, &[]),
            WriteKind::Add { key, .. } => (&[], std::slice::from_ref(key)),
            WriteKind::RemoveExpired { keys } => (&[], keys),
            _ => (&[], &[]),
        }
    }

    /// Key and value bytes, for bounding queues.
    pub fn bytes(&self) -> usize {
        const OVERHEAD_BYTES: usize = 64;
        match &self.kind {
            WriteKind::Operations(operations) => operations
                .iter()
                .map(|op| OVERHEAD_BYTES + op.key.len() + op.put.as_ref().map_or(0, |(value, _)| value.len()))
                .sum(),
            _ => OVERHEAD_BYTES + self.keys().map(|key| OVERHEAD_BYTES + key.len()).sum::<usize>(),
        }
    }
}
