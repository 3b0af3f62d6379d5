//! What a run came to, as text.

use std::fmt;

use serde::Serialize;

use super::bars::{Judged, Verdict, median};
use super::cell::{Cell, Part};
use super::device::Device;
use super::failover::{Failover, Startup};
use super::machine::Machine;
use super::system::Kind;
use crate::table::{aligned, thousands};

/// Everything; what is written to `compare.json`.
#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: Machine,
    pub device: Device,
    /// Absent when the run was only to see that everything runs.
    pub bars: Option<Vec<Judged>>,
    pub failovers: Vec<Failover>,
    pub startup: Startup,
    pub cells: Vec<Cell>,
}

/// What rounds of the same cell have in common.
type Load = (Part, &'static str, u32, u32, u64, Option<u32>);

fn load(cell: &Cell) -> Load {
    (
        cell.part,
        cell.operation,
        cell.clients,
        cell.value_bytes,
        cell.keys,
        cell.percent,
    )
}

/// All rounds of one system under one load.
struct Group<'a>(Vec<&'a Cell>);

impl Group<'_> {
    fn median(&self, figure: impl Fn(&Cell) -> f64) -> f64 {
        median(&self.0.iter().map(|cell| figure(cell)).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    }

    fn errors(&self) -> u64 {
        self.0.iter().flat_map(|cell| cell.summary.errors.values()).sum()
    }
}

impl Results {
    fn loads(&self, is_shown: impl Fn(Part) -> bool) -> Vec<Load> {
        let mut loads = Vec::new();
        for cell in self.cells.iter().filter(|cell| is_shown(cell.part)) {
            // YCSB's inserts make the number of keys another one for each system.
            if !loads.contains(&load(cell)) {
                loads.push(load(cell));
            }
        }
        loads
    }

    fn systems(&self, of: Load) -> Vec<(Kind, Group<'_>)> {
        let mut groups: Vec<(Kind, Group<'_>)> = Vec::new();
        for cell in self.cells.iter().filter(|cell| load(cell) == of) {
            match groups.iter_mut().find(|(kind, _)| *kind == cell.system) {
                Some((_, group)) => group.0.push(cell),
                None => groups.push((cell.system, Group(vec![cell]))),
            }
        }
        groups.sort_by_key(|(kind, _)| *kind);
        groups
    }

    /// ReelKV's operations per second over another's, the median of the rounds' ratios.
    fn ratio(&self, of: Load, other: Kind) -> Option<f64> {
        let find = |system, round| {
            let mut cells = self.cells.iter();
            cells.find(|cell| (cell.system, cell.round) == (system, round) && load(cell) == of)
        };
        let theirs = self
            .cells
            .iter()
            .filter(|cell| cell.system == other && load(cell) == of);
        let ratios: Vec<_> = theirs
            .filter_map(|theirs| {
                let ours = find(Kind::ReelKv, theirs.round)?;
                Some(ours.summary.per_second / theirs.summary.per_second)
            })
            .collect();
        median(&ratios).filter(|_| other != Kind::ReelKv)
    }

    fn loads_table(&self) -> String {
        let names = [
            "operation",
            "system",
            "clients",
            "keys",
            "value",
            "ops/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU us/op",
            "written/byte",
            "MiB",
            "ReelKV is",
            "errors",
        ];
        let mut rows = vec![names.map(str::to_owned).to_vec()];
        for of in self.loads(|part| part != Part::Open) {
            let (part, operation, clients, value_bytes, keys, _) = of;
            let operation = match part {
                Part::Ycsb => format!("YCSB {operation}"),
                _ => operation.to_owned(),
            };
            for (kind, group) in self.systems(of) {
                let written = group.0.first().and_then(|cell| cell.written_per_byte);
                rows.push(vec![
                    operation.clone(),
                    kind.name().to_owned(),
                    clients.to_string(),
                    thousands(keys as f64),
                    value_bytes.to_string(),
                    thousands(group.median(|cell| cell.summary.per_second)),
                    format!("{:.2}", group.median(|cell| cell.summary.p50_ms)),
                    format!("{:.2}", group.median(|cell| cell.summary.p99_ms)),
                    format!("{:.2}", group.median(|cell| cell.summary.p999_ms)),
                    format!("{:.1}", group.median(|cell| cell.cpu_us_per_operation)),
                    written.map_or_else(
                        || "-".to_owned(),
                        |_| format!("{:.1}", group.median(|cell| cell.written_per_byte.unwrap_or(0.0))),
                    ),
                    thousands(group.median(|cell| cell.memory_bytes as f64 / f64::from(1 << 20))),
                    self.ratio(of, kind)
                        .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x")),
                    group.errors().to_string(),
                ]);
            }
        }
        aligned(&rows, 2)
    }

    fn open_table(&self) -> String {
        let names = [
            "system",
            "% of peak",
            "ops/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "late",
            "unsent",
            "errors",
        ];
        let mut rows = vec![names.map(str::to_owned).to_vec()];
        for of in self.loads(|part| part == Part::Open) {
            for (kind, group) in self.systems(of) {
                let kept = |count: fn(&crate::summary::Kept) -> u64| {
                    let kept = group.0.iter().filter_map(|cell| cell.summary.schedule.as_ref());
                    kept.map(count).sum::<u64>().to_string()
                };
                rows.push(vec![
                    kind.name().to_owned(),
                    of.5.unwrap_or(0).to_string(),
                    thousands(group.median(|cell| cell.summary.per_second)),
                    format!("{:.2}", group.median(|cell| cell.summary.p50_ms)),
                    format!("{:.2}", group.median(|cell| cell.summary.p99_ms)),
                    format!("{:.2}", group.median(|cell| cell.summary.p999_ms)),
                    format!("{:.2}", group.median(|cell| cell.summary.max_ms)),
                    kept(|kept| kept.late),
                    kept(|kept| kept.unsent),
                    group.errors().to_string(),
                ]);
            }
        }
        rows[1..].sort_by_key(|row| (row[0] != Kind::ReelKv.name(), row[1].parse::<u32>().ok()));
        aligned(&rows, 1)
    }

    /// By load of ReelKV's puts: in how many rounds every node has checkpointed and purged.
    fn upkeep_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for of in self.loads(|_| true) {
            let (part, .., percent) = of;
            let ours = self.systems(of);
            let Some((_, group)) = ours.iter().find(|(kind, _)| *kind == Kind::ReelKv) else {
                continue;
            };
            let seen: Vec<_> = group.0.iter().filter_map(|cell| cell.upkeep.as_ref()).collect();
            let is_required = group.0.iter().any(|cell| cell.awaits_upkeep);
            if seen.is_empty() || (part != Part::Main && !is_required) {
                continue;
            }
            let complete = seen.iter().filter(|upkeep| upkeep.is_complete()).count();
            let longest = seen.iter().map(|upkeep| upkeep.extension_s).fold(0.0, f64::max);
            let offered = percent.map_or_else(String::new, |percent| format!(", {percent} % of peak"));
            let required = match is_required {
                true => format!(" (required; at most {longest:.0} s longer for it)"),
                false => String::new(),
            };
            lines.push(format!(
                "  {} clients, {} keys, {} bytes{offered}: in {complete} of {} rounds{required}",
                of.2,
                thousands(of.4 as f64),
                of.3,
                seen.len()
            ));
        }
        lines
    }

