//! Calls against a fake cluster: what they return, and how they get through faults.
#![allow(missing_docs)]
#![allow(clippy::disallowed_methods)] // real time against a real socket

mod fake;

use std::time::{Duration, Instant};

use fake::{Cluster, FILM, Fault, LONG, When};
use reelkv_client::v1::{self, error::Kind};
use reelkv_client::{
    Batch, Client, Condition, CreateKeyspace, Error, ErrorKind, Keyspace, ScanRange, TryStreamExt,
};

async fn connected(cluster: &Cluster) -> (Client, Keyspace) {
    let client = Client::builder()
        .addrs(&cluster.addrs)
        .timeout(LONG)
        .seed(1)
        .build()
        .await
        .unwrap();
    let film = client.keyspace("film").await.unwrap();
    (client, film)
}

fn is_unknown(error: &Error) -> bool {
    *error.kind() == ErrorKind::OutcomeUnknown
}

async fn keys(keyspace: &Keyspace, range: ScanRange) -> Vec<String> {
    let records: Vec<_> = keyspace.scan(range).try_collect().await.unwrap();
    records
        .iter()
        .map(|record| String::from_utf8(record.key.to_vec()).unwrap())
        .collect()
}

fn written_and_opened(cluster: &Cluster) -> (usize, usize) {
    let world = cluster.world.lock();
    (world.writes, world.opened)
}

#[tokio::test]
async fn records_are_written_read_changed_and_deleted() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    assert_eq!(film.get("alien").await.unwrap(), None);
    let first = film.put("alien", "1979").await.unwrap();
    let record = film.get("alien").await.unwrap().unwrap();
    assert_eq!(
        (&record.key[..], &record.value[..], record.version),
        (&b"alien"[..], &b"1979"[..], first)
    );

    let second = film
        .put_if("alien", "restored", Condition::Version(first))
        .await
        .unwrap();
    assert!(second > first);
    let stale = film
        .put_if("alien", "late", Condition::Version(first))
        .await
        .unwrap_err();
    assert_eq!(
        *stale.kind(),
        ErrorKind::ConditionFailed {
            current_version: second
        }
    );
    let present = film.put_if("alien", "new", Condition::Absent).await.unwrap_err();
    assert_eq!(
        *present.kind(),
        ErrorKind::ConditionFailed {
            current_version: second
        }
    );
    assert!(film.delete_if("alien", Condition::Version(first)).await.is_err());
    film.delete_if("alien", Condition::Version(second)).await.unwrap();
    film.delete("alien").await.unwrap();
    assert_eq!(film.get("alien").await.unwrap(), None);

    assert_eq!(film.add("rentals", 3).await.unwrap(), 3);
    assert_eq!(film.add("rentals", -5).await.unwrap(), -2);
    let overflow = film.add("rentals", i64::MIN).await.unwrap_err();
    assert!(matches!(overflow.kind(), ErrorKind::InvalidArgument { field } if field == "value"));

    let batch = Batch::new()
        .put("a", "1")
        .put_if("b", "2", Condition::Absent)
        .delete("rentals");
    film.batch(batch).await.unwrap();
    let refused = film
        .batch(Batch::new().put("c", "3").put_if("b", "4", Condition::Absent))
        .await;
    assert!(matches!(
        refused.unwrap_err().kind(),
        ErrorKind::ConditionFailed { .. }
    ));
    assert_eq!(keys(&film, ScanRange::all()).await, ["a", "b"]);
}

#[tokio::test]
async fn a_scan_crosses_pages_shards_and_limits() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    for n in 0..20 {
        film.put(format!("k{n:02}"), format!("{n}")).await.unwrap();
    }
    cluster
        .world
        .lock()
        .put(FILM + 1, b"k99", "another keyspace's".into());
    cluster.split_at("k10");
    let names = |range: std::ops::Range<u32>| range.map(|n| format!("k{n:02}")).collect::<Vec<_>>();
    assert_eq!(keys(&film, ScanRange::all()).await, names(0..20));
    assert_eq!(keys(&film, ScanRange::all().page_bytes(7)).await, names(0..20));
    assert_eq!(
        keys(&film, ScanRange::between("k05", "k15").page_bytes(7)).await,
        names(5..15)
    );
    assert_eq!(keys(&film, ScanRange::between("k10", "")).await, names(10..20));
    assert_eq!(
        keys(&film, ScanRange::all().limit(13).page_bytes(7)).await,
        names(0..13)
    );
    assert_eq!(keys(&film, ScanRange::all().limit(10)).await, names(0..10));
    assert_eq!(keys(&film, ScanRange::prefix("k1")).await, names(10..20));
    assert!(keys(&film, ScanRange::between("k15", "k05")).await.is_empty());

    let page = film.scan_page(ScanRange::all().limit(12)).await.unwrap();
    let rest = page.rest.unwrap();
    assert_eq!(
        (page.records.len(), &rest.start[..], rest.limit),
        (10, &b"k10"[..], 2)
    );
    let page = film.scan_page(rest).await.unwrap();
    assert_eq!((page.records.len(), page.rest), (2, None));
}

