//! What is in an image: objects, policy, bindings, signer; verified, or as the image says it of itself.

use std::fs::File;
use std::path::Path;

use countersign_policy::PolicyBundle;
use countersign_sif::binding::{Binding, names};
use countersign_sif::dsse::SignerKey;
use countersign_sif::format::{Descriptor, GROUP, Sif, data_type, fs_type, read_object};
use countersign_sif::{Image, SifError};
use countersign_wire::id::PolicyDigest;
use countersign_wire::limits;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::owner::of_image;

/// Longest `countersign.json` that is shown without being verified, bytes.
const MAX_LOOK: u64 = 64 * 1024;

/// What is in an image, after its signature and bindings (`full`: every digest) were checked.
///
/// # Errors
/// [`Failure`].
pub fn inspect(path: &Path, trusted: &[SignerKey], full: bool) -> Result<Value, Failure> {
    let file = File::open(path).map_err(|e| of_image(path, e.into()))?;
    let image = Image::from_file(file, trusted, full).map_err(|e| of_image(path, e))?;
    let mut seen = json!({
        "verified": true,
        "checked": if full { "every object and every block" } else { "signature, policy and bindings; --full checks the payload too" },
        "signer": image.signer,
        "uuid": hex::encode(image.uuid()),
        "objects": objects(image.objects()),
    });
    describe(&mut seen, image.objects(), Some(image.binding()), Some(image.policy()));
    Ok(seen)
}

/// What an image says of itself. Nothing of it is verified.
///
/// # Errors
/// [`Failure`]: it is no SIF.
pub fn look(path: &Path) -> Result<Value, Failure> {
    let file = File::open(path).map_err(|e| of_image(path, e.into()))?;
    let sif = Sif::read(&file).map_err(|e| of_image(path, e))?;
    let object = |kind, name: &str, max| -> Result<Vec<u8>, SifError> {
        sif.named(kind, name).and_then(|object| read_object(&file, object, max))
    };
    let binding = object(data_type::JSON, names::BINDING, MAX_LOOK);
    let binding: Option<Binding> = binding.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let policy = object(data_type::GENERIC, names::POLICY, u64::try_from(limits::POLICY).unwrap_or(u64::MAX));
    let mut seen = json!({
        "verified": false,
        "checked": "nothing: give the owner's public key with --signer",
        "uuid": hex::encode(sif.uuid),
        "objects": objects(&sif.objects),
    });
    describe(&mut seen, &sif.objects, binding.as_ref(), policy.ok().as_deref());
    Ok(seen)
}

/// Adds what binding and policy say.
fn describe(seen: &mut Value, objects: &[Descriptor], binding: Option<&Binding>, policy: Option<&[u8]>) {
    let Some(fields) = seen.as_object_mut() else { return };
    let mut set = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    if let Some(binding) = binding {
        set("workload", json!(binding.workload));
        set("payload_root", json!(binding.payload_root));
        set("policy", json!(binding.policy));
        set("payload", json!(binding.payload));
        let wrapped = objects.iter().any(|object| object.data_type == data_type::CRYPTO_MESSAGE);
        set("escrow", json!(if wrapped { "RSA key" } else { "passphrase" }));
    }
    if let Some(policy) = policy {
        set("policy_object", policy_of(policy));
    }
}

/// Packages and entry point of a policy bundle.
fn policy_of(bytes: &[u8]) -> Value {
    let digest = PolicyDigest::of(bytes);
    match PolicyBundle::parse(bytes) {
        Err(e) => json!({"digest": digest, "error": e.to_string()}),
        Ok(bundle) => {
            let module = |(file, text): (&String, &String)| {
                let mut lines = text.lines().map(str::trim);
                let package = lines.find_map(|line| line.strip_prefix("package ")).unwrap_or_default();
                json!({"package": package.trim(), "file": file})
            };
            let modules: Vec<Value> = bundle.modules().iter().map(module).collect();
            let data: Vec<&String> = bundle.data().keys().collect();
            json!({"digest": digest, "entry_point": "data.countersign.workload.verdict", "modules": modules, "data": data})
        }
    }
}

/// What an object is, in words (SIF, data types and partition types).
fn kind(object: &Descriptor) -> &'static str {
    match (object.data_type, object.partition()) {
        (0x4001, _) => "build recipe",
        (0x4002, _) => "environment",
        (0x4003, _) => "labels",
        (data_type::PARTITION, Some((fs_type::SQUASHFS, _))) => "squashfs",
        (data_type::PARTITION, Some((fs_type::ENCRYPTED_SQUASHFS, _))) => "LUKS2 container",
        (data_type::PARTITION, _) => "partition",
        (data_type::SIGNATURE, _) => "signature",
        (data_type::JSON, _) if object.name() == names::BINDING => "binding",
        (data_type::JSON, _) => "JSON",
        (data_type::GENERIC, _) if object.name() == names::TREE => "hash tree",
        (data_type::GENERIC, _) if object.name() == names::POLICY => "policy bundle",
        (data_type::GENERIC, _) => "data",
        (data_type::CRYPTO_MESSAGE, _) => "escrow",
        (0x4009, _) => "SBOM",
        (0x400a, _) => "OCI index",
        (0x400b, _) => "OCI blob",
        _ => "unknown",
    }
}

fn objects(descriptors: &[Descriptor]) -> Vec<Value> {
    let object = |object: &Descriptor| {
        let of = if object.link & GROUP == GROUP {
            format!("group {}", object.link & !GROUP)
        } else if object.link == 0 {
            String::new()
        } else {
            format!("object {}", object.link)
        };
        json!({"id": object.id, "type": format!("{:#06x}", object.data_type), "kind": kind(object), "name": object.name(), "of": of, "offset": object.offset, "size": object.size})
    };
    descriptors.iter().map(object).collect()
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let tenths = bytes.saturating_mul(10).checked_div(unit).unwrap_or(0);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

/// The same in words.
#[must_use]
pub fn words(seen: &Value) -> String {
    let text = |pointer: &str| match seen.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
    let list = |pointer: &str| seen.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let verified = seen.get("verified") == Some(&Value::Bool(true));
    let mut lines = vec![if verified {
        format!("VERIFIED      signed by {}", text("/signer"))
    } else {
        "NOT VERIFIED  what follows is what the file says of itself".to_owned()
    }];
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:13} {value}"));
        }
    };
    field("checked", text("/checked"));
    field("workload", text("/workload"));
    field("", if text("/workload").is_empty() { String::new() } else { "binds payload root, policy and UUID".into() });
    field("payload root", text("/payload_root"));
    if let Some(payload) = seen.get("payload") {
        let cipher = text("/payload/cipher");
        field(
            "",
            format!(
                "{} in {}-byte blocks, {cipher}",
                size(number(payload, "partition_length")),
                number(payload, "data_block_size")
            ),
        );
    }
    field("policy", text("/policy"));
    field("", text("/policy_object/error"));
    field("", text("/policy_object/entry_point"));
    for module in list("/policy_object/modules") {
        let part = |name: &str| module.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        field("", format!("package {}  ({})", part("package"), part("file")));
    }
    field("UUID", text("/uuid"));
    field("escrow", text("/escrow"));
    lines.push("objects".into());
    for object in list("/objects") {
        let part = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = number(&object, "id");
        let line = format!(
            "  {id:3}  {:16} {:20} {:10} {}",
            part("kind"),
            part("name"),
            part("of"),
            size(number(&object, "size"))
        );
        lines.push(line.trim_end().to_owned());
    }
    lines.iter().map(|line| countersign_attest::out::printable(line)).collect::<Vec<_>>().join("\n")
}
