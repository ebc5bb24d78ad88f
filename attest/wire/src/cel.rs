//! TCG canonical event log, JSON encoding (CEL-JSON; TCG Canonical Event Log Format 1.0, section 5.2), in and out.
//!
//! Records with `content_type` `pcclient_std` are the firmware's events; all others (systemd's, for example) are taken as userspace records.
//! A JSON array and a sequence of records, with or without record separators (RFC 7464), are read; an array is written. Digests are hex;
//! event data is written as hex and read as hex or base64. Digests of algorithms that this program does not compute are left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::codec::Writer;
use serde::{Deserialize, Serialize};

use crate::eventlog::{EventLog, EventType, PcrSet};
use crate::limits;
use crate::systemd_log::{self, Content, Record, Scalar};

/// Why bytes are no canonical event log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("canonical event log, record {index}: {reason}")]
pub struct BadCel {
    /// Index of the record.
    pub index: usize,
    /// What is wrong.
    pub reason: String,
}

/// A canonical event log in the forms that everything else reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// The firmware's events, as a binary event log; empty if there are none. In the format of TPM 1.2 where there is nothing but SHA-1 and
    /// no specification id.
    pub firmware: Vec<u8>,
    /// The other records, in their order.
    pub userspace: Vec<Record>,
}

#[derive(Deserialize)]
struct Raw {
    pcr: u32,
    digests: Vec<Digest>,
    content_type: String,
    #[serde(default)]
    content: Content,
}

#[derive(Serialize)]
struct Written<'a> {
    recnum: usize,
    pcr: u32,
    digests: Vec<Digest>,
    content_type: &'a str,
    content: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Digest {
    #[serde(rename = "hashAlg")]
    alg: String,
    digest: String,
}

/// One of the firmware's events, read.
struct Event {
    pcr: u32,
    kind: EventType,
    digests: Vec<(HashAlg, Vec<u8>)>,
    data: Vec<u8>,
}

/// `content_type` of the firmware's events.
const PCCLIENT: &str = "pcclient_std";

/// Whether bytes look like a canonical event log rather than a binary one: they begin with an array, an object or a record separator.
#[must_use]
pub fn looks_like(bytes: &[u8]) -> bool {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace() && **byte != systemd_log::RECORD_SEPARATOR);
    matches!(first, Some(b'[' | b'{'))
        && bytes.windows(PCCLIENT.len()).take(4096).any(|word| word == PCCLIENT.as_bytes())
}

/// Reads a canonical event log.
///
/// # Errors
/// [`BadCel`] names the record. A firmware event behind a userspace record of the same PCR is refused: the two logs could not be told apart.
pub fn parse(bytes: &[u8]) -> Result<Logs, BadCel> {
    let bad = |index, reason: String| BadCel { index, reason };
    if bytes.len() > limits::CEL {
        return Err(bad(0, format!("{} bytes are over the limit of {}", bytes.len(), limits::CEL)));
    }
    let mut events = Vec::new();
    let mut userspace: Vec<Record> = Vec::new();
    // PCRs that userspace records extend.
    let mut continued = PcrSet::NONE;
    let mut sha1 = true;
    for (index, raw) in records(bytes)?.into_iter().enumerate() {
        let mut digests: Vec<(HashAlg, Vec<u8>)> = Vec::new();
        for digest in &raw.digests {
            let Some(alg) = HashAlg::from_name(&digest.alg) else { continue };
            let value = hex::decode(&digest.digest).map_err(|_| bad(index, "a digest is not hex".into()))?;
            if value.len() != alg.size() {
                return Err(bad(index, "a digest has another length than its algorithm".into()));
            }
            if digests.iter().any(|(other, _)| *other == alg) {
                return Err(bad(index, "two digests of one algorithm".into()));
            }
            digests.push((alg, value));
        }
        if raw.content_type == PCCLIENT {
            if u8::try_from(raw.pcr).is_ok_and(|pcr| continued.contains(pcr)) {
                return Err(bad(index, format!("a firmware event behind a userspace record of PCR {}", raw.pcr)));
            }
            let (kind, data) = content(&raw.content).map_err(|reason| bad(index, reason.into()))?;
            let silent = kind == EventType::NO_ACTION && raw.digests.is_empty();
            sha1 &= silent || matches!(digests.as_slice(), [(HashAlg::Sha1, _)]) && raw.digests.len() == 1;
            events.push(Event { pcr: raw.pcr, kind, digests, data });
        } else if !digests.is_empty() {
            let pcr = u8::try_from(raw.pcr).ok().filter(|pcr| *pcr < 24);
            let pcr = pcr.ok_or_else(|| bad(index, "PCR index is not below 24".into()))?;
            let index = u32::try_from(userspace.len()).unwrap_or(u32::MAX);
            continued = continued.union([pcr].into_iter().collect());
            let Content { string: text, event_type, .. } = raw.content;
            userspace.push(Record { index, pcr, digests, text, event_type });
        }
    }
    // At the end of a log of TPM 1.2 an event of zeros could not be told from padding.
    let blank = events.last().is_some_and(is_blank);
    let old = sha1 && !blank && !events.first().is_some_and(is_spec_id);
    let firmware = if old { of_tpm_1_2(&events) } else { binary(&events) };
    Ok(Logs { firmware, userspace })
}

