//! Where a TPM is: `device:PATH`, `swtpm:unix=PATH` or `swtpm:host=H,port=P`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a TPM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmAddress {
    /// A character device, normally the kernel's resource manager `/dev/tpmrm0`.
    Device(PathBuf),
    /// swtpm's data channel on a Unix socket.
    Unix(PathBuf),
    /// swtpm's data channel on TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Why a text is no TPM address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("TPM address {0:?} is none of device:PATH, swtpm:unix=PATH, swtpm:host=HOST,port=PORT")]
pub struct BadAddress(pub String);

impl FromStr for TpmAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("device:").filter(|path| !path.is_empty()) {
            return Ok(Self::Device(path.into()));
        }
        if let Some(path) = text.strip_prefix("swtpm:unix=").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let rest = text.strip_prefix("swtpm:").ok_or_else(bad)?;
        let (host, port) = rest.split_once(',').ok_or_else(bad)?;
        let host = host.strip_prefix("host=").filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let port = port.strip_prefix("port=").and_then(|port| port.parse().ok()).ok_or_else(bad)?;
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for TpmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "device:{}", path.display()),
            Self::Unix(path) => write!(f, "swtpm:unix={}", path.display()),
            Self::Tcp { host, port } => write!(f, "swtpm:host={host},port={port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["device:/dev/tpmrm0", "swtpm:unix=/run/x,y/tpm.sock", "swtpm:host=::1,port=2321"] {
            assert_eq!(text.parse::<TpmAddress>().unwrap().to_string(), text);
        }
        for text in
            ["", "device:", "swtpm:", "swtpm:unix=", "swtpm:host=a", "swtpm:host=,port=1", "swtpm:host=a,port=99999"]
        {
            assert!(text.parse::<TpmAddress>().is_err(), "{text}");
        }
    }
}
