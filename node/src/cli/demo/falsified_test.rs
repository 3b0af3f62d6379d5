//! The business against a cluster that lies: each lie must show in the books, and none if there is none.
//!
//! The cluster is a map behind the client's seam to the network; the client itself is the real one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use reelkv_client::{Client, Connector, TransportError};
use reelkv_proto::checksum::client_crc;
use reelkv_proto::types::stored_key;
use reelkv_proto::v1::{self, request::Op, response::Result as Answer};

use super::business::Business;
use super::data::{COUNTERS, DataSet, Table};
use super::verify;
use super::workers::{Load, probe_rows};
use crate::clock::now;

/// What the cluster does wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// Acknowledges an overwrite and forgets it.
    ForgetWrite,
    /// Answers a read with what was there before.
    StaleRead,
    /// Answers a read with another row's value (and that row's checksum fits the key).
    OtherValue,
    /// Adds twice.
    AddTwice,
    /// Acknowledges an addition and forgets it.
    ForgetAdd,
    /// Holds a record in the end that nobody wrote.
    Invent,
}

#[derive(Default)]
struct State {
    records: BTreeMap<Bytes, v1::Record>,
    /// What each key held before.
    before: BTreeMap<Bytes, v1::Record>,
    version: u64,
    /// Lies left to tell.
    lies: u32,
}

#[derive(Clone)]
struct Liar {
    lie: Lie,
    state: Arc<Mutex<State>>,
}

impl State {
    fn put(&mut self, keyspace: u32, key: &Bytes, value: Bytes, forget: bool) -> u64 {
        self.version += 1;
        let client_crc = client_crc(keyspace, key, &value);
        let record = v1::Record {
            key: key.clone(),
            value,
            version: self.version,
            client_crc,
            logged_time_ms: 0,
            expires_at_ms: 0,
        };
        let stored = stored_key(keyspace, key);
        if !forget && let Some(before) = self.records.insert(stored.clone(), record) {
            self.before.insert(stored, before);
        }
        self.version
    }

    fn holds(&self, stored: &Bytes, condition: Option<v1::Condition>) -> Result<(), v1::Error> {
        let current_version = self.records.get(stored).map_or(0, |record| record.version);
        let wanted = match condition.and_then(|condition| condition.kind) {
            None => return Ok(()),
            Some(v1::condition::Kind::Absent(_)) => 0,
            Some(v1::condition::Kind::Version(version)) => version,
        };
        let kind = v1::error::Kind::ConditionFailed(v1::ConditionFailed { current_version });
        let refused = v1::Error {
            message: "the condition does not hold".to_owned(),
            kind: Some(kind),
        };
        if wanted == current_version {
            Ok(())
        } else {
            Err(refused)
        }
    }

    fn takes(&mut self, applies: bool) -> bool {
        let told = applies && self.lies > 0;
        self.lies -= u32::from(told);
        told
    }
}

impl Liar {
    fn answer(&self, op: Op) -> Result<Answer, v1::Error> {
        let mut state = self.state.lock();
        let state = &mut *state;
        Ok(match op {
            Op::Get(get) => {
                let stored = stored_key(get.keyspace_id, &get.key);
                let mut record = state.records.get(&stored).cloned();
                let before = state.before.get(&stored).cloned();
                if before.is_some() && state.takes(self.lie == Lie::StaleRead) {
                    record = before;
                }
                if let Some(record) = &mut record
                    && state.takes(self.lie == Lie::OtherValue)
                {
                    record.value = Bytes::from_static(b"{\"rev\":0,\"film_id\":1}");
                    record.client_crc = client_crc(get.keyspace_id, &record.key, &record.value);
                }
                Answer::Get(v1::GetResponse { record })
            }
            Op::Put(put) => {
                let stored = stored_key(put.keyspace_id, &put.key);
                state.holds(&stored, put.condition)?;
                let overwrites = state.before.contains_key(&stored);
                let forget = state.takes(overwrites && self.lie == Lie::ForgetWrite);
                let version = state.put(put.keyspace_id, &put.key, put.value, forget);
                Answer::Write(v1::WriteResponse { version })
            }
            Op::Delete(delete) => {
                let stored = stored_key(delete.keyspace_id, &delete.key);
                state.holds(&stored, delete.condition)?;
                state.version += 1;
                state.records.remove(&stored);
                Answer::Write(v1::WriteResponse {
                    version: state.version,
                })
            }
            Op::Add(add) => {
                let record = state.records.get(&stored_key(add.keyspace_id, &add.key));
                let held = record.map_or(0, |record| {
                    i64::from_be_bytes(record.value[..].try_into().unwrap())
                });
                let twice = i64::from(state.takes(self.lie == Lie::AddTwice));
                let forget = state.takes(held > 0 && self.lie == Lie::ForgetAdd);
                let value = held + add.delta * (1 + twice);
                let bytes = Bytes::copy_from_slice(&value.to_be_bytes());
                let version = state.put(add.keyspace_id, &add.key, bytes, forget);
                Answer::Add(v1::AddResponse { value, version })
            }
            Op::OpenIncarnation(_) => Answer::OpenIncarnation(v1::OpenIncarnationResponse {
                incarnation: Some(v1::Incarnation::default()),
                remembered_ms: 600_000,
            }),
            Op::Batch(_) | Op::Scan(_) => unreachable!("the demo sends none"),
        })
    }
}

