//! The few TPM commands that play the parts of firmware, kernel and power button (TPM 2.0 Part 3).

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::codec::{Malformed, Reader, Reason, Writer};
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm::rc::ResponseCode;

use crate::error::Error;

/// How long a command may take before another program is taken to hold the connection, in seconds.
const DEADLINE: u64 = 10;
/// Times that a command is sent again when the TPM asks for it.
const TRIES: u32 = 10;
/// Bytes of a response (TPM_PT_MAX_RESPONSE_SIZE of swtpm).
const RESPONSE: usize = 4096;

const RH_PLATFORM: u32 = 0x4000_000C;
const RS_PW: u32 = 0x4000_0009;
const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
const CC_CLEAR: u32 = 0x0000_0126;
const CC_STARTUP: u32 = 0x0000_0144;
const CC_SHUTDOWN: u32 = 0x0000_0145;
const CC_PCR_READ: u32 = 0x0000_017E;
const CC_READ_CLOCK: u32 = 0x0000_0181;
const CC_PCR_EXTEND: u32 = 0x0000_0182;

/// TPM_SU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Su {
    /// TPM_SU_CLEAR.
    Clear,
    /// TPM_SU_STATE.
    State,
}

impl Su {
    const fn id(self) -> u16 {
        match self {
            Self::Clear => 0,
            Self::State => 1,
        }
    }
}

/// What TPM2_ReadClock says (TPMS_TIME_INFO, Part 2, 10.11.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Clock {
    /// Milliseconds since the TPM was powered.
    pub time: u64,
    /// Milliseconds that the TPM was powered in its life, since the last TPM2_Clear.
    pub clock: u64,
    /// TPM Resets since the last TPM2_Clear.
    pub reset_count: u32,
    /// TPM Restarts and Resumes since the last Reset.
    pub restart_count: u32,
    /// Whether `clock` is surely no value that was shown before: false after a power cut.
    pub safe: bool,
}

/// A data connection to swtpm, which serves one at a time.
pub(crate) struct Raw(UnixStream);

impl Raw {
    pub(crate) fn connect(socket: &Path) -> Result<Self, Error> {
        let failed = |what| move |source| Error::Connection { what, source };
        let stream = UnixStream::connect(socket).map_err(failed("connect"))?;
        stream.set_read_timeout(Some(Duration::from_secs(DEADLINE))).map_err(failed("deadline"))?;
        Ok(Self(stream))
    }

