//! Sends and receives a shard's records as of one entry.
//!
//! A transfer is a stream: the control state at the view's index and what the sender leaves out, records
//! in key order (deleted ones too, newest version of each key), and an end with their count and digest.
//! It is of everything, or of the spans that the receiver asks for. It can be resumed after any key as
//! long as the sender keeps the view open, which it says with the control state. The receiver verifies every
//! chunk's CRC (the transport), every record's own CRC, count and digest before the tree is used for anything.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1::{self, view_payload};

use super::ReplicaContext;
use super::senders::SenderOf;
use crate::disk::{SharedDisk, offload};
use crate::error;
use crate::limits::CHUNK_BYTES_TARGET;
use crate::mutants::Mutant;
use crate::raft::transport::TransportError;
use crate::raft::{Donation, OpenViews, Refill, ReplicaStore, spans_from_wire, spans_to_wire};
use crate::shard::{Control, LogId, Spans};
use crate::storage::{Page, StoredRecord, Tree, View};

/// Times a broken stream is taken up again before the transfer is given up.
const RESUMES_MAX: u32 = 8;
/// A tree being filled is flushed each time it holds this many bytes in memory.
const FLUSH_BYTES: u64 = 32 << 20;

/// What is still to be sent.
enum Step {
    Control(Box<Control>, Spans),
    Records,
    End,
    Done,
}

/// A view being sent. Damage that it meets is told to its replica.
struct Sender {
    store: Arc<ReplicaStore>,
    /// Where the view is open for a stream that goes on from this one, and its number there; 0 if it is not.
    open: (Arc<OpenViews>, u64),
    /// Whether it was opened for this stream: one that is offered is its offer's to close.
    closes: bool,
    view: View,
    disk: SharedDisk,
    step: Step,
    /// Ranges to be sent, in key order.
    ranges: VecDeque<KeyRange>,
    records: u64,
    digest: u128,
}

/// Streams what a replica donates, as far as it was asked for. A donation that was opened for this stream stays
/// open until that has come to its end, or its time is over.
pub(super) fn send_view(
    store: Arc<ReplicaStore>,
    open: (Arc<OpenViews>, u64),
    donation: Donation,
    disk: SharedDisk,
    request: v1::FetchViewRequest,
) -> BoxStream<'static, Result<v1::ViewPayload, v1::Error>> {
    let wanted = wanted(&request);
    let withheld = wanted.intersection(&donation.withheld);
    let mut given = wanted.without(&withheld);
    if !request.after_key.is_empty() {
        // Resuming starts at the smallest key behind the last one that arrived.
        let behind = KeyRange::new([&request.after_key[..], &[0]].concat(), Bytes::new());
        given = given.intersection(&behind.into());
    }
    let sender = Sender {
        store,
        open,
        closes: request.view_id == 0,
        view: donation.view,
        disk,
        step: Step::Control(Box::new(donation.control), withheld),
        ranges: given.iter().collect(),
        records: 0,
        digest: 0,
    };
    stream::try_unfold(sender, |mut sender| async move {
        let payload = sender.next().await?;
        Ok(payload.map(|payload| (payload, sender)))
    })
    .boxed()
}