#[tokio::test]
async fn the_leader_is_found_and_kept() {
    let cluster = Cluster::start().await;
    let (client, film) = connected(&cluster).await;
    cluster.world.lock().leader = Some(2);
    for n in 0..10 {
        film.put(format!("{n}"), "").await.unwrap();
    }
    let requests = cluster.world.lock().requests;
    assert_eq!(requests[0] + requests[1], 1, "one detour: {requests:?}");
    client.admin().transfer_leader(2, 2).await.unwrap();
    film.put("after", "").await.unwrap();
    assert_eq!(cluster.world.lock().requests[1], 1);
}

#[tokio::test]
async fn a_leader_that_was_trouble_for_a_moment_is_gone_back_to() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    cluster.world.lock().leader = Some(2);
    film.put("a", "1").await.unwrap();
    // As just after its restart: it refuses once, and the others know no other leader.
    cluster.fault(When::Read, Fault::Refuse(Kind::Unavailable(v1::Unavailable {})));
    let started = Instant::now();
    assert!(film.get("a").await.unwrap().is_some());
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_split_is_learned_from_the_refusal() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    film.put("a", "1").await.unwrap();
    film.put("z", "1").await.unwrap();
    cluster.split_at("m");
    let before = cluster.world.lock().requests;
    film.put("z", "2").await.unwrap();
    film.put("a", "2").await.unwrap();
    let sent = cluster.world.lock().requests.iter().sum::<usize>() - before.iter().sum::<usize>();
    // "z" refused, "z" again, "a" with the shard's new epoch.
    assert_eq!(sent, 3);
    let across = film
        .batch(Batch::new().put("a", "3").put("z", "3"))
        .await
        .unwrap_err();
    assert!(matches!(across.kind(), ErrorKind::InvalidArgument { field } if field == "batch"));
    assert!(film.get("a").await.unwrap().unwrap().value == "2");
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_happens_once() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    for fault in [Fault::BreakAfter, Fault::BreakBefore, Fault::Silence] {
        let before = cluster.world.lock().writes;
        cluster.fault(When::Write, fault.clone());
        let sum = film.add("count", 1).await.unwrap();
        let after = cluster.world.lock().writes;
        assert_eq!(after - before, 1, "{fault:?}");
        assert_eq!(film.add("count", 0).await.unwrap(), sum, "{fault:?}");
    }
}

#[tokio::test]
async fn without_an_answer_a_write_is_unknown_and_a_read_unavailable() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    let short = film.with_timeout(Duration::from_millis(600));
    film.put("a", "1").await.unwrap();
    cluster.fault_for_ever(When::Write, Fault::BreakAfter);
    let error = short.put("a", "2").await.unwrap_err();
    assert!(is_unknown(&error) && !error.is_retryable(), "{error:?}");
    cluster.world.lock().faults.clear();
    cluster.fault_for_ever(When::Read, Fault::BreakBefore);
    let started = Instant::now();
    let error = short.get("a").await.unwrap_err();
    assert!(
        *error.kind() == ErrorKind::Unavailable && error.is_retryable(),
        "{error:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_write_that_was_never_sent_is_not_unknown() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    let short = film.with_timeout(Duration::from_millis(300));
    cluster.fault_for_ever(
        When::Write,
        Fault::Refuse(Kind::Busy(v1::Busy { retry_after_ms: 5 })),
    );
    let error = short.put("a", "1").await.unwrap_err();
    let retry_after = Duration::from_millis(5);
    assert_eq!(*error.kind(), ErrorKind::Busy { retry_after });
    cluster.world.lock().faults.clear();
    cluster.fault_for_ever(When::Open, Fault::BreakAfter);
    let fresh = connected(&cluster)
        .await
        .1
        .with_timeout(Duration::from_millis(300));
    let error = fresh.put("a", "1").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(cluster.world.lock().writes, 0);
}

