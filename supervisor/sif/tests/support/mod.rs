//! A small protected image, made once a test program and kept in memory; each test changes a copy of its own.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_sif::Image;
use countersign_sif::binding::Binding;
use countersign_sif::dsse::{OwnerKey, SignerKey};
use countersign_sif::error::SifError;
use countersign_sif::escrow::{Escrow, EscrowKey};
use countersign_sif::format::{Descriptor, Sif};
use countersign_sif::protect::{Plan, protect, squashfs_of};
use openssl::ec::{EcGroup, EcKey};
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;

/// Where the table begins, and a descriptor's length.
pub const TABLE: usize = 4096;
pub const DESCRIPTOR: usize = 585;
pub const POLICY: &[u8] = b"a policy bundle; its content is another crate's business";

pub fn ed25519() -> PKey<Private> {
    PKey::generate_ed25519().unwrap()
}

pub fn ec(curve: Nid) -> PKey<Private> {
    PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()).unwrap()
}

pub fn rsa(bits: u32) -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap()
}

pub fn owner(key: &PKey<Private>) -> OwnerKey {
    OwnerKey::from_pem(&key.private_key_to_pem_pkcs8().unwrap()).unwrap()
}

pub fn signer(key: &PKey<Private>) -> SignerKey {
    SignerKey::from_pem(&key.public_key_to_pem().unwrap()).unwrap()
}

pub struct Fixture {
    pub bytes: Vec<u8>,
    pub squashfs: Vec<u8>,
    pub owner: PKey<Private>,
    pub escrow: PKey<Private>,
    pub binding: Binding,
}

/// Is a program there? If not, says so: the test that asked then passes over.
pub fn have(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "PATH=$PATH:/usr/sbin:/sbin command -v \"$0\"", program])
        .stdout(Stdio::null())
        .status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Runs a program that must succeed; its standard output.
pub fn run(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path).env("LC_ALL", "C");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not read its input breaks the pipe: no matter.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A folder to make a file system from.
pub fn folder_with_files(folder: &Path) {
    std::fs::create_dir_all(folder.join("etc")).unwrap();
    std::fs::write(folder.join("secret.txt"), "the secret\n").unwrap();
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    std::fs::write(folder.join("etc/noise"), noise.take(3_000_000).collect::<Vec<u8>>()).unwrap();
}

pub fn fixture() -> Option<&'static Fixture> {
    static FIXTURE: OnceLock<Option<Fixture>> = OnceLock::new();
    FIXTURE.get_or_init(|| (have("cryptsetup") && have("mksquashfs")).then(make)).as_ref()
}

fn make() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    folder_with_files(&folder.path().join("root"));
    let source = squashfs_of(&folder.path().join("root"), folder.path()).unwrap();
    let mut squashfs = vec![0; usize::try_from(source.length()).unwrap()];
    source.read_exact_at(&mut squashfs, 0).unwrap();
    let (key, escrow) = (ed25519(), rsa(2048));
    let output = folder.path().join("app.sif");
    let recipient = Escrow::from_pem(&escrow.rsa().unwrap().public_key_to_pem_pkcs1().unwrap()).unwrap();
    let plan = Plan {
        squashfs: &source,
        policy: POLICY,
        signer: &owner(&key),
        escrow: &recipient,
        output: &output,
        time: 1_700_000_000,
    };
    let binding = protect(&plan, |_, _| {}).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["app.sif", "root"], "nothing else is left");
    Fixture { bytes: std::fs::read(output).unwrap(), squashfs, owner: key, escrow, binding }
}

/// An unnamed file with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

impl Fixture {
    pub fn trusted(&self) -> [SignerKey; 1] {
        [signer(&self.owner)]
    }

    pub fn open(&self, bytes: &[u8]) -> Result<Image, SifError> {
        Image::from_file(file(bytes), &self.trusted(), false)
    }

    pub fn open_full(&self, bytes: &[u8]) -> Result<Image, SifError> {
        Image::from_file(file(bytes), &self.trusted(), true)
    }

