//! What a growth run found: tables, slopes in words, bars and charts. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::fit;
use super::measure::{IdlePoint, Point};
use super::plan::{BASE, Factor, REPLICAS, Setup, Times, VALUE_BYTES};
use crate::chart::{Axis, Chart, Scale, Series};
use crate::table::{aligned, thousands};

/// Replicas per node at which the bars hold.
const BAR_REPLICAS: u64 = 1_000;
/// CPU of a node with so many idle replicas stays below this, in percent of one core.
const BAR_CPU_PERCENT: f64 = 5.0;
/// Its memory stays below this.
const BAR_RSS_BYTES: u64 = 1 << 30;

/// Everything measured so far.
#[derive(Debug, Serialize)]
pub struct Report {
    pub base: Setup,
    pub value_bytes: u32,
    pub replicas: u32,
    pub times: Times,
    /// A quick run judges nothing.
    pub is_quick: bool,
    pub under_load: BTreeMap<Factor, Vec<Point>>,
    pub idle: Vec<IdlePoint>,
    /// Points that could not be measured, and why.
    pub failures: Vec<String>,
}

/// What must hold, and whether it does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bar {
    pub name: String,
    pub limit: f64,
    pub measured: f64,
    pub is_held: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Held,
    Missed,
    CouldNotRun,
}

impl Report {
    pub fn new(is_quick: bool, times: Times) -> Self {
        Self {
            base: BASE,
            value_bytes: VALUE_BYTES,
            replicas: REPLICAS,
            times,
            is_quick,
            under_load: BTreeMap::new(),
            idle: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Judged where idle nodes had as many replicas as the bars are for.
    pub fn bars(&self) -> Vec<Bar> {
        let Some(idle) = self
            .idle
            .iter()
            .find(|idle| idle.replicas_per_node == BAR_REPLICAS)
        else {
            return Vec::new();
        };
        let bar = |name: &str, limit: f64, measured: f64| Bar {
            name: format!("{name} of a node with {BAR_REPLICAS} idle replicas"),
            limit,
            measured,
            is_held: measured < limit,
        };
        vec![
            bar("CPU, percent of one core,", BAR_CPU_PERCENT, idle.cpu_percent_max),
            bar("memory, MiB,", mib(BAR_RSS_BYTES), mib(idle.rss_bytes_max)),
        ]
    }

    pub fn verdict(&self) -> Verdict {
        if !self.failures.is_empty() {
            return Verdict::CouldNotRun;
        }
        match self.bars().iter().all(|bar| bar.is_held) {
            true => Verdict::Held,
            false => Verdict::Missed,
        }
    }

    /// One line per factor and operation.
    pub fn slopes(&self) -> Vec<String> {
        let mut slopes = Vec::new();
        for (factor, points) in &self.under_load {
            for operation in ["put", "get"] {
                let line = line(points, operation, |point| point.per_second);
                slopes.push(fit::in_words(
                    &format!("{operation}s per second"),
                    factor.step(),
                    &line,
                ));
            }
        }
        let of_idle = |of: fn(&IdlePoint) -> f64| {
            let points: Vec<_> = self
                .idle
                .iter()
                .map(|idle| (idle.replicas_per_node as f64, of(idle)))
                .collect();
            fit::line(&points).map(|(slope, _)| slope)
        };
        let cpu = of_idle(|idle| idle.cpu_percent_max);
        let rss = of_idle(|idle| idle.rss_bytes_max as f64);
        if let (Some(cpu_percent), Some(rss_bytes)) = (cpu, rss) {
            slopes.push(format!(
                "an idle replica costs {cpu_percent:.4} % of a core and {:.0} KiB of memory",
                rss_bytes / 1024.0
            ));
        }
        slopes
    }

    /// Tables, slopes, bars.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Setup {
            nodes,
            shards,
            clients,
            keys,
        } = self.base;
        let _ = writeln!(
            text,
            "base: {nodes} nodes, {REPLICAS} replicas, {shards} shards, {clients} clients, {keys} keys, {VALUE_BYTES}-byte values"
        );
        for (factor, points) in &self.under_load {
            let header = [
                factor.unit(),
                "op",
                "per second",
                "p50 ms",
                "p99 ms",
                "node CPU us/op",
                "node MiB",
                "errors",
            ];
            let _ = write!(text, "\n{}", table(&header, points.iter().map(row)));
        }
        if !self.idle.is_empty() {
            let header = [
                Factor::Idle.unit(),
                "CPU % max",
                "CPU % mean",
                "MiB max",
                "KiB/s written",
                "start s",
            ];
            let _ = write!(text, "\n{}", table(&header, self.idle.iter().map(idle_row)));
        }
        text.push('\n');
        for slope in self.slopes() {
            let _ = writeln!(text, "{slope}");
        }
        for bar in self.bars() {
            let verdict = if bar.is_held { "held" } else { "MISSED" };
            let _ = writeln!(
                text,
                "{verdict}: {} {:.2}, to be under {}",
                bar.name, bar.measured, bar.limit
            );
        }
        if self.bars().is_empty() {
            let _ = writeln!(
                text,
                "no bar was judged: that takes {BAR_REPLICAS} idle replicas per node"
            );
        }
        for failure in &self.failures {
            let _ = writeln!(text, "NOT MEASURED: {failure}");
        }
        text
    }

