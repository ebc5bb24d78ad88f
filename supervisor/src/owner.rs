//! What an image's owner does: protect, register.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_attest::HostError;
use countersign_policy::{Compiled, PolicyBundle, Role, shipped_workload_policy};
use countersign_sif::dsse::{OwnerKey, SignerKey};
use countersign_sif::escrow::{Escrow, EscrowKey};
use countersign_sif::input::Trusted;
use countersign_sif::pgp::Keyring;
use countersign_sif::protect::{Plan, Squashfs, protect, squashfs_of_signed};
use countersign_sif::xts::VolumeKey;
use countersign_sif::{Image, SifError};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::exit::{Failure, Stage};
use crate::out;
use crate::prompt;
use crate::workshop::{Workshop, exists};

/// What `protect` takes.
const INPUTS: &str = "give a root folder, a plain SIF, a squashfs, or an OCI layout or archive";

/// A file and what `parse` makes of it; whatever is wrong with it, its name and the hint are said.
pub(crate) fn read<T, E: std::fmt::Display>(
    stage: Stage,
    path: &Path,
    hint: &str,
    parse: impl FnOnce(Zeroizing<Vec<u8>>) -> Result<T, E>,
) -> Result<T, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::new(stage, format!("{}: {e}", path.display()), hint);
    let bytes = std::fs::read(path).map_err(|e| bad(&e))?;
    parse(Zeroizing::new(bytes)).map_err(|e| bad(&e))
}

/// As [`read`], for a secret; warns when everybody on the machine can read it.
fn secret<T>(
    stage: Stage,
    path: &Path,
    hint: &str,
    parse: impl FnOnce(Zeroizing<Vec<u8>>) -> Result<T, SifError>,
) -> Result<T, Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o007 != 0);
    if open {
        out::warn(&format!("others can read or change {0}: chmod 600 {0}", path.display()));
    }
    read(stage, path, hint, parse)
}

/// A public key of the owner, and its PEM.
///
/// # Errors
/// [`Stage::Configuration`].
pub fn signer(path: &Path) -> Result<(SignerKey, String), Failure> {
    let hint = "--signer takes the owner's public key: openssl pkey -in owner.pem -pubout -out owner.pub.pem";
    read(Stage::Configuration, path, hint, |pem| {
        let key = SignerKey::from_pem(&pem)?;
        Ok::<_, SifError>((key, String::from_utf8_lossy(&pem).into_owned()))
    })
}

/// The owner's public keys.
///
/// # Errors
/// [`Stage::Configuration`].
pub fn signers(paths: &[PathBuf]) -> Result<Vec<SignerKey>, Failure> {
    paths.iter().map(|path| signer(path).map(|(key, _)| key)).collect()
}

/// The public key that an escrow is made with.
///
/// # Errors
/// [`Stage::Escrow`].
pub fn escrow(path: &Path) -> Result<Escrow, Failure> {
    let hint = "--escrow takes an RSA public key: openssl genrsa -traditional -out escrow.pem 3072; openssl rsa -in escrow.pem -pubout -out escrow.pub.pem";
    read(Stage::Escrow, path, hint, |pem| Escrow::from_pem(&pem))
}

/// The private key that opens an escrow.
///
/// # Errors
/// [`Stage::Escrow`].
pub fn escrow_key(path: &Path, passphrase_file: Option<&Path>) -> Result<EscrowKey, Failure> {
    let hint = "--escrow-key takes the private half (RSA, PEM) of the key that `protect --escrow` got; --key-passphrase-file opens an encrypted one";
    let phrase = passphrase_file.map(|path| first_line(Stage::Escrow, path)).transpose()?;
    secret(Stage::Escrow, path, hint, |pem| EscrowKey::from_encrypted_pem(&pem, phrase.as_deref().map(Vec::as_slice)))
}

/// The owner's private key.
///
/// # Errors
/// [`Stage::Protect`].
pub fn owner_key(path: &Path, passphrase_file: Option<&Path>) -> Result<OwnerKey, Failure> {
    let hint = "--sign takes the owner's private key: openssl genpkey -algorithm ed25519 -out owner.pem; --sign-passphrase-file opens an encrypted one";
    let phrase = passphrase_file.map(|path| first_line(Stage::Protect, path)).transpose()?;
    secret(Stage::Protect, path, hint, |pem| OwnerKey::from_encrypted_pem(&pem, phrase.as_deref().map(Vec::as_slice)))
}

/// Whose signatures the input must have.
///
/// # Errors
/// [`Stage::Configuration`].
pub fn input_signers(dsse: &[PathBuf], pgp: Option<&Path>) -> Result<Trusted, Failure> {
    let hint = "--input-pgp takes exported public keys: gpg --export --armor KEY, or apptainer key export KEY";
    let keyring = |path| read(Stage::Configuration, path, hint, |bytes| Keyring::from_bytes(&bytes));
    Ok(Trusted { dsse: signers(dsse)?, pgp: pgp.map(keyring).transpose()? })
}

/// A file's first line.
fn first_line(stage: Stage, path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = secret(stage, path, "the file's first line is the passphrase", Ok)?;
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    bytes.truncate(end);
    Ok(bytes)
}

