//! What `supervisor` prints: results on standard output, `error:` and `hint:` on standard error.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::exit::{Failure, Stage};

const ERROR: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red))).bold();
const HINT: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Cyan))).bold();

/// Set once, by the command line, before anything is said.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From here on only errors are said, and what a command is asked to show.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether nothing but errors is to be said.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
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

/// Says on standard error what went wrong without being a failure. Who says it watches runs, and waits for no reader: what nobody reads is left
/// out once [`PENDING`] texts wait.
pub fn warn(text: &str) {
    if is_quiet() {
        return;
    }
    later(Said::Text(format!("{HINT}warning:{HINT:#} {text}\n")));
}

/// A line of a service's log, on standard error; as [`warn`].
pub fn note(text: &str) {
    later(Said::Text(format!("{text}\n")));
}

/// Most texts that wait to be written.
const PENDING: usize = 256;
/// How long the last ones may take.
const PATIENCE: Duration = Duration::from_secs(1);

enum Said {
    Text(String),
    /// Whoever sends it waits until all before is written.
    Mark(SyncSender<()>),
}

/// The thread that writes; none where it cannot be started.
static WRITER: OnceLock<Option<SyncSender<Said>>> = OnceLock::new();

fn later(said: Said) {
    let writer = WRITER.get_or_init(|| {
        let (sender, receiver) = std::sync::mpsc::sync_channel(PENDING);
        let write = move || {
            countersign_sys::write_in_background();
            for said in receiver {
                match said {
                    Said::Text(text) => say(&text),
                    Said::Mark(done) => drop(done.try_send(())),
                }
            }
        };
        std::thread::Builder::new().name("warnings".into()).spawn(write).ok().map(|_| sender)
    });
    match (writer, said) {
        (Some(writer), said) => drop(writer.try_send(said)),
        (None, Said::Text(text)) => say(&text),
        (None, Said::Mark(_)) => {}
    }
}

/// Waits a moment for what was said to be written; false when nobody reads it.
pub(crate) fn settle() -> bool {
    let Some(Some(_)) = WRITER.get() else { return true };
    let (done, written) = std::sync::mpsc::sync_channel(1);
    later(Said::Mark(done));
    written.recv_timeout(PATIENCE).is_ok()
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
    let read = settle();
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
    if read {
        say(&text);
    }
    failure.stage.code()
}