    fn bars_table(bars: &[Judged]) -> String {
        let names = ["bar", "rounds", "measured", "bar", "moonshot", "verdict"];
        let mut rows = vec![names.map(str::to_owned).to_vec()];
        for bar in bars {
            let sign = if bar.at_least { ">=" } else { "<=" };
            let limit = |limit: f64| format!("{sign} {limit} {}", bar.unit);
            let rounds: Vec<_> = bar.rounds.iter().map(|value| format!("{value:.2}")).collect();
            rows.push(vec![
                bar.figure.to_owned(),
                rounds.join(" "),
                bar.median
                    .map_or_else(|| "-".to_owned(), |median| format!("{median:.2} {}", bar.unit)),
                limit(bar.bar),
                limit(bar.moonshot),
                bar.verdict.words(),
            ]);
        }
        aligned(&rows, usize::MAX)
    }

    fn verdict(&self) -> String {
        let Some(bars) = &self.bars else {
            return "Quick run: everything ran; nothing was judged, and no figure of it is worth quoting."
                .to_owned();
        };
        let count = |wanted: fn(&Verdict) -> bool| bars.iter().filter(|bar| wanted(&bar.verdict)).count();
        let failed = count(Verdict::is_failure);
        let unmeasured = count(|verdict| *verdict == Verdict::NotMeasured);
        let held = bars.len() - failed - unmeasured;
        format!("{held} bars held, {failed} missed or void, {unmeasured} not measured.")
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "{}: {} processors ({}), {} MiB, Linux {}, {}; commit {}",
            machine.date,
            machine.processors,
            machine.processor,
            machine.memory_bytes >> 20,
            machine.kernel,
            machine.filesystem,
            machine.commit
        )?;
        for (name, version) in &machine.versions {
            writeln!(f, "{name}: {version}")?;
        }
        let device = &self.device;
        writeln!(
            f,
            "disk by itself: 4 KiB append and fdatasync p50 {:.2} ms, p99 {:.2} ms; sequential write {:.0} MB/s\n",
            device.sync_p50_ms, device.sync_p99_ms, device.write_mb_per_second
        )?;
        writeln!(f, "Closed loop, medians over rounds\n\n{}", self.loads_table())?;
        writeln!(
            f,
            "Open loop puts, latency from when each was due\n\n{}",
            self.open_table()
        )?;
        let upkeep = self.upkeep_lines();
        if !upkeep.is_empty() {
            writeln!(
                f,
                "ReelKV puts with a checkpoint and log purge on every node\n\n{}\n",
                upkeep.join("\n")
            )?;
        }
        for failover in &self.failovers {
            writeln!(
                f,
                "leader of {} shards killed: first accepted write after {:.2} s (median), {:.2} s (last shard); \
                 its node was ready {:.2} s after it was started again",
                failover.first_write_s.len(),
                failover.median_s,
                failover.max_s,
                failover.ready_s
            )?;
        }
        writeln!(
            f,
            "all nodes killed and started again with {} keys: ready after {:.2} s, every shard writable after {:.2} s\n",
            thousands(self.startup.keys as f64),
            self.startup.ready_s,
            self.startup.writable_s
        )?;
        if let Some(bars) = &self.bars {
            writeln!(
                f,
                "Bars, the median over rounds of what is measured within a round\n\n{}",
                Self::bars_table(bars)
            )?;
        }
        writeln!(f, "{}", self.verdict())
    }
}
