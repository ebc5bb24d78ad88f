//! Replay, rules and authentication of event data in one pass, for the PCRs that somebody vouches for.

use countersign_tpm::alg::{Digest, HashAlg};

use super::replay::{complete_exit_boot_services, digest_of, pcr_of};
use super::rules::Rules;
use super::{Event, EventLog, EventType, Lie, PcrBank, PcrSet, ReplayError};

/// What the indices of a log mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// PCRs of a TPM.
    Tpm,
    /// Measurement registers of a TDX guest: index k is RTMR[k-1], and RTMR[0] holds what PCRs 1 and 7 would, RTMR[1] what PCRs 2 to 6
    /// would, RTMR[2] what PCRs 8 to 15 would (UEFI 2.10, 38.4.1).
    Cc,
}

/// Why a log is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It leads to no values at all.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// It claims what no true log claims.
    #[error("{}: {}, wanted {}", .0.event, .0.got, .0.want)]
    Lie(Lie),
}

/// A PCR that holds another value than the logs lead to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PCR {pcr}, {alg}: the logs lead to {got}, and it holds {want}")]
pub struct Mismatch {
    /// The bank.
    pub alg: HashAlg,
    /// The PCR.
    pub pcr: u8,
    /// What the logs lead to.
    pub got: Digest,
    /// What is vouched for.
    pub want: Digest,
    /// Whether any event extends it; if none does, it must hold its initial value.
    pub extended: bool,
}

/// A log that was replayed and judged in the banks and PCRs asked for. Whether its values are the TPM's is for the caller to compare.
#[derive(Debug, Clone)]
pub struct Examined<'l, 'a> {
    pub(crate) log: &'l EventLog<'a>,
    /// What the indices mean.
    pub registers: Registers,
    /// The replayed PCRs, one for each bank asked for.
    pub banks: Vec<PcrBank>,
    parts: Vec<Part<'a>>,
    pub(crate) completed: Option<&'static [&'static str]>,
}

/// The measured part of an event's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'a> {
    /// No bank vouches for the event's PCR, or it extends none.
    Unseen,
    /// A bank vouches for the PCR, and the data does not hash to the digest there.
    Not,
    /// The part that hashes to the digest in every bank that vouches for the PCR.
    Is(&'a [u8]),
}

/// Which events of a log extend covered PCRs, and which part of their data is vouched for: what an examination found, without the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched(Box<[Extent]>);

/// A [`Part`] as a place in the event's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Unseen,
    Not,
    /// Where it begins, and its length.
    Is(usize, usize),
}

impl Vouched {
    /// The same as [`Examined::events`], of the log that was examined, parsed again. Another log's events mean nothing here.
    pub fn events<'l, 'a>(&self, log: &'l EventLog<'a>) -> impl Iterator<Item = (&'l Event<'a>, u8, Option<&'a [u8]>)> {
        log.events.iter().zip(&self.0).filter_map(|(event, extent)| {
            let pcr = u8::try_from(event.pcr).ok()?;
            match *extent {
                Extent::Unseen => None,
                Extent::Not => Some((event, pcr, None)),
                Extent::Is(from, length) => Some((event, pcr, event.data.get(from..from.checked_add(length)?))),
            }
        })
    }
}

impl<'a> EventLog<'a> {
    /// Replays and judges the log in these banks. Only the PCRs given for a bank count: an event of another PCR is vouched for by nobody, so
    /// nothing that it claims is believed, and nothing that it claims can make a log a lie. The format, and the PCR indices of all
    /// events, count in any case.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn examine(&self, wanted: &[(HashAlg, PcrSet)], registers: Registers) -> Result<Examined<'_, 'a>, Refusal> {
        let mut parts = vec![Part::Unseen; self.events.len()];
        let mut banks = Vec::with_capacity(wanted.len());
        for (alg, covers) in wanted {
            self.has_bank(*alg)?;
            let mut bank = PcrBank::starting(*alg, *covers, registers);
            let mut rules = Rules::new(self, *alg, registers);
            for (event, part) in self.events.iter().zip(&mut parts) {
                let Some(pcr) = pcr_of(event)?.filter(|pcr| covers.contains(*pcr)) else { continue };
                if registers == Registers::Tpm {
                    rules.locality(event, pcr, &bank).map_err(Refusal::Lie)?;
                    bank.note_locality(event, pcr);
                }
                if event.kind == EventType::NO_ACTION {
                    rules.no_action(event, pcr).map_err(Refusal::Lie)?;
                    continue;
                }
                let digest = digest_of(event, *alg)?;
                let measured = event.part(*alg, digest);
                rules.judge(event, pcr, digest, measured).map_err(Refusal::Lie)?;
                bank.extend(pcr, digest);
                *part = match (*part, measured) {
                    (Part::Unseen, Some(found)) => Part::Is(found),
                    (Part::Is(before), Some(found)) if before == found => Part::Is(found),
                    _ => Part::Not,
                };
            }
            rules.end().map_err(Refusal::Lie)?;
            banks.push(bank);
        }
        Ok(Examined { log: self, registers, banks, parts, completed: None })
    }

    /// The first false claim, judged by the digests of one bank over all PCRs.
    #[must_use]
    pub fn lies(&self, alg: HashAlg) -> Option<Lie> {
        match self.examine(&[(alg, PcrSet::ALL)], Registers::Tpm) {
            Err(Refusal::Lie(lie)) => Some(lie),
            Err(Refusal::Replay(_)) | Ok(_) => None,
        }
    }
}

