//! Who holds a workload's key: its owner alone, or the verifier; and what happens when the verifier's keys change.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_attest::{Config, Host, Overrides, token};
use countersign_verifier::admin::Request;
use countersign_verifier::keys::{self, Role};
use countersign_wire::artefact;
use countersign_wire::enrol::HostCard;
use countersign_wire::grant::Grant;
use countersign_wire::trust::TrustBundle;
use openssl::rsa::Rsa;
use support::{SUPERVISOR, Scene, failed, stderr, stdout};

fn host(scene: &Scene) -> Host {
    Host::open(Config::load(Some(&scene.path("attest.toml")), Overrides::default()).unwrap()).unwrap()
}

/// Writes the host's card, as `attest show -o` does.
fn card(scene: &Scene) -> HostCard {
    let card = host(scene).card().unwrap();
    std::fs::write(scene.path("host.card"), artefact::to_file(&card)).unwrap();
    card
}

struct Grants<'a> {
    scene: &'a Scene,
    roots: String,
}

impl Grants<'_> {
    fn command(&self, more: &[&str]) -> Command {
        let scene = self.scene;
        let mut command = Command::new(SUPERVISOR);
        command.arg("grant").arg(scene.owner.path("app.sif")).arg("--signer").arg(scene.owner.path("owner.pub.pem"));
        command.arg("--escrow-key").arg(scene.owner.path("escrow.pem")).arg("--host-card").arg(scene.path("host.card"));
        command.arg("--ek-root").arg(&self.roots).arg("--trust").arg(scene.verifier.dir.join("trust.bundle"));
        command.args(more).stdin(Stdio::null());
        command
    }
    fn make(&self, more: &[&str]) -> Output {
        let output = self.scene.path("app.grant");
        let _ = std::fs::remove_file(&output);
        let out = self.command(&[&["-o", output.to_str().unwrap()], more].concat()).output().unwrap();
        assert_eq!(output.exists(), out.status.success(), "{}", stderr(&out));
        out
    }
    /// Makes a grant that is accepted, and hands it in over HTTPS.
    fn hand_in(&self) {
        let (dir, url) = (&self.scene.verifier.dir, &self.scene.verifier.url);
        let (token, ca) = (dir.join("operator.token"), dir.join("ca.pem"));
        let to = ["--url", url, "--token-file", token.to_str().unwrap(), "--ca", ca.to_str().unwrap()];
        let out = self.command(&[&["--dangerous-allow-simulated"], &to[..]].concat()).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
    }
}

fn register_owner_held(scene: &Scene) {
    let mut command = Command::new(SUPERVISOR);
    command.arg("register").arg("--owner-held").arg(scene.owner.path("app.sif"));
    command.arg("--signer").arg(scene.owner.path("owner.pub.pem")).args(["--url", &scene.verifier.url]);
    command.arg("--token-file").arg(scene.verifier.dir.join("operator.token"));
    let out = command.arg("--ca").arg(scene.verifier.dir.join("ca.pem")).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(stdout(&out).contains("owner"), "{}", stdout(&out));
}

fn runs(scene: &Scene) {
    let out = scene.exec(&["cat", "/secret.txt"]);
    assert_eq!(stdout(&out), support::SECRET, "{}", stderr(&out));
}

