//! TPM response codes in words (TPM 2.0 Part 2, 6.6).

use std::fmt;

/// A TPM_RC other than success.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ResponseCode(pub u32);

/// What an error with a location refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// The n-th parameter.
    Parameter(u32),
    /// The n-th session.
    Session(u32),
    /// The n-th handle.
    Handle(u32),
}

impl ResponseCode {
    /// TPM_RC_VALUE without a location.
    pub const VALUE: u32 = 0x084;
    /// TPM_RC_RETRY: send the command again.
    pub const RETRY: Self = Self(0x922);
    /// TPM_RC_YIELDED: send the command again.
    pub const YIELDED: Self = Self(0x908);
    /// TPM_RC_TESTING: the self-test is running, send the command again.
    pub const TESTING: Self = Self(0x90A);
    /// TPM_RC_PCR_CHANGED: a PCR was extended between PolicyPCR and use.
    pub const PCR_CHANGED: Self = Self(0x128);
    /// TPM_RC_POLICY: a PolicyCounterTimer condition is false.
    pub const POLICY: Self = Self(0x126);
    /// TPM_RC_INITIALIZE: TPM2_Startup is needed, or was sent twice.
    pub const INITIALIZE: Self = Self(0x100);

    /// The code without its location.
    #[must_use]
    pub const fn base(self) -> u32 {
        if self.0 & 0x080 != 0 { self.0 & 0x0BF } else { self.0 & 0x97F }
    }

    /// What the code refers to, for a format-one code.
    #[must_use]
    pub const fn location(self) -> Option<Location> {
        if self.0 & 0x080 == 0 {
            return None;
        }
        let n = (self.0 >> 8) & 0xF;
        if self.0 & 0x040 != 0 {
            Some(Location::Parameter(n))
        } else if n & 0x8 != 0 {
            Some(Location::Session(n & 0x7))
        } else if n != 0 {
            Some(Location::Handle(n))
        } else {
            None
        }
    }

    /// Whether the TPM asks to send the same command again.
    #[must_use]
    pub const fn asks_again(self) -> bool {
        matches!(self, Self::RETRY | Self::YIELDED | Self::TESTING)
    }

