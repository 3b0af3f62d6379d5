//! Sends and receives a shard's records as of one entry.
//!
//! A transfer is a stream: the control state at the view's index, records in key order (deleted
//! ones too, newest version of each key), and an end with their count and digest. It can be
//! resumed after any key as long as the sender keeps the view open. The receiver verifies every
//! chunk's CRC (the transport), every record's own CRC, count and digest before the tree is
//! used for anything.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use reelkv_proto::v1::{self, view_payload};

use super::ReplicaContext;
use crate::disk::{SharedDisk, offload};
use crate::error;
use crate::limits::CHUNK_BYTES_TARGET;
use crate::mutants::Mutant;
use crate::raft::transport::TransportError;
use crate::raft::{Refill, ReplicaStore};
use crate::shard::{Control, LogId};
use crate::storage::{Page, StoredRecord, Tree, View};

/// Times a broken stream is taken up again before the transfer is given up.
const RESUMES_MAX: u32 = 8;
/// A tree being filled is flushed each time it holds this many bytes in memory.
const FLUSH_BYTES: u64 = 32 << 20;

/// What is still to be sent.
enum Step {
    Control(Box<Control>),
    Records(Bytes),
    End,
    Done,
}

struct Sender {
    view: View,
    disk: SharedDisk,
    step: Step,
    after: Bytes,
    records: u64,
    digest: u128,
}

/// Streams a view. `after_key` resumes behind that key.
pub fn serve_view(
    view: View,
    control: Control,
    disk: SharedDisk,
    after_key: Bytes,
) -> BoxStream<'static, Result<v1::ViewPayload, v1::Error>> {
    let step = Step::Control(Box::new(control));
    let sender = Sender {
        view,
        disk,
        step,
        after: after_key,
        records: 0,
        digest: 0,
    };
    stream::try_unfold(sender, |mut sender| async move {
        let kind = sender.next().await?;
        Ok(kind.map(|kind| (v1::ViewPayload { kind: Some(kind) }, sender)))
    })
    .boxed()
}

impl Sender {
    async fn next(&mut self) -> Result<Option<view_payload::Kind>, v1::Error> {
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Control(control) => {
                // Resuming starts behind the key: the smallest key after it.
                let start = match self.after.is_empty() {
                    true => Bytes::new(),
                    false => [&self.after[..], &[0]].concat().into(),
                };
                self.step = Step::Records(start);
                Ok(Some(view_payload::Kind::Control(control.encode())))
            }
            Step::Records(start) => {
                let page = self.page(start).await?;
                self.step = page.resume.map_or(Step::End, Step::Records);
                let mut records = Vec::with_capacity(page.records.len());
                for record in page.records {
                    self.records += 1;
                    self.digest = self.digest.wrapping_add(record.digest());
                    records.push(v1::ViewRecord {
                        key: record.key.clone(),
                        record: record.encode(),
                    });
                }
                Ok(Some(view_payload::Kind::Records(v1::ViewRecords { records })))
            }
            Step::End => {
                let digest = self.digest.to_be_bytes().to_vec().into();
                Ok(Some(view_payload::Kind::End(v1::ViewEnd {
                    records: self.records,
                    digest,
                })))
            }
            Step::Done => Ok(None),
        }
    }

    async fn page(&self, start: Bytes) -> Result<Page, v1::Error> {
        let view = self.view.clone();
        let page = offload(&*self.disk, move || view.scan_all(&start, CHUNK_BYTES_TARGET)).await;
        let page = page.map_err(|stopped| error::unavailable(stopped.to_string()))?;
        page.map_err(|damage| error::unavailable(format!("this replica's tree is damaged: {damage}")))
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
    #[error("the replica has moved past the view's index {0}")]
    TooOld(u64),
}

/// A transfer being received.
pub(super) struct Receiver<'a> {
    pub context: &'a Arc<ReplicaContext>,
    pub store: &'a Arc<ReplicaStore>,
    /// The sender's address.
    pub addr: String,
    pub request: v1::FetchViewRequest,
    /// Keeps the replica at the view's index until the tree is in place.
    pub hold: bool,
}