/// Leadership was lost while the write was under way, and nobody leads until the call's time is
/// over: the old leader's successor may yet perform it.
#[tokio::test]
async fn a_write_that_was_under_way_when_leadership_was_lost_is_unknown() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    film.put("a", "1").await.unwrap();
    let lost = |maybe_done| {
        Fault::Refuse(Kind::NotLeader(v1::NotLeader {
            shard_id: 2,
            maybe_done,
            ..Default::default()
        }))
    };
    cluster.fault(When::Write, lost(true));
    cluster.fault_for_ever(When::Write, lost(false));
    let short = film.with_timeout(Duration::from_millis(300));
    let error = short.put("a", "2").await.unwrap_err();
    assert!(is_unknown(&error) && !error.is_retryable(), "{error:?}");
    // Before it was under way nothing can have happened.
    let error = short.put("a", "3").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unavailable, "{error:?}");
}

/// A node that is cut off together with the old leader names it for ever: it is asked once.
#[tokio::test]
async fn whoever_names_a_silent_leader_is_not_believed_before_the_others_were_asked() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    let cut_off = cluster.addrs[0].clone();
    film.put("a", "1").await.unwrap();
    cluster.fault(When::Read, Fault::Silence);
    cluster.fault(
        When::Read,
        Fault::Refuse(Kind::NotLeader(v1::NotLeader {
            shard_id: 2,
            leader_node_id: 1,
            leader_addr: cut_off,
            maybe_done: false,
        })),
    );
    let before = cluster.world.lock().requests;
    let patient = film.with_timeout(Duration::from_millis(1_500));
    assert!(patient.get("a").await.unwrap().is_some());
    let after = cluster.world.lock().requests;
    let asked: Vec<usize> = (0..3).map(|node| after[node] - before[node]).collect();
    assert_eq!(asked, [1, 1, 1], "each was asked once");
}

#[tokio::test]
async fn busy_is_waited_for() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    cluster.fault(
        When::Read,
        Fault::Refuse(Kind::Busy(v1::Busy { retry_after_ms: 200 })),
    );
    let started = Instant::now();
    film.get("a").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_proves_nothing() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    film.put("a", "1").await.unwrap();
    // The first send did nothing, but the library cannot know that it will not yet arrive.
    cluster.fault(When::Write, Fault::BreakBefore);
    let error = film.put_if("a", "2", Condition::Absent).await.unwrap_err();
    assert!(is_unknown(&error), "{error:?}");
}

#[tokio::test]
async fn an_expired_token_is_replaced_only_if_the_write_was_never_sent() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    let expired = || Fault::Refuse(Kind::TokenExpired(v1::TokenExpired { sequence: 1 }));
    cluster.fault(When::Write, expired());
    film.put("a", "1").await.unwrap();
    assert_eq!(written_and_opened(&cluster), (1, 2));

    cluster.fault(When::Write, Fault::BreakAfter);
    cluster.fault(When::Write, expired());
    let error = film.add("n", 1).await.unwrap_err();
    assert!(is_unknown(&error), "{error:?}");
    film.put("a", "2").await.unwrap();
    assert_eq!(written_and_opened(&cluster), (3, 3));
}

