//! The bars ReelKV is held to, and whether it holds them. Pure.

use serde::Serialize;

use super::cell::{Cell, Part};
use super::system::Kind;
use super::upkeep::EXTENSION_MAX;

/// Clients at which throughput is judged.
pub const CLIENTS: u32 = 256;
/// Bytes of a value.
pub const VALUE_BYTES: u32 = 256;
/// Percent of the peak at which latency is judged.
pub const OPEN_PERCENT: u32 = 70;
/// A cell with more failures than one in so many operations proves nothing.
const OPERATIONS_PER_ERROR_MIN: u64 = 1_000;

/// One thing that is judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    pub figure: &'static str,
    pub unit: &'static str,
    /// Whether more is better.
    pub at_least: bool,
    pub bar: f64,
    pub moonshot: f64,
    /// By round.
    pub rounds: Vec<f64>,
    pub median: Option<f64>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Moonshot,
    Held,
    Missed,
    /// It was not asked for.
    NotMeasured,
    /// It was measured in a way that proves nothing.
    Void(String),
}

impl Verdict {
    /// Whether the run as a whole fails for it.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Missed | Self::Void(_))
    }

    pub fn words(&self) -> String {
        match self {
            Self::Moonshot => "held, moonshot".to_owned(),
            Self::Held => "held".to_owned(),
            Self::Missed => "MISSED".to_owned(),
            Self::NotMeasured => "not measured".to_owned(),
            Self::Void(why) => format!("VOID: {why}"),
        }
    }
}

/// What is compared of two cells.
#[derive(Clone, Copy)]
enum Figure {
    PerSecond,
    P50,
}

/// A ratio to a peer within a round: which cells, and the bar.
struct Ratio {
    figure: &'static str,
    operation: &'static str,
    clients: u32,
    peer: Kind,
    of: Figure,
    at_least: bool,
    bar: f64,
    moonshot: f64,
}

const fn throughput(
    figure: &'static str,
    operation: &'static str,
    peer: Kind,
    bar: f64,
    moonshot: f64,
) -> Ratio {
    Ratio {
        figure,
        operation,
        clients: CLIENTS,
        peer,
        of: Figure::PerSecond,
        at_least: true,
        bar,
        moonshot,
    }
}

const RATIOS: [Ratio; 6] = [
    throughput("puts/s against etcd", "put", Kind::Etcd, 5.0, 8.0),
    throughput(
        "puts/s against PostgreSQL, quorum commit",
        "put",
        Kind::Postgres,
        3.5,
        6.0,
    ),
    throughput(
        "puts/s against unreplicated Redis with fsync",
        "put",
        Kind::Redis,
        0.4,
        0.65,
    ),
    throughput("linearizable gets/s against etcd", "get", Kind::Etcd, 12.0, 25.0),
    throughput(
        "gets/s against PostgreSQL's primary",
        "get",
        Kind::Postgres,
        2.0,
        4.0,
    ),
    Ratio {
        figure: "one client: put latency (p50) against etcd",
        operation: "put",
        clients: 1,
        peer: Kind::Etcd,
        of: Figure::P50,
        at_least: false,
        bar: 0.8,
        moonshot: 0.5,
    },
];

/// All bars, in the order they are shown. `failovers_s`: of each kill, the time until the last of the dead
/// leader's shards accepted a write.
pub fn judge(cells: &[Cell], failovers_s: &[f64]) -> Vec<Judged> {
    let mut judged: Vec<_> = RATIOS.iter().map(|ratio| judge_ratio(cells, ratio)).collect();
    let open: Vec<_> = cells
        .iter()
        .filter(|cell| {
            (cell.part, cell.system, cell.operation, cell.percent)
                == (Part::Open, Kind::ReelKv, "put", Some(OPEN_PERCENT))
        })
        .collect();
    let p99s = open.iter().map(|cell| cell.summary.p99_ms).collect();
    let doubt = open.iter().find_map(|cell| doubt(cell).or_else(|| unkept(cell)));
    judged.push(verdict(
        "p99 put at 70 % of peak, open loop",
        "ms",
        false,
        (10.0, 5.0),
        p99s,
        doubt,
    ));
    judged.push(verdict(
        "leader killed to writes accepted on all its shards",
        "s",
        false,
        (2.0, 1.0),
        failovers_s.to_vec(),
        None,
    ));
    judged
}