    /// Names of files and what is drawn in them; a factor of one point has no line.
    pub fn charts(&self) -> Vec<(&'static str, Chart)> {
        let mut charts: Vec<_> = self
            .under_load
            .iter()
            .filter(|(_, points)| has_a_line(points.iter().map(|point| point.value)))
            .map(|(factor, points)| (factor.name(), load_chart(*factor, points)))
            .collect();
        if has_a_line(self.idle.iter().map(|idle| idle.replicas_per_node)) {
            charts.push((Factor::Idle.name(), self.idle_chart()));
        }
        charts
    }

    fn idle_chart(&self) -> Chart {
        let series = |name: String, of: &dyn Fn(&IdlePoint) -> f64| Series {
            name,
            points: self
                .idle
                .iter()
                .map(|idle| (idle.replicas_per_node as f64, of(idle)))
                .collect(),
        };
        let cpu = |idle: &IdlePoint| idle.cpu_percent_max * 100.0 / BAR_CPU_PERCENT;
        let memory = |idle: &IdlePoint| idle.rss_bytes_max as f64 * 100.0 / BAR_RSS_BYTES as f64;
        Chart {
            title: "An idle node".to_owned(),
            x: axis(Factor::Idle.unit(), Scale::Log),
            y: axis("percent of the bar", Scale::Linear),
            series: vec![
                series(format!("CPU (bar: {BAR_CPU_PERCENT} % of one core)"), &cpu),
                series(format!("memory (bar: {} MiB)", mib(BAR_RSS_BYTES)), &memory),
                series("bar".to_owned(), &|_| 100.0),
            ],
        }
    }
}

fn load_chart(factor: Factor, points: &[Point]) -> Chart {
    let series = |operation: &str| Series {
        name: format!("{operation}s"),
        points: line(points, operation, |point| point.per_second),
    };
    let scale = match factor {
        Factor::Nodes => Scale::Linear,
        _ => Scale::Log,
    };
    Chart {
        title: format!("Throughput against {}", factor.unit()),
        x: axis(factor.unit(), scale),
        y: axis("operations per second", Scale::Linear),
        series: vec![series("put"), series("get")],
    }
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis {
        label: label.to_owned(),
        scale,
    }
}

fn line(points: &[Point], operation: &str, of: impl Fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let of_it = points.iter().filter(|point| point.operation == operation);
    of_it.map(|point| (point.value as f64, of(point))).collect()
}

