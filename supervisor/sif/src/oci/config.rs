//! What Apptainer adds to an OCI image: the folders and files that it mounts over, a runscript, an environment file, labels.

use super::manifest::Config;
use super::tree::Tree;
use crate::error::SifError;

const RUNSCRIPT: &str = ".singularity.d/runscript";
const ENVIRONMENT: &str = ".singularity.d/env/10-docker2singularity.sh";

/// Adds them. What the image has itself of folders and mount points stays as it is.
pub(super) fn add(tree: &mut Tree, config: &Config) -> Result<(), SifError> {
    for folder in ["dev", "proc", "sys", "root", "home", "etc", "var", ".singularity.d/env", ".singularity.d/libs"] {
        tree.add_folder(folder, 0o755)?;
    }
    for folder in ["tmp", "var/tmp"] {
        tree.add_folder(folder, 0o1777)?;
    }
    for file in ["etc/hosts", "etc/resolv.conf"] {
        tree.add_file(file, 0o644, b"", false)?;
    }
    tree.add_file(RUNSCRIPT, 0o755, runscript(config).as_bytes(), true)?;
    tree.add_file(ENVIRONMENT, 0o755, environment(config).as_bytes(), true)?;
    if let Some(labels) = &config.labels {
        let labels = serde_json::to_vec_pretty(labels).map_err(|e| super::bad(e.to_string()))?;
        tree.add_file(".singularity.d/labels.json", 0o644, &labels, true)?;
    }
    Ok(())
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn words(list: Option<&Vec<String>>) -> String {
    list.into_iter().flatten().map(|word| format!(" {}", quoted(word))).collect()
}

/// Arguments take the place of Cmd, and Entrypoint comes before them. Nothing is evaluated by a shell, as the OCI specification has it.
fn runscript(config: &Config) -> String {
    let mut script = format!("#!/bin/sh\n. /{ENVIRONMENT}\n");
    let (entrypoint, cmd) = (words(config.entrypoint.as_ref()), words(config.cmd.as_ref()));
    if !cmd.is_empty() {
        script.push_str(&format!("[ $# -gt 0 ] || set --{cmd}\n"));
    }
    if entrypoint.is_empty() {
        script.push_str("[ $# -gt 0 ] || { echo 'this image names no command' >&2; exit 127; }\n");
    } else {
        script.push_str(&format!("set --{entrypoint} \"$@\"\n"));
    }
    script.push_str("exec \"$@\"\n");
    script
}

/// PATH is the image's; of the others those that are not set already.
fn environment(config: &Config) -> String {
    let mut script = String::from("#!/bin/sh\n");
    for entry in config.env.iter().flatten() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        if !starts || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue; // no shell can set it
        }
        let value = quoted(value);
        if name == "PATH" {
            script.push_str(&format!("export PATH={value}\n"));
        } else {
            script.push_str(&format!("[ -n \"${{{name}:-}}\" ] || {name}={value}\nexport {name}\n"));
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn list(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|word| (*word).to_owned()).collect())
    }

    /// What a shell makes of the script, the environment's file left out.
    fn run(config: &Config, arguments: &[&str]) -> (Option<i32>, String) {
        let script = runscript(config).replace(&format!(". /{ENVIRONMENT}\n"), "");
        let mut child = Command::new("sh")
            .args([&["-s", "--"], arguments].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    }

    #[test]
    fn entrypoint_and_cmd_as_the_oci_has_them() {
        let hostile = "it's $(id) `id` \"$HOME\"\n*";
        let print = &["printf", "<%s>"];
        let both = Config { entrypoint: list(print), cmd: list(&[hostile, ""]), ..Config::default() };
        assert_eq!(run(&both, &[]), (Some(0), format!("<{hostile}><>")));
        assert_eq!(run(&both, &["a b", "c"]), (Some(0), "<a b><c>".into()));
        let only_cmd = Config { cmd: list(&["printf", "<%s>", hostile]), ..Config::default() };
        assert_eq!(run(&only_cmd, &[]), (Some(0), format!("<{hostile}>")));
        assert_eq!(run(&only_cmd, &["echo", "x"]), (Some(0), "x\n".into()));
        let only_entrypoint = Config { entrypoint: list(print), ..Config::default() };
        assert_eq!(run(&only_entrypoint, &["y"]), (Some(0), "<y>".into()));
        assert_eq!(run(&Config::default(), &["echo", "z"]), (Some(0), "z\n".into()));
        assert_eq!(run(&Config::default(), &[]).0, Some(127));
    }

    #[test]
    fn the_environment_of_the_image_and_that_of_the_caller() {
        let env = list(&["PATH=/opt/bin:/bin:/usr/bin", "A=it's $(id)", "B=2", "EMPTY", "1X=no", "x y=no", "E=a=b"]);
        let script = environment(&Config { env, ..Config::default() });
        let script = format!("{script}\nprintf '%s|' \"$PATH\" \"$A\" \"$B\" \"$EMPTY\" \"$E\"");
        let out = Command::new("/bin/sh").args(["-euc", &script]).env("B", "mine").output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "/opt/bin:/bin:/usr/bin|it's $(id)|mine||a=b|");
    }
}
