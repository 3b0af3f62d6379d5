//! The fault matrix: every place of a data directory, damaged while its node is off; then the nodes
//! are started, and what comes of it is judged.
//!
//! | tier | what is damaged |
//! |---|---|
//! | `T0` | every bit, byte and length of the small files, read by the code that reads them at a start |
//! | `T1` | one block of 4 KiB of one node |
//! | `T1f` | one file or directory of one node |
//! | `T1d` | one block of one node, while another node is off |
//! | `T4` | entries of the log and records on several nodes at once |
//!
//! T1, T1f, T1d and the helical cases of T4 run the real log and engine on real files ([`world`],
//! [`case`]) from a golden [`image`]; the rest of T4 runs in the simulator ([`combos`]).
//!
//! # Criteria
//!
//! | | | when it does not hold |
//! |---|---|---|
//! | P1 | no wrong answer, from the client or any replica | UNSAFE |
//! | P2 | nothing acknowledged is lost | UNSAFE |
//! | P3 | every shard is read and written in time while a clean quorum runs | UNAVAILABLE |
//! | P4 | in time, nobody says that anything is wrong, all replicas hold the same, and another start finds nothing | DEGRADED |
//! | P5 | the node's ledger tells it, under the right name, in time | DEGRADED |
//! | P6 | no panic, no node that does not start | DEGRADED |
//! | P7 | what is gone everywhere is waited for and named, and nothing else waits | UNAVAILABLE, or DEGRADED when it is not named |
//!
//! Another node's whole directory must be refused, untouched, while the other nodes serve; then the right one is
//! put back. What may end otherwise is named in [`excepted`].
//!
//! A fault that nothing notices is CORRECT only where the bytes are not in use ([`structure`]).

pub mod case;
pub mod combos;
pub mod decode;
pub mod excepted;
pub mod fault;
mod files;
pub mod image;
pub mod judge;
mod pool;
pub mod report;
pub mod structure;
mod table;
mod verdict;
pub mod world;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use reelkv::storage::EngineKind;

use case::{Plan, Role, Sabotage};
use combos::SimImage;
use fault::{BlockFault, DirFault, Fault, Helical, OFF};
pub use files::{Scratch, Snapshot, remove_all_scratch};
use image::Image;
use structure::{Layout, Structure};
pub use verdict::{Finding, Outcome, Times, Verdict};
use world::Pace;

/// A group of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
pub enum Tier {
    /// Every bit of the small files.
    #[value(name = "T0")]
    T0,
    /// One block of one node.
    #[value(name = "T1")]
    T1,
    /// One file or directory of one node.
    #[value(name = "T1f")]
    #[serde(rename = "T1f")]
    T1f,
    /// One block of one node, another node off.
    #[value(name = "T1d")]
    #[serde(rename = "T1d")]
    T1d,
    /// Several nodes at once.
    #[value(name = "T4")]
    T4,
}

impl Tier {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::T0 => "T0",
            Self::T1 => "T1",
            Self::T1f => "T1f",
            Self::T1d => "T1d",
            Self::T4 => "T4",
        }
    }

    /// Whether it needs a golden image on real files.
    fn needs_image(self) -> bool {
        self != Self::T0
    }

    fn of_id(id: &str) -> Option<Self> {
        let name = id.split('/').next()?;
        [Self::T0, Self::T1, Self::T1f, Self::T1d, Self::T4]
            .into_iter()
            .find(|tier| tier.name() == name)
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Groups of cases.
    pub tiers: Vec<Tier>,
    /// The engine of the cases on real files.
    pub engine: EngineKind,
    /// Which share of the cases, between 0 and 1.
    pub sample: f64,
    /// Everything follows from it.
    pub seed: u64,
    /// Cases at the same time.
    pub workers: usize,
    /// Whose time passes in cases on real files.
    pub pace: Pace,
    /// Random cases of T4.
    pub random: u64,
    /// Only the case of this id; if there is none, those whose ids begin so.
    pub only: Option<String>,
}

impl Options {
    /// The one command that runs a case alone.
    pub fn command(&self, id: &str) -> String {
        let pace = match self.pace {
            Pace::Real => "",
            Pace::Virtual => " --time virtual",
        };
        format!(
            "cargo run --release -p reelkv-jepsen -- matrix --engine {} --seed {}{pace} --case {id}",
            self.engine, self.seed
        )
    }
}

