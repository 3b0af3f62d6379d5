//! Repairs a replica's tree: looks where damage lies, fills another tree from what the replica can still
//! prove and from its peers, and puts it in place. Log, vote and, where there is a tree at all,
//! leadership stay; what is proven is served meanwhile, and the rest is read from peers (`peer_view`).

use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1;
use tokio_util::sync::CancellationToken;

use super::ReplicaContext;
use super::senders::SenderOf;
use super::transfer::{Receiver, TransferError, announce, flush_if_large};
use crate::disk::offload;
use crate::limits::CHUNK_BYTES_TARGET;
use crate::mutants::Mutant;
use crate::raft::transport::TransportError;
use crate::raft::{Doubts, Part, PeerNode, Raft, Rebuild, RebuildBegun, RebuildError, ReplicaStore, Trust};
use crate::shard::{Control, Spans};
use crate::storage::{Page, StoredRecord, Tree, TreeError, View};

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// How long a replica may take to reach the entry of a peer's view.
const REACH_TIMEOUT: Duration = Duration::from_secs(30);

/// Watches a replica's trust and repairs its tree whenever it is lost.
pub(super) struct Repairer {
    pub context: Arc<ReplicaContext>,
    pub store: Arc<ReplicaStore>,
    pub raft: Raft,
    pub stop: CancellationToken,
}

/// Why a tree was not repaired this time.
#[derive(Debug, thiserror::Error)]
enum RepairError {
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    #[error("its own records: {0}")]
    Own(TreeError),
    #[error("no peer can prove any of {0}")]
    NobodyCan(Spans),
    #[error("the replica did not reach the entry of its peers' views")]
    NotReached,
}

impl From<TreeError> for RepairError {
    fn from(error: TreeError) -> Self {
        Self::Rebuild(error.into())
    }
}