/// Where a passphrase comes from, for escrow without a key pair. Never arguments or the environment: others can read those.
#[derive(Debug, Clone, Copy)]
pub enum Passphrase<'a> {
    /// A file: its first line.
    File(&'a Path),
    /// Who sits at the terminal, and knows it.
    Asked(&'a str),
    /// Who sits at the terminal, and chooses it: asked twice.
    Chosen(&'a str),
}

/// A passphrase.
///
/// # Errors
/// [`Stage::Escrow`].
pub fn passphrase(from: Passphrase<'_>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let bytes = match from {
        Passphrase::File(path) => first_line(Stage::Escrow, path)?,
        Passphrase::Asked(question) => prompt::passphrase(question)?,
        Passphrase::Chosen(question) => prompt::new_passphrase(question)?,
    };
    if bytes.len() < 8 {
        return Err(Failure::new(
            Stage::Escrow,
            "the passphrase has fewer than 8 bytes",
            "use a longer one, or --escrow KEY.pem",
        ));
    }
    Ok(bytes)
}

/// Where a workload policy comes from.
#[derive(Debug, Clone, Copy)]
pub enum Policy<'a> {
    /// The shipped example.
    Shipped,
    /// A folder of Rego modules.
    Folder(&'a Path),
    /// The bundle of another image.
    Bundle(&'a [u8]),
}

/// What is protected.
#[derive(Debug)]
pub enum Input<'a> {
    /// A folder, plain SIF, squashfs, or OCI layout; and whose signatures it must have.
    Path(&'a Path, &'a Trusted),
    /// An open file system.
    Open(Squashfs),
}

/// What `protect` is told.
#[derive(Debug)]
pub struct Protect<'a> {
    /// What is protected.
    pub input: Input<'a>,
    /// The workload policy.
    pub policy: Policy<'a>,
    /// Owner's private key.
    pub sign: &'a OwnerKey,
    /// Who can open it without a verifier.
    pub escrow: Escrow,
    /// The image to make.
    pub output: &'a Path,
    /// Whether an image of that name is replaced.
    pub force: bool,
}

/// Makes a protected image. Whatever ends it (a failure, a full disk, SIGINT, SIGTERM, SIGHUP), nothing half-made is left.
///
/// # Errors
/// [`Failure`].
pub fn protect_image(given: Protect<'_>) -> Result<Value, Failure> {
    let failed = |e: String| {
        Failure::new(Stage::Protect, e, "--policy takes a folder with the Rego modules of package countersign.workload")
    };
    if !given.force && given.output.symlink_metadata().is_ok() {
        return Err(exists(given.output));
    }
    let policy = match given.policy {
        Policy::Shipped => shipped_workload_policy().to_vec(),
        Policy::Folder(dir) => PolicyBundle::from_dir(dir).map_err(|e| failed(e.to_string()))?,
        Policy::Bundle(bytes) => bytes.to_vec(),
    };
    let parsed = PolicyBundle::parse(&policy).map_err(|e| failed(e.to_string()))?;
    Compiled::new(&parsed, Role::Workload).map_err(|e| failed(e.to_string()))?;
    if let Input::Path(path, _) = &given.input
        && let Err(e) = std::fs::File::open(path)
    {
        return Err(Failure::new(Stage::Protect, format!("{}: {e}", path.display()), INPUTS));
    }
    let workshop = Workshop::beside(given.output)?;
    let full = |error| not_written(given.output, error);
    let squashfs = match given.input {
        Input::Open(squashfs) => squashfs,
        Input::Path(path, trusted) => squashfs_of_signed(path, workshop.path(), trusted).map_err(|e| {
            let mut failure = full(e);
            if failure.stage == Stage::Image {
                failure.error = format!("{}: {}", path.display(), failure.error);
                failure.hint = format!("{INPUTS}; `supervisor rekey` takes an encrypted one");
            }
            failure
        })?,
    };
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let plan = Plan {
        squashfs: &squashfs,
        policy: &policy,
        signer: given.sign,
        escrow: &given.escrow,
        output: &workshop.path().join("image"),
        time: i64::try_from(time).unwrap_or(0),
    };
    let bar = progress("encrypting");
    let binding = protect(&plan, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let binding = binding.map_err(full)?;
    workshop.deliver(given.output, given.force)?;
    let mut made = json!({"image": given.output, "workload": binding.workload, "payload_root": binding.payload_root, "policy": binding.policy});
    if let Some(fields) = made.as_object_mut() {
        if let Some(verified) = squashfs.verified() {
            fields.insert("input_signers".into(), json!(verified.signers));
        }
        if let Some(source) = squashfs.source() {
            fields.insert("oci_manifest".into(), json!(source));
        }
    }
    Ok(made)
}

/// A failure to write an output.
pub(crate) fn not_written(output: &Path, error: SifError) -> Failure {
    if let SifError::Io(e) = &error {
        let what = format!("{}: {e}", output.display());
        return Failure::new(Stage::Protect, what, "check the folder and its free space");
    }
    error.into()
}

/// A bar on standard error, on a terminal only, and not with `--quiet`.
pub(crate) fn progress(verb: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{verb} {{bar:40}} {{bytes}}/{{total_bytes}} {{bytes_per_sec}}"));
    if out::is_quiet() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// An image that cannot be read is better named.
pub(crate) fn of_image(path: &Path, error: SifError) -> Failure {
    if let SifError::Io(e) = &error {
        return Failure::new(Stage::Image, format!("{}: {e}", path.display()), "give the path of an image");
    }
    let mut failure = Failure::from(error);
    if failure.stage == Stage::Image {
        failure.error = format!("{}: {}", path.display(), failure.error);
    }
    failure
}

/// A verifier, and what its operator gave.
#[derive(Debug)]
pub struct Verifier<'a> {
    /// Its address.
    pub url: &'a str,
    /// The operator's token.
    pub token: &'a Path,
    /// Its CA (PEM).
    pub ca: &'a Path,
}

impl Verifier<'_> {
    /// Asks for an operator's request to be carried out; the answer.
    ///
    /// # Errors
    /// [`Failure`]; [`Stage::Refused`] when the verifier refuses.
    pub fn ask(&self, request: &Value) -> Result<Value, Failure> {
        use rustls_pki_types::pem::PemObject as _;
        let hint = "give the verifier's operator.token, from its state folder";
        let token = secret(Stage::Configuration, self.token, hint, Ok)?;
        let token = Zeroizing::new(String::from_utf8_lossy(&token).trim().to_owned());
        let hint = "give the verifier's ca.pem, from its state folder";
        let ca =
            read(Stage::Configuration, self.ca, hint, |pem| rustls_pki_types::CertificateDer::from_pem_slice(&pem))?;
        let body = serde_json::to_vec(request).map_err(|e| Failure::new(Stage::Other, e.to_string(), ""))?;
        let client = countersign_attest::client::Client::new(self.url, &ca, None, Duration::from_secs(30));
        let client = client.map_err(|e| Failure::new(Stage::Usage, e.to_string(), "--url https://VERIFIER:7448"))?;
        let answer = client.post_json("/v1/admin", &token, body).map_err(|e| {
            if let HostError::Refused { problem, .. } = e {
                return Failure::new(Stage::Refused, problem.title, problem.hint.unwrap_or_default());
            }
            let reached = !matches!(e, HostError::Unreachable { .. });
            let mut failure = Failure::from(e);
            if !reached {
                failure.hint = "check --url and --ca, and that `verifier serve` runs there".into();
            }
            failure
        })?;
        serde_json::from_slice(&answer)
            .map_err(|e| Failure::new(Stage::Refused, format!("the verifier's answer: {e}"), ""))
    }
}