impl Sender {
    async fn next(&mut self) -> Result<Option<v1::ViewPayload>, v1::Error> {
        let view_id = self.open.1;
        let payload = |kind, withheld| v1::ViewPayload {
            kind: Some(kind),
            withheld,
            view_id,
        };
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Control(control, withheld) => {
                self.step = Step::Records;
                let kind = view_payload::Kind::Control(control.encode());
                Ok(Some(payload(kind, spans_to_wire(&withheld))))
            }
            Step::Records => {
                let records = self.records().await?;
                self.step = if self.ranges.is_empty() {
                    Step::End
                } else {
                    Step::Records
                };
                let kind = view_payload::Kind::Records(v1::ViewRecords { records });
                Ok(Some(payload(kind, Vec::new())))
            }
            Step::End => {
                let digest = self.digest.to_be_bytes().to_vec().into();
                let end = v1::ViewEnd {
                    records: self.records,
                    digest,
                };
                Ok(Some(payload(view_payload::Kind::End(end), Vec::new())))
            }
            Step::Done => {
                if self.closes {
                    self.open.0.close(view_id);
                }
                Ok(None)
            }
        }
    }

    /// The next page of what is to be sent.
    async fn records(&mut self) -> Result<Vec<v1::ViewRecord>, v1::Error> {
        let Some(range) = self.ranges.pop_front() else {
            return Ok(Vec::new());
        };
        let page = self.page(range.clone()).await?;
        if let Some(start) = page.resume {
            self.ranges.push_front(KeyRange { start, ..range });
        }
        let mut records = Vec::with_capacity(page.records.len());
        for record in page.records {
            self.records += 1;
            self.digest = self.digest.wrapping_add(record.digest());
            records.push(wire_record(&record));
        }
        Ok(records)
    }

    async fn page(&self, range: KeyRange) -> Result<Page, v1::Error> {
        let view = self.view.clone();
        let scan = move || view.scan_all_in(&range.start, &range.end, CHUNK_BYTES_TARGET);
        let page = offload(&*self.disk, scan).await;
        let page = page.map_err(|stopped| error::unavailable(stopped.to_string()))?;
        page.map_err(|damage| {
            self.store.found(&damage);
            error::unavailable(format!("this replica's tree is damaged: {damage}"))
        })
    }
}

/// A record as it travels between replicas.
pub(super) fn wire_record(record: &StoredRecord) -> v1::ViewRecord {
    v1::ViewRecord {
        key: record.key.clone(),
        record: record.encode(),
    }
}

/// Why a transfer did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the transferred view is damaged: {0}")]
    Damaged(String),
    #[error("the new tree failed: {0}")]
    Tree(#[from] crate::storage::TreeError),
}

/// A transfer being received.
pub(super) struct Receiver<'a> {
    pub context: &'a Arc<ReplicaContext>,
    pub store: &'a Arc<ReplicaStore>,
    /// The sender's address.
    pub addr: String,
    pub request: v1::FetchViewRequest,
}

/// What arrived of a view.
pub(super) struct Received {
    /// The control state at the view's index, with tokens.
    pub control: Control,
    /// What the sender left out of the spans asked for.
    pub withheld: Spans,
}

