//! What an image's owner does with it: `supervisor protect`, `register`, `grant`, `unprotect`, `rekey` and `inspect`.

use std::path::{Path, PathBuf};

use clap::Args;
use countersign_sif::escrow::{Escrow, EscrowKey};

use super::done;
use crate::exit::{Failure, Stage};
use crate::grant::{self, grant};
use crate::owner::{self, Input, Passphrase, Policy, Protect, Register};
use crate::unprotect::{self, Protected, Rekey};
use crate::{inspect, out};

#[derive(Debug, Args)]
pub(super) struct ProtectArgs {
    /// A root folder, a plain SIF, a squashfs, or an OCI layout (folder or tar archive)
    input: PathBuf,
    /// The input is a SIF with DSSE signatures by this key (public, PEM); several may be given
    #[arg(long, value_name = "FILE")]
    input_signer: Vec<PathBuf>,
    /// The input is a SIF with PGP signatures by these keys (exported, public)
    #[arg(long, value_name = "FILE")]
    input_pgp: Option<PathBuf>,
    /// Folder of the workload policy (package countersign.workload; default: the shipped example)
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// The owner's private key (PEM: Ed25519, ECDSA P-256/P-384 or RSA)
    #[arg(long, value_name = "FILE")]
    sign: PathBuf,
    /// A file with the passphrase of that key, where it is encrypted
    #[arg(long, value_name = "FILE")]
    sign_passphrase_file: Option<PathBuf>,
    /// Escrow: an RSA public key (PEM); its private half opens the image without a verifier
    #[arg(long, value_name = "FILE", required_unless_present_any = ["escrow_passphrase_file", "escrow_passphrase"])]
    escrow: Option<PathBuf>,
    /// Escrow: a file with a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow")]
    escrow_passphrase_file: Option<PathBuf>,
    /// Escrow: ask for a passphrase at the terminal
    #[arg(long, conflicts_with_all = ["escrow", "escrow_passphrase_file"])]
    escrow_passphrase: bool,
    /// The image to make
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an image of that name
    #[arg(short, long)]
    force: bool,
}

impl ProtectArgs {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let (policy, output) = (self.policy.as_deref(), self.output.as_path());
        let policy = policy.map_or(Policy::Shipped, Policy::Folder);
        let trusted = owner::input_signers(&self.input_signer, self.input_pgp.as_deref())?;
        let made = owner::protect_image(Protect {
            input: Input::Path(&self.input, &trusted),
            policy,
            sign: &owner::owner_key(&self.sign, self.sign_passphrase_file.as_deref())?,
            escrow: new_escrow(self.escrow.as_deref(), self.escrow_passphrase_file.as_deref())?,
            output,
            force: self.force,
        })?;
        done(json, &made)
    }
}

#[derive(Debug, Args)]
struct FromArgs {
    /// The image
    image: PathBuf,
    /// The owner's public key (PEM)
    #[arg(long, required = true, value_name = "FILE")]
    signer: Vec<PathBuf>,
    #[command(flatten)]
    escrow: EscrowArgs,
}

#[derive(Debug, Args)]
struct EscrowArgs {
    /// The escrow's private key (PEM)
    #[arg(long, value_name = "FILE")]
    escrow_key: Option<PathBuf>,
    /// A file with the passphrase of that key, where it is encrypted
    #[arg(long, value_name = "FILE", requires = "escrow_key")]
    key_passphrase_file: Option<PathBuf>,
    /// A file with the escrow's passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow_key")]
    escrow_passphrase_file: Option<PathBuf>,
    /// Ask for the escrow's passphrase at the terminal
    #[arg(long, conflicts_with_all = ["escrow_key", "escrow_passphrase_file"])]
    escrow_passphrase: bool,
}

impl EscrowArgs {
    fn key(&self) -> Result<EscrowKey, Failure> {
        let passphrase = |from| Ok(EscrowKey::Passphrase(owner::passphrase(from)?));
        match (&self.escrow_key, &self.escrow_passphrase_file, self.escrow_passphrase) {
            (Some(path), _, _) => owner::escrow_key(path, self.key_passphrase_file.as_deref()),
            (None, Some(path), _) => passphrase(Passphrase::File(path)),
            (None, None, true) => passphrase(Passphrase::Asked("Passphrase of the image's escrow")),
            (None, None, false) => Err(Failure::new(
                Stage::Usage,
                "no escrow key",
                "--escrow-key KEY.pem, --escrow-passphrase-file FILE, or --escrow-passphrase",
            )),
        }
    }
}

/// The escrow of an image that is made: a key's, or a passphrase from a file or the terminal. One of them is there.
fn new_escrow(key: Option<&Path>, file: Option<&Path>) -> Result<Escrow, Failure> {
    match (key, file) {
        (Some(path), _) => owner::escrow(path),
        (None, Some(path)) => Ok(Escrow::Passphrase(owner::passphrase(Passphrase::File(path))?)),
        (None, None) => {
            let asked = owner::passphrase(Passphrase::Chosen("Passphrase for the new image's escrow"))?;
            Ok(Escrow::Passphrase(asked))
        }
    }
}

impl FromArgs {
    fn with<T>(&self, then: impl FnOnce(&Protected<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        then(&Protected { image: &self.image, signers: &owner::signers(&self.signer)?, escrow: &self.escrow.key()? })
    }
}

#[derive(Debug, Args)]
pub(super) struct UnprotectArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The plain SIF to make
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace a file of that name
    #[arg(short, long)]
    force: bool,
}