impl Receiver<'_> {
    /// Fills a new tree from the sender's view. The tree is complete, verified and durable, but
    /// not on record: the caller switches it in.
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
        let mut control = None;
        let mut resumes = 0;
        loop {
            match self.receive(tree, &mut control).await {
                Ok(()) => break,
                Err(TransferError::Transport(broken))
                    if resumes < RESUMES_MAX && self.request.view_id != 0 =>
                {
                    resumes += 1;
                    tracing::info!(%broken, addr = self.addr, resumes, "a transfer broke off and is resumed");
                    tokio::time::sleep(std::time::Duration::from_millis(100 << resumes.min(5))).await;
                }
                Err(failed) => return Err(failed),
            }
        }
        let control: Control =
            control.ok_or_else(|| TransferError::Damaged("no control state".to_owned()))?;
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

    /// Receives one stream, from the start or where the last one broke off.
    async fn receive(&mut self, tree: &Tree, control: &mut Option<Control>) -> Result<(), TransferError> {
        let mut stream = self
            .context
            .transport
            .fetch_view(&self.addr, self.request.clone())
            .await?;
        let (mut records, mut digest) = (0_u64, 0_u128);
        while let Some(payload) = stream.next().await {
            match payload?.kind {
                Some(view_payload::Kind::Control(state)) => {
                    self.begin(tree, control, state)?;
                    if Mutant::UnprovenNotPersisted.is_on() {
                        self.record_unfilled(tree, control.as_ref()).await?;
                    }
                }
                Some(view_payload::Kind::Records(page)) => {
                    for record in page.records {
                        let record = StoredRecord::decode(&record.key, &record.record)
                            .map_err(|damage| TransferError::Damaged(damage.to_string()))?;
                        tree.insert(&record)?;
                        records += 1;
                        digest = digest.wrapping_add(record.digest());
                        self.request.after_key = record.key;
                    }
                    self.flush_if_large(tree).await?;
                }
                Some(view_payload::Kind::End(end)) => {
                    if end.records != records || end.digest[..] != digest.to_be_bytes() {
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

    fn begin(
        &mut self,
        tree: &Tree,
        control: &mut Option<Control>,
        state: v1::ControlState,
    ) -> Result<(), TransferError> {
        let received = Control::decode(state);
        match control {
            Some(known) if *known == received => Ok(()),
            Some(_) => Err(TransferError::Damaged(
                "a resumed transfer is of another view".to_owned(),
            )),
            None => {
                let index = received.applied().map_or(0, |applied| applied.index);
                if self.hold && !self.store.hold_after(index) {
                    return Err(TransferError::TooOld(index));
                }
                tree.begin_entry(received.last_version());
                tree.publish(received.last_version());
                *control = Some(received);
                Ok(())
            }
        }
    }

    /// Puts a tree on record that holds nothing yet (a mutant).
    async fn record_unfilled(&self, tree: &Tree, control: Option<&Control>) -> Result<(), TransferError> {
        let Some(control) = control.filter(|_| self.hold) else {
            return Ok(());
        };
        let sealed = tree.seal(
            &control.encode().encode_to_vec(),
            control.applied().unwrap_or_default(),
        )?;
        let mark = tree.flush(sealed).await?;
        let recorded = self
            .store
            .record(control.encode_without_tokens(), mark, tree.id().generation);
        recorded
            .await
            .map_err(|error| TransferError::Damaged(error.to_string()))
    }

    /// Keeps the filling within bounds. What is flushed is on no record yet: a crash forgets it.
    async fn flush_if_large(&self, tree: &Tree) -> Result<(), TransferError> {
        if tree.memtable_bytes() >= FLUSH_BYTES {
            let sealed = tree.seal(&[], LogId::default())?;
            tree.flush(sealed).await?;
        }
        Ok(())
    }
}