impl Receiver<'_> {
    /// Fills a new tree from the sender's view of everything. The tree is complete, verified and
    /// durable, but not on record: the caller switches it in.
    pub async fn fill(mut self) -> Result<Refill, TransferError> {
        let id = self.store.next_tree();
        let tree = self.context.storage.create(id).await?;
        match self.fill_tree(&tree).await {
            Ok(refill) => Ok(refill),
            Err(failed) => {
                drop(tree);
                if let Err(error) = self.context.storage.remove(id).await {
                    tracing::warn!(%error, ?id, "an unfinished tree could not be removed");
                }
                Err(failed)
            }
        }
    }

    async fn fill_tree(&mut self, tree: &Tree) -> Result<Refill, TransferError> {
        let Received { control, withheld } = self.receive_into(tree).await?;
        if !withheld.is_empty() {
            return Err(TransferError::Damaged(format!("the sender left out {withheld}")));
        }
        let applied = control
            .applied()
            .ok_or_else(|| TransferError::Damaged("an unborn shard".to_owned()))?;
        let sealed = tree.seal(&control.encode().encode_to_vec(), applied)?;
        let mark = tree.flush(sealed).await?;
        Ok(Refill {
            tree: tree.clone(),
            control,
            mark,
        })
    }

    /// Inserts the records of the sender's view into a tree that is being filled, and announces them
    /// there. After an error it holds nobody knows what, and must be thrown away. A sender of what
    /// cannot be believed is unproven from then on.
    pub async fn receive_into(&mut self, tree: &Tree) -> Result<Received, TransferError> {
        let received = self.receive_all(tree).await;
        if let Err(TransferError::Damaged(what)) = &received {
            self.sender().failed(what);
        }
        received
    }

    /// Who sends.
    pub fn sender(&self) -> SenderOf<'_> {
        SenderOf {
            context: self.context,
            to: self.store.id(),
            replica_id: self.request.replica_id,
            addr: &self.addr,
        }
    }

    async fn receive_all(&mut self, tree: &Tree) -> Result<Received, TransferError> {
        let mut received = None;
        let mut resumes = 0;
        loop {
            match self.receive(tree, &mut received).await {
                Ok(()) => break,
                Err(TransferError::Transport(broken))
                    if resumes < RESUMES_MAX && self.request.view_id != 0 && broken.is_of_the_way() =>
                {
                    resumes += 1;
                    tracing::info!(%broken, addr = self.addr, resumes, "a transfer broke off and is resumed");
                    tokio::time::sleep(std::time::Duration::from_millis(100 << resumes.min(5))).await;
                }
                Err(failed) => return Err(failed),
            }
        }
        received.ok_or_else(|| TransferError::Damaged("no control state".to_owned()))
    }

    /// Receives one stream, from the start or where the last one broke off.
    async fn receive(&mut self, tree: &Tree, received: &mut Option<Received>) -> Result<(), TransferError> {
        let mut stream = self
            .context
            .transport
            .fetch_view(&self.addr, self.request.clone())
            .await?;
        let (mut records, mut digest) = (0_u64, 0_u128);
        while let Some(payload) = stream.next().await {
            let payload = payload?;
            match payload.kind {
                Some(view_payload::Kind::Control(state)) => {
                    self.request.view_id = payload.view_id;
                    let withheld = spans_from_wire(payload.withheld);
                    // A view that gives nothing leaves the tree as it is: it need not be waited for.
                    let gives = !wanted(&self.request).without(&withheld).is_empty();
                    begin(tree, gives, received, Control::decode(state), withheld)?;
                }
                Some(view_payload::Kind::Records(page)) => {
                    let bytes: usize = page.records.iter().map(|record| record.record.len()).sum();
                    for record in page.records {
                        let record = verified(&record)?;
                        tree.insert(&record)?;
                        records += 1;
                        digest = digest.wrapping_add(record.digest());
                        self.request.after_key = record.key;
                    }
                    flush_if_large(tree).await?;
                    self.context.repair_rate.pay(bytes as u64).await;
                }
                Some(view_payload::Kind::End(end)) => {
                    let is_whole = end.records == records && end.digest[..] == digest.to_be_bytes();
                    if !is_whole && !Mutant::InstallUnverifiedChunk.is_on() {
                        return Err(TransferError::Damaged(
                            "count or digest of the records differs".to_owned(),
                        ));
                    }
                    return Ok(());
                }
                None => return Err(TransferError::Damaged("an empty message".to_owned())),
            }
        }
        let reason = "the stream ended early".to_owned();
        Err(TransportError::Lost {
            addr: self.addr.clone(),
            reason,
        }
        .into())
    }
}

/// A record that a peer sent, if it is what was written.
pub(super) fn verified(record: &v1::ViewRecord) -> Result<StoredRecord, TransferError> {
    StoredRecord::received(&record.key, &record.record)
        .map_err(|damage| TransferError::Damaged(damage.to_string()))
}

/// The keys that a request asks for.
fn wanted(request: &v1::FetchViewRequest) -> Spans {
    match request.spans.is_empty() {
        true => Spans::everything(),
        false => spans_from_wire(request.spans.clone()),
    }
}

fn begin(
    tree: &Tree,
    gives: bool,
    received: &mut Option<Received>,
    control: Control,
    withheld: Spans,
) -> Result<(), TransferError> {
    match received {
        Some(known) if known.control == control && known.withheld == withheld => Ok(()),
        Some(_) => Err(TransferError::Damaged(
            "a resumed transfer is of another view".to_owned(),
        )),
        None => {
            if gives {
                announce(tree, &control);
            }
            *received = Some(Received { control, withheld });
            Ok(())
        }
    }
}

/// A tree being filled is about to be given records of an entry.
pub(super) fn announce(tree: &Tree, control: &Control) {
    tree.begin_entry(control.last_version());
    tree.publish(control.last_version().max(tree.visible()));
}

/// Keeps the filling within bounds. What is flushed is on no record yet: a crash forgets it.
pub(super) async fn flush_if_large(tree: &Tree) -> Result<(), TransferError> {
    if tree.memtable_bytes() >= FLUSH_BYTES {
        let sealed = tree.seal(&[], LogId::default())?;
        tree.flush(sealed).await?;
    }
    Ok(())
}
