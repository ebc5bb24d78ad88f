//! `docs/policy-reference.md`, made from the metadata of the shipped rules and from the schemas. A test keeps the file equal to this.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::{limits, schema, shipped};

/// One `# METADATA` block.
struct Block {
    title: String,
    description: String,
    check: Option<String>,
    package: bool,
}

/// The whole reference as Markdown.
///
/// # Errors
/// As [`schema::all`].
pub fn reference() -> Result<String, String> {
    let mut out = String::from(
        "# Policy reference\n\nGenerated from the metadata of the shipped policies and from the schemas in `policies/schema/`; do not edit. \
         `COUNTERSIGN_UPDATE=1 cargo test -p countersign-policy` writes it again.\n\n## Checks\n\nA policy names the checks that it requires; each is \
         proved by a rule of the library, or the verdict is no. The name of a check is the id of the reason that is shown when it fails.\n\n",
    );
    let mut checks: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut packages = Vec::new();
    for (path, text) in shipped::library() {
        if path.ends_with("_test.rego") {
            continue;
        }
        for block in blocks(text) {
            if block.package {
                packages.push((path, block));
            } else if let Some(check) = block.check {
                checks.insert(check, (block.description, path.to_owned()));
            }
        }
    }
    out.push_str("| check | what is proved | file |\n|---|---|---|\n");
    for (check, (description, path)) in &checks {
        let _ = writeln!(out, "| `{check}` | {description} | `{path}` |");
    }
    out.push_str("\n## Packages\n\n");
    for (path, block) in packages {
        let _ = writeln!(out, "* **{}** (`{path}`): {}", block.title, block.description);
    }
    section(
        &mut out,
        "Settings",
        "`data.countersign.settings`, in `countersign/settings/data.json` of a policy.",
        &schema::settings()?,
    );
    section(&mut out, "Input", "`input`: facts that the appraisal authenticated.", &schema::input()?);
    out.push_str(FACTS);
    section(
        &mut out,
        "Reference values",
        "`data.countersign.reference`: the verifier's own; a bundle cannot bring any.",
        &schema::reference()?,
    );
    out.push_str("\n## Builtins\n\nWhat a policy may call; everything else is refused when it is loaded.\n\n");
    out.push_str(&limits::BUILTINS.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "));
    let _ = write!(
        out,
        "\n\n## Limits\n\nA bundle has at most {} bytes ({} unpacked), {} files, {} bytes of Rego. A decision takes at most {} instructions, {} more for each reference value, and {} s.\n",
        limits::BUNDLE_BYTES,
        limits::UNPACKED_BYTES,
        limits::FILES,
        limits::REGO_BYTES,
        limits::INSTRUCTIONS,
        limits::INSTRUCTIONS_PER_VALUE,
        limits::TIME.as_secs()
    );
    Ok(out)
}

const FACTS: &str = "\n### Facts of the boot\n\nEach fact of `input.boot.facts` is an object of `value`, `strength`, `log` and `events`. A fact proves something only \
    where its strength is `authenticated`: one that is only `named` rests on a name in the log, which no PCR vouches for. The library reads these:\n\n\
    | field | check |\n|---|---|\n\
    | `input.boot.facts.command_lines` | `kernel-command-line`, `kernel-words` (beside GRUB's commands in the events); a `named` line proves nothing, and must be \
    accepted all the same |\n\
    | `input.boot.facts.firmware_version` | `firmware-version` (beside EV_S_CRTM_VERSION in the events) |\n\
    | `input.boot.facts.databases` | `dbx-entries` |\n";

/// Every field of a schema and its definitions, as tables.
fn section(out: &mut String, title: &str, words: &str, schema: &Value) {
    let _ = write!(out, "\n## {title}\n\n{words}\n");
    table(out, "", schema);
    for (name, inner) in schema.get("$defs").and_then(Value::as_object).into_iter().flatten() {
        table(out, name, inner);
    }
}

fn table(out: &mut String, name: &str, schema: &Value) {
    let words = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    if !name.is_empty() {
        let _ = write!(out, "\n**{name}**: {words}\n");
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        let _ = writeln!(out, "\nOne of {}.", values.join(", "));
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    out.push_str("\n| field | type | |\n|---|---|---|\n");
    for (field, inner) in properties {
        let optional = if required.contains(&field.as_str()) { "" } else { " (may be missing)" };
        let words = inner.get("description").and_then(Value::as_str).unwrap_or_default();
        let _ = writeln!(out, "| `{field}` | {} | {words}{optional} |", kind(inner));
    }
}

fn kind(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        return name.rsplit('/').next().unwrap_or(name).to_owned();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("array") => format!("array of {}", schema.get("items").map_or_else(|| "anything".into(), kind)),
        Some("object") => match schema.get("additionalProperties") {
            _ if schema.pointer("/properties/strength").is_some() => {
                format!("fact: {}", schema.pointer("/properties/value").map_or_else(|| "anything".into(), kind))
            }
            Some(inner) if inner.is_object() => format!("object of {}", kind(inner)),
            _ => "object".into(),
        },
        Some(other) => other.to_owned(),
        None => "anything".into(),
    }
}

/// The metadata blocks of a file: title, description (one line or an indented block) and `custom.check`.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line != "# METADATA" {
            continue;
        }
        let mut block = Block { title: String::new(), description: String::new(), check: None, package: false };
        let mut describing = false;
        while let Some(line) = lines.peek().and_then(|line| line.strip_prefix('#')) {
            let words = line.trim();
            if describing && line.starts_with("   ") {
                block.description = format!("{} {words}", block.description).trim().to_owned();
            } else if let Some(rest) = words.strip_prefix("title:") {
                rest.trim().clone_into(&mut block.title);
            } else if let Some(rest) = words.strip_prefix("description:") {
                rest.trim().trim_start_matches('|').trim().clone_into(&mut block.description);
                describing = true;
                lines.next();
                continue;
            } else if let Some(rest) = words.strip_prefix("check:") {
                block.check = Some(rest.trim().to_owned());
            } else if words == "scope: package" {
                block.package = true;
            }
            describing &= line.starts_with("   ");
            lines.next();
        }
        blocks.push(block);
    }
    blocks
}
