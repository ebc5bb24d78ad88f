//! A command line for a runtime that came with the supervisor's verb in front: its flags are told from ours, so that the image is found.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::flags::{self, Flag, Given};
use crate::exit::{Failure, Stage};

/// A command line in two parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    /// What the supervisor's own parser gets.
    pub(crate) own: Vec<OsString>,
    /// The runtime's flags that stood before the image, in their order.
    pub(crate) flags: Vec<Given>,
}

/// Takes the runtime's flags out. `command` is the whole program's; only verbs that start a runtime have any.
///
/// # Errors
/// [`Stage::Usage`]: a flag that neither has, a value that is missing, a flag that is refused.
pub(crate) fn split(line: Vec<OsString>, command: &clap::Command) -> Result<Split, Failure> {
    let Some((verb, own)) = verb(&line, command) else { return Ok(Split { own: line, flags: Vec::new() }) };
    let mut split = Split::default();
    let mut words = line.into_iter();
    split.own.extend(words.by_ref().take(verb));
    let mut words = words.peekable();
    while let Some(word) = words.next_if(|word| word.as_bytes().starts_with(b"-") && word != "-" && word != "--") {
        let bytes = word.as_bytes();
        if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, value) = match long.iter().position(|byte| *byte == b'=') {
                Some(at) => (long.get(..at).unwrap_or_default(), long.get(at.saturating_add(1)..)),
                None => (long, None),
            };
            let value = value.map(|value| OsString::from_vec(value.to_vec()));
            let name = String::from_utf8_lossy(name).into_owned();
            if let Some(takes) = own.long(&name) {
                let more = takes && value.is_none();
                split.own.push(word);
                split.own.extend(words.next_if(|_| more));
                continue;
            }
            let flag = flags::long(&name).ok_or_else(|| unknown(&word))?;
            let value = if flag.value && value.is_none() { Some(next(flag, &mut words)?) } else { value };
            split.flags.push(Given { flag, value });
            continue;
        }
        let letters = String::from_utf8_lossy(bytes.get(1..).unwrap_or_default()).into_owned();
        let mut rest = letters.chars();
        if let Some(takes) = rest.next().and_then(|letter| own.short(letter)) {
            let more = takes && rest.as_str().is_empty();
            split.own.push(word);
            split.own.extend(words.next_if(|_| more));
            continue;
        }
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            let flag = flags::short(letter).ok_or_else(|| unknown(OsStr::new(&format!("-{letter}"))))?;
            let value = match (flag.value, rest.as_str()) {
                (false, _) => None,
                (true, "") => Some(next(flag, &mut words)?),
                (true, value) => Some(OsString::from(value.strip_prefix('=').unwrap_or(value))),
            };
            let last = value.is_some();
            split.flags.push(Given { flag, value });
            if last {
                break;
            }
        }
    }
    split.own.extend(words);
    for given in &split.flags {
        given.check()?;
    }
    Ok(split)
}

fn next(flag: &Flag, words: &mut impl Iterator<Item = OsString>) -> Result<OsString, Failure> {
    words.next().ok_or_else(|| {
        Failure::new(Stage::Usage, format!("--{} takes a value", flag.name), "supervisor run --help shows the order")
    })
}

fn unknown(word: &OsStr) -> Failure {
    Failure::new(
        Stage::Usage,
        format!("{} is neither an option of the supervisor nor a known flag of the runtimes", word.display()),
        "what belongs to the workload stands behind the image",
    )
}

/// The supervisor's own options.
struct Own<'a>(Vec<&'a clap::Arg>);

impl Own<'_> {
    /// Whether the option takes a value; `None` when it is none of ours.
    fn long(&self, name: &str) -> Option<bool> {
        if name == "help" {
            return Some(false);
        }
        let found = self.0.iter().find(|arg| arg.get_long() == Some(name))?;
        Some(found.get_action().takes_values())
    }

    fn short(&self, letter: char) -> Option<bool> {
        if letter == 'h' {
            return Some(false);
        }
        let found = self.0.iter().find(|arg| arg.get_short() == Some(letter))?;
        Some(found.get_action().takes_values())
    }
}

/// How many words come before the flags of a verb that starts a runtime, and the options that it has.
fn verb<'a>(line: &[OsString], command: &'a clap::Command) -> Option<(usize, Own<'a>)> {
    let mut at = 1;
    let mut command = command;
    let mut own: Vec<&clap::Arg> = command.get_arguments().collect();
    loop {
        // Switches alone may stand before a verb.
        let word = line.get(at)?.to_str()?;
        at = at.saturating_add(1);
        if word.starts_with('-') {
            continue;
        }
        command = command.find_subcommand(word)?;
        own.extend(command.get_arguments());
        if !command.has_subcommands() {
            let starts = command.get_arguments().any(|arg| arg.get_id() == "runtime");
            return starts.then_some((at, Own(own)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> clap::Command {
        use clap::{Arg, ArgAction, Command};
        let run = |name: &'static str| {
            Command::new(name)
                .arg(Arg::new("runtime").long("runtime"))
                .arg(Arg::new("signer").long("signer").action(ArgAction::Append))
        };
        Command::new("supervisor")
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue))
            .subcommand(run("run"))
            .subcommand(Command::new("inspect").arg(Arg::new("signer").long("signer")))
            .subcommand(Command::new("instance").subcommand(run("start")).subcommand(Command::new("list")))
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn split_text(text: &str) -> Result<(String, String), String> {
        let split = split(words(text), &program()).map_err(|failure| failure.error)?;
        let join = |words: Vec<OsString>| words.join(OsStr::new(" ")).into_string().unwrap();
        Ok((join(split.own), join(split.flags.iter().map(Given::argument).collect())))
    }

    #[test]
    fn the_image_is_found() {
        for (line, own, flags) in [
            ("s run --signer k app.sif -B x", "s run --signer k app.sif -B x", ""),
            ("s --json run -B /a:/b --signer k app.sif --nv", "s --json run --signer k app.sif --nv", "--bind=/a:/b"),
            ("s run -eB/a --env A=b=c app.sif", "s run app.sif", "--cleanenv --bind=/a --env=A=b=c"),
            (
                "s run --bind=/a,/b -H=/h -CW /w app.sif --writable",
                "s run app.sif --writable",
                "--bind=/a,/b --home=/h --containall --workdir=/w",
            ),
            ("s run --nv=false --writable=false app.sif", "s run app.sif", "--nv=false --writable=false"),
            ("s run --pwd /x -- -strange.sif -B", "s run -- -strange.sif -B", "--pwd=/x"),
            (
                "s instance start --nv --runtime builtin app.sif n",
                "s instance start --runtime builtin app.sif n",
                "--nv",
            ),
            ("s inspect --nv app.sif", "s inspect --nv app.sif", ""),
            ("s instance list --nv", "s instance list --nv", ""),
            ("s run -h", "s run -h", ""),
            ("s run", "s run", ""),
        ] {
            assert_eq!(split_text(line), Ok((own.into(), flags.into())), "{line}");
        }
    }

    #[test]
    fn what_is_unknown_incomplete_or_refused() {
        for (line, word) in [
            ("s run --colour app.sif", "--colour"),
            ("s run -Bx -z app.sif", "-z"),
            ("s run --bind", "--bind takes a value"),
            ("s run -w app.sif", "--writable is refused"),
            ("s run -ew app.sif", "--writable is refused"),
            ("s run --pem-path key app.sif", "--pem-path is refused"),
            ("s instance start --add-caps=all app.sif n", "--add-caps is refused"),
        ] {
            let error = split_text(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
