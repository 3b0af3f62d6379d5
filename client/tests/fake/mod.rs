//! A cluster that is a sorted map: three gRPC nodes, sharded, with tokens, and faults on order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reelkv_client::v1::request::Op;
use reelkv_client::v1::response::Result as Answer;
use reelkv_client::v1::{self, error::Kind};
use reelkv_proto::checksum::client_crc;
use reelkv_proto::types::{KeyRange, split_stored_key, stored_key};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

mod services;

/// What happens to the next request of a node, once.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Refused with this error; nothing is done.
    Refuse(Kind),
    /// The session breaks; nothing is done.
    BreakBefore,
    /// It is done, and the session breaks instead of answering.
    BreakAfter,
    /// It is done and never answered.
    Silence,
    /// A bit of every value answered is flipped.
    Corrupt,
}

/// Which requests a fault waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Read,
    Write,
    Open,
}

/// The state all nodes share, and what was seen.
#[derive(Default)]
pub struct World {
    pub records: BTreeMap<Bytes, v1::Record>,
    pub shards: Vec<v1::ShardDescriptor>,
    pub keyspaces: Vec<v1::Keyspace>,
    pub addrs: Vec<String>,
    /// Index of the node that leads every shard; requests elsewhere are answered `NotLeader`.
    pub leader: Option<usize>,
    pub faults: VecDeque<(When, Fault)>,
    /// The last fault stays for ever.
    pub keep_last_fault: bool,
    version: u64,
    memories: HashMap<(u64, u64), BTreeMap<u64, Answer>>,
    /// Requests by node, messages, writes performed, incarnations opened.
    pub requests: [usize; 3],
    pub messages: usize,
    pub writes: usize,
    pub opened: usize,
    pub tokens: Vec<v1::Token>,
}

pub struct Cluster {
    pub world: Arc<Mutex<World>>,
    pub addrs: Vec<String>,
}

pub const FILM: u32 = 5;

/// How a request ends.
pub enum End {
    Answer(Box<Answer>),
    Break,
    Silence,
}

impl Cluster {
    /// Three nodes; keyspace `film` in one shard; any node answers anything.
    pub async fn start() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let mut addrs = Vec::new();
        for node in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addrs.push(listener.local_addr().unwrap().to_string());
            let server = services::router(world.clone(), node);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        }
        let mut state = world.lock();
        state.addrs = addrs.clone();
        state.keyspaces = vec![v1::Keyspace {
            keyspace_id: FILM,
            name: "film".into(),
        }];
        state.shards = vec![descriptor(&addrs, 2, b"", b"", 1)];
        drop(state);
        Self { world, addrs }
    }

    /// Cuts every shard's range anew: `[.., m)` is shard 2, `[m, ..)` shard 3.
    pub fn split_at(&self, user_key: &str) {
        let at = stored_key(FILM, user_key.as_bytes());
        let left = descriptor(&self.addrs, 2, b"", &at, 2);
        let right = descriptor(&self.addrs, 3, &at, b"", 2);
        self.world.lock().shards = vec![left, right];
    }

    pub fn fault(&self, when: When, fault: Fault) {
        self.world.lock().faults.push_back((when, fault));
    }

    pub fn fault_for_ever(&self, when: When, fault: Fault) {
        self.fault(when, fault);
        self.world.lock().keep_last_fault = true;
    }
}

fn descriptor(
    addrs: &[String],
    id: u64,
    start: &[u8],
    end: &[u8],
    range_version: u64,
) -> v1::ShardDescriptor {
    let replica = |(node, addr): (u64, &String)| v1::ReplicaDescriptor {
        replica_id: node,
        node_id: node,
        addr: addr.clone(),
        role: v1::ReplicaRole::Voter.into(),
    };
    v1::ShardDescriptor {
        shard_id: id,
        start_key: Bytes::copy_from_slice(start),
        end_key: Bytes::copy_from_slice(end),
        epoch: Some(v1::ShardEpoch {
            conf_version: 1,
            range_version,
        }),
        replicas: (1..).zip(addrs).map(replica).collect(),
        leader_node_id: 0,
    }
}

impl World {
    /// Performs one request at a node, with the fault that waits for it.
    pub fn handle(&mut self, node: usize, request: &v1::Request) -> End {
        self.requests[node] += 1;
        let op = request.op.as_ref().expect("clients ask for something");
        let fault = self.fault_for(op);
        match fault {
            Some(Fault::Refuse(kind)) => return answer(refusal(kind)),
            Some(Fault::BreakBefore) => return End::Break,
            _ => {}
        }
        let mut done = self.perform(node, op).unwrap_or_else(refusal);
        match fault {
            Some(Fault::BreakAfter) => return End::Break,
            Some(Fault::Silence) => return End::Silence,
            Some(Fault::Corrupt) => corrupt(&mut done),
            _ => {}
        }
        answer(done)
    }