/// Whether any file below a folder holds these bytes.
fn holds(folder: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, needle);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn a_key_that_its_owner_holds() {
    let Some(mut scene) = Scene::new() else { return };
    let roots = scene.sim.ca_pem().unwrap().display().to_string();
    register_owner_held(&scene);
    let genuine = card(&scene);
    // Without a grant: nothing, and it is said who must do what.
    failed(&scene.exec(&["true"]), 208, &["holds its key, and has granted it to no TPM", "supervisor grant"]);

    let grants = Grants { scene: &scene, roots };
    failed(&grants.make(&[]), 216, &["simulator", "--dangerous-allow-simulated"]);
    let simulated = ["--dangerous-allow-simulated"];
    // Another's roots; none at all; no host's card; a card whose parts are of several hosts; an AK that could be software.
    let stranger = scene.verifier.dir.join("ca.pem").display().to_string();
    let other = Grants { scene: &scene, roots: stranger };
    failed(&other.make(&simulated), 216, &["no path to a trusted root", "--ek-root"]);
    let empty = Grants { scene: &scene, roots: scene.owner.path("rootfs/etc").display().to_string() };
    failed(&empty.make(&simulated), 201, &["no EK root"]);
    let write = |card: &HostCard| std::fs::write(scene.path("host.card"), artefact::to_file(card)).unwrap();
    let mut false_id = genuine.clone();
    false_id.host.0[0] ^= 1;
    write(&false_id);
    failed(&grants.make(&simulated), 216, &["its EK is another host's"]);
    let mut false_ek = genuine.clone();
    let last = false_ek.ek_public.len() - 1;
    false_ek.ek_public[last] ^= 1;
    write(&false_ek);
    failed(&grants.make(&simulated), 216, &["certificate"]);
    let mut false_ak = genuine.clone();
    // Attributes of the AK: not restricted any more.
    false_ak.ak_public[5] ^= 0x01;
    write(&false_ak);
    failed(&grants.make(&simulated), 216, &["AK"]);
    write(&genuine);
    // Another escrow key.
    let escrow = std::fs::read(scene.owner.path("escrow.pem")).unwrap();
    std::fs::write(scene.owner.path("escrow.pem"), Rsa::generate(2048).unwrap().private_key_to_pem().unwrap()).unwrap();
    failed(&grants.make(&simulated), 215, &["does not open the image"]);
    std::fs::write(scene.owner.path("escrow.pem"), escrow).unwrap();

    // The right one, in a file. What it says beside the blob must be what the blob says.
    let out = grants.make(&simulated);
    assert!(out.status.success(), "{}", stderr(&out));
    let file = std::fs::read(scene.path("app.grant")).unwrap();
    let good: Grant = artefact::from_file(&file).unwrap();
    let add =
        |grant: &Grant| scene.verifier.try_ask(Request::GrantAdd { grant: STANDARD.encode(artefact::to_file(grant)) });
    let refused = |change: &dyn Fn(&mut Grant), why: &str| {
        let mut changed = good.clone();
        change(&mut changed);
        let error = add(&changed).unwrap_err();
        assert!(error.contains(why), "{error}: expected {why}");
    };
    refused(&|grant| grant.host.0[0] ^= 1, "not enrolled");
    refused(&|grant| grant.workload.0[0] ^= 1, "not registered");
    refused(&|grant| grant.ak_name[5] ^= 1, "another AK");
    refused(&|grant| grant.approval[5] ^= 1, "other approval or verdict keys");
    refused(&|grant| grant.verdict[5] ^= 1, "other approval or verdict keys");
    refused(&|grant| grant.import.public[12] ^= 1, "another policy");
    refused(&|grant| grant.import.public.clear(), "another policy");
    // What only the TPM can tell, it tells.
    let mut wrapped_otherwise = good.clone();
    let middle = wrapped_otherwise.import.duplicate.len() / 2;
    wrapped_otherwise.import.duplicate[middle] ^= 1;
    add(&wrapped_otherwise).unwrap();
    let out = scene.exec(&["true"]);
    assert!(!out.status.success() && stderr(&out).contains("TPM2_Import"), "{}", stderr(&out));
    add(&good).unwrap();
    runs(&scene);

    // The verifier has released it, and has never had it: not in its database, not under its master key.
    let key = scene.owner.volume_key("app.sif");
    assert!(!holds(&scene.verifier.dir, key.as_slice()));
    assert!(!holds(&scene.verifier.dir, STANDARD.encode(key.as_slice()).as_bytes()));
    let workloads = scene.verifier.ask(Request::WorkloadList {});
    assert_eq!(workloads["workloads"][0]["key_held_by"], "owner", "{workloads}");
    let listed = scene.verifier.ask(Request::GrantList {});
    assert_eq!(listed["grants"][0]["state"], "good", "{listed}");

    // A new AK needs a new grant.
    scene.sim.clear().unwrap();
    scene.reset();
    scene.sim.replay(support::BOOT, support::IMA).unwrap();
    let id = genuine.host.to_string();
    let token = scene.verifier.ask(Request::TokenNew { uses: 1, ttl_s: 600, host: Some(id) });
    host(&scene).enroll(&token::parse(token["token"].as_str().unwrap()).unwrap(), "node-1").unwrap();
    failed(&scene.exec(&["true"]), 208, &["another AK", "host.card"]);
    let roots = scene.sim.ca_pem().unwrap().display().to_string();
    card(&scene);
    Grants { scene: &scene, roots }.hand_in();
    runs(&scene);
    // And when the verifier holds the key again, a grant has no use.
    scene.owner.register(&scene.verifier, "app.sif");
    assert!(add_again(&scene).unwrap_err().contains("holds the key"));
    runs(&scene);
}

