//! Rust types -> JSON Schema. Reads exactly the forms that this crate's documents use, and refuses everything else by line.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// A struct or enum of the source.
#[derive(Debug, Default)]
struct Type {
    doc: String,
    closed: bool,
    kebab: bool,
    /// Variants in lower case.
    lower: bool,
    tag: Option<String>,
    default: bool,
    fields: Vec<Field>,
    variants: Vec<Variant>,
}

#[derive(Debug, Clone, Default)]
struct Field {
    name: String,
    doc: String,
    rust: String,
    optional: bool,
    flatten: bool,
}

#[derive(Debug, Default)]
struct Variant {
    name: String,
    doc: String,
    fields: Vec<Field>,
}

/// The schema of one type, with every type that it needs under `$defs`.
pub(super) fn schema(sources: &[&str], root: &str, title: &str) -> Result<Value, String> {
    let mut types: BTreeMap<String, Type> = BTreeMap::new();
    for source in sources {
        types.extend(read(source)?);
    }
    let mut wanted = BTreeSet::new();
    let mut defs = Map::new();
    let root_type = types.get(root).ok_or_else(|| format!("no type {root}"))?;
    let body = describe(root_type, &types, &mut wanted)?;
    let mut done = BTreeSet::from([root.to_owned()]);
    while let Some(name) = wanted.iter().find(|name| !done.contains(*name)).cloned() {
        let wanted_type = types.get(&name).ok_or_else(|| format!("no type {name}"))?;
        defs.insert(name.clone(), describe(wanted_type, &types, &mut wanted)?);
        done.insert(name);
    }
    let mut schema = Map::new();
    schema.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".into(), json!(title));
    let Value::Object(body) = body else { return Err(format!("{root} is no object")) };
    schema.extend(body);
    if !defs.is_empty() {
        schema.insert("$defs".into(), Value::Object(defs));
    }
    Ok(Value::Object(schema))
}

fn describe(described: &Type, types: &BTreeMap<String, Type>, wanted: &mut BTreeSet<String>) -> Result<Value, String> {
    if described.variants.is_empty() {
        let mut object = object(&described.fields, described.closed, described.default, types, wanted)?;
        object.insert("description".into(), json!(described.doc));
        return Ok(Value::Object(object));
    }
    let name = |name: &str| match (described.kebab, described.lower) {
        (true, _) => kebab(name),
        (_, true) => name.to_lowercase(),
        _ => name.to_owned(),
    };
    let Some(tag) = &described.tag else {
        let names: Vec<String> = described.variants.iter().map(|variant| name(&variant.name)).collect();
        return Ok(json!({"description": described.doc, "enum": names}));
    };
    let mut forms = Vec::new();
    for variant in &described.variants {
        let mut form = object(&variant.fields, false, false, types, wanted)?;
        form.insert("description".into(), json!(variant.doc));
        if let Some(properties) = form.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert(tag.clone(), json!({"const": name(&variant.name)}));
        }
        if let Some(required) = form.get_mut("required").and_then(Value::as_array_mut) {
            required.push(json!(tag));
        }
        forms.push(Value::Object(form));
    }
    Ok(json!({"description": described.doc, "oneOf": forms}))
}

fn object(
    fields: &[Field],
    closed: bool,
    default: bool,
    types: &BTreeMap<String, Type>,
    wanted: &mut BTreeSet<String>,
) -> Result<Map<String, Value>, String> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut all_of = Vec::new();
    // A field whose documentation says that policies do not see it is not in their documents.
    for field in fields.iter().filter(|field| !field.doc.contains("Policies do not see it")) {
        let mut schema = kind(&field.rust, types, wanted).map_err(|why| format!("{}: {why}", field.name))?;
        if field.flatten {
            all_of.push(schema);
            continue;
        }
        if let Some(map) = schema.as_object_mut() {
            map.insert("description".into(), json!(field.doc));
        }
        properties.insert(field.name.clone(), schema);
        if !field.optional && !default {
            required.push(json!(field.name));
        }
    }
    let mut object = Map::new();
    object.insert("type".into(), json!("object"));
    object.insert("properties".into(), Value::Object(properties));
    object.insert("required".into(), Value::Array(required));
    if !all_of.is_empty() {
        object.insert("allOf".into(), Value::Array(all_of));
    } else if closed {
        object.insert("additionalProperties".into(), json!(false));
    }
    Ok(object)
}