impl Connector for Liar {
    fn call(
        &self,
        _: &str,
        request: v1::Request,
        _: Duration,
    ) -> BoxFuture<'static, Result<v1::Response, TransportError>> {
        let result = self
            .answer(request.op.expect("the client sends an operation"))
            .unwrap_or_else(Answer::Error);
        async move {
            Ok(v1::Response {
                id: request.id,
                result: Some(result),
            })
        }
        .boxed()
    }

    fn directory(&self, _: &str) -> BoxFuture<'static, Result<v1::Directory, TransportError>> {
        async { Ok(directory()) }.boxed()
    }
}

fn directory() -> v1::Directory {
    let names = Table::ALL.into_iter().map(Table::name).chain([COUNTERS]);
    let keyspaces = names.zip(1..).map(|(name, keyspace_id)| v1::Keyspace {
        keyspace_id,
        name: name.to_owned(),
    });
    let addr = "n1:1".to_owned();
    let role = v1::ReplicaRole::Voter.into();
    v1::Directory {
        version: 1,
        keyspaces: keyspaces.collect(),
        nodes: vec![v1::NodeDescriptor {
            node_id: 1,
            addr: addr.clone(),
            ..Default::default()
        }],
        shards: vec![v1::ShardDescriptor {
            shard_id: 2,
            replicas: vec![v1::ReplicaDescriptor {
                replica_id: 1,
                node_id: 1,
                addr,
                role,
            }],
            epoch: Some(v1::ShardEpoch::default()),
            leader_node_id: 1,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A short business day; what the books say: writes, lost, wrong, failed.
async fn day(lie: Lie) -> (u64, u64, u64, u64, Vec<String>) {
    let state = Arc::new(Mutex::new(State {
        lies: 1,
        ..State::default()
    }));
    let liar = Liar {
        lie,
        state: state.clone(),
    };
    let client = Client::builder()
        .addrs(["n1:1"])
        .connector(Arc::new(liar))
        .build()
        .await
        .unwrap();
    let business = Business::open(&client, DataSet::new(3, 200), now())
        .await
        .unwrap();
    let business = Arc::new(business);
    business.load().await.unwrap();
    let probed: Vec<_> = probe_rows(&business, &directory())
        .into_iter()
        .map(|(_, row)| row)
        .collect();
    assert_eq!(probed.len(), 1, "one shard, one row");
    let load = Load::start(&business, 8, 5, &probed);
    tokio::time::sleep(Duration::from_secs(20)).await;
    load.finish().await.unwrap();
    assert!(business.books.lock().stall.longest_ms(business.elapsed_ms()) < 1_000);

    let mut held: HashMap<_, _> = state.lock().records.clone().into_iter().collect();
    if lie == Lie::Invent {
        held.insert(stored_key(1, b"nobody"), v1::Record::default());
    }
    verify::judge(&business, "n1", &verify::owners(&business), held);
    let ledger = &business.books.lock().ledger;
    let remarks = ledger.remarks().to_vec();
    (
        ledger.acknowledged_writes(),
        ledger.lost_writes(),
        ledger.wrong_reads(),
        ledger.failed_requests(),
        remarks,
    )
}

#[tokio::test(start_paused = true)]
async fn an_honest_cluster_has_clean_books() {
    let (writes, lost, wrong, failed, remarks) = day(Lie::None).await;
    assert!(writes > 2_000, "{writes} writes");
    assert_eq!((lost, wrong, failed), (0, 0, 0), "{remarks:?}");
}

#[tokio::test(start_paused = true)]
async fn every_single_lie_is_noticed() {
    for lie in [
        Lie::ForgetWrite,
        Lie::StaleRead,
        Lie::OtherValue,
        Lie::AddTwice,
        Lie::ForgetAdd,
        Lie::Invent,
    ] {
        let (_, lost, wrong, failed, remarks) = day(lie).await;
        assert!(lost + wrong > 0, "{lie:?} went unnoticed");
        assert_eq!(failed, 0, "{lie:?}: {remarks:?}");
    }
}