impl UnprotectArgs {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let made = self.from.with(|protected| unprotect::unprotect(protected, &self.output, self.force))?;
        done(json, &made)
    }
}

#[derive(Debug, Args)]
pub(super) struct RekeyArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The owner's private key (PEM)
    #[arg(long, value_name = "FILE")]
    sign: PathBuf,
    /// A file with the passphrase of that key, where it is encrypted
    #[arg(long, value_name = "FILE")]
    sign_passphrase_file: Option<PathBuf>,
    /// The new escrow: an RSA public key (PEM)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["new_passphrase_file", "new_passphrase"])]
    escrow: Option<PathBuf>,
    /// The new escrow: a file with a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow")]
    new_passphrase_file: Option<PathBuf>,
    /// The new escrow: ask for a passphrase at the terminal
    #[arg(long, conflicts_with_all = ["escrow", "new_passphrase_file"])]
    new_passphrase: bool,
    /// Folder of another workload policy (default: the image's own)
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// The image to make
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an image of that name
    #[arg(short, long)]
    force: bool,
}

impl RekeyArgs {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let made = self.from.with(|protected| {
            let new = Rekey {
                sign: &owner::owner_key(&self.sign, self.sign_passphrase_file.as_deref())?,
                policy: self.policy.as_deref(),
                escrow: new_escrow(self.escrow.as_deref(), self.new_passphrase_file.as_deref())?,
                output: &self.output,
                force: self.force,
            };
            unprotect::rekey(protected, new)
        });
        done(json, &made?)
    }
}

#[derive(Debug, Args)]
struct VerifierArgs {
    /// The verifier's address
    #[arg(long, value_name = "URL")]
    url: String,
    /// The operator's token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// The verifier's CA (PEM)
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
}

impl VerifierArgs {
    fn verifier(&self) -> owner::Verifier<'_> {
        owner::Verifier { url: &self.url, token: &self.token_file, ca: &self.ca }
    }
}

#[derive(Debug, Args)]
pub(super) struct RegisterArgs {
    /// The image
    image: PathBuf,
    /// The owner's public key (PEM)
    #[arg(long, required = true, value_name = "FILE")]
    signer: Vec<PathBuf>,
    #[command(flatten)]
    escrow: EscrowArgs,
    /// The owner keeps the key: the verifier gets the policy only, and hosts need a grant
    #[arg(long, conflicts_with_all = ["escrow_key", "escrow_passphrase_file", "escrow_passphrase"])]
    owner_held: bool,
    #[command(flatten)]
    verifier: VerifierArgs,
    /// A label for people (default: the file's name)
    #[arg(long)]
    name: Option<String>,
}

impl RegisterArgs {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let file_name = self.image.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = self.name.or(file_name).unwrap_or_default();
        let registered = owner::register(&Register {
            image: &self.image,
            signers: &owner::signers(&self.signer)?,
            escrow: if self.owner_held { None } else { Some(self.escrow.key()?) },
            verifier: self.verifier.verifier(),
            name: &name,
        })?;
        done(json, &registered)
    }
}

#[derive(Debug, Args)]
pub(super) struct GrantArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The host's card (attest show -o host.card), as it came from the host
    #[arg(long, value_name = "FILE")]
    host_card: PathBuf,
    /// TPM vendors' roots that you trust: PEM files, or folders of them
    #[arg(long, required = true, value_name = "FILE|DIR")]
    ek_root: Vec<PathBuf>,
    /// The verifier's trust bundle, as it came from its operator
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Grant the key to a simulated TPM, for development
    #[arg(long)]
    dangerous_allow_simulated: bool,
    /// The grant to write; verifier grant add takes it
    #[arg(short, long, value_name = "FILE", required_unless_present = "url")]
    output: Option<PathBuf>,
    /// Hand the grant in to the verifier at this address
    #[arg(long, value_name = "URL", requires_all = ["token_file", "ca"])]
    url: Option<String>,
    /// The operator's token
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// The verifier's CA (PEM)
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
}

impl GrantArgs {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let verifier = self.verifier();
        let made = self.from.with(|from| {
            grant(&grant::Plan {
                image: from.image,
                signers: from.signers,
                escrow: from.escrow,
                host_card: &self.host_card,
                ek_roots: &self.ek_root,
                trust: &self.trust,
                dangerous_allow_simulated: self.dangerous_allow_simulated,
                output: self.output.as_deref(),
                verifier: verifier.as_ref(),
            })
        })?;
        done(json, &made)
    }

    fn verifier(&self) -> Option<owner::Verifier<'_>> {
        Some(owner::Verifier { url: self.url.as_ref()?, token: self.token_file.as_ref()?, ca: self.ca.as_ref()? })
    }
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The image
    image: PathBuf,
    /// The owner's public key (PEM); several may be given. Without one nothing is checked, and the output says so
    #[arg(long, value_name = "FILE")]
    signer: Vec<PathBuf>,
    /// Check every object, the whole payload too
    #[arg(long, requires = "signer")]
    full: bool,
}

impl InspectArgs {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let seen = if self.signer.is_empty() {
            inspect::look(&self.image)?
        } else {
            inspect::inspect(&self.image, &owner::signers(&self.signer)?, self.full)?
        };
        out::print(json, &seen, || inspect::words(&seen))
    }
}
