//! Starts under Apptainer: against Apptainer alone on the same file system in clear text, and against its own encryption.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::bail;

use super::measure::{Timed, timed_in_turn};
use super::plain::{Plain, first_byte};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::SECRET;

pub(super) const TOPIC: Topic = Topic { rows: &["start-vs-plain", "start-vs-encrypted"], measure };

const ROUNDS: usize = 15;
/// What a start may cost beside the plain one and the TPM's part, ms.
const ALLOWED: f64 = 30.0;
/// Where Apptainer takes the passphrase of its own encryption from.
const PASSPHRASE: (&str, &str) = ("APPTAINER_ENCRYPTION_PASSPHRASE", "a passphrase of the bench");

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let apptainer = match apptainer() {
        Ok(path) => path,
        Err(why) => {
            writeln!(anstream::stderr().lock(), "start-vs-plain, start-vs-encrypted: skipped: {why}")?;
            return Ok(Vec::new());
        }
    };
    let unseal = bench.unseal_ms()?;
    let folder = bench.folder("apptainer")?;
    let site = bench.site()?;
    let plain = Plain::new(site.tools().clone(), &site.path("rootfs"), &folder)?;
    let encrypted = encrypted(&apptainer, &site.path("rootfs"), &folder);
    if let Err(e) = &encrypted {
        writeln!(anstream::stderr().lock(), "start-vs-encrypted: skipped: {e:#}")?;
    }
    let want = format!("{SECRET}\n");
    let mut ours = || {
        let mut command = site.tools().command("supervisor");
        let runtime = apptainer.display().to_string();
        let mut arguments = site.run_arguments("app.sif", &["--runtime", &runtime]);
        if let Some(verb) = arguments.first_mut() {
            "exec".clone_into(verb);
        }
        first_byte(quiet(command.args(arguments)), Instant::now(), &want)
    };
    let mut alone = || first_byte(exec(&apptainer, plain.squashfs()), Instant::now(), &want);
    let mut its_own = || {
        let Ok(image) = &encrypted else { bail!("no image") };
        let mut command = exec(&apptainer, image);
        command.env(PASSPHRASE.0, PASSPHRASE.1);
        first_byte(command, Instant::now(), &want)
    };
    let mut calls: Vec<Timed<'_>> = vec![&mut ours, &mut alone];
    if encrypted.is_ok() {
        calls.push(&mut its_own);
    }
    let medians = timed_in_turn(ROUNDS, &mut calls)?;
    let row = |name: &str, value, against: &str, against_value, goal, note| Row {
        name: name.to_owned(),
        value,
        unit: "ms",
        against: against.to_owned(),
        against_value,
        goal,
        samples: ROUNDS,
        note,
    };
    let [run, plain, rest @ ..] = medians.as_slice() else { bail!("two medians") };
    let mut rows = vec![row(
        "start-vs-plain",
        *run,
        "apptainer exec + [unseal] + 30 ms",
        plain + unseal + ALLOWED,
        Goal::AtMost(1.0),
        format!("apptainer exec of the plain squashfs {plain:.1} ms, [unseal] {unseal:.1} ms"),
    )];
    rows.extend(rest.first().map(|its_own| {
        let note = "by gocryptfs, as Apptainer encrypts for ordinary users".to_owned();
        row("start-vs-encrypted", *run, "apptainer exec of its own encrypted image", *its_own, Goal::Below(1.0), note)
    }));
    Ok(rows)
}

/// The Apptainer that the tests use, or why there is none.
fn apptainer() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("COUNTERSIGN_APPTAINER") {
        return Ok(path.into());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/apptainer.sh");
    let found = Command::new(&script).arg("path").output().map_err(|e| format!("{}: {e}", script.display()))?;
    let program = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    if program.is_empty() {
        Err("no Apptainer (scripts/apptainer.sh build makes one)".to_owned())
    } else {
        Ok(program.into())
    }
}

/// Nothing of the user's settings, in a folder that the image has too.
fn quiet(command: &mut Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args()).current_dir("/").stdin(std::process::Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => again.env(name, value),
            None => again.env_remove(name),
        };
    }
    again
}

/// The secret, read under Apptainer alone.
fn exec(apptainer: &Path, image: &Path) -> Command {
    let mut command = Command::new(apptainer);
    command.args(["exec", "--userns"]);
    if rustix::process::geteuid().is_root() {
        command.arg("--no-privs");
    }
    quiet(command.arg(image).args(["cat", "/secret.txt"]))
}

/// The same files as Apptainer encrypts them for an ordinary user: root in a user namespace is none to it under another id.
fn encrypted(apptainer: &Path, rootfs: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let image = folder.join("encrypted.sif");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-user=1", "--map-group=1"]).arg(apptainer);
        unshare
    } else {
        Command::new(apptainer)
    };
    command.args(["build", "--force", "--encrypt"]).arg(&image).arg(rootfs).env(PASSPHRASE.0, PASSPHRASE.1);
    let built = command.current_dir("/").output()?;
    if !built.status.success() {
        let words = String::from_utf8_lossy(&built.stderr);
        bail!("apptainer build --encrypt: {}", words.lines().last().unwrap_or_default());
    }
    Ok(image)
}