    /// Sends a command without sessions, or with one empty password for its only handle, and gives the answer's parameters.
    fn run(&mut self, command: &'static str, code: u32, handle: Option<u32>, params: &[u8]) -> Result<Vec<u8>, Error> {
        let body = match handle {
            None => params.to_vec(),
            // authorizationSize 9: TPM_RS_PW, empty nonce, no attributes, empty password.
            Some(handle) => {
                let auth = Writer::new().u32_be(RS_PW).tpm2b(&[]).u8(0).tpm2b(&[]).done();
                Writer::new().u32_be(handle).u32_be(9).raw(&auth).raw(params).done()
            }
        };
        let tag = if handle.is_some() { ST_SESSIONS } else { ST_NO_SESSIONS };
        let size = u32::try_from(body.len().saturating_add(10)).unwrap_or(u32::MAX);
        let request = Writer::new().u16_be(tag).u32_be(size).u32_be(code).raw(&body).done();
        let mut code = ResponseCode::RETRY;
        for _ in 0..TRIES {
            let (answer, rest) = self.exchange(&request, command)?;
            code = answer;
            if code.0 == 0 {
                let parse = |reader: &mut Reader<'_>| {
                    if handle.is_some() {
                        reader.u32_be("parameterSize")?;
                    }
                    Ok(reader.rest().to_vec())
                };
                return Reader::all(&rest, "response", parse).map_err(|source| Error::Answer { command, source });
            }
            if !code.asks_again() {
                break;
            }
        }
        Err(Error::Tpm { command, code })
    }

    fn exchange(&mut self, request: &[u8], command: &'static str) -> Result<(ResponseCode, Vec<u8>), Error> {
        let failed = |what| {
            move |source: std::io::Error| {
                let late = [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&source.kind());
                if late { Error::Busy(DEADLINE) } else { Error::Connection { what, source } }
            }
        };
        self.0.write_all(request).map_err(failed("send"))?;
        let mut header = [0; 10];
        self.0.read_exact(&mut header).map_err(failed("read"))?;
        let parse = |reader: &mut Reader<'_>| {
            reader.u16_be("tag")?;
            let at = reader.clone();
            let size = reader.u32_be("responseSize")?;
            let length = usize::try_from(size).ok().filter(|n| *n <= RESPONSE).and_then(|n| n.checked_sub(10));
            let length = length.ok_or_else(|| at.bad("responseSize", Reason::Value(size.into())))?;
            Ok((length, ResponseCode(reader.u32_be("responseCode")?)))
        };
        let (length, code) =
            Reader::all(&header, "header", parse).map_err(|source| Error::Answer { command, source })?;
        let mut rest = vec![0; length];
        self.0.read_exact(&mut rest).map_err(failed("read"))?;
        Ok((code, rest))
    }

    /// TPM2_Startup (9.3).
    pub(crate) fn startup(&mut self, kind: Su) -> Result<(), Error> {
        self.run("TPM2_Startup", CC_STARTUP, None, &kind.id().to_be_bytes()).map(drop)
    }

    /// TPM2_Shutdown (9.4).
    pub(crate) fn shutdown(&mut self, kind: Su) -> Result<(), Error> {
        self.run("TPM2_Shutdown", CC_SHUTDOWN, None, &kind.id().to_be_bytes()).map(drop)
    }

    /// TPM2_Clear (24.6), as the firmware's set-up menu does it: by the platform hierarchy.
    pub(crate) fn clear(&mut self) -> Result<(), Error> {
        self.run("TPM2_Clear", CC_CLEAR, Some(RH_PLATFORM), &[]).map(drop)
    }

    /// TPM2_PCR_Extend (22.2): banks without a digest stay as they are, digests of inactive banks are ignored.
    pub(crate) fn extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), Error> {
        let count = u32::try_from(digests.len()).unwrap_or(u32::MAX);
        let params = digests.iter().fold(Writer::new().u32_be(count), |writer, digest| {
            writer.u16_be(digest.alg().id()).raw(digest.as_bytes())
        });
        self.run("TPM2_PCR_Extend", CC_PCR_EXTEND, Some(pcr), &params.done()).map(drop)
    }

    /// TPM2_PCR_Read (22.4); `None` if the bank is not active.
    pub(crate) fn read_pcr(&mut self, bank: HashAlg, pcr: u8) -> Result<Option<Digest>, Error> {
        let command = "TPM2_PCR_Read";
        let answer = self.run(command, CC_PCR_READ, None, &PcrSelection::single(bank, &[pcr]).to_bytes())?;
        let parse = |reader: &mut Reader<'_>| -> Result<Option<Digest>, Malformed> {
            reader.u32_be("pcrUpdateCounter")?;
            PcrSelection::read(reader)?;
            match reader.u32_be("pcrValues.count")? {
                0 => Ok(None),
                _ => {
                    let at = reader.clone();
                    let value = reader.tpm2b(64, "pcrValues.digest")?;
                    let bad = || at.bad("pcrValues.digest", Reason::Other("not the bank's length"));
                    Digest::new(bank, value).map(Some).ok_or_else(bad)
                }
            }
        };
        Reader::all(&answer, command, parse).map_err(|source| Error::Answer { command, source })
    }

    /// TPM2_ReadClock (29.1).
    pub(crate) fn read_clock(&mut self) -> Result<Clock, Error> {
        let command = "TPM2_ReadClock";
        let answer = self.run(command, CC_READ_CLOCK, None, &[])?;
        let parse = |reader: &mut Reader<'_>| {
            Ok(Clock {
                time: reader.u64_be("time")?,
                clock: reader.u64_be("clock")?,
                reset_count: reader.u32_be("resetCount")?,
                restart_count: reader.u32_be("restartCount")?,
                safe: reader.u8("safe")? != 0,
            })
        };
        Reader::all(&answer, command, parse).map_err(|source| Error::Answer { command, source })
    }
}