#[tokio::test]
async fn a_damaged_value_is_read_again_and_never_returned() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    film.put("a", "right").await.unwrap();
    cluster.fault(When::Read, Fault::Corrupt);
    assert_eq!(film.get("a").await.unwrap().unwrap().value, "right");
    cluster.fault(When::Read, Fault::Corrupt);
    assert_eq!(keys(&film, ScanRange::all()).await, ["a"]);
    cluster.fault_for_ever(When::Read, Fault::Corrupt);
    for error in [
        film.get("a").await.unwrap_err(),
        film.scan_page(ScanRange::all()).await.unwrap_err(),
    ] {
        assert!(
            matches!(error.kind(), ErrorKind::Integrity { seen_at } if seen_at == "client"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn concurrent_calls_share_messages_and_one_incarnation() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    let puts = (0..500).map(|n| {
        let film = film.clone();
        async move { film.put(format!("{n}"), format!("{n}")).await }
    });
    let versions = futures::future::try_join_all(puts).await.unwrap();
    let world = cluster.world.lock();
    assert_eq!((world.opened, world.writes, versions.len()), (1, 500, 500));
    assert!(
        world.messages < 100,
        "{} messages for 501 requests",
        world.messages
    );
    let mut sequences: Vec<_> = world.tokens.iter().map(|token| token.sequence).collect();
    sequences.sort();
    assert_eq!(sequences, (1..=500).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_answered_is_acknowledged_refusals_too() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    film.put("a", "1").await.unwrap();
    film.put_if("a", "2", Condition::Absent).await.unwrap_err();
    let _ = tokio::time::timeout(Duration::ZERO, film.put("a", "given up")).await;
    film.put("a", "3").await.unwrap();
    let last = *cluster.world.lock().tokens.last().unwrap();
    assert_eq!(last.first_unacknowledged, last.sequence);
}

#[tokio::test]
async fn one_live_node_is_enough_to_connect_and_none_is_said_so() {
    let cluster = Cluster::start().await;
    let dead = "127.0.0.1:1";
    let client = Client::connect([dead, cluster.addrs[1].as_str()]).await.unwrap();
    client
        .keyspace("film")
        .await
        .unwrap()
        .put("a", "1")
        .await
        .unwrap();
    let error = Client::connect([dead]).await.err().unwrap();
    assert_eq!(*error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(dead), "{error}");
    for wrong in ["nonsense", "host:", ":7301", "host:99999"] {
        let error = Client::connect([wrong]).await.err().unwrap();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument { field } if field == "addrs"),
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn limits_are_checked_before_anything_is_sent() {
    let cluster = Cluster::start().await;
    let (_, film) = connected(&cluster).await;
    let field = |error: Error| match error.kind() {
        ErrorKind::InvalidArgument { field } => field.clone(),
        other => panic!("{other:?}"),
    };
    let long = vec![0; 4097];
    assert_eq!(field(film.get(&long).await.unwrap_err()), "key");
    assert_eq!(field(film.put(&long, "").await.unwrap_err()), "key");
    assert_eq!(
        field(film.put("a", vec![0; (4 << 20) + 1]).await.unwrap_err()),
        "value"
    );
    assert_eq!(field(film.batch(Batch::new()).await.unwrap_err()), "batch");
    let page = ScanRange::all().page_bytes((8 << 20) + 1);
    assert_eq!(field(film.scan_page(page).await.unwrap_err()), "page_bytes");
    assert_eq!(cluster.world.lock().requests, [0; 3]);
    film.put("a", vec![7; 4 << 20]).await.unwrap();
    assert_eq!(film.get("a").await.unwrap().unwrap().value.len(), 4 << 20);
}

#[tokio::test]
async fn keyspaces_are_made_once_and_found() {
    let cluster = Cluster::start().await;
    let (client, _) = connected(&cluster).await;
    cluster.world.lock().leader = Some(1);
    let actor = client
        .create_keyspace("actor", CreateKeyspace::default())
        .await
        .unwrap();
    assert_eq!((actor.id(), actor.name()), (FILM + 1, "actor"));
    let again = client
        .create_keyspace("actor", CreateKeyspace::default())
        .await
        .err()
        .unwrap();
    assert_eq!(*again.kind(), ErrorKind::AlreadyExists);
    let unknown = client.keyspace("payment").await.err().unwrap();
    assert_eq!(*unknown.kind(), ErrorKind::UnknownKeyspace);
    let known = client.keyspaces().await.unwrap();
    let known: Vec<_> = known
        .iter()
        .map(|info| (info.name.as_str(), info.shards))
        .collect();
    assert_eq!(known, [("actor", 1), ("film", 1)]);
}

#[tokio::test]
async fn operators_reach_the_node_they_name() {
    let cluster = Cluster::start().await;
    let (client, film) = connected(&cluster).await;
    film.put("a", "1").await.unwrap();
    let admin = client.admin();
    let exists = admin.init_cluster(4, 3).await.unwrap_err();
    assert_eq!(*exists.kind(), ErrorKind::AlreadyExists);
    assert_eq!(admin.directory().await.unwrap().nodes.len(), 3);
    assert_eq!(admin.cluster_status().await.unwrap().health(), v1::Health::Ok);
    assert_eq!(
        admin.node_status(&cluster.addrs[2]).await.unwrap().release,
        "fake 2"
    );
    assert_eq!(
        admin.replica_digest(&cluster.addrs[0], 2).await.unwrap().records,
        1
    );
    let pages = admin.read_replica(&cluster.addrs[0], 2).await.unwrap();
    assert_eq!(pages.try_collect::<Vec<_>>().await.unwrap().len(), 1);
    let wrong = admin.read_replica(&cluster.addrs[0], 9).await.err().unwrap();
    assert!(matches!(wrong.kind(), ErrorKind::InvalidArgument { field } if field == "shard_id"));
    assert!(admin.node_status("127.0.0.1:1").await.unwrap_err().is_retryable());
}
