//! One case on real files: three directories, one fault, three nodes that are started on them, and
//! the criteria P1 to P7.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reelkv::clock::{Instant, now};
use reelkv::health::{Action, Damage, Kind, Structure as Told};
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::{Front, Node};
use reelkv::storage::EngineKind;
use reelkv_client::Keyspace;
use reelkv_proto::types::META_SHARD;
use reelkv_proto::v1::{self, DamageEvent};
use tokio::task::JoinHandle;

use super::fault::{ANY, VICTIM};
use super::files::{self, Snapshot};
use super::image::client_keyspace;
use super::judge::{self, Model, Probes};
use super::structure::Structure;
use super::verdict::{Finding, Outcome};
use super::world::{NODES, Pace, TIMES, World};
use crate::run::panics;

/// P3: reads and writes of every shard succeed within this long after an unhurt start would have
/// served, and never stall for longer: two election timeouts.
pub const AVAILABLE_WITHIN: Duration = Duration::from_millis(2 * TIMES.election_timeout_max_ms);
/// P4: everything is repaired within this long after an unhurt start would have served.
pub const REPAIRED_WITHIN: Duration = Duration::from_secs(5);
/// P5: damage is told within this long after it was detected.
pub const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// What does not happen in time may happen late; it is waited for that much longer, to tell which.
const LATE: Duration = Duration::from_secs(5);
/// How long leadership is offered to the victim, or taken from it.
const LEAD_WITHIN: Duration = Duration::from_millis(800);
/// P6: a process that ends may be started again so often.
const RESTARTS_MAX: u32 = 3;
/// A sweep that begins with a start has read these small trees by then.
const SWEPT_WITHIN: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(5);
/// No case takes this long.
const CASE_MAX: Duration = Duration::from_secs(180);

/// What the victim is to its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is offered leadership of every data shard, and may refuse while it is damaged.
    Leader,
    /// It leads nothing.
    Follower,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
        }
    }
}

/// What is done to a case so that it must not pass: for tests of the judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// The model claims something that nobody wrote.
    FalsifiedModel,
    /// These nodes are never started.
    LeftOff(Vec<usize>),
    /// The victim's ledger has an entry that nobody repairs.
    OpenLedgerEntry,
}

/// What a case is run with.
pub struct Plan {
    /// The directories, struck.
    pub nodes: Vec<Snapshot>,
    /// What was struck; `None` when it was more than the victim.
    pub structure: Structure,
    /// Whether the damage is on one node only, and the criteria of one faulty node hold.
    pub one_node: bool,
    /// What the victim is to its shards; not changed when `None`.
    pub role: Option<Role>,
    /// A node that is off until the replicas are compared.
    pub off: Option<usize>,
    /// The engine.
    pub engine: EngineKind,
    /// Whose time passes.
    pub pace: Pace,
    /// Everything left to chance follows from it.
    pub seed: u64,
    /// What clients were told.
    pub model: Arc<Model>,
    /// How long a start without any fault takes to serve.
    pub unhurt: Duration,
    /// The victim must not start on what it is given, and change nothing of it; this is what is put back then.
    pub must_refuse: Option<Snapshot>,
    /// For tests of the judge.
    pub sabotage: Sabotage,
}

/// Runs a case below `base`, which is made and removed.
pub fn run(plan: &Plan, base: &Path) -> Outcome {
    let panics = panics::watch();
    let mut outcome = match run_watched(plan, base, &panics) {
        Ok(outcome) => outcome,
        Err(error) => Outcome {
            findings: vec![Finding::unavailable(format!(
                "the case could not be run: {error:#}"
            ))],
            ..Outcome::default()
        },
    };
    files::remove(base);
    for panic in panics.seen() {
        outcome.find(Finding::degraded(format!("P6: {panic}")));
    }
    // Where a case was run says nothing of it.
    let place = format!("{}/", base.display());
    outcome.note = outcome.note.replace(&place, "");
    for finding in &mut outcome.findings {
        finding.why = finding.why.replace(&place, "");
    }
    outcome
}

