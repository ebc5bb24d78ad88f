//! `verifier keys`: what signs here, and new keys.

use std::path::Path;

use clap::{Subcommand, ValueEnum};
use countersign_wire::trust::TrustBundle;
use serde_json::{Value, json};

use crate::error::Error;
use crate::keys::{self, Keys};
use crate::out::Failure;
use crate::service::Service;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The trust bundle's digest and the Names of the approval and verdict keys
    Show,
    /// Make a new key, and a trust bundle that leads hosts to it; send `verifier serve` a SIGHUP afterwards
    ///
    /// Hosts follow at their next run by themselves, and keys that this verifier holds are wrapped anew for them as they come. Grants by owners
    /// who hold their keys themselves are void: they make new ones with the new trust bundle.
    Rotate {
        /// Which one
        role: Role,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Role {
    /// Signs which PCR values are accepted
    Approval,
    /// Signs that one session may unseal
    Verdict,
}

pub(super) fn run(dir: &Path, command: &Command) -> Result<Value, Failure> {
    let Command::Rotate { role } = command else { return Ok(show(&Keys::load(dir)?)) };
    let role = match role {
        Role::Approval => keys::Role::Approval,
        Role::Verdict => keys::Role::Verdict,
    };
    let name = match role {
        keys::Role::Approval => "approval",
        keys::Role::Verdict => "verdict",
    };
    super::runtime(false)?
        .block_on(async {
            // Opened first: a state folder of another kind is refused before a key is made.
            let service = Service::open(dir).await?;
            let (was, now) = keys::rotate(dir, role)?;
            let detail = format!("{name} {} {}", hex::encode(was), hex::encode(now));
            service.audit("command line", "keys-rotate", &detail).await?;
            let mut shown = show(&Keys::load(dir)?);
            if let Some(fields) = shown.as_object_mut() {
                fields.insert("was".into(), json!(hex::encode(was)));
                fields
                    .insert("todo".into(), json!("systemctl reload countersign-verifier, or SIGHUP to verifier serve: it signs with the old key until then; owners who hold their keys make new grants"));
            }
            Ok::<_, Error>(shown)
        })
        .map_err(Into::into)
}

fn show(keys: &Keys) -> Value {
    json!({
        "trust_bundle": hex::encode(TrustBundle::digest(&keys.trust)),
        "approval": hex::encode(keys.approval_public().name().as_bytes()),
        "verdict": hex::encode(keys.verdict_public().name().as_bytes()),
    })
}
