//! What the tests share: a TPM, a verifier, something in between.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod authority;
pub(crate) mod proxy;
pub(crate) mod stage;

use std::path::Path;

use countersign_tpm_sim::{Error, Options, Sim};
use tempfile::TempDir;

/// A fresh TPM; `None`, said aloud, where swtpm is not installed.
pub(crate) fn sim() -> Option<(TempDir, Sim)> {
    let dir = TempDir::new().unwrap();
    sim_in(&dir.path().join("tpm")).map(|sim| (dir, sim))
}

pub(crate) fn sim_in(home: &Path) -> Option<Sim> {
    sim_of(home, &Options::named("node-1"))
}

pub(crate) fn sim_of(home: &Path, options: &Options) -> Option<Sim> {
    match Sim::create(home, options) {
        Ok(mut sim) => {
            sim.start().unwrap();
            Some(sim)
        }
        Err(Error::MissingTool(tool)) => {
            println!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
