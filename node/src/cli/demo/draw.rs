//! Showing what happens as it happens: a live picture on a terminal, lines elsewhere.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};

/// Columns of the sparkline.
const SPARK_COLUMNS: usize = 60;
/// Events kept in sight.
const EVENTS_SHOWN: usize = 8;
const COLUMNS_MAX: usize = 110;
/// Without a terminal, a line of figures every so many samples.
const SAMPLES_PER_LINE: usize = 10;

/// One node's line.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeLine {
    pub name: String,
    /// What it is doing, e.g. "serving", "killed", "2 shards being repaired".
    pub state: String,
    pub leaders: usize,
    pub trusted: usize,
    pub replicas: usize,
}

/// What is on the picture.
#[derive(Debug, Default)]
pub(super) struct Picture {
    pub phase: String,
    pub nodes: Vec<NodeLine>,
    pub acknowledged_writes: u64,
    pub failed_requests: u64,
    pub longest_stall_ms: u64,
    /// Requests per second, the latest last.
    pub throughput: VecDeque<u64>,
    events: VecDeque<String>,
}

impl Picture {
    /// Adds a sample of requests per second.
    pub fn sample(&mut self, per_second: u64) {
        self.throughput.push_back(per_second);
        while self.throughput.len() > SPARK_COLUMNS {
            self.throughput.pop_front();
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("ReelKV demo: {}", self.phase)];
        lines.extend(self.nodes.iter().map(node_line));
        let samples: Vec<_> = self.throughput.iter().copied().collect();
        lines.push(format!(
            "  {} {}/s",
            sparkline(&samples),
            samples.last().unwrap_or(&0)
        ));
        lines.push(format!("  {}", self.figures()));
        let blank = EVENTS_SHOWN.saturating_sub(self.events.len());
        lines.extend(self.events.iter().map(|event| format!("  {event}")));
        lines.extend(std::iter::repeat_n(String::new(), blank));
        lines
            .into_iter()
            .map(|line| line.chars().take(COLUMNS_MAX).collect())
            .collect()
    }

    fn figures(&self) -> String {
        format!(
            "{} writes acknowledged, {} requests failed, longest stall {} ms",
            self.acknowledged_writes, self.failed_requests, self.longest_stall_ms
        )
    }
}

fn node_line(node: &NodeLine) -> String {
    format!(
        "  {:<3} leads {:>2}  replicas {:>2}/{:<2}  {}",
        node.name, node.leaders, node.trusted, node.replicas, node.state
    )
}

/// One character per sample, its height in eighths of the largest.
fn sparkline(samples: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = samples.iter().copied().max().unwrap_or(0).max(1);
    samples
        .iter()
        .map(|sample| BARS[(sample * 7).div_ceil(largest) as usize])
        .collect()
}

/// Where the picture goes.
pub(super) struct Screen {
    pub picture: Picture,
    live: bool,
    drawn_lines: usize,
    samples: usize,
}

impl Screen {
    /// A screen on standard output.
    pub fn new() -> Self {
        Self {
            picture: Picture::default(),
            live: std::io::stdout().is_terminal(),
            drawn_lines: 0,
            samples: 0,
        }
    }

    /// Tells of something that happened, `at_ms` since the start.
    pub fn event(&mut self, at_ms: u64, what: &str) {
        let line = format!("{:>6.1} s  {what}", at_ms as f64 / 1_000.0);
        if !self.live {
            print(&format!("{line}\n"));
            return;
        }
        self.picture.events.push_back(line);
        while self.picture.events.len() > EVENTS_SHOWN {
            self.picture.events.pop_front();
        }
        self.redraw();
    }

    /// Draws the picture anew; to be called after each sample.
    pub fn tick(&mut self, at_ms: u64) {
        self.samples += 1;
        if self.live {
            self.redraw();
        } else if self.samples.is_multiple_of(SAMPLES_PER_LINE) {
            let per_second = self.picture.throughput.back().copied().unwrap_or(0);
            let line = format!("{per_second} requests/s; {}", self.picture.figures());
            self.event(at_ms, &line);
        }
    }

    fn redraw(&mut self) {
        let mut text = String::new();
        if self.drawn_lines > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn_lines));
        }
        let lines = self.picture.lines();
        for line in &lines {
            text.push_str(&format!("\r\x1b[2K{line}\n"));
        }
        self.drawn_lines = lines.len();
        print(&text);
    }
}

/// Writes to standard output.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever closed the output does not want to see more; the verdict is in the exit status.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_shows_the_pause() {
        assert_eq!(sparkline(&[8, 8, 0, 4, 8]), "██▁▅█");
        assert_eq!(sparkline(&[0, 0]), "▁▁");
        assert_eq!(sparkline(&[]), "");
    }

    #[test]
    fn the_picture_keeps_its_height_whatever_happens() {
        let mut picture = Picture {
            nodes: vec![NodeLine::default(); 3],
            ..Picture::default()
        };
        let height = picture.lines().len();
        picture.events.push_back("x".repeat(500));
        (0..200).for_each(|sample| picture.sample(sample));
        let lines = picture.lines();
        assert_eq!(lines.len(), height);
        assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS_MAX));
    }
}