/// What `register` is told.
#[derive(Debug)]
pub struct Register<'a> {
    /// The image.
    pub image: &'a Path,
    /// Trusted signers.
    pub signers: &'a [SignerKey],
    /// What opens the escrow; none when the owner keeps the key, and grants it to hosts.
    pub escrow: Option<EscrowKey>,
    /// The verifier.
    pub verifier: Verifier<'a>,
    /// Label.
    pub name: &'a str,
}

fn open_image(path: &Path, signers: &[SignerKey]) -> Result<Image, Failure> {
    let file = std::fs::File::open(path).map_err(|e| of_image(path, e.into()))?;
    Image::from_file(file, signers, false).map_err(|e| of_image(path, e))
}

/// A checked image and its volume key.
pub(crate) fn open(path: &Path, signers: &[SignerKey], escrow: &EscrowKey) -> Result<(Image, VolumeKey), Failure> {
    let image = open_image(path, signers)?;
    let key = image.open_escrow(escrow).map_err(|e| {
        if let SifError::Integrity { .. } | SifError::Missing { .. } = e {
            return e.into();
        }
        let hint = match escrow {
            EscrowKey::Pem(_) => "give the private half of the key that `protect --escrow` got",
            EscrowKey::Passphrase(_) => "give the passphrase that the image was protected or re-keyed with",
        };
        Failure::new(Stage::Escrow, e.to_string(), hint)
    })?;
    Ok((image, key))
}

/// Gives policy and key to the verifier's broker; or the policy alone, when the owner keeps the key.
///
/// # Errors
/// [`Failure`].
pub fn register(given: &Register<'_>) -> Result<Value, Failure> {
    let (image, key) = match &given.escrow {
        Some(escrow) => {
            let (image, key) = open(given.image, given.signers, escrow)?;
            (image, Some(key))
        }
        None => (open_image(given.image, given.signers)?, None),
    };
    let binding = image.binding();
    // Empty: its owner keeps it.
    let encoded = key.map_or_else(Zeroizing::default, |key| Zeroizing::new(STANDARD.encode(key.as_slice())));
    given.verifier.ask(&json!({
        "op": "workload-register",
        "name": given.name,
        "workload": binding.workload,
        "payload_root": binding.payload_root,
        "sif_uuid": hex::encode(image.uuid()),
        "policy": STANDARD.encode(image.policy()),
        "volume_key": encoded.as_str(),
        "least_selection": [],
    }))
}
