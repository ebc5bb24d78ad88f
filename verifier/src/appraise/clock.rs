//! Clock and counters: never backwards (TPM 2.0 Part 1, 36; DESIGN.md section 6).

use super::snapshot::Baseline;

/// What a quote says of time: TPMS_CLOCK_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Clock, milliseconds.
    pub clock_ms: u64,
    /// resetCount.
    pub reset_count: u32,
    /// restartCount.
    pub restart_count: u32,
    /// safe.
    pub safe: bool,
}

/// How a reading stands to the last accepted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// The first of this baseline.
    First,
    /// The same (resetCount, restartCount).
    Same,
    /// resetCount is the same and restartCount rose: a TPM Resume kept the PCRs, a TPM Restart did not.
    Restarted,
    /// resetCount rose: the PCRs began anew. `skipped` resets in between were never attested.
    Reset {
        /// resetCount now - resetCount then - 1.
        skipped: u32,
    },
}

/// A signed contradiction: time went backwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backwards {
    /// What was found.
    pub got: String,
    /// What was expected.
    pub want: String,
}

/// Compares a reading with the last accepted one.
///
/// # Errors
/// A lower resetCount; in the same reset a lower restartCount; in the same pair a lower clock; in a new pair a lower clock that
/// the TPM calls safe.
pub(crate) fn compare(baseline: Option<&Baseline>, now: Reading) -> Result<Continuity, Backwards> {
    let Some(then) = baseline else { return Ok(Continuity::First) };
    let pair = (now.reset_count, now.restart_count);
    let old = (then.reset_count, then.restart_count);
    if pair < old {
        return Err(Backwards {
            got: format!("resetCount {}, restartCount {}", pair.0, pair.1),
            want: format!("not below resetCount {}, restartCount {} (last accepted)", old.0, old.1),
        });
    }
    let clock_fell = now.clock_ms < then.clock_ms;
    if clock_fell && (pair == old || now.safe) {
        return Err(Backwards {
            got: format!("clock {} ms, safe = {}", now.clock_ms, if now.safe { "YES" } else { "NO" }),
            want: format!("at least {} ms (last accepted)", then.clock_ms),
        });
    }
    Ok(if pair == old {
        Continuity::Same
    } else if now.reset_count == then.reset_count {
        Continuity::Restarted
    } else {
        Continuity::Reset { skipped: now.reset_count.saturating_sub(then.reset_count).saturating_sub(1) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Baseline {
        Baseline { reset_count: 5, restart_count: 2, clock_ms: 1000, safe: true, life: 1, run: None }
    }

    fn reading(reset_count: u32, restart_count: u32, clock_ms: u64, safe: bool) -> Reading {
        Reading { clock_ms, reset_count, restart_count, safe }
    }

    #[test]
    fn forward_is_fine() {
        assert_eq!(compare(None, reading(0, 0, 0, false)), Ok(Continuity::First));
        assert_eq!(compare(Some(&base()), reading(5, 2, 1000, true)), Ok(Continuity::Same));
        assert_eq!(compare(Some(&base()), reading(5, 3, 1001, true)), Ok(Continuity::Restarted));
        assert_eq!(compare(Some(&base()), reading(6, 0, 2000, true)), Ok(Continuity::Reset { skipped: 0 }));
        assert_eq!(compare(Some(&base()), reading(9, 0, 2000, true)), Ok(Continuity::Reset { skipped: 3 }));
    }

    #[test]
    fn clock_may_fall_after_a_power_cut_only() {
        assert_eq!(compare(Some(&base()), reading(6, 0, 900, false)), Ok(Continuity::Reset { skipped: 0 }));
        assert!(compare(Some(&base()), reading(6, 0, 900, true)).is_err());
        assert!(compare(Some(&base()), reading(5, 2, 999, false)).is_err());
    }

    #[test]
    fn counters_never_fall() {
        for lower in [reading(4, 9, 9000, true), reading(5, 1, 9000, true), reading(0, 0, 0, false)] {
            assert!(compare(Some(&base()), lower).is_err());
        }
    }
}
