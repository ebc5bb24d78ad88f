//! A small TPM 2.0 client: transport, sessions and the commands that attestation needs (decision 0001).

mod address;
mod command;
mod handle;
mod session;
mod transport;

pub use address::{BadAddress, TpmAddress};
pub use command::{Loaded, Ticket};
pub use handle::{Hierarchy, PERSISTENT_FIRST};
pub use session::{Auth, Encryption, Session, SessionKind};

use std::time::{Duration, Instant};

use countersign_tpm::codec::{Malformed, Reader, Writer};
use countersign_tpm::public::Name;
use countersign_tpm::rc::ResponseCode;

use transport::Transport;

const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
/// How often a command is sent again when the TPM asks for it, with 1, 2, 4, ... ms in between (about 4 s together).
const RETRIES: u32 = 12;

/// Why a TPM operation failed.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The device or socket cannot be opened or does not answer.
    #[error("TPM at {address}: {source}")]
    Transport {
        /// Where it was looked for.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The TPM refused a command.
    #[error("{command}: {code}")]
    Refused {
        /// Name of the command.
        command: &'static str,
        /// Its answer.
        code: ResponseCode,
    },
    /// The answer is not what the specification says.
    #[error("{command}: malformed response: {malformed}")]
    Malformed {
        /// Name of the command.
        command: &'static str,
        /// Field, offset and reason.
        malformed: Malformed,
    },
    /// The response's HMAC is wrong: something between this program and the TPM changes messages.
    #[error("{0}: the response is not authentic (HMAC): something between this program and the TPM changed it")]
    NotAuthentic(&'static str),
    /// The TPM is not the one that is wanted: its EK differs.
    #[error("this is another TPM: its EK has the Name {got}, expected {want}")]
    OtherTpm {
        /// Name of the EK that it has.
        got: Name,
        /// Name of the EK that it should have.
        want: Name,
    },
    /// A key or algorithm that this client does not handle.
    #[error("{0}")]
    Unsupported(String),
}

impl TpmError {
    /// The response code, if the TPM refused a command.
    #[must_use]
    pub const fn code(&self) -> Option<ResponseCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Transport { .. }
            | Self::Malformed { .. }
            | Self::NotAuthentic(_)
            | Self::OtherTpm { .. }
            | Self::Unsupported(_) => None,
        }
    }
}

/// A connection to a TPM.
#[derive(Debug)]
pub struct Tpm {
    transport: Transport,
    commands: u64,
    busy: Duration,
}

/// A handle with the Name that session HMACs cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// TPM_HANDLE.
    pub handle: u32,
    /// TPM Name.
    pub name: Name,
}

impl Object {
    /// A permanent handle, a PCR or a session: its Name is the handle.
    #[must_use]
    pub fn permanent(handle: u32) -> Self {
        Self { handle, name: Name::of_handle(handle) }
    }
}

/// What a command has.
struct Command<'a> {
    name: &'static str,
    code: u32,
    handles: &'a [&'a Object],
    parameters: Vec<u8>,
}

/// What a response has.
struct Response {
    handle: Option<u32>,
    parameters: Vec<u8>,
}

impl Tpm {
    /// Connects to a TPM.
    ///
    /// # Errors
    /// [`TpmError::Transport`].
    pub fn connect(address: &TpmAddress) -> Result<Self, TpmError> {
        Self::connect_within(address, Duration::from_secs(20))
    }

    /// Connects to a TPM that is to take no longer than this for connecting and for any command. Creating an RSA key takes a real TPM some
    /// seconds.
    ///
    /// # Errors
    /// [`TpmError::Transport`].
    pub fn connect_within(address: &TpmAddress, timeout: Duration) -> Result<Self, TpmError> {
        Ok(Self { transport: Transport::open(address, timeout)?, commands: 0, busy: Duration::ZERO })
    }

    /// Commands sent so far, repetitions included.
    #[must_use]
    pub const fn commands(&self) -> u64 {
        self.commands
    }

    /// Time spent waiting for the TPM so far: the round trips of all commands.
    #[must_use]
    pub const fn busy(&self) -> Duration {
        self.busy
    }

