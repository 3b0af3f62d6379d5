#![allow(missing_docs, unused)]
//! TEMPORARY in-memory stand-in.
use crate::disk::SharedDisk; use crate::shard::LogId; use bytes::Bytes; use reelkv_proto::types::*; use std::{io, path::PathBuf, sync::Arc, collections::BTreeMap}; use parking_lot::Mutex;
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)] pub struct GroupId { pub shard_id: ShardId, pub replica_id: ReplicaId }
#[derive(Clone, Copy, Debug, PartialEq, Eq)] pub struct Vote { pub term: u64, pub voted_for: ReplicaId, pub committed: bool }
#[derive(Clone, Copy, Debug, PartialEq, Eq)] pub enum EntryKind { Blank, Normal, Membership }
#[derive(Clone, Debug)] pub struct WalEntry { pub log_id: LogId, pub kind: EntryKind, pub payload: Bytes }
pub type AppendDone = Box<dyn FnOnce(io::Result<()>) + Send>;
#[derive(Clone, Debug, Default)] pub struct WalConfig { pub segment_bytes: u64 } #[derive(Clone, Copy, Debug)] pub struct Identity { pub cluster_id: [u8;16], pub node_id: u64 }
#[derive(Debug, thiserror::Error)] #[error("wal")] pub struct WalError;
pub struct Damage { pub group: Option<GroupId>, pub segment: String, pub offset: u64, pub what: String }
pub struct GroupRecovery { pub id: GroupId, pub damaged: Vec<Damage> }
pub struct Recovery { pub groups: Vec<GroupRecovery>, pub damage: Vec<Damage> }
#[derive(Default)] struct G { info: Bytes, mark: Option<Bytes>, vote: Option<Vote>, committed: Option<LogId>, purged: Option<LogId>, log: BTreeMap<u64, WalEntry> }
#[derive(Clone, Default)] pub struct Wal(Arc<Mutex<BTreeMap<GroupId, Arc<Mutex<G>>>>>); #[derive(Clone)] pub struct WalGroup(Arc<Mutex<G>>);
static ALL: Mutex<BTreeMap<([u8;16],u64), Wal>> = Mutex::new(BTreeMap::new());
impl Wal {
 pub async fn open(disk: SharedDisk, dir: PathBuf, config: WalConfig, identity: Identity) -> Result<(Wal, Recovery), WalError> { let old = ALL.lock().entry((identity.cluster_id, identity.node_id)).or_default().clone(); let w = Wal::default(); for (id, g) in old.0.lock().iter() { let g = g.lock(); w.0.lock().insert(*id, Arc::new(Mutex::new(G{info: g.info.clone(), mark: g.mark.clone(), vote: g.vote, committed: g.committed, purged: g.purged, log: g.log.clone()}))); } ALL.lock().insert((identity.cluster_id, identity.node_id), w.clone()); let groups = w.groups().into_iter().map(|id| GroupRecovery{id, damaged: vec![]}).collect(); Ok((w, Recovery{groups, damage: vec![]})) }
 pub async fn birth(&self, id: GroupId, info: Bytes) -> io::Result<WalGroup> { let g = Arc::new(Mutex::new(G{info, ..Default::default()})); self.0.lock().insert(id, g.clone()); Ok(WalGroup(g)) }
 pub async fn death(&self, id: GroupId) -> io::Result<()> { self.0.lock().remove(&id); Ok(()) }
 pub fn group(&self, id: GroupId) -> Option<WalGroup> { self.0.lock().get(&id).cloned().map(WalGroup) } pub fn groups(&self) -> Vec<GroupId> { self.0.lock().keys().copied().collect() } pub fn batch(&self)->u64{0} pub fn disk_bytes(&self)->u64{0} pub fn is_poisoned(&self)->bool{false} pub async fn close(&self){} }
impl WalGroup { pub fn append(&self, entries: Vec<WalEntry>, done: AppendDone) -> io::Result<()> { { let mut g = self.0.lock(); for e in entries { g.log.insert(e.log_id.index, e); } } done(Ok(())); Ok(()) }
 pub async fn save_vote(&self, vote: Vote) -> io::Result<()> { self.0.lock().vote = Some(vote); Ok(()) } pub fn vote(&self)->Option<Vote>{ self.0.lock().vote }
 pub fn save_committed(&self, id: LogId)->io::Result<()>{ self.0.lock().committed = Some(id); Ok(()) } pub fn committed(&self)->Option<LogId>{ self.0.lock().committed }
 pub fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> { let mut g = self.0.lock(); let from = last.map_or(0, |l| l.index+1); g.log.split_off(&from); Ok(()) }
 pub fn purge(&self, upto: LogId) -> io::Result<()> { let mut g = self.0.lock(); g.log = g.log.split_off(&(upto.index+1)); g.purged = g.purged.max(Some(upto)); Ok(()) }
 pub fn last(&self)->Option<LogId>{ let g = self.0.lock(); g.log.values().next_back().map(|e| e.log_id).or(g.purged) } pub fn purged(&self)->Option<LogId>{ self.0.lock().purged }
 pub async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<WalEntry>>{ Ok(self.0.lock().log.range(start..end.max(start)).map(|(_, e)| e.clone()).collect()) }
 pub async fn put_mark(&self, mark: Bytes)->io::Result<()>{ self.0.lock().mark = Some(mark); Ok(()) } pub fn mark(&self)->Option<Bytes>{ self.0.lock().mark.clone() } pub fn info(&self)->Bytes{ self.0.lock().info.clone() } }
