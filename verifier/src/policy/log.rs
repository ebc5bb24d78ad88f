//! A firmware log that can be changed and written again: what a machine would have measured if it had booted something else.

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, EventType};

/// One event, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnEvent {
    pub(super) pcr: u32,
    pub(super) kind: EventType,
    pub(super) digests: Vec<(u16, Vec<u8>)>,
    pub(super) data: Vec<u8>,
}

/// A log in the crypto-agile format (PFP 10.2.2 and 10.4.5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnLog {
    /// TCG_PCR_EVENT with the specification id, as it stands.
    head: Vec<u8>,
    pub(super) events: Vec<OwnEvent>,
}

impl OwnLog {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let log = EventLog::parse(bytes).map_err(|e| e.to_string())?;
        let start = log.events.first().map_or(bytes.len(), |event| event.offset);
        let head = bytes.get(..start).unwrap_or_default().to_vec();
        let events = log.events.iter().map(|event| OwnEvent {
            pcr: event.pcr,
            kind: event.kind,
            digests: event.digests().map(|(alg, digest)| (alg, digest.to_vec())).collect(),
            data: event.data.to_vec(),
        });
        Ok(Self { head, events: events.collect() })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.head.clone();
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
        for event in &self.events {
            out.extend(event.pcr.to_le_bytes());
            out.extend(event.kind.0.to_le_bytes());
            out.extend(length(event.digests.len()));
            for (alg, digest) in &event.digests {
                out.extend(alg.to_le_bytes());
                out.extend(digest);
            }
            out.extend(length(event.data.len()));
            out.extend(&event.data);
        }
        out
    }

    /// The first event of a PCR and type whose data has these bytes in it.
    pub(super) fn find(&self, pcr: u32, kind: EventType, part: &[u8]) -> Option<usize> {
        self.events.iter().position(|event| {
            let has = part.is_empty() || event.data.windows(part.len()).any(|window| window == part);
            event.pcr == pcr && event.kind == kind && has
        })
    }

    /// Every event of a PCR and type whose data has these bytes in it.
    pub(super) fn all(&self, pcr: u32, kind: EventType, part: &[u8]) -> Vec<usize> {
        let has = |event: &OwnEvent| part.is_empty() || event.data.windows(part.len()).any(|window| window == part);
        let found = self.events.iter().enumerate();
        found.filter(|(_, event)| event.pcr == pcr && event.kind == kind && has(event)).map(|(at, _)| at).collect()
    }

    pub(super) fn at(&mut self, at: usize) -> Option<&mut OwnEvent> {
        self.events.get_mut(at)
    }
}

impl OwnEvent {
    /// Measures other data, by the rule that the old digest follows: the whole data, or what follows a prefix (`name: `) with or without a NUL.
    pub(super) fn measure(&mut self, data: Vec<u8>) {
        let skip = self.skip();
        self.data = data;
        let measured = self.data.get(skip..).unwrap_or_default();
        let measured = if skip > 0 { measured.strip_suffix(&[0]).unwrap_or(measured) } else { measured };
        for (alg, digest) in &mut self.digests {
            if let Some(alg) = HashAlg::from_id(*alg) {
                *digest = alg.digest(&[measured]).as_bytes().to_vec();
            }
        }
    }

    /// Measures another program or file of which the log shows only a name.
    pub(super) fn measure_unknown(&mut self) {
        for (_, digest) in &mut self.digests {
            for byte in digest.iter_mut() {
                *byte = !*byte;
            }
        }
    }

    /// Bytes of an EV_IPL text that are not measured.
    fn skip(&self) -> usize {
        if self.kind != EventType::IPL {
            return 0;
        }
        let measured = |part: &[u8]| {
            self.digests.iter().any(|(alg, digest)| {
                HashAlg::from_id(*alg).is_some_and(|alg| alg.digest(&[part]).as_bytes() == digest.as_slice())
            })
        };
        let colon = self.data.windows(2).position(|pair| pair == b": ").map_or(0, |at| at.saturating_add(2));
        let rest = self.data.get(colon..).unwrap_or_default();
        if measured(rest) || measured(rest.strip_suffix(&[0]).unwrap_or(rest)) { colon } else { 0 }
    }
}

/// One entry of a binary IMA list with template ima-ng (<https://docs.kernel.org/security/IMA-templates.html>).
pub(super) fn ima_entry(alg: &str, digest: &[u8], path: &str) -> Vec<u8> {
    let sized = |bytes: Vec<u8>| {
        let mut out = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        out.extend(bytes);
        out
    };
    let mut data = sized([alg.as_bytes(), b":\0", digest].concat());
    data.extend(sized([path.as_bytes(), b"\0"].concat()));
    let hash = HashAlg::Sha1.digest(&[&data]).as_bytes().to_vec();
    [10_u32.to_le_bytes().to_vec(), hash, sized(b"ima-ng".to_vec()), sized(data)].concat()
}