fn run_watched(plan: &Plan, base: &Path, panics: &panics::Watch) -> anyhow::Result<Outcome> {
    for (position, snapshot) in plan.nodes.iter().enumerate() {
        snapshot.write(&super::world::dir(base, position))?;
    }
    let runtime = plan.pace.runtime(plan.seed, panics)?;
    let outcome = runtime.block_on(async {
        let mut judge = Judge::new(plan, base);
        if tokio::time::timeout(CASE_MAX, judge.judge()).await.is_err() {
            judge.outcome.find(Finding::unavailable(format!(
                "the case does not end within {CASE_MAX:?}"
            )));
        }
        judge.world.stop_all().await;
        judge.outcome
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(outcome)
}

/// When the victim's status first showed the damage.
struct Telling {
    task: JoinHandle<()>,
    told_ms: Arc<OnceLock<u64>>,
}

struct Judge<'a> {
    plan: &'a Plan,
    base: &'a Path,
    world: World,
    model: Arc<Model>,
    outcome: Outcome,
    began: Instant,
    wall_began_ms: u64,
    /// The victim's first life: its ledger is what the case is about.
    first_life: Option<Arc<Node>>,
    restarts: u32,
}

impl<'a> Judge<'a> {
    fn new(plan: &'a Plan, base: &'a Path) -> Self {
        let world = World::new(base, plan.engine, plan.pace, plan.seed);
        let mut model = plan.model.clone();
        if plan.sabotage == Sabotage::FalsifiedModel {
            Arc::make_mut(&mut model).falsify();
        }
        Self {
            plan,
            base,
            model,
            outcome: Outcome::default(),
            began: now(),
            wall_began_ms: world.wall_ms(VICTIM),
            world,
            first_life: None,
            // A directory that is refused is refused again.
            restarts: match plan.must_refuse {
                Some(_) => RESTARTS_MAX,
                None => 0,
            },
        }
    }

    fn left_off(&self) -> &[usize] {
        match &self.plan.sabotage {
            Sabotage::LeftOff(nodes) => nodes,
            _ => &[],
        }
    }

    async fn judge(&mut self) {
        self.start_all().await;
        let telling = self.watch_ledger();
        let keyspace = match client_keyspace(self.world.network(), self.plan.seed).await {
            Ok(keyspace) => keyspace,
            Err(error) => {
                let finding = Finding::unavailable(format!("P3: no node answers: {error:#}"));
                return self.outcome.find(finding);
            }
        };
        let probes = Probes::start(&keyspace, &self.model, &self.model, judge::samples(&self.model));
        let serves = self.await_service(&probes).await;
        if serves {
            self.give_role().await;
        }
        let read = judge::read_all(&keyspace, &self.model, serves).await;
        self.outcome.findings.extend(read);
        if let Some(own) = &self.plan.must_refuse {
            self.judge_refusal(own).await;
        }
        let whole_by = self.start_those_off().await;
        let repaired = match serves {
            true => self.await_ok(whole_by).await,
            false => false,
        };
        self.end_probes(probes).await;
        if repaired {
            self.compare_replicas(&keyspace, whole_by).await;
        }
        // What is refused is told by the error it is refused with.
        if self.plan.must_refuse.is_none() {
            self.judge_telling(telling);
        }
        if repaired && self.outcome.findings.is_empty() {
            self.start_victim_again().await;
        }
    }

    async fn start_all(&mut self) {
        let off = |position: &usize| self.plan.off == Some(*position) || self.left_off().contains(position);
        let positions: Vec<usize> = (0..NODES).filter(|position| !off(position)).collect();
        let starts = positions.iter().map(|position| self.world.start(*position));
        let started = futures::future::join_all(starts).await;
        for (position, started) in positions.into_iter().zip(started) {
            match started {
                Ok(()) => {}
                Err(error) if position == VICTIM && self.plan.must_refuse.is_some() => {
                    if !error.is_foreign() {
                        let finding = format!("P5: refused, but not as another node's: {error}");
                        self.outcome.find(Finding::degraded(finding));
                    }
                    self.say(&error.to_string());
                }
                // It is started again below, as whoever runs processes would.
                Err(error) if position == VICTIM || !self.plan.one_node => self.say(&error.to_string()),
                Err(error) => {
                    let finding = format!("P3: node {} does not start: {error}", position + 1);
                    self.outcome.find(Finding::unavailable(finding));
                }
            }
        }
        self.first_life = self.world.network().node(&super::world::addr(VICTIM));
        if let (Sabotage::OpenLedgerEntry, Some(node)) = (&self.plan.sabotage, &self.first_life) {
            let told_as = self.plan.structure.told_as;
            let named = |structure: &&Told| structure.word() == told_as;
            let structure = Told::ALL.iter().find(named).copied();
            node.health().damaged(Damage::of_node(
                // The log's own is closed by the scrub that reads it whole.
                structure.unwrap_or(Told::Quorum),
                Kind::Checksum,
                Action::None,
                "made up",
            ));
        }
    }

    fn say(&mut self, what: &str) {
        if self.outcome.note.is_empty() {
            self.outcome.note = what.to_owned();
        }
    }

    /// Follows when the victim's status first shows damage to what was struck.
    fn watch_ledger(&self) -> Option<Telling> {
        let node = self.first_life.clone()?;
        let (began, told_as) = (self.began, self.plan.structure.told_as);
        let told_ms = Arc::new(OnceLock::new());
        let shared = told_ms.clone();
        let task = tokio::spawn(async move {
            loop {
                let status = Front(node.clone()).node_status().await;
                let shown = status.unwrap_or_default().damage;
                if shown.iter().any(|event| tells(event, told_as)) {
                    shared.get_or_init(|| began.elapsed().as_millis() as u64);
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        });
        Some(Telling { task, told_ms })
    }

    /// P3 at the start. Whether every shard serves, if late.
    async fn await_service(&mut self, probes: &Probes) -> bool {
        let bar = self.plan.unhurt + AVAILABLE_WITHIN;
        let (network, addrs) = (self.world.network().clone(), self.world.addrs());
        let mut meta_at = None;
        loop {
            if meta_at.is_none() && judge::read_meta(&network, &addrs).await.is_ok() {
                meta_at = Some(now());
            }
            let missing = match (probes.answered(), meta_at) {
                (Ok(data_at), Some(meta_at)) => {
                    let took = data_at.max(meta_at).duration_since(self.began);
                    self.outcome.times.available_ms = Some(took.as_millis() as u64);
                    if took > bar {
                        self.outcome.find(Finding::unavailable(format!(
                            "P3: the last shard answered after {took:?}, the bar is {bar:?}"
                        )));
                    }
                    return true;
                }
                (Err(missing), _) => missing,
                (Ok(_), None) => "the meta shard does not answer".to_owned(),
            };
            if self.began.elapsed() > bar + LATE {
                let waited = self.began.elapsed();
                self.outcome
                    .find(Finding::unavailable(format!("P3: after {waited:?} {missing}")));
                return false;
            }
            self.keep_running(VICTIM).await;
            tokio::time::sleep(POLL).await;
        }
    }

    /// A process that ended, or whose log is poisoned, is started again, as its supervisor would.
    async fn keep_running(&mut self, position: usize) {
        if self.left_off().contains(&position) || self.restarts >= RESTARTS_MAX {
            return;
        }
        let node = self.world.network().node(&super::world::addr(position));
        let poisoned = |node: &Arc<Node>| node.member().is_some_and(|member| member.is_poisoned());
        match node {
            Some(node) if !poisoned(&node) => return,
            Some(_) => {
                self.world.stop(position).await;
            }
            None => {}
        }
        self.restarts += 1;
        match self.world.start(position).await {
            Ok(()) if self.first_life.is_none() => {
                self.first_life = self.world.network().node(&super::world::addr(position));
            }
            Ok(()) => {}
            Err(error) if self.restarts == RESTARTS_MAX => {
                let finding = format!("P6: node {} does not start: {error}", position + 1);
                self.outcome.find(Finding::degraded(finding));
            }
            Err(error) => self.say(&error.to_string()),
        }
    }

    /// Offers the victim leadership of every data shard, or takes it away.
    async fn give_role(&mut self) {
        let Some(role) = self.plan.role else { return };
        let Ok(map) = judge::directory(self.world.network(), &self.world.addrs()) else {
            return;
        };
        let shards = map.shards.iter().map(|shard| shard.shard_id);
        let moves = shards
            .filter(|shard| *shard != META_SHARD)
            .map(|shard| self.move_leader(shard, role));
        let taken = futures::future::join_all(moves).await;
        if taken.contains(&false) {
            self.say(match role {
                Role::Leader => "the struck node did not take leadership",
                Role::Follower => "the struck node did not give up leadership",
            });
        }
    }

    async fn move_leader(&self, shard_id: u64, role: Role) -> bool {
        let (network, addrs) = (self.world.network(), self.world.addrs());
        let deadline = now() + LEAD_WITHIN;
        while now() < deadline {
            let leader = judge::leader_of(network, &addrs, shard_id);
            if leader.is_some_and(|leader| (leader == VICTIM) == (role == Role::Leader)) {
                return true;
            }
            // Away from the victim: to whoever qualifies first.
            let targets = addrs
                .iter()
                .enumerate()
                .filter(|(position, _)| (*position == VICTIM) == (role == Role::Leader));
            for (_, target) in targets {
                let member = network.node(target).and_then(|node| node.member());
                let node = leader.and_then(|leader| network.node(&addrs[leader]));
                if let (Some(member), Some(node)) = (member, node) {
                    let request = v1::TransferLeaderRequest {
                        shard_id,
                        to_node_id: member.node_id(),
                    };
                    // It may rightly refuse; it is asked again until the time is up.
                    if Front(node).transfer_leader(request).await.is_ok() {
                        break;
                    }
                }
            }
            tokio::time::sleep(POLL * 4).await;
        }
        false
    }

    /// Another node's directory is left alone; then an operator puts the right one back.
    async fn judge_refusal(&mut self, own: &Snapshot) {
        if self.world.network().node(&super::world::addr(VICTIM)).is_some() {
            let finding = "P6: the node started on another node's directory";
            return self.outcome.find(Finding::degraded(finding));
        }
        let dir = super::world::dir(self.base, VICTIM);
        match Snapshot::read(&dir) {
            Ok(found) if found == self.plan.nodes[VICTIM] => {}
            _ => {
                let finding = "P6: the directory that was refused is not what it was";
                self.outcome.find(Finding::degraded(finding));
            }
        }
        files::remove(&dir);
        if let Err(error) = own.write(&dir) {
            let finding = format!("the right directory cannot be put back: {error}");
            return self.outcome.find(Finding::unavailable(finding));
        }
        if let Err(error) = self.world.start(VICTIM).await {
            let finding = format!("P6: the node does not start on its own directory: {error}");
            self.outcome.find(Finding::degraded(finding));
        }
        self.first_life = self.world.network().node(&super::world::addr(VICTIM));
    }

    /// Starts the node that was left off. Returns until when everything must be whole.
    async fn start_those_off(&mut self) -> Instant {
        let Some(off) = self.plan.off else {
            return match self.plan.must_refuse {
                Some(_) => now() + REPAIRED_WITHIN,
                None => self.began + self.plan.unhurt + REPAIRED_WITHIN,
            };
        };
        if let Err(error) = self.world.start(off).await {
            let finding = format!("P3: node {} does not start: {error}", off + 1);
            self.outcome.find(Finding::unavailable(finding));
        }
        now() + REPAIRED_WITHIN
    }

    /// P4: waits until every node says that nothing is wrong. Whether they do, if late.
    async fn await_ok(&mut self, by: Instant) -> bool {
        let (network, addrs) = (self.world.network().clone(), self.world.addrs());
        loop {
            let said = match judge::all_say_ok(&network, &addrs).await {
                Ok(()) => {
                    if now() > by {
                        let late = now() - by;
                        self.outcome
                            .find(Finding::degraded(format!("P4: repaired {late:?} too late")));
                    }
                    return true;
                }
                Err(said) => said,
            };
            if now() > by + LATE {
                let open = self.open_damage();
                self.outcome
                    .find(Finding::degraded(format!("P4: not repaired: {said:#}{open}")));
                return false;
            }
            for position in 0..NODES {
                self.keep_running(position).await;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn open_damage(&self) -> String {
        let nodes = (0..NODES).filter_map(|at| self.world.network().node(&super::world::addr(at)));
        let events = nodes.flat_map(|node| judge::ledger(&node));
        let open = events.filter(|event| event.repaired_at_ms == 0);
        let shown: Vec<String> = open.map(|event| judge::show(&event)).collect();
        match shown.first() {
            None => String::new(),
            Some(first) => format!("; {} open in the ledgers: {first}", shown.len()),
        }
    }

    async fn end_probes(&mut self, probes: Probes) {
        let (findings, longest, own) = probes.finish().await;
        self.outcome.findings.extend(findings);
        if longest > AVAILABLE_WITHIN && self.outcome.times.available_ms.is_some() {
            self.outcome.find(Finding::unavailable(format!(
                "P3: a read and a write of one shard took {longest:?}, the bar is {AVAILABLE_WITHIN:?}"
            )));
        }
        Arc::make_mut(&mut self.model).unite(own);
    }

    /// P4, P1 and P2 on every replica by itself.
    async fn compare_replicas(&mut self, keyspace: &Keyspace, by: Instant) {
        let (network, addrs) = (self.world.network().clone(), self.world.addrs());
        while let Err(difference) = judge::digests_agree(&network, &addrs).await {
            if now() > by + LATE {
                return self
                    .outcome
                    .find(Finding::degraded(format!("P4: {difference:#}")));
            }
            tokio::time::sleep(POLL).await;
        }
        if now() > by + AVAILABLE_WITHIN {
            let late = now() - by;
            self.outcome
                .find(Finding::degraded(format!("P4: replicas agree {late:?} too late")));
        }
        self.outcome.times.repaired_ms = Some(self.began.elapsed().as_millis() as u64);
        let held = judge::every_replica_holds(&network, &addrs, keyspace.id(), &self.model).await;
        if let Err(finding) = held {
            self.outcome.find(finding);
        }
        let read = judge::read_all(keyspace, &self.model, true).await;
        self.outcome.findings.extend(read);
    }

    /// P5. A fault that nothing noticed is no finding if what it hit is not in use.
    fn judge_telling(&mut self, telling: Option<Telling>) {
        let structure = self.plan.structure;
        let mut events: Vec<DamageEvent> = self.first_life.iter().flat_map(judge::ledger).collect();
        if structure.told_as == ANY || !self.plan.one_node {
            // Whoever lost everything knows nothing; the others do.
            let nodes = (0..NODES).filter_map(|at| self.world.network().node(&super::world::addr(at)));
            events.extend(nodes.flat_map(|node| judge::ledger(&node)));
        }
        let first = events.iter().find(|event| tells(event, structure.told_as));
        if let Some(event) = first {
            let detected = event.detected_at_ms.saturating_sub(self.wall_began_ms);
            self.outcome.times.detected_ms = Some(detected);
            let told = telling
                .as_ref()
                .and_then(|telling| telling.told_ms.get().copied());
            self.outcome.times.told_ms = told;
            let in_time = |told| told <= detected + TOLD_WITHIN.as_millis() as u64;
            if self.plan.one_node && structure.told_as != ANY && !told.is_some_and(in_time) {
                let finding = format!("P5: detected after {detected} ms, told after {told:?} ms");
                self.outcome.find(Finding::degraded(finding));
            }
        } else if structure.counts {
            let seen = match events.first() {
                None => "nothing is in the ledger".to_owned(),
                Some(other) => format!("the ledger has only {}", judge::show(other)),
            };
            let finding = format!("P5: damage to the {} was not told: {seen}", structure.name);
            self.outcome.find(Finding::degraded(finding));
        }
        if self.outcome.times.detected_ms.is_none() {
            self.outcome.times.repaired_ms = None;
        }
        if let Some(telling) = telling {
            telling.task.abort();
        }
    }

    /// P4: the fault is gone from the disk, so another start finds nothing.
    async fn start_victim_again(&mut self) {
        let known: Vec<DamageEvent> = self.first_life.iter().flat_map(judge::ledger).collect();
        // What was told before is told on; what is found again was detected later.
        let is_known = |event: &DamageEvent| {
            known
                .iter()
                .any(|known| known.detected_at_ms == event.detected_at_ms && known.position == event.position)
        };
        self.world.stop(VICTIM).await;
        self.first_life = None;
        if let Err(error) = self.world.start(VICTIM).await {
            let finding = format!("P4: after the repair the node does not start: {error}");
            return self.outcome.find(Finding::degraded(finding));
        }
        let (network, addrs) = (self.world.network().clone(), self.world.addrs());
        let by = now() + REPAIRED_WITHIN;
        while let Err(said) = judge::all_say_ok(&network, &addrs).await {
            if now() > by {
                let finding = format!("P4: after another start: {said:#}{}", self.open_damage());
                return self.outcome.find(Finding::degraded(finding));
            }
            tokio::time::sleep(POLL).await;
        }
        tokio::time::sleep(SWEPT_WITHIN).await;
        let node = network.node(&super::world::addr(VICTIM));
        let mut told = node.iter().flat_map(judge::ledger);
        let found = told.find(|event| !is_known(event));
        if let Some(event) = found {
            let finding = format!("P4: another start finds it again: {}", judge::show(&event));
            self.outcome.find(Finding::degraded(finding));
        }
    }
}

/// Whether an entry of the ledger tells of damage to a structure.
fn tells(event: &DamageEvent, told_as: &str) -> bool {
    told_as == ANY || event.structure == told_as
}