impl<'a> Examined<'_, 'a> {
    /// PCRs that at least one bank covers.
    #[must_use]
    pub fn covers(&self) -> PcrSet {
        self.banks.iter().fold(PcrSet::NONE, |all, bank| all.union(bank.covers()))
    }

    /// Every event that extends a covered PCR, with the part of its data that every bank that covers the PCR vouches for.
    pub fn events(&self) -> impl Iterator<Item = (&Event<'a>, u8, Option<&'a [u8]>)> {
        self.log.events.iter().zip(&self.parts).filter_map(|(event, part)| {
            let pcr = u8::try_from(event.pcr).ok()?;
            match part {
                Part::Unseen => None,
                Part::Not => Some((event, pcr, None)),
                Part::Is(part) => Some((event, pcr, Some(*part))),
            }
        })
    }

    /// What is kept of it when its log is to be read again later.
    #[must_use]
    pub fn vouched(&self) -> Vouched {
        let extent = |(event, part): (&Event<'a>, &Part<'a>)| match part {
            Part::Unseen => Extent::Unseen,
            Part::Not => Extent::Not,
            Part::Is(part) => {
                let from = part.as_ptr().addr().saturating_sub(event.data.as_ptr().addr());
                Extent::Is(from, part.len())
            }
        };
        Vouched(self.log.events.iter().zip(&self.parts).map(extent).collect())
    }

    /// Compares the replayed PCRs with the vouched ones, after what other logs extended was added to `banks`.
    ///
    /// Some firmware extends PCR 5 with the events of ExitBootServices and does not log them: if one of the sequences that firmware uses
    /// leads to the vouched value in every bank that has it, PCR 5 is taken as explained.
    ///
    /// # Errors
    /// [`Mismatch`]: the first PCR that holds another value.
    pub fn compare(&mut self, vouched: impl Fn(HashAlg, u8) -> Option<Digest>) -> Result<(), Box<Mismatch>> {
        if self.registers == Registers::Tpm {
            let with_pcr5 = self.banks.iter().filter(|bank| bank.covers().contains(5));
            let wanted: Option<Vec<Digest>> = with_pcr5.map(|bank| vouched(bank.alg(), 5)).collect();
            let differs = self.banks.iter().any(|bank| {
                bank.covers().contains(5) && vouched(bank.alg(), 5).is_some_and(|wanted| bank.value(5) != Some(wanted))
            });
            if let (Some(wanted), true) = (wanted, differs) {
                let mut with_pcr5: Vec<&mut PcrBank> =
                    self.banks.iter_mut().filter(|bank| bank.covers().contains(5)).collect();
                self.completed = complete_exit_boot_services(&mut with_pcr5, &wanted);
            }
        }
        for bank in &self.banks {
            for pcr in (0..24u8).filter(|pcr| bank.covers().contains(*pcr)) {
                let (got, want) = (bank.value(pcr), vouched(bank.alg(), pcr));
                if let (Some(got), Some(want)) = (got, want)
                    && got != want
                {
                    return Err(Box::new(Mismatch { alg: bank.alg(), pcr, got, want, extended: bank.extended(pcr) }));
                }
            }
        }
        Ok(())
    }

    /// Secure Boot: true or false from an authenticated event whose variable is of exactly one byte 00 or 01; otherwise `None`.
    #[must_use]
    pub fn secure_boot(&self) -> Option<bool> {
        self.secure_boot_event().map(|(_, on)| on)
    }

    /// The same with the event's index.
    pub(crate) fn secure_boot_event(&self) -> Option<(u32, bool)> {
        let register = self.registers.secure_boot();
        let (event, variable) = self
            .events()
            .filter(|(event, pcr, _)| *pcr == register && event.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG)
            .filter_map(|(event, _, part)| Some((event, super::Variable::parse(part?).ok()?)))
            .find(|(_, variable)| variable.is_secure_boot())?;
        match variable.data {
            [0] => Some((event.index, false)),
            [1] => Some((event.index, true)),
            _ => None,
        }
    }

    /// Whether ExitBootServices was reached: by an authenticated event, or because the vouched PCR 5 shows that it was extended.
    #[must_use]
    pub fn exit_boot_services(&self) -> bool {
        self.exit_boot_services_event().is_some()
            || self.completed.is_some_and(|sequence| sequence.last() == Some(&EXITED))
    }

    pub(crate) fn exit_boot_services_event(&self) -> Option<u32> {
        let register = self.registers.exit_boot_services();
        self.events()
            .find(|(_, pcr, part)| *pcr == register && *part == Some(EXITED.as_bytes()))
            .map(|(event, ..)| event.index)
    }
}

pub(super) const EXITED: &str = "Exit Boot Services Returned with Success";

impl Registers {
    /// Whether an index of the log is where this PCR is measured.
    #[must_use]
    pub const fn holds(self, index: u8, pcr: u8) -> bool {
        match self {
            Self::Tpm => index == pcr,
            Self::Cc => match pcr {
                1 | 7 => index == 1,
                2..=6 => index == 2,
                8..=15 => index == 3,
                _ => false,
            },
        }
    }

    /// Where the Secure Boot policy is measured: PCR 7, RTMR[0].
    #[must_use]
    pub const fn secure_boot(self) -> u8 {
        match self {
            Self::Tpm => 7,
            Self::Cc => 1,
        }
    }

    /// Where ExitBootServices is measured: PCR 5, RTMR[1].
    #[must_use]
    pub const fn exit_boot_services(self) -> u8 {
        match self {
            Self::Tpm => 5,
            Self::Cc => 2,
        }
    }

    /// How many firmware PCRs (0 to 7) an index stands for: as many separators it may hold.
    pub(super) const fn separators(self, index: u8) -> u8 {
        match (self, index) {
            (Self::Tpm, 0..=7) => 1,
            (Self::Cc, 1) => 2,
            (Self::Cc, 2) => 5,
            (Self::Tpm | Self::Cc, _) => 0,
        }
    }
}
