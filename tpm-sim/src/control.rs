//! swtpm's control channel (man swtpm_ioctls): a big-endian command code and its arguments, answered by a result code.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::error::Error;

/// How long swtpm may take for a control command; TPM_Init loads the state from disk.
const DEADLINE: Duration = Duration::from_secs(20);

/// The control commands that are needed here, by their codes in swtpm's tpm_ioctl.h.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Control {
    /// CMD_GET_CAPABILITY, to see that it answers.
    Capability,
    /// CMD_INIT: power on. A stored volatile state is resumed and deleted.
    Init,
    /// CMD_SHUTDOWN: end the process, in good order on the host's side.
    Shutdown,
    /// CMD_SET_LOCALITY.
    Locality(u8),
    /// CMD_STORE_VOLATILE: write the volatile state, PCRs and all, into the state folder.
    StoreVolatile,
}

impl Control {
    const fn name(self) -> &'static str {
        match self {
            Self::Capability => "GET_CAPABILITY",
            Self::Init => "INIT",
            Self::Shutdown => "SHUTDOWN",
            Self::Locality(_) => "SET_LOCALITY",
            Self::StoreVolatile => "STORE_VOLATILE",
        }
    }

    fn request(self) -> Vec<u8> {
        let code: u32 = match self {
            Self::Capability => 1,
            Self::Init => 2,
            Self::Shutdown => 3,
            Self::Locality(_) => 5,
            Self::StoreVolatile => 10,
        };
        let mut bytes = code.to_be_bytes().to_vec();
        match self {
            // init_flags 0 would be right too; bit 0 deletes the volatile state once it is resumed.
            Self::Init => bytes.extend(1u32.to_be_bytes()),
            Self::Locality(locality) => bytes.push(locality),
            Self::Capability | Self::Shutdown | Self::StoreVolatile => {}
        }
        bytes
    }

    /// Sends the command and waits for its result.
    pub(crate) fn send(self, socket: &Path) -> Result<(), Error> {
        let failed = |what| move |source| Error::Connection { what, source };
        let mut stream = UnixStream::connect(socket).map_err(failed("control channel"))?;
        stream.set_read_timeout(Some(DEADLINE)).map_err(failed("deadline"))?;
        stream.write_all(&self.request()).map_err(failed("send control command"))?;
        // GET_CAPABILITY answers with eight bytes of flags and no result code.
        if let Self::Capability = self {
            return stream.read_exact(&mut [0; 8]).map_err(failed("read control result"));
        }
        let mut result = [0; 4];
        stream.read_exact(&mut result).map_err(failed("read control result"))?;
        match u32::from_be_bytes(result) {
            0 => Ok(()),
            code => Err(Error::Control { command: self.name(), code }),
        }
    }
}
