//! All output of the program. Text and JSON are made from one value.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use serde::Serialize;

/// What goes to stderr as `error:` and `hint:`.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    /// Nobody reads our output any more: not an error.
    broken_pipe: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()), broken_pipe: false }
    }

    /// Of one TPM of several.
    pub(crate) fn of(name: &str) -> impl FnOnce(countersign_tpm_sim::Error) -> Self {
        move |error| {
            let hint = error.hint().map(|hint| hint.replace("NAME", name));
            Self { message: format!("{name}: {error}"), hint, broken_pipe: false }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let broken_pipe = error.kind() == ErrorKind::BrokenPipe;
        Self { message: format!("cannot write the output: {error}"), hint: None, broken_pipe }
    }
}

/// How output is written.
#[derive(Debug)]
pub(crate) struct Out {
    json: bool,
}

impl Out {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a value: as JSON, or as the text that `text` makes of it.
    pub(crate) fn value<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        if self.json {
            let json = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
            writeln!(stdout, "{json}")?;
        } else {
            let text = text(value);
            if !text.is_empty() {
                writeln!(stdout, "{}", text.trim_end())?;
            }
        }
        Ok(stdout.flush()?)
    }

    /// Prints bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// Prints an error and gives the exit code.
    pub(crate) fn failure(&self, failure: &Failure) -> ExitCode {
        if failure.broken_pipe {
            return ExitCode::SUCCESS;
        }
        let (red, cyan) = (anstyle::AnsiColor::Red.on_default().bold(), anstyle::AnsiColor::Cyan.on_default().bold());
        let mut stderr = anstream::stderr().lock();
        // There is nowhere left to report that stderr is closed.
        let _closed = writeln!(stderr, "{red}error:{red:#} {}", failure.message);
        if let Some(hint) = &failure.hint {
            let _closed = writeln!(stderr, "{cyan}hint:{cyan:#} {hint}");
        }
        ExitCode::FAILURE
    }
}