    fn fault_for(&mut self, op: &Op) -> Option<Fault> {
        let when = match op {
            Op::Get(_) | Op::Scan(_) => When::Read,
            Op::OpenIncarnation(_) => When::Open,
            _ => When::Write,
        };
        if self.faults.front()?.0 != when {
            return None;
        }
        if self.keep_last_fault && self.faults.len() == 1 {
            return self.faults.front().map(|(_, fault)| fault.clone());
        }
        self.faults.pop_front().map(|(_, fault)| fault)
    }

    fn perform(&mut self, node: usize, op: &Op) -> Result<Answer, Kind> {
        let (keyspace, key, route) = match op {
            Op::Get(r) => (r.keyspace_id, r.key.clone(), &r.route),
            Op::Put(r) => (r.keyspace_id, r.key.clone(), &r.route),
            Op::Delete(r) => (r.keyspace_id, r.key.clone(), &r.route),
            Op::Add(r) => (r.keyspace_id, r.key.clone(), &r.route),
            Op::Batch(r) => (r.keyspace_id, r.operations[0].key.clone(), &r.route),
            Op::Scan(r) => (r.keyspace_id, r.start_key.clone(), &r.route),
            Op::OpenIncarnation(r) => (r.keyspace_id, r.key.clone(), &r.route),
        };
        let shard = self.route(
            node,
            &stored_key(keyspace, &key),
            route.as_ref().expect("clients route"),
        )?;
        match op {
            Op::Get(_) => Ok(Answer::Get(v1::GetResponse {
                record: self.records.get(&stored_key(keyspace, &key)).cloned(),
            })),
            Op::Scan(scan) => Ok(Answer::Scan(self.scan(scan, &KeyRange::of(&shard)))),
            Op::OpenIncarnation(_) => {
                self.version += 1;
                self.opened += 1;
                let incarnation = v1::Incarnation {
                    shard_id: shard.shard_id,
                    version: self.version,
                };
                self.memories
                    .insert((incarnation.shard_id, incarnation.version), BTreeMap::new());
                Ok(Answer::OpenIncarnation(v1::OpenIncarnationResponse {
                    incarnation: Some(incarnation),
                    remembered_ms: 900_000,
                }))
            }
            Op::Put(r) => self.once(&r.token, |world| {
                let crc = client_crc(keyspace, &r.key, &r.value);
                assert_eq!(r.client_crc, Some(crc), "the client checksums what it writes");
                world.holds(keyspace, &r.key, &r.condition)?;
                Ok(Answer::Write(world.put(keyspace, &r.key, r.value.clone())))
            }),
            Op::Delete(r) => self.once(&r.token, |world| {
                world.holds(keyspace, &r.key, &r.condition)?;
                Ok(Answer::Write(world.delete(keyspace, &r.key)))
            }),
            Op::Add(r) => self.once(&r.token, |world| {
                let old = world.records.get(&stored_key(keyspace, &r.key));
                let old = old.map_or(Ok(0), |record| {
                    record.value[..].try_into().map(i64::from_be_bytes)
                });
                let invalid = || {
                    Kind::InvalidArgument(v1::InvalidArgument {
                        field: "value".into(),
                    })
                };
                let value = old
                    .map_err(|_| invalid())?
                    .checked_add(r.delta)
                    .ok_or_else(invalid)?;
                let version = world
                    .put(keyspace, &r.key, Bytes::copy_from_slice(&value.to_be_bytes()))
                    .version;
                Ok(Answer::Add(v1::AddResponse { value, version }))
            }),
            Op::Batch(r) => self.once(&r.token, |world| {
                for operation in &r.operations {
                    world.holds(keyspace, &operation.key, &operation.condition)?;
                }
                let mut first = None;
                for operation in &r.operations {
                    let written = match operation.kind.as_ref().expect("a kind") {
                        v1::batch_operation::Kind::Put(put) => {
                            world.put(keyspace, &operation.key, put.value.clone())
                        }
                        v1::batch_operation::Kind::Delete(_) => world.delete(keyspace, &operation.key),
                    };
                    first.get_or_insert(written);
                }
                Ok(Answer::Write(first.expect("an operation")))
            }),
        }
    }

    fn route(&self, node: usize, stored: &[u8], route: &v1::Route) -> Result<v1::ShardDescriptor, Kind> {
        if let Some(leader) = self.leader.filter(|leader| *leader != node) {
            return Err(Kind::NotLeader(v1::NotLeader {
                shard_id: route.shard_id,
                leader_node_id: leader as u64 + 1,
                leader_addr: self.addrs[leader].clone(),
                maybe_done: false,
            }));
        }
        let shard = self
            .shards
            .iter()
            .find(|shard| KeyRange::of(shard).contains(stored));
        let shard = shard.expect("shards cover every key").clone();
        if shard.shard_id != route.shard_id || shard.epoch != route.epoch {
            let current = self.shards.clone();
            return Err(Kind::EpochNotMatch(v1::EpochNotMatch { current }));
        }
        Ok(shard)
    }

