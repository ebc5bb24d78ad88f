//! What `attest` prints: results on standard output, `error:` and `hint:` on standard error.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};
pub use countersign_wire::explanation::printable;
use serde::Serialize;

use crate::exit::Exit;
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

/// Says what is wrong with a command line, or prints the help that was asked for; the exit code. With `--json` a document as of any failure
/// comes along.
#[must_use]
pub fn usage(error: &clap::Error) -> u8 {
    let _ = error.print();
    if !error.use_stderr() {
        return 0;
    }
    if std::env::args_os().any(|given| given == "--json") {
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        let failure = Failure {
            code: Exit::Usage.code(),
            error: line.strip_prefix("error: ").unwrap_or("no command was given").to_owned(),
            words: String::new(),
            hint: "attest --help".to_owned(),
            denial: None,
        };
        let _ = print(true, &failure, String::new);
    }
    Exit::Usage.code()
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