fn add_again(scene: &Scene) -> Result<serde_json::Value, String> {
    let grant = STANDARD.encode(std::fs::read(scene.path("app.grant")).unwrap());
    scene.verifier.try_ask(Request::GrantAdd { grant })
}

fn pinned(scene: &Scene) -> TrustBundle {
    host(scene).trust().unwrap().1
}

#[test]
fn hosts_follow_new_keys_and_nobody_else() {
    let Some(mut scene) = Scene::new() else { return };
    runs(&scene);
    let first = pinned(&scene);
    let waiting = scene.verifier.ask(Request::TokenNew {
        uses: 1,
        ttl_s: 6000,
        host: Some(host(&scene).card().unwrap().host.to_string()),
    });
    let dir = scene.verifier.dir.clone();
    let old = std::fs::read(dir.join("trust.bundle")).unwrap();
    let old_keys: Vec<_> =
        ["approval.p8", "verdict.p8"].map(|name| (name, std::fs::read(dir.join("keys").join(name)).unwrap())).into();

    // A new approval key, then a new verdict key: the host walks both at its next run, and the key is wrapped anew.
    keys::rotate(&dir, Role::Approval).unwrap();
    keys::rotate(&dir, Role::Verdict).unwrap();
    scene.restart_verifier();
    runs(&scene);
    let followed = pinned(&scene);
    assert_ne!(followed.approval_key, first.approval_key);
    assert_ne!(followed.verdict_key, first.verdict_key);
    assert_eq!((&followed.ca, &followed.log_key), (&first.ca, &first.log_key));
    runs(&scene);
    // A token of before leads to the verifier of now.
    host(&scene).enroll(&token::parse(waiting["token"].as_str().unwrap()).unwrap(), "node-1").unwrap();
    assert_eq!(pinned(&scene), followed);

    // Back to the old keys, with the old bundle: a host that has followed does not go back.
    let new = std::fs::read(dir.join("trust.bundle")).unwrap();
    let new_keys: Vec<_> =
        ["approval.p8", "verdict.p8"].map(|name| (name, std::fs::read(dir.join("keys").join(name)).unwrap())).into();
    let put = |bundle: &[u8], keys: &[(&str, Vec<u8>)]| {
        std::fs::write(dir.join("trust.bundle"), bundle).unwrap();
        for (name, bytes) in keys {
            std::fs::write(dir.join("keys").join(name), bytes).unwrap();
        }
    };
    put(&old, &old_keys);
    scene.restart_verifier();
    let out = scene.exec(&["true"]);
    assert!(!out.status.success() && stderr(&out).contains("never had that trust bundle"), "{}", stderr(&out));
    assert_eq!(pinned(&scene), followed);

    // A new key in a bundle that the CA did not sign, as somebody would make it who has the verifier's other keys.
    put(&new, &new_keys);
    keys::rotate(&dir, Role::Approval).unwrap();
    let mut forged: TrustBundle = artefact::from_file(&std::fs::read(dir.join("trust.bundle")).unwrap()).unwrap();
    let genuine = forged.signature.clone().unwrap();
    let mut signature = genuine.clone();
    let last = signature.len() - 1;
    signature[last] ^= 1;
    for wrong in [Some(signature), None] {
        forged.signature = wrong;
        std::fs::write(dir.join("trust.bundle"), artefact::to_file(&forged)).unwrap();
        scene.restart_verifier();
        let out = scene.exec(&["true"]);
        assert!(!out.status.success() && stderr(&out).contains("not signed by the pinned CA"), "{}", stderr(&out));
        assert_eq!(pinned(&scene), followed);
    }
    forged.signature = Some(genuine);
    std::fs::write(dir.join("trust.bundle"), artefact::to_file(&forged)).unwrap();
    scene.restart_verifier();
    runs(&scene);
    assert_eq!(pinned(&scene).approval_key, forged.approval_key);

    // A grant of before is void, and says so.
    register_owner_held(&scene);
    card(&scene);
    let roots = scene.sim.ca_pem().unwrap().display().to_string();
    Grants { scene: &scene, roots: roots.clone() }.hand_in();
    runs(&scene);
    keys::rotate(&dir, Role::Verdict).unwrap();
    scene.restart_verifier();
    failed(&scene.exec(&["true"]), 208, &["rotated since", "supervisor grant"]);
    Grants { scene: &scene, roots }.hand_in();
    runs(&scene);
}