    /// Performs a write unless its token was seen.
    fn once(
        &mut self,
        token: &Option<v1::Token>,
        write: impl FnOnce(&mut Self) -> Result<Answer, Kind>,
    ) -> Result<Answer, Kind> {
        let token = *token.as_ref().expect("every write has a token");
        self.tokens.push(token);
        assert!(token.first_unacknowledged <= token.sequence && token.first_unacknowledged > 0);
        let incarnation = token.incarnation.expect("an incarnation");
        let id = (incarnation.shard_id, incarnation.version);
        let memory = self.memories.get_mut(&id).expect("an opened incarnation");
        memory.retain(|sequence, _| *sequence >= token.first_unacknowledged);
        if let Some(known) = memory.get(&token.sequence) {
            return Ok(known.clone());
        }
        let done = write(self)?;
        self.writes += 1;
        self.memories
            .get_mut(&id)
            .expect("still open")
            .insert(token.sequence, done.clone());
        Ok(done)
    }

    fn holds(&self, keyspace: u32, key: &[u8], condition: &Option<v1::Condition>) -> Result<(), Kind> {
        let current = self
            .records
            .get(&stored_key(keyspace, key))
            .map_or(0, |record| record.version);
        let holds = match condition.as_ref().and_then(|condition| condition.kind.as_ref()) {
            None => true,
            Some(v1::condition::Kind::Absent(_)) => current == 0,
            Some(v1::condition::Kind::Version(version)) => current == *version,
        };
        let failed = v1::ConditionFailed {
            current_version: current,
        };
        holds.then_some(()).ok_or(Kind::ConditionFailed(failed))
    }

    pub fn put(&mut self, keyspace: u32, key: &[u8], value: Bytes) -> v1::WriteResponse {
        self.version += 1;
        let record = v1::Record {
            key: Bytes::copy_from_slice(key),
            client_crc: client_crc(keyspace, key, &value),
            value,
            version: self.version,
            logged_time_ms: 1,
            expires_at_ms: 0,
        };
        self.records.insert(stored_key(keyspace, key), record);
        v1::WriteResponse {
            version: self.version,
        }
    }

    fn delete(&mut self, keyspace: u32, key: &[u8]) -> v1::WriteResponse {
        self.version += 1;
        self.records.remove(&stored_key(keyspace, key));
        v1::WriteResponse {
            version: self.version,
        }
    }

    fn scan(&self, scan: &v1::ScanRequest, shard: &KeyRange) -> v1::ScanResponse {
        let mut wanted = KeyRange::of_keyspace(scan.keyspace_id);
        wanted.start = stored_key(scan.keyspace_id, &scan.start_key);
        if !scan.end_key.is_empty() {
            wanted.end = stored_key(scan.keyspace_id, &scan.end_key);
        }
        assert!(shard.covers(&wanted) || wanted.end == KeyRange::of_keyspace(scan.keyspace_id).end);
        let mut page = v1::ScanResponse::default();
        let mut page_bytes = 0;
        for (stored, record) in self.records.range(wanted.start.clone()..) {
            if !wanted.contains(stored) || !shard.contains(stored) {
                break;
            }
            let is_full = scan.page_bytes > 0 && page_bytes >= scan.page_bytes as usize;
            if is_full || (scan.limit > 0 && page.records.len() as u64 >= scan.limit) {
                page.resume_key = Bytes::copy_from_slice(split_stored_key(stored).expect("stored").1);
                break;
            }
            page_bytes += record.key.len() + record.value.len();
            page.records.push(record.clone());
        }
        page
    }

    pub fn directory(&self) -> v1::Directory {
        let node = |(id, addr): (u64, &String)| v1::NodeDescriptor {
            node_id: id,
            addr: addr.clone(),
            ..Default::default()
        };
        v1::Directory {
            cluster_id: Bytes::from_static(b"0123456789abcdef"),
            version: 1,
            nodes: (1..).zip(&self.addrs).map(node).collect(),
            shards: self.shards.clone(),
            keyspaces: self.keyspaces.clone(),
            ..Default::default()
        }
    }
}

fn answer(answer: Answer) -> End {
    End::Answer(Box::new(answer))
}

fn refusal(kind: Kind) -> Answer {
    Answer::Error(v1::Error {
        message: "refused on order".into(),
        kind: Some(kind),
    })
}

fn corrupt(answer: &mut Answer) {
    let flip = |record: &mut v1::Record| {
        let mut value = record.value.to_vec();
        value[0] ^= 0x10;
        record.value = value.into();
    };
    match answer {
        Answer::Get(got) => got.record.iter_mut().for_each(flip),
        Answer::Scan(page) => page.records.iter_mut().for_each(flip),
        _ => {}
    }
}

/// Long enough for anything on this machine.
pub const LONG: Duration = Duration::from_secs(30);