    /// Its name, and what it means here.
    #[must_use]
    pub const fn words(self) -> (&'static str, &'static str) {
        match self.base() {
            0x081 => ("TPM_RC_ASYMMETRIC", "this asymmetric algorithm is not supported"),
            0x082 => ("TPM_RC_ATTRIBUTES", "inconsistent attributes"),
            0x083 => ("TPM_RC_HASH", "this hash algorithm is not supported"),
            0x084 => ("TPM_RC_VALUE", "a value is out of range, or PCRs differ from those approved"),
            0x085 => ("TPM_RC_HIERARCHY", "the hierarchy is not enabled or not right for this"),
            0x087 => ("TPM_RC_KEY_SIZE", "this key size is not supported"),
            0x08B => ("TPM_RC_HANDLE", "there is nothing at this handle"),
            0x08E => ("TPM_RC_AUTH_FAIL", "wrong authorisation; failures are counted"),
            0x08F => ("TPM_RC_NONCE", "the nonce is not that of this session: a replay"),
            0x092 => ("TPM_RC_SCHEME", "this scheme is not supported"),
            0x095 => ("TPM_RC_SIZE", "wrong size"),
            0x096 => ("TPM_RC_SYMMETRIC", "this symmetric algorithm is not supported"),
            0x098 => ("TPM_RC_TAG", "wrong structure tag"),
            0x099 => ("TPM_RC_SELECTOR", "wrong union selector"),
            0x09A => ("TPM_RC_INSUFFICIENT", "the structure is too short"),
            0x09B => ("TPM_RC_SIGNATURE", "the signature is not valid for this session, object and reference"),
            0x09D => ("TPM_RC_POLICY_FAIL", "the object's policy is not satisfied"),
            0x09F => ("TPM_RC_INTEGRITY", "the blob was changed, or is for another TPM"),
            0x0A0 => ("TPM_RC_TICKET", "the ticket is not valid in this boot"),
            0x0A1 => ("TPM_RC_RESERVED_BITS", "reserved bits are set"),
            0x0A2 => ("TPM_RC_BAD_AUTH", "wrong authorisation"),
            0x0A3 => ("TPM_RC_EXPIRED", "the verdict has expired"),
            0x0A4 => ("TPM_RC_POLICY_CC", "the policy allows another command only"),
            0x0A5 => ("TPM_RC_BINDING", "the public and the sensitive part do not belong together"),
            0x0A6 => ("TPM_RC_CURVE", "this curve is not supported"),
            0x0A7 => ("TPM_RC_ECC_POINT", "not a point on the curve"),
            0x100 => ("TPM_RC_INITIALIZE", "TPM2_Startup is needed, or was sent already"),
            0x101 => ("TPM_RC_FAILURE", "the TPM is in failure mode; power-cycle it"),
            0x120 => ("TPM_RC_DISABLED", "the command is disabled"),
            0x124 => ("TPM_RC_AUTH_TYPE", "the session is of the wrong type"),
            0x125 => ("TPM_RC_AUTH_MISSING", "authorisation is missing"),
            0x126 => ("TPM_RC_POLICY", "counters or clock are not those approved: another boot, or too late"),
            0x127 => ("TPM_RC_PCR", "the PCR check failed"),
            0x128 => ("TPM_RC_PCR_CHANGED", "a PCR was extended since it was checked"),
            0x12D => ("TPM_RC_UPGRADE", "a firmware upgrade is under way"),
            0x12F => ("TPM_RC_AUTH_UNAVAILABLE", "no such authorisation is possible: only the policy opens this"),
            0x142 => ("TPM_RC_COMMAND_SIZE", "wrong command size"),
            0x143 => ("TPM_RC_COMMAND_CODE", "the TPM does not have this command"),
            0x148 => ("TPM_RC_NV_LOCKED", "the NV index is locked"),
            0x149 => ("TPM_RC_NV_AUTHORIZATION", "not allowed for this NV index"),
            0x14B => ("TPM_RC_NV_SPACE", "no NV space is left"),
            0x14C => ("TPM_RC_NV_DEFINED", "the NV index or persistent handle is taken"),
            0x901 => ("TPM_RC_CONTEXT_GAP", "too many saved contexts"),
            0x902 => ("TPM_RC_OBJECT_MEMORY", "no object slot is free (three exist)"),
            0x903 => ("TPM_RC_SESSION_MEMORY", "no session slot is free (three exist)"),
            0x904 => ("TPM_RC_MEMORY", "out of memory"),
            0x905 => ("TPM_RC_SESSION_HANDLES", "no session handle is left"),
            0x906 => ("TPM_RC_OBJECT_HANDLES", "no object handle is left"),
            0x907 => ("TPM_RC_LOCALITY", "wrong locality"),
            0x908 => ("TPM_RC_YIELDED", "try again"),
            0x909 => ("TPM_RC_CANCELED", "the command was cancelled"),
            0x90A => ("TPM_RC_TESTING", "self-test is running, try again"),
            0x910..=0x916 => ("TPM_RC_REFERENCE_H", "a handle refers to nothing loaded"),
            0x918..=0x91E => {
                ("TPM_RC_REFERENCE_S", "a session is gone: the TPM was reset or resumed, or it was flushed")
            }
            0x920 => ("TPM_RC_NV_RATE", "NV is being written too often, try again"),
            0x921 => ("TPM_RC_LOCKOUT", "dictionary-attack lockout is active"),
            0x922 => ("TPM_RC_RETRY", "try again"),
            0x923 => ("TPM_RC_NV_UNAVAILABLE", "NV cannot be written now"),
            _ => ("TPM_RC", "no words for this code"),
        }
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, meaning) = self.words();
        write!(f, "{name} ({:#x}", self.0)?;
        match self.location() {
            Some(Location::Parameter(n)) => write!(f, ", parameter {n}")?,
            Some(Location::Session(n)) => write!(f, ", session {n}")?,
            Some(Location::Handle(n)) => write!(f, ", handle {n}")?,
            None => {}
        }
        write!(f, "): {meaning}")
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_seen_on_real_tpms() {
        let cases = [
            (0x99d, "TPM_RC_POLICY_FAIL", Some(Location::Session(1))),
            (0x1c4, "TPM_RC_VALUE", Some(Location::Parameter(1))),
            (0x5db, "TPM_RC_SIGNATURE", Some(Location::Parameter(5))),
            (0x1cf, "TPM_RC_NONCE", Some(Location::Parameter(1))),
            (0x4e3, "TPM_RC_EXPIRED", Some(Location::Parameter(4))),
            (0x9a3, "TPM_RC_EXPIRED", Some(Location::Session(1))),
            (0x128, "TPM_RC_PCR_CHANGED", None),
            (0x12f, "TPM_RC_AUTH_UNAVAILABLE", None),
            (0x1df, "TPM_RC_INTEGRITY", Some(Location::Parameter(1))),
            (0x922, "TPM_RC_RETRY", None),
            (0x18b, "TPM_RC_HANDLE", Some(Location::Handle(1))),
        ];
        for (code, name, location) in cases {
            let code = ResponseCode(code);
            assert_eq!(code.words().0, name, "{code}");
            assert_eq!(code.location(), location, "{code}");
        }
        assert!(ResponseCode(0x922).asks_again());
        assert!(!ResponseCode(0x128).asks_again());
    }
}