/// The schema of a field's type.
fn kind(rust: &str, types: &BTreeMap<String, Type>, wanted: &mut BTreeSet<String>) -> Result<Value, String> {
    let inner = |prefix: &str| rust.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>')).map(str::trim);
    Ok(match rust {
        "String" => json!({"type": "string"}),
        "bool" => json!({"type": "boolean"}),
        "u8" => json!({"type": "integer", "minimum": 0, "maximum": u8::MAX}),
        "u16" => json!({"type": "integer", "minimum": 0, "maximum": u16::MAX}),
        "u32" => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        "u64" | "usize" => json!({"type": "integer", "minimum": 0}),
        "i32" | "i64" => json!({"type": "integer"}),
        "Value" | "serde_json::Value" => json!({}),
        // Forms of countersign_wire::facts::values, which write themselves.
        "Tagged" => json!({"type": "string"}),
        "Events" => kind("Vec<u32>", types, wanted)?,
        "Certificate" => json!({
            "type": "object", "properties": {"subject": {"type": "string"}, "sha256": {"type": "string"}},
            "required": ["subject", "sha256"], "additionalProperties": false
        }),
        "Digests" => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        _ => {
            if let Some(item) = inner("Option<") {
                return kind(item, types, wanted);
            }
            if let Some(item) = inner("Vec<").or_else(|| inner("BTreeSet<")) {
                return Ok(json!({"type": "array", "items": kind(item, types, wanted)?}));
            }
            if let Some(item) = inner("BTreeMap<String,") {
                return Ok(json!({"type": "object", "additionalProperties": kind(item, types, wanted)?}));
            }
            if let Some((generic, argument)) = rust.strip_suffix('>').and_then(|rust| rust.split_once('<')) {
                let made = types.get(generic).ok_or_else(|| format!("the type {rust} has no schema"))?;
                let mut fields = made.fields.clone();
                fields
                    .iter_mut()
                    .filter(|field| field.rust == "T")
                    .for_each(|field| argument.clone_into(&mut field.rust));
                return object(&fields, made.closed, made.default, types, wanted).map(Value::Object);
            }
            let name = rust.rsplit("::").next().unwrap_or(rust);
            if !types.contains_key(name) {
                return Err(format!("the type {rust} has no schema"));
            }
            wanted.insert(name.to_owned());
            json!({"$ref": format!("#/$defs/{name}")})
        }
    })
}

/// Every struct and enum of a source, up to its tests.
fn read(source: &str) -> Result<BTreeMap<String, Type>, String> {
    let mut types = BTreeMap::new();
    let mut lines = source.lines().enumerate();
    let (mut doc, mut attributes) = (String::new(), String::new());
    while let Some((number, line)) = lines.next() {
        let text = line.trim();
        if text.starts_with("#[cfg(test)]") || text.starts_with("impl ") {
            skip(line, &mut lines);
            (doc, attributes) = (String::new(), String::new());
        } else if let Some(words) = text.strip_prefix("///") {
            add(&mut doc, words);
        } else if text.starts_with("#[") {
            attributes.push_str(text);
        } else if let Some(head) = text.strip_prefix("pub struct ").or_else(|| text.strip_prefix("pub enum ")) {
            let name = head.split([' ', '{', '<']).next().unwrap_or_default().to_owned();
            let mut made = Type {
                doc: std::mem::take(&mut doc),
                closed: attributes.contains("deny_unknown_fields"),
                kebab: attributes.contains("rename_all = \"kebab-case\""),
                lower: attributes.contains("rename_all = \"lowercase\""),
                tag: quoted(&attributes, "tag = "),
                default: attributes.contains("serde(deny_unknown_fields, default)")
                    || attributes.contains("serde(default"),
                ..Type::default()
            };
            attributes.clear();
            if !text.ends_with('{') {
                return Err(format!("line {}: {text:?} is not understood", number.saturating_add(1)));
            }
            if text.starts_with("pub enum ") {
                made.variants = variants(&mut lines)?;
            } else {
                made.fields = fields(&mut lines, "}")?;
            }
            types.insert(name, made);
        } else {
            (doc, attributes) = (String::new(), String::new());
        }
    }
    Ok(types)
}

