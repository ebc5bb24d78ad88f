//! Rows, and what becomes of them: a table for people, `summary.json` for programs.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

/// What a ratio must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

impl Goal {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(goal) => ratio >= goal,
            Self::AtMost(goal) => ratio <= goal,
            Self::Below(goal) => ratio < goal,
        }
    }

    fn words(self) -> String {
        match self {
            Self::AtLeast(goal) => format!(">= {goal:.2}"),
            Self::AtMost(goal) => format!("<= {goal:.2}"),
            Self::Below(goal) => format!("< {goal:.2}"),
        }
    }
}

/// One measured speed.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    /// The floor or peer, or `goal`.
    pub(super) against: String,
    pub(super) against_value: f64,
    /// For the ratio.
    pub(super) goal: Goal,
    /// Measurements behind each median.
    pub(super) samples: usize,
    /// What else is worth knowing.
    pub(super) note: String,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.value / self.against_value
    }

    fn met(&self) -> bool {
        self.goal.met(self.ratio())
    }
}

/// As `summary.json` has it.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    name: &'a str,
    value: f64,
    unit: &'a str,
    against: &'a str,
    against_value: f64,
    ratio: f64,
}

/// As `--json` prints it.
#[derive(Debug, Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    goal: String,
    met: bool,
    samples: usize,
    note: &'a str,
}

fn summary(row: &Row) -> Summary<'_> {
    Summary {
        name: &row.name,
        value: row.value,
        unit: row.unit,
        against: &row.against,
        against_value: row.against_value,
        ratio: row.ratio(),
    }
}

/// Writes `summary.json`.
pub(super) fn write(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let rows: Vec<_> = rows.iter().map(summary).collect();
    let mut text = serde_json::to_string_pretty(&rows)?;
    text.push('\n');
    Ok(fs::write(path, text)?)
}

/// Prints the rows as JSON.
pub(super) fn json(rows: &[Row]) -> anyhow::Result<()> {
    let full = |row| {
        let summary = summary(row);
        Full { summary, goal: row.goal.words(), met: row.met(), samples: row.samples, note: &row.note }
    };
    let rows: Vec<_> = rows.iter().map(full).collect();
    writeln!(anstream::stdout().lock(), "{}", serde_json::to_string_pretty(&rows)?)?;
    Ok(())
}

/// Prints the rows as a Markdown table, with the machine above and what was missed below.
pub(super) fn table(rows: &[Row]) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{}\n", machine())?;
    let head = ["row", "value", "unit", "against", "its value", "ratio", "goal", "met?", "samples"];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let met = if row.met() { "yes" } else { "NO" };
        cells.push(vec![
            row.name.clone(),
            number(row.value),
            row.unit.to_owned(),
            row.against.clone(),
            number(row.against_value),
            format!("{:.3}", row.ratio()),
            row.goal.words(),
            met.to_owned(),
            row.samples.to_string(),
        ]);
    }
    let width = |column: usize| {
        let lengths = cells.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count());
        lengths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for (n, line) in cells.iter().enumerate() {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        writeln!(out, "| {} |", padded.join(" | "))?;
        if n == 0 {
            let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            writeln!(out, "| {} |", rule.join(" | "))?;
        }
    }
    writeln!(out)?;
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        writeln!(out, "{}: {}", row.name, row.note)?;
    }
    let missed: Vec<&str> = rows.iter().filter(|row| !row.met()).map(|row| row.name.as_str()).collect();
    match missed.as_slice() {
        [] => writeln!(out, "\nevery goal is met")?,
        missed => writeln!(out, "\ngoals missed: {}", missed.join(", "))?,
    }
    Ok(())
}

/// Four significant digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Cores, processor and kernel, and what is wrong with the figures.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or_default();
    let system = rustix::system::uname();
    let build = if cfg!(debug_assertions) { "; NOT OPTIMISED: these figures mean nothing" } else { "" };
    format!("{cores} cores ({model}), Linux {}, load {load}{build}", system.release().to_string_lossy())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    fn row(value: f64, against_value: f64, goal: Goal) -> Row {
        let (name, against) = ("r".to_owned(), "floor".to_owned());
        Row { name, value, unit: "us", against, against_value, goal, samples: 3, note: String::new() }
    }

    #[test]
    fn the_summary_has_the_agreed_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("summary.json");
        write(&path, &[row(3.0, 2.0, Goal::AtMost(1.5))]).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let want = serde_json::json!([{
            "name": "r", "value": 3.0, "unit": "us", "against": "floor", "against_value": 2.0, "ratio": 1.5
        }]);
        assert_eq!(read, want);
    }

    #[test]
    fn goals() {
        let met = |value, goal| row(value, 2.0, goal).met();
        assert!(met(1.8, Goal::AtLeast(0.9)) && !met(1.7, Goal::AtLeast(0.9)));
        assert!(met(3.0, Goal::AtMost(1.5)) && !met(3.1, Goal::AtMost(1.5)));
        assert!(met(1.9, Goal::Below(1.0)) && !met(2.0, Goal::Below(1.0)));
    }
}