/// The records of an array, or of a sequence.
fn records(bytes: &[u8]) -> Result<Vec<Raw>, BadCel> {
    let bad = |index, e: serde_json::Error| BadCel { index, reason: e.to_string() };
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return serde_json::from_slice(bytes).map_err(|e| bad(0, e));
    }
    // A record separator is white space here: JSON has no other use for the byte.
    let text: Vec<u8> =
        bytes.iter().map(|byte| if *byte == systemd_log::RECORD_SEPARATOR { b'\n' } else { *byte }).collect();
    let mut all = Vec::new();
    for (index, raw) in serde_json::Deserializer::from_slice(&text).into_iter().enumerate() {
        all.push(raw.map_err(|e| bad(index, e))?);
    }
    Ok(all)
}

/// Type and data of a firmware event.
fn content(content: &Content) -> Result<(EventType, Vec<u8>), &'static str> {
    let kind = match &content.kind {
        Scalar::Number(number) => u32::try_from(*number).ok().map(EventType),
        Scalar::Text(name) => {
            EventType::from_name(name).or_else(|| u32::from_str_radix(name.strip_prefix("0x")?, 16).ok().map(EventType))
        }
        Scalar::Other => None,
    };
    let kind = kind.ok_or("no event_type that is a name or a number of 32 bits")?;
    let data = content.event_data.as_str();
    let data =
        hex::decode(data).or_else(|_| STANDARD.decode(data)).map_err(|_| "event_data is neither hex nor base64")?;
    Ok((kind, data))
}

fn is_spec_id(event: &Event) -> bool {
    event.kind == EventType::NO_ACTION && event.data.starts_with(b"Spec ID Event03\0")
}

fn is_blank(event: &Event) -> bool {
    let zeros = |(_, digest): &(HashAlg, Vec<u8>)| digest.iter().all(|byte| *byte == 0);
    event.pcr == 0 && event.kind.0 == 0 && event.data.is_empty() && event.digests.iter().all(zeros)
}

fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The events in the format of TPM 1.2 (PFP 10.2.1): the profiles of its time excuse what those of a crypto-agile log do not.
fn of_tpm_1_2(events: &[Event]) -> Vec<u8> {
    let mut log = Writer::new();
    for event in events {
        let digest = event.digests.first().map_or([0; 20].as_slice(), |(_, digest)| digest);
        log = log.u32_le(event.pcr).u32_le(event.kind.0).raw(digest);
        log = log.u32_le(length(event.data.len())).raw(&event.data);
    }
    log.done()
}

/// The events as a crypto-agile log (PFP 10.2.2). A specification-id event that is among them stands in front; else one is made for the
/// algorithms that occur.
fn binary(events: &[Event]) -> Vec<u8> {
    if events.is_empty() {
        return Vec::new();
    }
    let (spec_id, rest) = match events.split_first().filter(|(first, _)| is_spec_id(first)) {
        Some((first, rest)) => (first.data.clone(), rest),
        None => (made_spec_id(events), events),
    };
    let mut log = Writer::new().u32_le(0).u32_le(EventType::NO_ACTION.0).raw(&[0; 20]);
    log = log.u32_le(length(spec_id.len())).raw(&spec_id);
    for event in rest {
        log = log.u32_le(event.pcr).u32_le(event.kind.0).u32_le(length(event.digests.len()));
        for (alg, digest) in &event.digests {
            log = log.raw(&alg.id().to_le_bytes()).raw(digest);
        }
        log = log.u32_le(length(event.data.len())).raw(&event.data);
    }
    log.done()
}

