//! What `attest` prints: results on standard output, `error:` and `hint:` on standard error.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::verdict::Denial;

const ERROR: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red))).bold();
const HINT: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Cyan))).bold();

/// Why a command failed, for people and programs.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// One line.
    pub error: String,
    /// More lines: a denial's reasons.
    #[serde(skip)]
    pub words: String,
    /// What to do.
    pub hint: String,
    /// The denial, for JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<Box<Denial>>,
}

/// Text from elsewhere, without what could steer a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Prints a result as JSON or in words.
///
/// # Errors
/// Standard output is closed in another way than by a reader that has had enough.
pub fn print<T: Serialize>(json: bool, value: &T, words: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = if json { serde_json::to_string_pretty(value).unwrap_or_default() } else { words() };
    raw(format!("{text}\n").as_bytes())
}

/// Prints bytes as they are.
///
/// # Errors
/// As [`print()`].
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    match anstream::stdout().lock().write_all(bytes) {
        // A reader that has had enough is success.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure { code: 1, error: e.to_string(), words: String::new(), hint: String::new(), denial: None })
        }
        _ => Ok(()),
    }
}

/// Prints a failure and returns the exit code.
#[must_use]
pub fn finish(result: Result<(), Failure>, json: bool) -> u8 {
    let Err(failure) = result else { return 0 };
    if json {
        let _ = print(true, &failure, String::new);
    }
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{ERROR}error:{ERROR:#} {}", printable(&failure.error));
    let _ = write!(err, "{}", failure.words);
    if !failure.hint.is_empty() {
        let _ = writeln!(err, "{HINT}hint:{HINT:#} {}", printable(&failure.hint));
    }
    failure.code
}
