//! What the demo prints: steps with their times, commands, and what they answered.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::bail;
use countersign_supervisor::exit::Stage;

use crate::process::Ended;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green))).bold();

/// Prints the story and remembers it for the summary.
#[derive(Debug)]
pub(super) struct Narrator {
    root: PathBuf,
    started: Instant,
    step: Option<(String, Instant)>,
    done: Vec<(String, Duration, String)>,
}

impl Narrator {
    /// `root` is cut from command lines, to keep them short.
    #[must_use]
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, started: Instant::now(), step: None, done: Vec::new() }
    }

    /// One line of prose.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        for line in text.lines() {
            writeln!(out, "    {line}")?;
        }
        Ok(())
    }

    /// Begins a step.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn step(&mut self, title: &str) -> anyhow::Result<()> {
        let number = self.done.len().saturating_add(1);
        writeln!(anstream::stdout().lock(), "\n{BOLD}{number:2}  {title}{BOLD:#}")?;
        self.step = Some((title.to_owned(), Instant::now()));
        Ok(())
    }

    /// Ends the step with what came of it.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn done(&mut self, outcome: &str) -> anyhow::Result<()> {
        let Some((title, started)) = self.step.take() else { bail!("no step is under way") };
        let took = started.elapsed();
        writeln!(anstream::stdout().lock(), "    {GOOD}✓{GOOD:#} {outcome} {DIM}({:.2} s){DIM:#}", took.as_secs_f64())?;
        self.done.push((title, took, outcome.to_owned()));
        Ok(())
    }

    /// Shows a command and the time that it took.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn command(&self, ended: &Ended) -> anyhow::Result<()> {
        command(&self.root, ended)
    }

    /// Shows what a denied command said, and checks that it names what it must.
    ///
    /// # Errors
    /// The exit code is another, or one of the words is missing.
    pub(super) fn denial(&self, ended: &Ended, stage: Stage, words: &[&str]) -> anyhow::Result<()> {
        self.command(ended)?;
        let root = format!("{}/", self.root.display());
        self.say(&ended.stderr.replace(&root, ""))?;
        let code = i32::from(stage.code());
        if ended.code != Some(code) {
            bail!("`{}` ended with {:?}, expected {code}\n{}{}", ended.line, ended.code, ended.stdout, ended.stderr);
        }
        for word in words {
            if !ended.stderr.contains(word) {
                bail!("the denial does not say {word:?}:\n{}", ended.stderr);
            }
        }
        Ok(())
    }

    /// The closing table.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn summary(&self, lines: &[(&str, String)]) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        writeln!(out, "\n{BOLD}Summary{BOLD:#}")?;
        let width = self.done.iter().map(|(title, ..)| title.chars().count()).max().unwrap_or(0);
        for (title, took, outcome) in &self.done {
            writeln!(out, "  {title:width$}  {:6.2} s  {outcome}", took.as_secs_f64())?;
        }
        writeln!(out, "  {:width$}  {:6.2} s", "all of it", self.started.elapsed().as_secs_f64())?;
        for (what, value) in lines {
            writeln!(out, "  {what}: {value}")?;
        }
        Ok(())
    }
}

/// Shows a command and the time that it took; `root` is cut from it, to keep it short.
///
/// # Errors
/// Standard output is closed.
pub(super) fn command(root: &Path, ended: &Ended) -> anyhow::Result<()> {
    let line = ended.line.replace(&format!("{}/", root.display()), "");
    writeln!(anstream::stdout().lock(), "    {DIM}$ {line}  [{} ms]{DIM:#}", ended.took.as_millis())?;
    Ok(())
}
