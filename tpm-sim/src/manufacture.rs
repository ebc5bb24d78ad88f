//! What a TPM vendor does, with swtpm_setup: seeds, EKs and their certificates, from a CA in a folder of ours.

use std::fs;
use std::path::{Path, PathBuf};

use countersign_tpm::alg::HashAlg;

use crate::error::Error;
use crate::options::{Authority, Options};
use crate::tools;

/// Bytes of a tool's output that an error shows.
const LOG_TAIL: usize = 1500;

/// The CA's certificates in one file: first the one that signs EK certificates, then its root.
pub(crate) fn ca_pem(ca: &Path) -> PathBuf {
    ca.join("ca.pem")
}

/// Writes [`ca_pem`] from what swtpm_localca made. Another TPM of the fleet may do the same at the same time.
fn write_ca_pem(ca: &Path, name: &str) -> Result<(), Error> {
    let mut all = Vec::new();
    for file in ["issuercert.pem", "swtpm-localca-rootca-cert.pem"] {
        let path = ca.join(file);
        all.extend(fs::read(&path).map_err(Error::file("read", &path))?);
    }
    let (part, path) = (ca.join(format!(".ca.pem.{name}")), ca_pem(ca));
    write(&part, all)?;
    fs::rename(&part, &path).map_err(Error::file("write", path))
}

/// Makes a folder that only its owner can enter.
pub(crate) fn private_folder(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::file("make folder", path))
}

/// Writes a file anew.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
    fs::write(path, bytes).map_err(Error::file("write", path))
}

/// Fills `home/state` with a new TPM; `ca` is the folder of the CA that signs, if one does.
pub(crate) fn manufacture(home: &Path, ca: Option<&Path>, options: &Options) -> Result<(), Error> {
    let setup = tools::find("swtpm_setup")?;
    tools::find("swtpm")?;
    let (state, certs) = (home.join("state"), home.join("certs"));
    private_folder(&state)?;
    private_folder(&certs)?;
    let config = configure(home, ca)?;
    let banks: Vec<&str> = options.banks.iter().copied().map(HashAlg::name).collect();
    let mut command = tools::command(&setup);
    command.args(["--tpm2", "--overwrite", "--lock-nvram", "--createek"]);
    command.arg("--tpmstate").arg(&state).arg("--config").arg(config);
    command.args(["--pcr-banks", &banks.join(","), "--vmid", &options.name]);
    if ca.is_some() {
        command.args(["--create-ek-cert", "--create-platform-cert", "--write-ek-cert-files"]).arg(&certs);
    }
    // As root it would become the user tss, who cannot enter our folders.
    if rustix::process::geteuid().is_root() {
        command.args(["--runas", "root"]);
    }
    let output = command.output().map_err(Error::file("run", setup))?;
    let mut log = output.stdout;
    log.extend(output.stderr);
    write(&home.join("setup.log"), &log)?;
    if !output.status.success() {
        return Err(Error::Manufacture { status: output.status.to_string(), log: tail(&log) });
    }
    ca.map_or(Ok(()), |ca| write_ca_pem(ca, &options.name))
}

/// Writes the tools' configuration; nothing of it lies outside `home` and the CA's folder.
fn configure(home: &Path, ca: Option<&Path>) -> Result<PathBuf, Error> {
    let (setup, local, flags) =
        (home.join("swtpm_setup.conf"), home.join("swtpm-localca.conf"), home.join("swtpm-localca.options"));
    let mut text = String::new();
    if let Some(ca) = ca {
        private_folder(ca)?;
        let dir = tools::plain_path(ca)?;
        let tool = tools::find("swtpm_localca")?;
        text = format!(
            "create_certs_tool = {}\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
            tools::plain_path(&tool)?,
            tools::plain_path(&local)?,
            tools::plain_path(&flags)?
        );
        write(
            &local,
            format!(
                "statedir = {dir}\nsigningkey = {dir}/signkey.pem\nissuercert = {dir}/issuercert.pem\n\
                 certserial = {dir}/certserial\n"
            ),
        )?;
        write(&flags, "--platform-manufacturer Countersign\n--platform-version 1\n--platform-model tpm-sim\n")?;
    }
    write(&setup, text)?;
    Ok(setup)
}

/// The folder of the CA that signs.
pub(crate) fn ca_folder(home: &Path, authority: &Authority) -> Result<Option<PathBuf>, Error> {
    Ok(match authority {
        Authority::Own => Some(home.join("ca")),
        Authority::Shared(dir) => {
            private_folder(dir)?;
            Some(dir.canonicalize().map_err(Error::file("find", dir))?)
        }
        Authority::None => None,
    })
}

/// The end of a tool's output, on one line.
pub(crate) fn tail(log: &[u8]) -> String {
    let from = log.len().saturating_sub(LOG_TAIL);
    let text = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