/// What all cases of a run share.
pub struct Context {
    options: Options,
    scratch: Scratch,
    image: Option<Image>,
    sim: Option<SimImage>,
    /// How long a start without any fault takes to serve.
    unhurt: Duration,
    /// The same with one node off.
    unhurt_one_off: Duration,
}

/// One case.
pub struct Case {
    /// Its group.
    pub tier: Tier,
    /// What is struck.
    pub structure: String,
    /// What happens to it.
    pub fault: String,
    /// What the struck node is to its shards; "any" when that is not chosen.
    pub role: &'static str,
    /// Where exactly, as part of the id.
    place: String,
    run: Run,
}

type Run = Box<dyn Fn(&Context, u64, &Path) -> Outcome + Send + Sync>;

impl Case {
    /// Its name for all time, given the seed and the engine.
    pub fn id(&self) -> String {
        format!("{}/{}/{}{}", self.tier.name(), self.fault, self.role, self.place)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

/// A seed of its own for each case.
fn case_seed(seed: u64, id: &str) -> u64 {
    let low = crc32fast::hash(id.as_bytes());
    let high = crc32fast::hash(&[&seed.to_le_bytes(), id.as_bytes()].concat());
    u64::from(high) << 32 | u64::from(low)
}

/// Whether a case is of the share that is run.
fn is_sampled(options: &Options, id: &str) -> bool {
    // Another draw than that of the case itself.
    let draw = case_seed(options.seed ^ 0x5a5a, id) >> 11;
    (draw as f64) < options.sample * (1_u64 << 53) as f64
}

/// Runs what was asked for. `told` is told of each case as it ends.
///
/// # Errors
/// It could not be run: there is no such case, nothing to run, or a cluster without any fault does
/// not pass.
pub fn run(options: Options, told: &(dyn Fn(&report::Row) + Sync)) -> anyhow::Result<report::Results> {
    let mut tiers = options.tiers.clone();
    if let Some(id) = &options.only {
        let tier = Tier::of_id(id);
        tiers = vec![tier.with_context(|| format!("--case {id}: no tier is called so"))?];
    }
    tiers.sort_unstable();
    tiers.dedup();
    let mut context = Context::prepare(options, &tiers)?;
    let mut cases = Vec::new();
    for tier in tiers {
        cases.extend(context.cases(tier)?);
    }
    let known = cases.len();
    match &context.options.only {
        Some(id) => match cases.iter().any(|case| case.id() == *id) {
            true => cases.retain(|case| case.id() == *id),
            false => cases.retain(|case| case.id().starts_with(id)),
        },
        None => cases.retain(|case| is_sampled(&context.options, &case.id())),
    }
    if cases.is_empty() {
        match &context.options.only {
            Some(id) => bail!("--case {id}: there is no such case with this engine and seed"),
            None => bail!(
                "--sample {}: none of {known} cases is in it",
                context.options.sample
            ),
        }
    }
    context.measure_unhurt(&cases)?;
    Ok(pool::run(&context, &cases, known, told))
}

impl Context {
    /// Makes the golden images that some tiers need.
    ///
    /// # Errors
    /// One could not be made.
    pub fn prepare(options: Options, tiers: &[Tier]) -> anyhow::Result<Self> {
        let scratch = Scratch::new().context("a place for directories")?;
        let needs_image = tiers.iter().any(|tier| tier.needs_image());
        let image = match needs_image {
            true => Some(Image::make(
                &scratch.path().join("golden"),
                options.engine,
                options.seed,
            )?),
            false => None,
        };
        let in_simulator = |tier: &Tier| matches!(tier, Tier::T0 | Tier::T4);
        let sim = match tiers.iter().any(in_simulator) {
            true => Some(SimImage::make(options.seed)?),
            false => None,
        };
        Ok(Self {
            options,
            scratch,
            image,
            sim,
            unhurt: Duration::ZERO,
            unhurt_one_off: Duration::ZERO,
        })
    }

    /// Where directories are.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The golden image.
    ///
    /// # Errors
    /// None was made.
    pub fn image(&self) -> anyhow::Result<&Image> {
        self.image.as_ref().context("no golden image was made")
    }

    /// The simulator's golden image.
    ///
    /// # Errors
    /// None was made.
    pub fn sim(&self) -> anyhow::Result<&SimImage> {
        self.sim.as_ref().context("no simulated image was made")
    }

    /// How long a start without any fault takes to serve; with one node off.
    pub fn unhurt(&self) -> (Duration, Duration) {
        (self.unhurt, self.unhurt_one_off)
    }

    /// All cases of a tier.
    ///
    /// # Errors
    /// The image was not made.
    pub fn cases(&self, tier: Tier) -> anyhow::Result<Vec<Case>> {
        const FLIPS: [BlockFault; 2] = [BlockFault::BitFlip, BlockFault::Zeros];
        Ok(match tier {
            Tier::T0 => decode::cases(),
            Tier::T1 => self.on_files(tier, fault::block_faults(self.image()?, &BlockFault::ALL))?,
            Tier::T1f => self.on_files(tier, fault::file_faults(self.image()?))?,
            Tier::T1d => self.on_files(tier, fault::block_faults(self.image()?, &FLIPS))?,
            Tier::T4 => {
                let mut cases = combos::cases(self.options.random);
                cases.extend(self.helical()?);
                cases
            }
        })
    }

    fn on_files(&self, tier: Tier, faults: Vec<Fault>) -> anyhow::Result<Vec<Case>> {
        let image = self.image()?;
        let layout = Layout::of(&image.nodes[fault::VICTIM]);
        let mut cases = Vec::new();
        for fault in faults {
            let structure = fault.structure(&layout, image);
            for role in [Role::Leader, Role::Follower] {
                let case = on_files(tier, fault.clone(), structure, role);
                let mut rng = SmallRng::seed_from_u64(case_seed(self.options.seed, &case.id()));
                // What would change nothing is no fault.
                if fault.strike(image, &mut rng).is_some() {
                    cases.push(case);
                }
            }
        }
        Ok(cases)
    }

    fn helical(&self) -> anyhow::Result<Vec<Case>> {
        let image = self.image()?;
        let census = image::census(&image.nodes[fault::VICTIM]);
        let layout = Layout::of(&image.nodes[fault::VICTIM]);
        let mut cases = Vec::new();
        for name in census.keys().copied().filter(|name| *name != "lock") {
            let of_it = |(file, bytes): (&String, &std::sync::Arc<Vec<u8>>)| {
                let mut parts = structure::blocks(bytes).map(|block| layout.of_block(file, bytes, block));
                parts.find(|structure| structure.name == name)
            };
            let structure = image.nodes[fault::VICTIM].files.iter().find_map(of_it);
            let structure = structure.context("a structure of the census")?;
            for helical in Helical::ALL {
                let case = helical_case(helical, structure);
                let mut rng = SmallRng::seed_from_u64(case_seed(self.options.seed, &case.id()));
                if helical.strike(image, name, &mut rng).is_some() {
                    cases.push(case);
                }
            }
        }
        Ok(cases)
    }

    /// A case's plan but for what is struck.
    fn plan(&self, structure: Structure, role: Option<Role>, off: Option<usize>) -> anyhow::Result<Plan> {
        let image = self.image()?;
        Ok(Plan {
            nodes: image.nodes.clone(),
            structure,
            one_node: true,
            role,
            off,
            engine: self.options.engine,
            pace: self.options.pace,
            seed: 0,
            model: image.model.clone(),
            unhurt: if off.is_some() {
                self.unhurt_one_off
            } else {
                self.unhurt
            },
            must_refuse: None,
            sabotage: Sabotage::None,
        })
    }

    /// A plan with a fault of the victim, for tests.
    ///
    /// # Errors
    /// No image was made, or the fault changes nothing.
    pub fn plan_for(&self, fault: &Fault, role: Role, off: Option<usize>, seed: u64) -> anyhow::Result<Plan> {
        let image = self.image()?;
        let layout = Layout::of(&image.nodes[fault::VICTIM]);
        let mut plan = self.plan(fault.structure(&layout, image), Some(role), off)?;
        let struck = fault.strike(image, &mut SmallRng::seed_from_u64(seed));
        let own = std::mem::replace(
            &mut plan.nodes[fault::VICTIM],
            struck.context("the fault changes nothing")?,
        );
        if *fault == Fault::Dir(DirFault::DataOtherNode) {
            plan.must_refuse = Some(own);
            // The other two do without it.
            plan.unhurt = self.unhurt_one_off;
        }
        plan.seed = seed;
        Ok(plan)
    }

    /// Starts the unhurt image a few times: what a fault may cost is counted from there, and a cluster
    /// that does not pass without a fault says nothing about faults.
    ///
    /// # Errors
    /// It does not pass.
    pub fn measure_unhurt(&mut self, cases: &[Case]) -> anyhow::Result<()> {
        let is_needed = |tiers: &[Tier]| cases.iter().any(|case| tiers.contains(&case.tier));
        for off in [None, Some(OFF)] {
            let needed = match off {
                None => is_needed(&[Tier::T1, Tier::T1f, Tier::T4]),
                // In T1f, a node that rightly refuses to start.
                Some(_) => is_needed(&[Tier::T1d, Tier::T1f]),
            };
            if !needed || self.image.is_none() {
                continue;
            }
            let mut longest = Duration::ZERO;
            for (seed, role) in [(1, Role::Leader), (2, Role::Follower), (3, Role::Leader)] {
                let mut plan = self.plan_for(&Fault::None, role, off, seed)?;
                plan.unhurt = Duration::from_secs(30);
                let outcome = case::run(&plan, &self.scratch.path().join("unhurt"));
                ensure!(
                    outcome.verdict() == Verdict::Correct,
                    "a cluster without any fault is {}: {}",
                    outcome.verdict().name(),
                    outcome.why()
                );
                let available = outcome.times.available_ms.unwrap_or_default();
                longest = longest.max(Duration::from_millis(available));
            }
            match off {
                None => self.unhurt = longest,
                Some(_) => self.unhurt_one_off = longest,
            }
        }
        Ok(())
    }
}

fn on_files(tier: Tier, fault: Fault, structure: Structure, role: Role) -> Case {
    let off = (tier == Tier::T1d).then_some(OFF);
    Case {
        tier,
        structure: structure.name.to_owned(),
        fault: fault.name().to_owned(),
        role: role.name(),
        place: fault.place(),
        run: Box::new(move |context, seed, base| {
            or_failed(|| {
                let plan = context.plan_for(&fault, role, off, seed)?;
                Ok(case::run(&plan, base))
            })
        }),
    }
}

fn helical_case(helical: Helical, structure: Structure) -> Case {
    Case {
        tier: Tier::T4,
        structure: structure.name.to_owned(),
        fault: helical.name(),
        role: "any",
        place: format!("/{}", structure.name.replace(' ', "-")),
        run: Box::new(move |context, seed, base| {
            or_failed(|| {
                let image = context.image()?;
                let mut plan = context.plan(structure, None, None)?;
                let mut rng = SmallRng::seed_from_u64(seed);
                let struck = helical.strike(image, structure.name, &mut rng);
                plan.nodes = struck.context("the fault changes nothing")?;
                plan.one_node = false;
                plan.seed = seed;
                Ok(case::run(&plan, base))
            })
        }),
    }
}

/// A case that cannot be run must not pass for one that was.
fn or_failed(run: impl FnOnce() -> anyhow::Result<Outcome>) -> Outcome {
    run().unwrap_or_else(|error| Outcome {
        findings: vec![Finding::unavailable(format!(
            "the case could not be run: {error:#}"
        ))],
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(sample: f64) -> Options {
        Options {
            tiers: vec![Tier::T1],
            engine: EngineKind::Lsm,
            sample,
            seed: 7,
            workers: 1,
            pace: Pace::Virtual,
            random: 0,
            only: None,
        }
    }

    #[test]
    fn a_sample_is_of_the_size_asked_for_and_the_same_each_time() {
        let ids: Vec<String> = (0..2_000)
            .map(|number| format!("T1/zeros/any/{number}"))
            .collect();
        let sampled = |sample| -> Vec<&String> {
            let options = options(sample);
            ids.iter().filter(|id| is_sampled(&options, id)).collect()
        };
        assert_eq!(sampled(1.0).len(), 2_000);
        assert_eq!(sampled(0.0).len(), 0);
        let some = sampled(0.1);
        assert!((150..250).contains(&some.len()), "{}", some.len());
        assert_eq!(some, sampled(0.1));
    }

    #[test]
    fn a_case_is_named_by_its_command() {
        let command = options(1.0).command("T1/zeros/leader/wal/00000001.wal/3");
        assert!(
            command
                .ends_with("--engine lsm --seed 7 --time virtual --case T1/zeros/leader/wal/00000001.wal/3")
        );
        assert_eq!(Tier::of_id("T1f/missing/leader/LOCK"), Some(Tier::T1f));
        assert_eq!(Tier::of_id("T9/missing"), None);
    }
}
