//! Every maximum of this crate: value, unit and source.

/// Bytes of any message that carries no logs.
pub const MESSAGE: usize = 64 * 1024;
/// Bytes of the explanation in an answer, as JSON (some sixty findings of a kilobyte).
pub const EXPLANATION: usize = MESSAGE;
/// Bytes of a firmware event log (TCG: LAML; the largest real one seen is below 100 kB).
pub const EVENT_LOG: usize = 4 * 1024 * 1024;
/// Banks in a log (TCG PFP 10.4.5.1; six hash algorithms are registered).
pub const LOG_BANKS: u32 = 8;
/// Variables in the Secure Boot PCR of one log (real machines measure 5 to 20; it bounds the search for one that stands twice).
pub const POLICY_VARIABLES: usize = 256;
/// Bytes of the part of an IMA list that one piece of evidence carries.
pub const IMA_LIST: usize = 64 * 1024 * 1024;
/// Bytes of systemd's userspace log.
pub const SYSTEMD_LOG: usize = 4 * 1024 * 1024;
/// Bytes of a canonical event log in JSON (hex doubles every byte of a firmware log, names and white space add some).
pub const CEL: usize = 16 * 1024 * 1024;
/// Bytes of each text of a finding (Linux: PATH_MAX is 4096; the start of a path tells it).
pub const FINDING_TEXT: usize = 512;
/// Bytes of a finding's encoding: three texts and numbers.
pub const FINDING: usize = 4 * FINDING_TEXT;
/// Findings of one kind that one run writes into the run log; those behind them are counted and judged. A workload cannot fill the log.
pub const FINDINGS_OF_A_KIND: usize = 32;
/// Bytes of findings (JSON) that one run writes into the run log; the first of each kind is written in any case.
pub const FINDINGS_OF_A_RUN: usize = 64 * 1024;
/// Bytes of our run log in one boot: some 80,000 receipts with four banks, 130,000 with one.
pub const RUN_LOG: usize = 64 * 1024 * 1024;
/// Bytes of the part of it that one piece of evidence has room for in any case, whatever else it holds.
pub const RUN_LOG_PART: usize = 16 * 1024 * 1024;
/// Bytes of evidence after decompression: the logs together and room for the rest.
pub const EVIDENCE: usize = EVENT_LOG + IMA_LIST + SYSTEMD_LOG + RUN_LOG_PART + MESSAGE;
/// Bytes of a record: evidence, two policies, reference values and the rest.
pub const RECORD: usize = EVIDENCE + 8 * 1024 * 1024;
/// Bytes of a policy bundle (compressed).
pub const POLICY: usize = 1024 * 1024;
/// Bytes of a reference set, as JSON: some 500,000 files.
pub const REFERENCE_SET: usize = 64 * 1024 * 1024;
/// Bytes of all IMA reference sets of one verifier together.
pub const REFERENCE_SETS: usize = 2 * REFERENCE_SET;
