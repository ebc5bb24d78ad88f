//! What `supervisor` prints: results on standard output, `error:` and `hint:` on standard error.

use std::io::Write as _;

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::exit::{Failure, Stage};

const ERROR: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red))).bold();
const HINT: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Cyan))).bold();

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
    match anstream::stdout().lock().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(Stage::Other, e.to_string(), "")),
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
    if wants_json() {
        let text = error.render().to_string();
        let (first, rest) = match text.strip_prefix("error: ") {
            Some(text) => text.split_once('\n').unwrap_or((text, "")),
            None => ("no command was given", text.as_str()),
        };
        let mut failure = Failure::new(Stage::Usage, first, "supervisor --help");
        failure.words = rest.trim().to_owned();
        let _ = print(true, &serde_json::json!({"error": failure}), String::new);
    }
    Stage::Usage.code()
}

/// Whether `--json` was given, of a command line that was not understood.
#[must_use]
pub fn wants_json() -> bool {
    std::env::args_os().take_while(|given| given != "--").any(|given| given == "--json")
}

/// Says on standard error what went wrong without being a failure.
pub fn warn(text: &str) {
    say(&format!("{HINT}warning:{HINT:#} {text}\n"));
}

/// A line of a service's log, on standard error.
pub fn note(text: &str) {
    say(&format!("{text}\n"));
}

/// Writes to standard error at once: the status lines of `--status-fd 2`, which come from another thread, do not get between.
fn say(text: &str) {
    let mut styled = AutoStream::new(Vec::new(), AutoStream::choice(&std::io::stderr()));
    let _ = styled.write_all(text.as_bytes());
    let _ = std::io::stderr().lock().write_all(&styled.into_inner());
}

/// Prints a failure, if it is one, and returns the exit code.
#[must_use]
pub fn finish(result: Result<u8, Failure>, json: bool) -> u8 {
    let failure = match result {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    if json {
        let _ = print(true, &serde_json::json!({"error": failure}), String::new);
    }
    let mut text = format!("{ERROR}error:{ERROR:#} {}\n{}", failure.error, failure.details());
    if !failure.hint.is_empty() {
        text.push_str(&format!("{HINT}hint:{HINT:#} {}\n", failure.hint));
    }
    say(&text);
    failure.stage.code()
}
