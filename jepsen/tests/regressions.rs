//! What is known to bite: bugs of the library beneath, and of ourselves, each with the schedule
//! that shows it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use reelkv::clock::now;
use reelkv_client::{Client, ErrorKind, Keyspace};
use reelkv_jepsen::nemesis::parse;
use reelkv_jepsen::run::{Load, Plan, simulate};
use reelkv_jepsen::sim::{self, Cluster, Settings, SimConnector};
use reelkv_jepsen::workload::Workload;
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, request::Op, response};

/// Seeds of a story.
const SEEDS: u64 = 5;

fn story<Told>(nodes: usize, tell: impl Fn(Cluster, Keyspace) -> Told)
where
    Told: Future<Output = anyhow::Result<()>>,
{
    for seed in 0..SEEDS {
        let runtime = sim::runtime(seed).expect("a runtime");
        let told = runtime.block_on(async {
            let settings = Settings {
                nodes,
                replicas: nodes as u32,
                ..Settings::default()
            };
            let mut cluster = Cluster::new(settings, seed);
            cluster.start("regression").await?;
            cluster.whole(Duration::from_secs(60)).await?;
            // Leaders are evened out at first.
            tokio::time::sleep(Duration::from_secs(15)).await;
            let client = Client::builder()
                .addrs(cluster.addrs())
                .connector(Arc::new(SimConnector::new(cluster.network().clone())))
                .seed(seed)
                .build();
            let keyspace = client.await?.keyspace("regression").await?;
            tell(cluster, keyspace).await
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        if let Err(error) = told {
            panic!("seed {seed}: {error:?}");
        }
    }
}

fn passes(workload: Workload, faults: &str, seeds: std::ops::Range<u64>, load: Load) {
    for seed in seeds {
        let plan = Plan {
            workload,
            faults: parse(faults).expect("faults that exist"),
            seed,
            seconds: 30,
            nodes: 3,
            load,
        };
        let report = simulate(&plan).expect("a runtime");
        assert!(
            report.verdict().is_pass(),
            "{:#?}\nagain: {}",
            report.verdicts,
            plan.command()
        );
    }
}

/// openraft replicates an entry before its own sync is done. A leader that lost its unsynced tail
/// and resumed its term would give the same log ids to other entries (finding F1). The schedule
/// catches the mutant `leader_restore_on`.
#[test]
fn a_leader_that_lost_its_unsynced_tail_does_not_resume_its_term() {
    passes(
        Workload::Set,
        "disk-slow,crash-leader,crash-loop",
        10..16,
        Load::default(),
    );
}

/// A restarted follower has forgotten the lease it granted and votes at once: a read that trusts the
/// old leader's lease is stale (finding F2).
#[test]
fn an_old_leader_answers_no_reads_when_a_restarted_follower_has_voted_for_another() {
    story(3, |mut cluster, keyspace| async move {
        keyspace.put("k", "old").await?;
        let leader = cluster.leader_of(b"k").context("nobody leads")?;
        let follower = (leader + 1) % 3;
        ensure!(cluster.crash(follower), "it was off");
        cluster.start_node(follower).await?;
        cluster.cut_off(&[leader], true);
        // Through the others only.
        let addrs = cluster.addrs();
        let others = addrs
            .iter()
            .enumerate()
            .filter(|(position, _)| *position != leader);
        let elsewhere = Client::builder()
            .addrs(others.map(|(_, addr)| addr.clone()))
            .connector(Arc::new(SimConnector::new(cluster.network().clone())))
            .seed(1)
            .timeout(Duration::from_secs(20))
            .build();
        let elsewhere = elsewhere.await?.keyspace("regression").await?;
        elsewhere.put("k", "new").await?;
        let at_old_leader = Client::builder()
            .addrs([addrs[leader].clone()])
            .connector(Arc::new(SimConnector::new(cluster.network().clone())))
            .seed(2)
            .timeout(Duration::from_millis(900))
            .build();
        let read = at_old_leader.await?.keyspace("regression").await?.get("k").await;
        match read {
            Ok(Some(record)) => ensure!(&record.value[..] == b"new", "stale: {record:?}"),
            Ok(None) => anyhow::bail!("the key is gone"),
            Err(error) => ensure!(*error.kind() == ErrorKind::Unavailable, "{error}"),
        }
        Ok(())
    });
}

/// A follower that lost its log below what it had acknowledged: openraft's leader would send to it
/// without end (finding F3, release builds). Here it comes back as another, and messages stay few.
#[test]
fn a_follower_that_lost_its_log_is_replaced_without_a_storm_of_messages() {
    story(3, |mut cluster, keyspace| async move {
        let follower = (cluster.leader_of(b"1").context("nobody leads")? + 1) % 3;
        for number in 0..50u32 {
            keyspace.put(format!("{number}"), "value").await?;
        }
        let before = cluster.number(follower).context("a member")?;
        ensure!(cluster.crash(follower), "it was off");
        cluster.wipe(follower);
        let (began, delivered) = (now(), cluster.network().happened().delivered);
        cluster.start_node(follower).await?;
        cluster.whole(Duration::from_secs(60)).await?;
        let delivered = cluster.network().happened().delivered - delivered;
        let per_second = delivered as f64 / began.elapsed().as_secs_f64();
        ensure!(per_second < 5_000.0, "{per_second:.0} messages per second");
        ensure!(cluster.number(follower) != Some(before), "it kept its number");
        cluster.agree().await?;
        Ok(())
    });
}

/// A snapshot that purges the log while an apply is due panics openraft's core (issue 2116 of openraft):
/// transfers into nodes with slow disks under load. A panic fails a run.
#[test]
fn transfers_into_slow_nodes_do_not_panic_raft() {
    passes(
        Workload::Set,
        "wipe,tree-loss,disk-slow,crash",
        0..4,
        Load {
            clients: 12,
            think_ms: 30,
        },
    );
}

/// openraft may refuse one proposal and take the next of the same leader and term. What was evaluated
/// on effects that never happened must be a no-op. Refusals are injected in every simulated cluster;
/// many clients keep the pipeline full. The schedule catches the mutant `no_version_check`.
#[test]
fn a_refusal_in_the_middle_of_a_pipeline_undoes_what_was_built_on_it() {
    let crowd = Load {
        clients: 24,
        think_ms: 10,
    };
    passes(Workload::Counter, "none", 0..2, crowd);
}

/// Five voters, one of them gone; the leader hears only one other, which hears the remaining two.
/// That one's lease is kept alive by a leader without a quorum, and nobody is elected (issue 2080
/// of openraft) unless the leader notices and steps down.
#[test]
fn a_leader_that_only_a_bridge_hears_gives_way_among_five_voters() {
    story(5, |cluster, keyspace| async move {
        keyspace.put("k", "1").await?;
        let leader = cluster.leader_of(b"k").context("nobody leads")?;
        let [bridge, one, other, gone] = [1, 2, 3, 4].map(|step| (leader + step) % 5);
        cluster.cut_off(&[gone], true);
        let addrs = cluster.addrs();
        cluster.network().part(&addrs[leader], &addrs[one]);
        cluster.network().part(&addrs[leader], &addrs[other]);
        let connected: Vec<String> = [bridge, one, other]
            .map(|position| addrs[position].clone())
            .to_vec();
        let client = Client::builder()
            .addrs(connected)
            .connector(Arc::new(SimConnector::new(cluster.network().clone())))
            .seed(3)
            .timeout(Duration::from_secs(30))
            .build();
        let keyspace = client.await?.keyspace("regression").await?;
        // Keys of all three shards.
        let began = now();
        for first_byte in [1u8, 100, 200] {
            keyspace.put([first_byte], "2").await?;
        }
        ensure!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        Ok(())
    });
}

/// A write that is under way when its leader loses leadership may yet happen: the refusal must not
/// promise that nothing was done, or a client that gives up would say so.
#[test]
fn a_write_under_way_when_leadership_is_lost_is_not_called_undone() {
    story(3, |cluster, keyspace| async move {
        keyspace.put("k", "1").await?;
        let leader = cluster.leader_of(b"k").context("nobody leads")?;
        let addr = cluster.addrs()[leader].clone();
        let keyspace_id = keyspace.id();
        let key = Bytes::from_static(b"k");
        let open = Op::OpenIncarnation(v1::OpenIncarnationRequest {
            keyspace_id,
            key: key.clone(),
            route: None,
        });
        // One proposal in a hundred is refused in every simulated cluster.
        let mut answer = None;
        for _ in 0..3 {
            answer = ask(&cluster, &addr, open.clone()).await;
            if !matches!(answer, Some(response::Result::Error(_))) {
                break;
            }
        }
        let Some(response::Result::OpenIncarnation(opened)) = answer else {
            bail!("no incarnation: {answer:?}");
        };
        let shard_id = opened.incarnation.map_or(0, |incarnation| incarnation.shard_id);
        let put = Op::Put(v1::PutRequest {
            keyspace_id,
            key,
            value: Bytes::from_static(b"2"),
            token: Some(v1::Token {
                incarnation: opened.incarnation,
                sequence: 1,
                first_unacknowledged: 1,
            }),
            // Routed: no node forwards it.
            route: Some(v1::Route {
                shard_id,
                epoch: None,
            }),
            ..Default::default()
        });
        cluster.cut_off(&[leader], true);
        let under_way = ask(&cluster, &addr, put);
        let heals = async {
            // Another is elected, and the old leader hears of it.
            tokio::time::sleep(Duration::from_secs(5)).await;
            cluster.network().join();
        };
        let (answer, ()) = tokio::join!(under_way, heals);
        let Some(response::Result::Error(refusal)) = answer else {
            bail!("not refused: {answer:?}");
        };
        let is_open = matches!(&refusal.kind, Some(Kind::NotLeader(hint)) if hint.maybe_done);
        ensure!(is_open, "{refusal:?}");
        Ok(())
    });
}

async fn ask(cluster: &Cluster, addr: &str, op: Op) -> Option<response::Result> {
    let request = v1::Request {
        id: 1,
        timeout_ms: 20_000,
        op: Some(op),
    };
    cluster.network().request(addr, request).await?.result
}

/// A leader that is heard and hears nobody: a link that is cut one way. Its followers' answers get
/// lost, so it sends what it has again and again; to them it is a leader that lives, and they would
/// elect nobody for as long as the link is cut.
#[test]
fn a_leader_that_hears_nobody_gives_way() {
    story(3, |cluster, keyspace| async move {
        keyspace.put("k", "1").await?;
        let leader = cluster.leader_of(b"k").context("nobody leads")?;
        let addrs = cluster.addrs();
        for position in (0..3).filter(|position| *position != leader) {
            cluster.network().cut(&addrs[position], &addrs[leader]);
        }
        // Asked all the time, it always has something to send.
        let crowd: Vec<_> = (0..200u64)
            .map(|number| {
                let keyspace = keyspace.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(number * 50)).await;
                    let asked = now();
                    keyspace
                        .put(format!("k{number}"), "2")
                        .await
                        .map(|_| asked.elapsed())
                })
            })
            .collect();
        let mut waited = Duration::ZERO;
        for asked in crowd {
            waited = waited.max(asked.await??);
        }
        // One try at it, no more.
        ensure!(waited < Duration::from_secs(5), "{waited:?}");
        Ok(())
    });
}
