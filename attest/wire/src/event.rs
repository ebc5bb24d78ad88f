//! What the verifier tells a host between attestations: events over `GET /v1/events`, as server-sent events (WHATWG HTML, section 9.2).
//!
//! TLS authenticates both sides. An event is told once and has a number that only rises; a client that reconnects names the last one that it
//! has, in `Last-Event-ID`.

use serde::{Deserialize, Serialize};

use crate::id::{RunId, WorkloadId};
use crate::limits;

/// What a host is told. Text in `reason` is the operator's, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum HostEvent {
    /// The host is revoked: nothing is released to it ever again, and what runs has lost its grant.
    Revoked {
        /// Why.
        reason: String,
    },
    /// The host is suspended: it may attest, and gets nothing.
    Suspended {
        /// Why.
        reason: String,
    },
    /// The host is admitted (again); its next attestation starts a new baseline.
    Admitted {
        /// Why.
        reason: String,
    },
    /// A workload is no longer released.
    WorkloadWithdrawn {
        /// Which.
        workload: WorkloadId,
    },
    /// An operator ends a run.
    Stop {
        /// Which.
        run: RunId,
        /// Why.
        reason: String,
    },
    /// An operator freezes a run.
    Freeze {
        /// Which.
        run: RunId,
        /// Why.
        reason: String,
    },
    /// An operator lets a frozen run go on.
    Thaw {
        /// Which.
        run: RunId,
        /// Why.
        reason: String,
    },
    /// Policy or reference values changed: please attest.
    Attest {
        /// What changed.
        reason: String,
    },
}

impl HostEvent {
    /// The event's name on the wire.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Revoked { .. } => "revoked",
            Self::Suspended { .. } => "suspended",
            Self::Admitted { .. } => "admitted",
            Self::WorkloadWithdrawn { .. } => "workload-withdrawn",
            Self::Stop { .. } => "stop",
            Self::Freeze { .. } => "freeze",
            Self::Thaw { .. } => "thaw",
            Self::Attest { .. } => "attest",
        }
    }

    /// The run that it is about, where it is about one.
    #[must_use]
    pub const fn run(&self) -> Option<RunId> {
        match self {
            Self::Stop { run, .. } | Self::Freeze { run, .. } | Self::Thaw { run, .. } => Some(*run),
            Self::Revoked { .. }
            | Self::Suspended { .. }
            | Self::Admitted { .. }
            | Self::WorkloadWithdrawn { .. }
            | Self::Attest { .. } => None,
        }
    }
}

/// A line that keeps an idle stream alive.
pub const HEARTBEAT: &str = ": here\n\n";

/// An event as it goes over the stream. `data` is one line of JSON.
#[must_use]
pub fn write(id: u64, data: &str) -> String {
    format!("id: {id}\ndata: {data}\n\n")
}

/// A number without an event: from here on the stream tells everything.
#[must_use]
pub fn write_position(id: u64) -> String {
    format!("id: {id}\n\n")
}

/// A stream is no stream of events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event stream, event {index}: {reason}")]
pub struct BadStream {
    /// Number of the event since the stream began, from 0.
    pub index: u64,
    /// What is wrong.
    pub reason: String,
}

/// Takes a stream apart, in pieces of any size.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    data: Vec<u8>,
    id: Option<u64>,
    last: Option<u64>,
    index: u64,
    after_cr: bool,
}

impl Reader {
    /// The number up to which everything was told.
    #[must_use]
    pub const fn last(&self) -> Option<u64> {
        self.last
    }

    /// The events that these bytes complete, in order; `None` for one of a kind that this version does not know.
    ///
    /// # Errors
    /// [`BadStream`]: an event over [`limits::MESSAGE`] bytes, text that is not UTF-8, an id that is no number.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Option<HostEvent>>, BadStream> {
        let mut events = Vec::new();
        for &byte in bytes {
            // Lines end with CR, LF or both.
            let ends = matches!(byte, b'\r' | b'\n');
            let second = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            if second {
                continue;
            }
            if ends {
                events.extend(self.end_of_line()?);
            } else {
                if self.line.len().saturating_add(self.data.len()) >= limits::MESSAGE {
                    return Err(self.bad(format!("over {} bytes", limits::MESSAGE)));
                }
                self.line.push(byte);
            }
        }
        Ok(events)
    }

    fn bad(&self, reason: impl Into<String>) -> BadStream {
        BadStream { index: self.index, reason: reason.into() }
    }

    fn end_of_line(&mut self) -> Result<Option<Option<HostEvent>>, BadStream> {
        let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| self.bad("not UTF-8"))?;
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            self.last = self.id.take().or(self.last);
            self.index = self.index.saturating_add(1);
            // Without data there is nothing to tell.
            return Ok((!data.is_empty()).then(|| serde_json::from_slice(&data).ok()));
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.id = Some(value.parse().map_err(|_| self.bad(format!("id {value:?} is no number")))?),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend(value.as_bytes());
            }
            // Comments, and fields that mean nothing here.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<HostEvent> {
        let (run, reason) = (RunId([1; 16]), "line\nwith \"quotes\"".to_owned());
        vec![
            HostEvent::Revoked { reason: reason.clone() },
            HostEvent::Suspended { reason: reason.clone() },
            HostEvent::Admitted { reason: reason.clone() },
            HostEvent::WorkloadWithdrawn { workload: WorkloadId([2; 32]) },
            HostEvent::Stop { run, reason: reason.clone() },
            HostEvent::Freeze { run, reason: reason.clone() },
            HostEvent::Thaw { run, reason: reason.clone() },
            HostEvent::Attest { reason },
        ]
    }

    #[test]
    fn every_event_in_pieces_of_every_size() {
        let mut stream = HEARTBEAT.to_owned();
        for (event, id) in all().iter().zip(7..) {
            let data = serde_json::to_string(event).unwrap();
            assert!(data.contains(&format!("\"kind\":\"{}\"", event.kind())));
            stream.push_str(&write(id, &data));
        }
        for size in [1, 2, 3, 7, stream.len()] {
            for text in [stream.clone(), stream.replace('\n', "\r\n"), stream.replace('\n', "\r")] {
                let mut reader = Reader::default();
                let mut got = Vec::new();
                for piece in text.as_bytes().chunks(size) {
                    got.extend(reader.push(piece).unwrap().into_iter().map(Option::unwrap));
                }
                assert_eq!((got, reader.last()), (all(), Some(14)), "{size}");
            }
        }
    }

    #[test]
    fn unknown_kinds_keep_their_number_and_no_more() {
        let mut reader = Reader::default();
        assert_eq!(reader.push(b"event: x\nid: 3\ndata: {\"kind\":\"tea\"}\n\nretry: 5\n\n").unwrap(), [None]);
        assert_eq!(reader.push(b"data: {\"kind\":\"stop\",\"run\":\"00\"}\n\n").unwrap(), [None]);
        assert_eq!(reader.last(), Some(3));
        assert_eq!(reader.push(write_position(9).as_bytes()).unwrap(), []);
        assert_eq!(reader.last(), Some(9));
    }

    #[test]
    fn what_is_refused() {
        assert!(Reader::default().push(b"id: x\n").unwrap_err().reason.contains("no number"));
        assert!(Reader::default().push(b"data: \xff\n").unwrap_err().reason.contains("UTF-8"));
        let mut reader = Reader::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; limits::MESSAGE / 2], b"\n"].concat();
        reader.push(&line).unwrap();
        assert!(reader.push(&line).unwrap_err().reason.contains("over 65536 bytes"));
    }
}