    pub fn escrow_key(&self) -> EscrowKey {
        EscrowKey::from_pem(&self.escrow.private_key_to_pem_pkcs8().unwrap()).unwrap()
    }

    /// The object with an id, as the reader sees it.
    pub fn object(&self, id: u32) -> Descriptor {
        let sif = Sif::read(&file(&self.bytes)).unwrap();
        sif.objects.into_iter().find(|object| object.id == id).unwrap()
    }
}

/// Ids of the fixture's objects.
pub mod id {
    pub const PARTITION: u32 = 1;
    pub const MESSAGE: u32 = 2;
    pub const TREE: u32 = 3;
    pub const POLICY: u32 = 4;
    pub const BINDING: u32 = 5;
    pub const SIGNATURE: u32 = 6;
}

/// Where a field of the descriptor with an id lies.
pub fn at(id: u32, field: usize) -> usize {
    TABLE + DESCRIPTOR * (usize::try_from(id).unwrap() - 1) + field
}

/// Fields of a descriptor (sif-format, section 3).
pub mod field {
    pub const TYPE: usize = 0;
    pub const USED: usize = 4;
    pub const ID: usize = 5;
    pub const GROUP: usize = 9;
    pub const LINK: usize = 13;
    pub const OFFSET: usize = 17;
    pub const SIZE: usize = 25;
    pub const PADDED: usize = 33;
    pub const CREATED: usize = 41;
    pub const MODIFIED: usize = 49;
    pub const NAME: usize = 73;
    pub const EXTRA: usize = 201;
}

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Appends bytes and lets the descriptor with this id point to them.
pub fn replace_object(bytes: &mut Vec<u8>, id: u32, content: &[u8]) {
    let offset = u64::try_from(bytes.len()).unwrap();
    bytes.extend_from_slice(content);
    put(bytes, at(id, field::OFFSET), &offset.to_le_bytes());
    put(bytes, at(id, field::SIZE), &u64::try_from(content.len()).unwrap().to_le_bytes());
}

/// An object's content.
pub fn content(bytes: &[u8], id: u32) -> Vec<u8> {
    let number = |field| {
        usize::try_from(u64::from_le_bytes(bytes[at(id, field)..at(id, field) + 8].try_into().unwrap())).unwrap()
    };
    let offset = number(field::OFFSET);
    bytes[offset..offset + number(field::SIZE)].to_vec()
}

pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

pub const PAYLOAD_TYPE: &str = "application/vnd.sylabs.sif-metadata+json";

/// An envelope made without the crate, so that it can be wrong in any way.
pub fn envelope(payload_type: &str, payload: &[u8], keys: &[&PKey<Private>]) -> serde_json::Value {
    let message = pae(payload_type, payload);
    let signatures: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut signer = openssl::sign::Signer::new_without_digest(key).unwrap();
            serde_json::json!({"keyid": "SHA256:any", "sig": STANDARD.encode(signer.sign_oneshot_to_vec(&message).unwrap())})
        })
        .collect();
    serde_json::json!({"payloadType": payload_type, "payload": STANDARD.encode(payload), "signatures": signatures})
}

/// The payload of an image's envelope.
pub fn signed_payload(bytes: &[u8]) -> Vec<u8> {
    let envelope: serde_json::Value = serde_json::from_slice(&content(bytes, id::SIGNATURE)).unwrap();
    STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()
}

/// Signs a changed image anew with the crate's own signer.
pub fn sign_again(bytes: &mut Vec<u8>, key: &PKey<Private>) {
    let file = file(bytes);
    let sif = Sif::read(&file).unwrap();
    let mut group: Vec<(&Descriptor, String)> = Vec::new();
    for object in sif.objects.iter().filter(|object| object.id != id::SIGNATURE) {
        group.push((object, countersign_sif::dsse::object_digest(&file, object).unwrap()));
    }
    let envelope = owner(key).sign(&sif, &group).unwrap();
    replace_object(bytes, id::SIGNATURE, &envelope);
}