fn has_a_line(mut values: impl Iterator<Item = u64>) -> bool {
    let first = values.next();
    values.any(|value| Some(value) != first)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn row(point: &Point) -> Vec<String> {
    vec![
        thousands(point.value as f64),
        point.operation.to_owned(),
        thousands(point.per_second),
        format!("{:.2}", point.p50_ms),
        format!("{:.2}", point.p99_ms),
        format!("{:.1}", point.node_cpu_us_per_op),
        format!("{:.0}", mib(point.rss_bytes_max)),
        thousands(point.errors as f64),
    ]
}

fn idle_row(idle: &IdlePoint) -> Vec<String> {
    vec![
        thousands(idle.replicas_per_node as f64),
        format!("{:.2}", idle.cpu_percent_max),
        format!("{:.2}", idle.cpu_percent_mean),
        format!("{:.0}", mib(idle.rss_bytes_max)),
        idle.written_bytes_per_second
            .map_or("-".to_owned(), |bytes| format!("{:.0}", bytes / 1024.0)),
        format!("{:.1}", idle.start_s),
    ]
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let header = header.iter().map(|name| (*name).to_owned()).collect();
    aligned(&[header].into_iter().chain(rows).collect::<Vec<_>>(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(replicas_per_node: u64, cpu_percent_max: f64, rss_mib: u64) -> IdlePoint {
        IdlePoint {
            replicas_per_node,
            cpu_percent_max,
            cpu_percent_mean: cpu_percent_max,
            rss_bytes_max: rss_mib << 20,
            written_bytes_per_second: Some(4_096.0),
            start_s: 3.0,
        }
    }

    fn point(value: u64, operation: &'static str, per_second: f64) -> Point {
        Point {
            value,
            operation,
            per_second,
            p50_ms: 1.0,
            p99_ms: 12.345,
            node_cpu_us_per_op: 80.0,
            rss_bytes_max: 100 << 20,
            errors: 0,
        }
    }

    fn report() -> Report {
        let mut report = Report::new(false, Times::new(false));
        let points = [
            point(100_000, "put", 30_000.0),
            point(100_000, "get", 90_000.0),
            point(1_000_000, "put", 27_000.0),
            point(1_000_000, "get", 90_000.0),
        ];
        report.under_load.insert(Factor::Data, points.to_vec());
        report.idle = vec![idle(2, 0.1, 100), idle(1_000, 4.9, 600)];
        report
    }

    #[test]
    fn bars_are_held_or_missed_and_a_point_without_a_figure_is_neither() {
        let mut report = report();
        assert_eq!(report.verdict(), Verdict::Held);
        report.idle[1] = idle(1_000, 5.0, 600);
        assert_eq!(report.verdict(), Verdict::Missed, "under 5 % is meant");
        report.idle[1] = idle(1_000, 1.0, 1_024);
        assert_eq!(report.verdict(), Verdict::Missed, "under 1 GiB is meant");
        report.failures.push("data 10000000: out of time".to_owned());
        assert_eq!(report.verdict(), Verdict::CouldNotRun);
        assert!(report.text().contains("NOT MEASURED: data 10000000: out of time"));
    }

    #[test]
    fn the_text_has_tables_slopes_and_bars() {
        let text = report().text();
        for part in [
            "     keys   op  per second",
            "  100,000  put      30,000",
            "1,000,000  get      90,000",
            "puts per second fall 10 % per tenfold data",
            "gets per second stay the same per tenfold data",
            "an idle replica costs 0.0048 % of a core and 513 KiB of memory",
            "held: CPU, percent of one core, of a node with 1000 idle replicas 4.90, to be under 5",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn without_the_idle_factor_nothing_is_judged_and_that_is_said() {
        let mut report = report();
        report.idle.clear();
        assert!(report.bars().is_empty());
        assert!(report.text().contains("no bar was judged"));
    }

    #[test]
    fn each_factor_with_two_values_is_a_chart() {
        let mut report = report();
        report
            .under_load
            .insert(Factor::Nodes, vec![point(3, "put", 1.0), point(3, "get", 1.0)]);
        let charts = report.charts();
        assert_eq!(
            charts.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["data", "idle"]
        );
        for (name, chart) in charts {
            chart.to_svg().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }
}