fn judge_ratio(cells: &[Cell], ratio: &Ratio) -> Judged {
    let of = |system| {
        cells.iter().filter(move |cell| {
            (
                cell.part,
                cell.value_bytes,
                cell.system,
                cell.operation,
                cell.clients,
            ) == (Part::Main, VALUE_BYTES, system, ratio.operation, ratio.clients)
        })
    };
    let (mut rounds, mut doubted) = (Vec::new(), None);
    for ours in of(Kind::ReelKv) {
        let Some(theirs) = of(ratio.peer).find(|cell| cell.round == ours.round) else {
            continue;
        };
        rounds.push(match ratio.of {
            Figure::PerSecond => ours.summary.per_second / theirs.summary.per_second,
            Figure::P50 => ours.summary.p50_ms / theirs.summary.p50_ms,
        });
        doubted = doubted.or_else(|| doubt(ours)).or_else(|| doubt(theirs));
    }
    let bars = (ratio.bar, ratio.moonshot);
    verdict(ratio.figure, "x", ratio.at_least, bars, rounds, doubted)
}

/// Why a cell proves nothing.
fn doubt(cell: &Cell) -> Option<String> {
    let errors: u64 = cell.summary.errors.values().sum();
    if errors * OPERATIONS_PER_ERROR_MIN > cell.summary.operations {
        return Some(format!(
            "{errors} operations of {} failed in round {}",
            cell.system.name(),
            cell.round
        ));
    }
    let is_short_of_upkeep =
        cell.awaits_upkeep && cell.upkeep.as_ref().is_some_and(|upkeep| !upkeep.is_complete());
    is_short_of_upkeep.then(|| {
        format!(
            "round {} has no checkpoint and log purge on every node, not even {} s later",
            cell.round,
            EXTENSION_MAX.as_secs()
        )
    })
}

/// An open loop that did not offer its rate has left out the latencies that would have been worst.
fn unkept(cell: &Cell) -> Option<String> {
    let kept = cell.summary.schedule.as_ref()?;
    (kept.unsent * OPERATIONS_PER_ERROR_MIN > kept.planned).then(|| {
        format!(
            "{} operations of {} were never sent in round {}",
            kept.unsent, kept.planned, cell.round
        )
    })
}

fn verdict(
    figure: &'static str,
    unit: &'static str,
    at_least: bool,
    (bar, moonshot): (f64, f64),
    rounds: Vec<f64>,
    doubt: Option<String>,
) -> Judged {
    let median = median(&rounds);
    let reaches = |value: f64, bar: f64| if at_least { value >= bar } else { value <= bar };
    let verdict = match (median, doubt) {
        (None, _) => Verdict::NotMeasured,
        (Some(_), Some(why)) => Verdict::Void(why),
        (Some(median), None) if reaches(median, moonshot) => Verdict::Moonshot,
        (Some(median), None) if reaches(median, bar) => Verdict::Held,
        (Some(_), None) => Verdict::Missed,
    };
    Judged {
        figure,
        unit,
        at_least,
        bar,
        moonshot,
        rounds,
        median,
        verdict,
    }
}

