//! Reads of what is proven: from this replica's own view, or, where its tree proves nothing, from one view of
//! a peer that stands at this replica's applied entry or later. That is at or above the read index, if
//! the read waited for one. Whoever asks gets the answer that a whole tree would have given, a little later.

use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::{KeyRange, ReplicaId, Version};
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::ReplicaContext;
use super::replica::{Replica, other_voters, refilling};
use super::senders::SenderOf;
use super::transfer::{verified, wire_record};
use crate::disk::offload;
use crate::error;
use crate::raft::{PeerNode, Raft, ReplicaStore};
use crate::shard::Control;
use crate::storage::{Lookup, Page, StoredRecord};

/// How long one peer may take; another is asked then.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a peer waits for the entry asked for.
const REACH_TIMEOUT: Duration = Duration::from_millis(1_000);

/// What a view says of one key.
pub(super) struct KeyRead {
    /// Its record, also if it has expired.
    pub record: Option<StoredRecord>,
    /// The view's version.
    pub version: Version,
    /// The logged time of the view's entry.
    pub logged_time_ms: u64,
}

impl KeyRead {
    /// The record, unless it has expired.
    pub fn living(self) -> Option<StoredRecord> {
        let logged_time_ms = self.logged_time_ms;
        self.record.filter(|record| !record.has_expired(logged_time_ms))
    }
}

/// A page as a peer's view says it; records may have expired.
struct PeerPage {
    page: Page,
    version: Version,
    logged_time_ms: u64,
}

/// Reads of one shard, by this replica or by the other voters.
#[derive(Clone)]
pub(super) struct ProvenReads {
    pub context: Arc<ReplicaContext>,
    pub store: Arc<ReplicaStore>,
    pub raft: Raft,
}

impl ProvenReads {
    /// What a key holds in the newest view, or in some peer's.
    ///
    /// # Errors
    /// It cannot be proven here, and no peer can tell.
    pub async fn get(&self, key: &[u8]) -> Result<KeyRead, v1::Error> {
        if let Some((view, logged_time_ms)) = self.store.view_of_key(key) {
            let found = |record| KeyRead {
                record,
                version: view.version(),
                logged_time_ms,
            };
            match view.get(key) {
                Lookup::Value(record) => return Ok(found(Some(record))),
                Lookup::Absent { .. } => return Ok(found(None)),
                Lookup::Unproven(damage) => self.store.found(&damage),
            }
        }
        let only = KeyRange::new(key.to_vec(), [key, &[0]].concat());
        // On the heap, so that the many reads that need no peer take less memory.
        let mut read = Box::pin(self.ask_peers(&only, 1, usize::MAX)).await?;
        Ok(KeyRead {
            record: read.page.records.pop(),
            version: read.version,
            logged_time_ms: read.logged_time_ms,
        })
    }

    /// A page of living records of a range, in the newest view or in some peer's.
    ///
    /// # Errors
    /// As [`ProvenReads::get`].
    pub async fn page(
        &self,
        range: &KeyRange,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Page, v1::Error> {
        if let Some((view, logged_time_ms)) = self.store.view_of(range) {
            let KeyRange { start, end } = range.clone();
            let scan = move || view.scan_living(&start, &end, records_max, bytes_max, logged_time_ms);
            let page = offload(&*self.context.disk, scan).await;
            match page.map_err(|stopped| error::unavailable(stopped.to_string()))? {
                Ok(page) => return Ok(page),
                Err(damage) => self.store.found(&damage),
            }
        }
        let mut read = self.ask_peers(range, records_max, bytes_max).await?;
        let living = |record: &StoredRecord| !record.has_expired(read.logged_time_ms);
        read.page.records.retain(living);
        Ok(read.page)
    }

    async fn ask_peers(
        &self,
        range: &KeyRange,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<PeerPage, v1::Error> {
        let applied = self.store.with_control(Control::applied);
        let mut failed = refilling(self.store.id().shard_id);
        for (replica_id, peer) in other_voters(&self.raft) {
            if self
                .context
                .senders
                .is_unproven(self.store.id().shard_id, replica_id)
            {
                continue; // it cannot be believed that a key is absent; the repair has it compared
            }
            let request = v1::ReadViewRequest {
                shard_id: self.store.id().shard_id,
                replica_id,
                min_index: applied.map_or(0, |applied| applied.index),
                span: Some(v1::KeySpan {
                    start_key: range.start.clone(),
                    end_key: range.end.clone(),
                }),
                records_max: records_max as u64,
                bytes_max: bytes_max as u64,
            };
            match self.ask(replica_id, &peer, range, request).await {
                Ok(page) => return Ok(page),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn ask(
        &self,
        replica_id: ReplicaId,
        peer: &PeerNode,
        range: &KeyRange,
        request: v1::ReadViewRequest,
    ) -> Result<PeerPage, v1::Error> {
        let request = peer_request::Body::ReadView(request);
        let peer_response::Body::ReadView(read) = self.context.ask(&peer.addr, request, ASK_TIMEOUT).await?
        else {
            return Err(error::internal("an answer of another kind"));
        };
        let damaged = |what: String| {
            let sender = SenderOf {
                context: &self.context,
                to: self.store.id(),
                replica_id,
                addr: &peer.addr,
            };
            sender.failed(&what);
            error::unavailable("a peer's answer cannot be believed")
        };
        let mut records: Vec<StoredRecord> = Vec::with_capacity(read.records.len());
        for record in &read.records {
            let record = verified(record).map_err(|error| damaged(error.to_string()))?;
            let rises = records.last().is_none_or(|last| last.key < record.key);
            if !rises || !range.contains(&record.key) || record.version > read.version {
                return Err(damaged(format!("key {}", record.key.escape_ascii())));
            }
            records.push(record);
        }
        Ok(PeerPage {
            page: Page {
                records,
                resume: (!read.resume_key.is_empty()).then_some(read.resume_key),
            },
            version: read.version,
            logged_time_ms: read.logged_time_ms,
        })
    }
}

impl Replica {
    /// Reads for another replica that cannot prove these keys.
    ///
    /// # Errors
    /// `Unavailable` when this one cannot either, or does not reach the entry in time.
    pub async fn read_for_peer(
        &self,
        request: v1::ReadViewRequest,
    ) -> Result<v1::ReadViewResponse, v1::Error> {
        let span = request.span.unwrap_or_default();
        let range = KeyRange::new(span.start_key, span.end_key);
        self.reach(request.min_index).await?;
        let shard_id = self.id().shard_id;
        let own = self.store().view_of(&range);
        let (view, logged_time_ms) = own.ok_or_else(|| refilling(shard_id))?;
        let version = view.version();
        let records_max = usize::try_from(request.records_max).unwrap_or(usize::MAX);
        let bytes_max = usize::try_from(request.bytes_max).unwrap_or(usize::MAX);
        let scan = move || view.scan(&range.start, &range.end, records_max, bytes_max);
        let page = self.own_page(scan).await?;
        Ok(v1::ReadViewResponse {
            records: page.records.iter().map(wire_record).collect(),
            resume_key: page.resume.unwrap_or_default(),
            version,
            logged_time_ms,
        })
    }

    /// Returns once an entry is applied here.
    async fn reach(&self, index: u64) -> Result<(), v1::Error> {
        let mut applied = self.store().watch_applied();
        let reached = applied.wait_for(|applied| applied.is_some_and(|applied| applied.index >= index));
        match tokio::time::timeout(REACH_TIMEOUT, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(error::unavailable(format!(
                "entry {index} is not applied here yet"
            ))),
        }
    }
}