impl Repairer {
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = async { tokio::join!(self.watch(), self.watch_senders()); } => {}
            () = stop.cancelled() => {}
        }
    }

    async fn watch(&self) {
        let mut trust = self.store.watch_trust();
        let mut attempt = self.context.clock.random_u64() as usize;
        let mut wait = RETRY_MIN;
        // The store owns the sender and lives as long as this task.
        while trust.wait_for(|trust| *trust != Trust::Trusted).await.is_ok() {
            let done = match self.store.trust() {
                Trust::Trusted => true,
                Trust::Suspect => self.inspect().await,
                Trust::Repairing => self.repair(attempt).await,
                Trust::Refilling => self.refill(attempt).await,
            };
            match done {
                true => wait = RETRY_MIN,
                false => {
                    attempt = attempt.wrapping_add(1);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Has the voters compared whenever one of them sent something wrong, until it is believed again.
    async fn watch_senders(&self) {
        let to = self.store.id();
        loop {
            let unproven = self.context.senders.unproven_of(to.shard_id).await;
            let leader = super::hint::known_leader(&self.raft).map(|(_, node)| node.addr);
            for replica_id in unproven {
                let sender = SenderOf {
                    context: &self.context,
                    to,
                    replica_id,
                    addr: "",
                };
                sender.is_proven(leader.as_slice()).await;
            }
            tokio::time::sleep(RETRY_MAX).await;
        }
    }

    /// Reads the tree whole, to know what is wrong with it. False when that is not known yet.
    async fn inspect(&self) -> bool {
        let Some(tree) = self.store.tree() else {
            return true;
        };
        let report = match tree.sweep().await {
            Ok(report) => report,
            Err(TreeError::Closed) => return false,
            Err(damage) => {
                self.store.set_aside(&damage);
                return true;
            }
        };
        match self.store.inspected(&tree, &report).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(id = ?self.store.id(), %error, "the log refused to record what is damaged");
                false
            }
        }
    }

    /// Without a tree this replica does not campaign, and gives leadership away.
    async fn refill(&self, attempt: usize) -> bool {
        self.raft.runtime_config().elect(false);
        super::replica::transfer_leadership(&self.raft, None).await;
        if !Mutant::UnprovenNotPersisted.is_on()
            && let Err(error) = self.store.record_trust().await
        {
            tracing::error!(id = ?self.store.id(), %error, "the log refused to record that there is no tree");
        }
        let done = self.repair(attempt).await;
        if self.store.trust() != Trust::Refilling {
            self.raft.runtime_config().elect(true);
        }
        done
    }

    /// One attempt to fill another tree and to put it in place.
    async fn repair(&self, attempt: usize) -> bool {
        let id = self.store.next_tree();
        let repaired = match self.context.storage.create(id).await {
            Ok(tree) => self.rebuild(tree, attempt).await,
            Err(error) => Err(error.into()),
        };
        match repaired {
            Ok(unproven) => {
                tracing::info!(id = ?self.store.id(), %unproven, "a tree was repaired");
                return true;
            }
            Err(RepairError::Own(damage)) => self.store.found(&damage),
            Err(error) => {
                tracing::info!(id = ?self.store.id(), %error, "a tree could not be repaired yet");
            }
        }
        match self.context.storage.remove(id).await {
            // The switch itself failed half-way: the next start decides.
            Ok(()) | Err(TreeError::InUse { .. }) => {}
            Err(error) => tracing::warn!(%error, ?id, "an unfinished tree could not be removed"),
        }
        false
    }

    /// Returns what is still unproven.
    async fn rebuild(&self, tree: Tree, attempt: usize) -> Result<Spans, RepairError> {
        let (_pin, begun) = self.store.begin_rebuild();
        let has_own = begun.unproven != Spans::everything();
        let mut parts = match self.parts_of_peers(&tree, &begun, attempt).await {
            // Without the bad files what was lost is proven as soon as it is written again.
            Err(RepairError::NobodyCan(_)) if has_own && self.store.is_worn() => Vec::new(),
            parts => parts?,
        };
        if has_own {
            parts.extend(self.own_part(&tree, &begun.unproven).await?);
        }
        let rebuild = Rebuild::new(tree, parts, begun)?;
        match tokio::time::timeout(REACH_TIMEOUT, self.store.switch(rebuild)).await {
            Ok(switched) => switched?,
            Err(_) => return Err(RepairError::NotReached),
        }
        Ok(self.store.unproven())
    }

    /// Fetches what this replica cannot prove from whoever can.
    async fn parts_of_peers(
        &self,
        tree: &Tree,
        begun: &RebuildBegun,
        attempt: usize,
    ) -> Result<Vec<Part>, RepairError> {
        let mut peers = self.peers();
        let first = attempt % peers.len().max(1);
        peers.rotate_left(first);
        let (mut parts, mut missing) = (Vec::new(), begun.unproven.clone());
        let mut refusal = None;
        for (donor, peer) in peers {
            if missing.is_empty() {
                break;
            }
            match self.part_of(tree, donor, &peer, &missing, begun.applied).await {
                Ok(part) => {
                    missing = missing.without(&part.spans);
                    if !part.spans.is_empty() {
                        parts.push(part);
                    }
                }
                // Nothing was inserted.
                Err(TransferError::Transport(error)) if parts.is_empty() && tree.visible() == 0 => {
                    tracing::debug!(id = ?self.store.id(), %error, "a peer gave nothing");
                    refusal = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        match (parts.is_empty() && !missing.is_empty(), refusal) {
            (false, _) => Ok(parts),
            (true, Some(error)) => Err(TransferError::from(error).into()),
            (true, None) => Err(RepairError::NobodyCan(missing)),
        }
    }

    async fn part_of(
        &self,
        tree: &Tree,
        donor: ReplicaId,
        peer: &PeerNode,
        missing: &Spans,
        min_index: u64,
    ) -> Result<Part, TransferError> {
        let mut receiver = Receiver {
            context: &self.context,
            store: &self.store,
            addr: peer.addr.clone(),
            request: v1::FetchViewRequest {
                cluster_id: self.context.cluster_id.clone(),
                shard_id: self.store.id().shard_id,
                replica_id: donor,
                min_index,
                spans: crate::raft::spans_to_wire(missing),
                ..Default::default()
            },
        };
        if Mutant::UnprovenNotPersisted.is_on() {
            self.record_unfilled(tree).await?;
        }
        if !receiver.sender().is_believed() {
            let refused = crate::error::unavailable("what it sent cannot be believed");
            return Err(TransportError::Refused(refused).into());
        }
        let received = receiver.receive_into(tree).await?;
        Ok(Part {
            spans: missing.without(&received.withheld),
            is_a_peers: true,
            control: received.control,
        })
    }

    /// Copies what this replica can prove itself.
    async fn own_part(&self, tree: &Tree, unproven: &Spans) -> Result<Option<Part>, RepairError> {
        let Some(own) = self.store.donate() else {
            return Err(RepairError::NotReached); // damaged further: looked at first
        };
        announce(tree, &own.control);
        let spans = unproven.complement();
        for range in spans.iter() {
            let mut start = Some(range.start.clone());
            while let Some(from) = start {
                let page = self.page(&own.view, from, range.end.clone()).await?;
                for record in &page.records {
                    tree.insert(record)?;
                }
                flush_if_large(tree).await?;
                start = page.resume;
            }
        }
        Ok(Some(Part {
            spans,
            is_a_peers: false,
            control: own.control,
        }))
    }

    /// Reads a page, and leaves the disk to others for as long as that took.
    async fn page(&self, view: &View, start: bytes::Bytes, end: bytes::Bytes) -> Result<Page, RepairError> {
        let (view, began) = (view.clone(), crate::clock::now());
        let scan = move || view.scan_all_in(&start, &end, CHUNK_BYTES_TARGET);
        let page = offload(&*self.context.disk, scan).await;
        tokio::time::sleep(began.elapsed()).await;
        let page = page
            .map_err(|error| RepairError::Rebuild(error.into()))?
            .map_err(RepairError::Own)?;
        let bytes: usize = page.records.iter().map(StoredRecord::encoded_len_bytes).sum();
        self.context.repair_rate.pay(bytes as u64).await;
        Ok(page)
    }

    /// Puts a tree on record that holds nothing yet (a mutant).
    async fn record_unfilled(&self, tree: &Tree) -> Result<(), TransferError> {
        let control = self.store.with_control(Control::clone);
        announce(tree, &control);
        let row = prost::Message::encode_to_vec(&control.encode());
        let sealed = tree.seal(&row, control.applied().unwrap_or_default())?;
        let mark = tree.flush(sealed).await?;
        let record = self
            .store
            .put_mark(control.encode_without_tokens(), Some(mark), Doubts::default());
        record
            .await
            .map_err(|error| TransferError::Damaged(error.to_string()))
    }

    /// The other voters, as far as this one knows. A learner's records were not compared yet.
    fn peers(&self) -> Vec<(ReplicaId, PeerNode)> {
        super::replica::other_voters(&self.raft)
    }
}