    /// Flushes transient objects and sessions that a dead holder of a socket left. On the kernel's resource manager every connection has
    /// its own, so there it finds none.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn flush_leftovers(&mut self) -> Result<(), TpmError> {
        self.flush_leftovers_but(&[])
    }

    /// As [`Tpm::flush_leftovers`], keeping some handles.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn flush_leftovers_but(&mut self, keep: &[u32]) -> Result<(), TpmError> {
        // Transient objects, HMAC sessions, policy sessions (TPM 2.0 Part 2, 7.2).
        for first in [0x8000_0000, 0x0200_0000, 0x0300_0000] {
            for handle in self.handles(first)?.into_iter().filter(|handle| !keep.contains(handle)) {
                self.flush(handle)?;
            }
        }
        Ok(())
    }

    /// Sends raw command bytes and returns the raw response. For simulators and tests.
    ///
    /// # Errors
    /// [`TpmError::Transport`].
    pub fn transmit(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.commands = self.commands.saturating_add(1);
        let sent = Instant::now();
        let answer = self.transport.exchange(command);
        self.busy = self.busy.saturating_add(sent.elapsed());
        answer
    }

    /// Runs a command whose response has no handle.
    fn run(&mut self, command: Command<'_>, auths: &mut [Auth<'_>]) -> Result<Vec<u8>, TpmError> {
        Ok(self.execute(&command, auths, false)?.parameters)
    }

    /// Runs a command whose response starts with a handle.
    fn run_for_handle(&mut self, command: Command<'_>, auths: &mut [Auth<'_>]) -> Result<(u32, Vec<u8>), TpmError> {
        let name = command.name;
        let response = self.execute(&command, auths, true)?;
        let handle = response.handle.ok_or(TpmError::NotAuthentic(name))?;
        Ok((handle, response.parameters))
    }

    fn execute(
        &mut self,
        command: &Command<'_>,
        auths: &mut [Auth<'_>],
        handle_expected: bool,
    ) -> Result<Response, TpmError> {
        let mut delay = Duration::from_millis(1);
        for attempt in 0..=RETRIES {
            // A repetition needs fresh nonces, so the command is built again.
            let bytes = build(command, auths)?;
            let answer = self.transmit(&bytes)?;
            match parse(command, auths, handle_expected, answer) {
                Err(TpmError::Refused { code, .. }) if code.asks_again() && attempt < RETRIES => {
                    std::thread::sleep(delay);
                    delay = delay.saturating_mul(2);
                }
                other => return other,
            }
        }
        Err(TpmError::Refused { command: command.name, code: ResponseCode::RETRY })
    }
}

/// cpHash or rpHash parts, and the command itself (TPM 2.0 Part 1, 16.7 to 16.8, 18.8).
fn build(command: &Command<'_>, auths: &mut [Auth<'_>]) -> Result<Vec<u8>, TpmError> {
    let mut parameters = command.parameters.clone();
    for auth in auths.iter_mut() {
        auth.begin();
    }
    // The first session that decrypts encrypts the first parameter.
    if let Some(Auth::Session { session, auth_value, .. }) = auths.iter().find(|auth| auth.decrypts()) {
        session.encrypt_command(auth_value, &mut parameters)?;
    }
    let handles = command.handles.iter().fold(Writer::new(), |writer, object| writer.u32_be(object.handle)).done();
    let mut areas = Writer::new();
    for auth in auths.iter() {
        let names: Vec<&[u8]> = command.handles.iter().map(|object| object.name.as_bytes()).collect();
        areas = auth.write(areas, command.code, &names.concat(), &parameters)?;
    }
    let areas = areas.done();
    let mut body = Writer::new().u32_be(command.code).raw(&handles);
    if !auths.is_empty() {
        body = body.u32_be(u32::try_from(areas.len()).unwrap_or(u32::MAX)).raw(&areas);
    }
    let body = body.raw(&parameters).done();
    let tag = if auths.is_empty() { ST_NO_SESSIONS } else { ST_SESSIONS };
    let size = u32::try_from(body.len().saturating_add(6)).unwrap_or(u32::MAX);
    Ok(Writer::new().u16_be(tag).u32_be(size).raw(&body).done())
}

fn parse(
    command: &Command<'_>,
    auths: &mut [Auth<'_>],
    handle_expected: bool,
    answer: Vec<u8>,
) -> Result<Response, TpmError> {
    let malformed = |malformed| TpmError::Malformed { command: command.name, malformed };
    let answer = zeroize::Zeroizing::new(answer);
    let mut reader = Reader::new(&answer);
    let tag = reader.u16_be("tag").map_err(malformed)?;
    let size = reader.u32_be("responseSize").map_err(malformed)?;
    let code = reader.u32_be("responseCode").map_err(malformed)?;
    if code != 0 {
        return Err(TpmError::Refused { command: command.name, code: ResponseCode(code) });
    }
    if usize::try_from(size) != Ok(answer.len()) || (tag == ST_SESSIONS) == auths.is_empty() {
        return Err(TpmError::NotAuthentic(command.name));
    }
    let handle = if handle_expected { Some(reader.u32_be("handle").map_err(malformed)?) } else { None };
    if auths.is_empty() {
        return Ok(Response { handle, parameters: reader.rest().to_vec() });
    }
    let length = reader.u32_be("parameterSize").map_err(malformed)?;
    let mut parameters =
        reader.take(usize::try_from(length).unwrap_or(usize::MAX), "parameters").map_err(malformed)?.to_vec();
    for auth in auths.iter_mut() {
        let authentic = auth.check(&mut reader, command.code, &parameters).map_err(malformed)?;
        if !authentic {
            return Err(TpmError::NotAuthentic(command.name));
        }
    }
    reader.end("authorisation area").map_err(malformed)?;
    if let Some(Auth::Session { session, auth_value, .. }) = auths.iter().find(|auth| auth.encrypts()) {
        session.decrypt_response(auth_value, &mut parameters)?;
    }
    Ok(Response { handle, parameters })
}
