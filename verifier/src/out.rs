//! What `verifier` prints: results on standard output, `error:` and `hint:` on standard error.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};
pub use countersign_wire::explanation::printable;
use serde_json::Value;

use crate::check::{CheckError, code};
use crate::error::Error;

const ERROR: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red))).bold();
const HINT: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Cyan))).bold();

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// One line.
    pub error: String,
    /// What to do.
    pub hint: String,
    /// JSON form.
    pub json: Value,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, text, hint) = (error.exit_code(), error.to_string(), error.hint());
        let json = serde_json::json!({"error": {"code": code, "message": text, "hint": hint}});
        Self { code, error: text, hint, json }
    }
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        let place = error.event.as_ref().map_or_else(String::new, |event| format!(", {event}"));
        let text = format!("{}{place}\n  got   {}\n  want  {}", error.check, error.got, error.want);
        let json = serde_json::json!({"error": error});
        Self { code: error.code, error: text, hint: hint(error.code).to_owned(), json }
    }
}

/// What to do about a check that failed.
const fn hint(of: u8) -> &'static str {
    match of {
        code::INPUT => "give the file that is meant; `verifier check --help` says what each one is",
        code::FORMAT => {
            "it was cut, or is of another kind: copy it whole, in one read; `attest inspect FILE` says what it is"
        }
        code::REPLAY => "take log and PCRs from one boot; with IMA or systemd also give --ima and --userspace",
        code::LIE => "no firmware writes such a log: somebody changed it",
        code::SIGNATURE => "give the key and the signature that belong to this file; otherwise it was changed",
        code::NONCE => "give the nonce that this quote was asked for with",
        code::PCRS => "take the PCR values at the moment of the quote",
        code::TRUST => "get the trust bundle from the verifier's operator: anybody can make a bundle of his own",
        code::VERDICT => "recompute with the version that decided; otherwise evidence or verdict was changed",
        _ => "",
    }
}

/// Prints a result as JSON or in words.
///
/// # Errors
/// Standard output fails in another way than by a reader that has had enough.
pub fn print(json: bool, value: &Value, words: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = if json { serde_json::to_string_pretty(value).unwrap_or_default() } else { words() };
    raw(format!("{text}\n").as_bytes())
}

/// Prints bytes as they are.
///
/// # Errors
/// As [`print`].
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure { code: 1, error: e.to_string(), hint: String::new(), json: Value::Null })
        }
        _ => Ok(()),
    }
}

/// Says what is wrong with a command line, or prints the help that was asked for; the exit code. With `--json` a document as of any failure
/// comes along.
#[must_use]
pub fn usage(error: &clap::Error) -> u8 {
    const CODE: u8 = 2;
    let _ = error.print();
    if !error.use_stderr() {
        return 0;
    }
    if std::env::args_os().any(|given| given == "--json") {
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        let message = line.strip_prefix("error: ").unwrap_or("no command was given");
        let failure = serde_json::json!({"error": {"code": CODE, "message": message, "hint": "verifier --help"}});
        let _ = print(true, &failure, String::new);
    }
    CODE
}

/// Prints a failure and returns the exit code.
#[must_use]
pub fn finish(result: Result<(), Failure>, json: bool) -> u8 {
    let Err(failure) = result else { return 0 };
    if json {
        let _ = print(true, &failure.json, String::new);
    }
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{ERROR}error:{ERROR:#} {}", failure.error);
    if !failure.hint.is_empty() {
        let _ = writeln!(err, "{HINT}hint:{HINT:#} {}", failure.hint);
    }
    failure.code
}

/// A table: columns as wide as their widest cell.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