/// The middle one, or half way between the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        1 => Some(upper),
        _ => Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::upkeep::Upkeep;
    use super::*;
    use crate::summary::Tally;

    fn cell(system: Kind, operation: &'static str, clients: u32, round: u32, per_second: f64) -> Cell {
        let mut summary = Tally::new().summary(Duration::from_secs(1), None);
        summary.per_second = per_second;
        summary.operations = per_second as u64;
        summary.p50_ms = 1e3 / per_second;
        Cell {
            part: Part::Main,
            round,
            system,
            operation,
            clients,
            value_bytes: VALUE_BYTES,
            keys: 1,
            percent: None,
            summary,
            cpu_us_per_operation: 0.0,
            written_per_byte: None,
            memory_bytes: 0,
            upkeep: None,
            awaits_upkeep: false,
            latencies_us: Vec::new(),
        }
    }

    fn puts(ratios: &[f64]) -> Vec<Cell> {
        let pair = |(round, ratio): (usize, &f64)| {
            // The machine's pace changes from round to round; the ratio does not mind.
            let pace = 10_000.0 / (round + 1) as f64;
            [
                cell(Kind::Etcd, "put", CLIENTS, round as u32, pace),
                cell(Kind::ReelKv, "put", CLIENTS, round as u32, pace * ratio),
            ]
        };
        ratios.iter().enumerate().flat_map(pair).collect()
    }

    fn first(cells: &[Cell]) -> Judged {
        judge(cells, &[]).remove(0)
    }

    #[test]
    fn the_median_of_the_rounds_ratios_is_judged() {
        let judged = first(&puts(&[9.0, 4.0, 6.0]));
        assert_eq!((judged.median, judged.verdict), (Some(6.0), Verdict::Held));
        assert_eq!(first(&puts(&[4.9, 4.9, 50.0])).verdict, Verdict::Missed);
        assert_eq!(first(&puts(&[8.0])).verdict, Verdict::Moonshot);
        assert_eq!(first(&puts(&[4.0, 6.0])).median, Some(5.0));
    }

    #[test]
    fn a_bar_whose_peer_did_not_run_is_not_judged() {
        let judged = judge(&puts(&[6.0]), &[]);
        let verdicts: Vec<_> = judged.iter().map(|judged| &judged.verdict).collect();
        assert_eq!(verdicts[0], &Verdict::Held);
        assert!(
            verdicts[1..]
                .iter()
                .all(|verdict| **verdict == Verdict::NotMeasured)
        );
        assert!(!Verdict::NotMeasured.is_failure());
    }

    #[test]
    fn for_latency_less_is_better() {
        let cells = [
            cell(Kind::Etcd, "put", 1, 1, 1_000.0),
            cell(Kind::ReelKv, "put", 1, 1, 1_600.0),
        ];
        let one_client = judge(&cells, &[]).remove(5);
        assert_eq!(one_client.median, Some(0.625));
        assert_eq!(one_client.verdict, Verdict::Held);
        let verdict = |failovers: &[f64]| judge(&[], failovers).remove(7).verdict;
        assert_eq!(verdict(&[0.9, 1.0, 30.0]), Verdict::Moonshot);
        assert_eq!(verdict(&[2.1]), Verdict::Missed);
    }

    #[test]
    fn a_round_without_upkeep_or_with_errors_is_void() {
        let mut cells = puts(&[6.0]);
        cells[1].awaits_upkeep = true;
        cells[1].upkeep = Some(Upkeep::default());
        assert!(first(&cells).verdict.is_failure());
        let mut cells = puts(&[6.0]);
        // Failing peers would make it easy.
        cells[0].summary.errors.insert("busy".to_owned(), 11);
        assert!(matches!(first(&cells).verdict, Verdict::Void(_)));
        cells[0].summary.errors.insert("busy".to_owned(), 10);
        assert_eq!(first(&cells).verdict, Verdict::Held);
    }

    #[test]
    fn an_open_loop_counts_at_seventy_percent_only() {
        let mut open = cell(Kind::ReelKv, "put", 1, 1, 1_000.0);
        open.part = Part::Open;
        open.percent = Some(90);
        open.summary.p99_ms = 7.0;
        let verdict = |cell: &Cell| judge(std::slice::from_ref(cell), &[]).remove(6).verdict;
        assert_eq!(verdict(&open), Verdict::NotMeasured);
        open.percent = Some(OPEN_PERCENT);
        assert_eq!(verdict(&open), Verdict::Held);
    }
}