/// TCG_EfiSpecIDEvent (PFP 10.4.5.1), version 2.0, errata 2.
fn made_spec_id(events: &[Event]) -> Vec<u8> {
    let used: Vec<HashAlg> = HashAlg::ALL
        .into_iter()
        .filter(|alg| events.iter().any(|event| event.digests.iter().any(|(other, _)| other == alg)))
        .collect();
    let mut data = Writer::new().raw(b"Spec ID Event03\0").u32_le(0).raw(&[0, 2, 2, 2]);
    data = data.u32_le(u32::try_from(used.len()).unwrap_or(0));
    for alg in used {
        data = data.raw(&alg.id().to_le_bytes()).raw(&u16::try_from(alg.size()).unwrap_or(0).to_le_bytes());
    }
    data.u8(0).done()
}

/// Writes a firmware log and userspace records as one canonical event log: a JSON array.
#[must_use]
pub fn write(log: &EventLog<'_>, userspace: &[Record]) -> String {
    let digest = |alg: HashAlg, value: &[u8]| Digest { alg: alg.name().to_owned(), digest: hex::encode(value) };
    let firmware = |kind: EventType, data: &[u8]| {
        let kind = kind.name().map_or_else(|| serde_json::json!(kind.0), |name| serde_json::json!(name));
        serde_json::json!({"event_type": kind, "event_data": hex::encode(data)})
    };
    let mut records = Vec::new();
    let mut add = |pcr, digests, content_type, content| {
        records.push(Written { recnum: records.len(), pcr, digests, content_type, content });
    };
    if let Some(spec_id) = log.spec_id {
        add(0, Vec::new(), PCCLIENT, firmware(EventType::NO_ACTION, spec_id));
    }
    for event in &log.events {
        let digests = HashAlg::ALL.into_iter().filter_map(|alg| Some(digest(alg, event.digest(alg)?))).collect();
        add(event.pcr, digests, PCCLIENT, firmware(event.kind, event.data));
    }
    for record in userspace {
        let digests = record.digests.iter().map(|(alg, value)| digest(*alg, value)).collect();
        let content = serde_json::json!({"string": record.text, "eventType": record.event_type});
        add(record.pcr.into(), digests, "systemd", content);
    }
    // Maps with text keys and no floats: serialising them cannot fail.
    serde_json::to_string_pretty(&records).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] =
        include_bytes!("../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/binary_bios_measurements");
    const SYSTEMD: &[u8] = include_bytes!("../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/tpm2-measure.log");

    #[test]
    fn out_and_in_again() {
        let log = EventLog::parse(LOG).unwrap();
        let records = systemd_log::parse(SYSTEMD).unwrap();
        let text = write(&log, &records);
        assert!(looks_like(text.as_bytes()) && !looks_like(LOG));
        let read = parse(text.as_bytes()).unwrap();
        assert_eq!(read.firmware, LOG, "every bank of this log is computed, so the bytes are the same");
        assert_eq!(read.userspace, records);
        // The same as a sequence, with and without separators.
        let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for separator in ["", "\u{1e}"] {
            let sequence: String = all.iter().map(|record| format!("{separator}{record}\n")).collect();
            assert_eq!(parse(sequence.as_bytes()).unwrap(), read);
        }
    }

    #[test]
    fn a_log_without_specification_id_gets_one() {
        let text = r#"[{"recnum":0,"pcr":4,"digests":[{"hashAlg":"sm3_256","digest":"00"},
            {"hashAlg":"sha256","digest":"0000000000000000000000000000000000000000000000000000000000000001"}],
            "content_type":"pcclient_std","content":{"event_type":2147483655,"event_data":"AQIDBA=="}}]"#;
        let read = parse(text.as_bytes()).unwrap();
        let log = EventLog::parse(&read.firmware).unwrap();
        assert_eq!(log.banks, [(0x000b, 32)]);
        assert_eq!((log.events[0].kind, log.events[0].data), (EventType::EFI_ACTION, &[1, 2, 3, 4][..]));
    }

    #[test]
    fn a_log_of_tpm_1_2_stays_one() {
        let mut bytes = Vec::new();
        for (pcr, kind, data) in [(0u32, 3u32, &b"Spec ID Event00\0"[..]), (0, 8, b"1"), (4, 4, &[0xff; 4])] {
            let digest = if kind == 3 { vec![0; 20] } else { HashAlg::Sha1.digest(&[data]).as_bytes().to_vec() };
            bytes.extend([pcr.to_le_bytes(), kind.to_le_bytes()].concat());
            bytes.extend(digest);
            bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            bytes.extend(data);
        }
        let log = EventLog::parse(&bytes).unwrap();
        let text = write(&log, &[]);
        let read = parse(text.as_bytes()).unwrap();
        assert_eq!(read.firmware, bytes);
        let all = [(HashAlg::Sha1, PcrSet::ALL)];
        assert!(EventLog::parse(&read.firmware).unwrap().examine(&all, crate::eventlog::Registers::Tpm).is_ok());
        // A digest of another algorithm, known or not, or an event without one: no log of TPM 1.2.
        let of = |text: &str| EventLog::parse(&parse(text.as_bytes()).unwrap().firmware).unwrap().format;
        assert_eq!(of(&text), crate::eventlog::Format::Sha1);
        let record = text.find("EV_S_CRTM_VERSION").map(|at| text[..at].rfind("\"sha1\"").unwrap()).unwrap();
        let other = format!("{}\"sm3_256\"{}", &text[..record], &text[record + 6..]);
        assert_eq!(of(&other), crate::eventlog::Format::CryptoAgile);
    }

    #[test]
    fn what_is_refused() {
        let digest = "00".repeat(32);
        let record = |pcr: u32, kind: &str, digests: &str| {
            format!(
                r#"{{"pcr":{pcr},"digests":[{digests}],"content_type":"{kind}","content":{{"event_type":4,"event_data":""}}}}"#
            )
        };
        let one = format!(r#"{{"hashAlg":"sha256","digest":"{digest}"}}"#);
        let cases = [
            ("two digests", record(4, PCCLIENT, &format!("{one},{one}"))),
            ("another length", record(4, PCCLIENT, r#"{"hashAlg":"sha256","digest":"00"}"#)),
            ("not hex", record(4, PCCLIENT, r#"{"hashAlg":"sha256","digest":"zz"}"#)),
            ("below 24", record(24, "systemd", &one)),
            ("behind a userspace record", format!("{}{}", record(4, "systemd", &one), record(4, PCCLIENT, &one))),
            ("event_type", record(4, PCCLIENT, &one).replace("4,\"event_data", "\"nothing\",\"event_data")),
            ("neither hex", record(4, PCCLIENT, &one).replace("\"event_data\":\"\"", "\"event_data\":\"%\"")),
            ("EOF", record(4, PCCLIENT, &one)[..40].to_owned()),
        ];
        for (what, text) in cases {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
        assert!(parse(&vec![b' '; limits::CEL + 1]).is_err());
        let log = EventLog::parse(LOG).unwrap();
        let text = write(&log, &[]);
        // As many records as the limit admits, and more bytes in what nobody reads.
        let large = format!("[{}0]", "0,".repeat(2_000_000));
        let unread =
            record(4, "systemd", &one).replace("\"event_data\":\"\"", &format!("\"x\":{large},\"string\":\"a\""));
        assert_eq!(parse(unread.as_bytes()).unwrap().userspace[0].text, "a");
        let many = record(4, "systemd", &one).repeat(30_000) + &record(5, PCCLIENT, &one).repeat(30_000);
        assert_eq!(parse(many.as_bytes()).unwrap().userspace.len(), 30_000);
        for end in (0..text.len()).step_by(97) {
            assert!(parse(&text.as_bytes()[..end]).is_err() || end == 0, "cut at {end}");
        }
    }
}