type Lines<'a> = std::iter::Enumerate<std::str::Lines<'a>>;

/// Leaves out a block that begins on this line or the next.
fn skip(first: &str, lines: &mut Lines<'_>) {
    let indent = first.len().saturating_sub(first.trim_start().len());
    if first.trim_end().ends_with("{}") {
        return;
    }
    for (_, line) in lines {
        let own = line.len().saturating_sub(line.trim_start().len());
        if own == indent && line.trim_end().ends_with(['}', ';']) {
            return;
        }
    }
}

fn fields(lines: &mut Lines<'_>, end: &str) -> Result<Vec<Field>, String> {
    let mut fields = Vec::new();
    let mut field = Field::default();
    for (number, line) in lines {
        let text = line.trim();
        if text == end || text == format!("{end},") {
            return Ok(fields);
        }
        if let Some(words) = text.strip_prefix("///") {
            add(&mut field.doc, words);
        } else if text.starts_with("#[serde(") {
            field.optional |= text.contains("default");
            field.flatten |= text.contains("flatten");
            if let Some(name) = quoted(text, "rename = ") {
                field.name = name;
            }
        } else if text.starts_with("#[") || text.is_empty() || text.starts_with("//") {
            continue;
        } else {
            let bad = || format!("line {}: {text:?} is not understood", number.saturating_add(1));
            let plain = text.strip_prefix("pub ").unwrap_or(text);
            let (name, rust) = plain.split_once(':').ok_or_else(bad)?;
            let mut done = std::mem::take(&mut field);
            if done.name.is_empty() {
                name.trim().clone_into(&mut done.name);
            }
            done.rust = rust.trim().trim_end_matches(',').to_owned();
            fields.push(done);
        }
    }
    Err("a type does not end".into())
}

fn variants(lines: &mut Lines<'_>) -> Result<Vec<Variant>, String> {
    let mut variants = Vec::new();
    let mut doc = String::new();
    while let Some((number, line)) = lines.next() {
        let text = line.trim();
        if text == "}" {
            return Ok(variants);
        }
        if let Some(words) = text.strip_prefix("///") {
            add(&mut doc, words);
        } else if let Some(name) = text.strip_suffix(" {") {
            let fields = fields(lines, "}")?;
            variants.push(Variant { name: name.to_owned(), doc: std::mem::take(&mut doc), fields });
        } else if let Some(name) = text.strip_suffix(',').filter(|name| name.chars().all(char::is_alphanumeric)) {
            variants.push(Variant { name: name.to_owned(), doc: std::mem::take(&mut doc), fields: Vec::new() });
        } else if !text.is_empty() && !text.starts_with("#[") {
            return Err(format!("line {}: {text:?} is not understood", number.saturating_add(1)));
        }
    }
    Err("an enum does not end".into())
}

fn add(doc: &mut String, words: &str) {
    if !doc.is_empty() {
        doc.push(' ');
    }
    doc.push_str(words.trim());
}

/// The text in quotes behind a key.
fn quoted(text: &str, key: &str) -> Option<String> {
    let (_, rest) = text.split_once(key)?;
    let (value, _) = rest.strip_prefix('"')?.split_once('"')?;
    Some(value.to_owned())
}

/// `AuditOnly` -> `audit-only`.
fn kebab(name: &str) -> String {
    let mut out = String::new();
    for character in name.chars() {
        if character.is_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.extend(character.to_lowercase());
    }
    out
}
