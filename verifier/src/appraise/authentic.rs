//! Evidence -> [`Authentic`]: by an enrolled AK, for an open challenge, and no step back in time.

use countersign_tpm::ak::qualified_name;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::pcr::{BankSelection, PcrSelection};
use countersign_tpm::public::{Name, Public};
use countersign_wire::cbor;
use countersign_wire::enrol::HostState;
use countersign_wire::evidence::Evidence;
use countersign_wire::statement::{Purpose, Statement, qualifying_data};

use super::checks::{Checks, Failure, Stop};
use super::clock::{self, Continuity, Reading};
use super::quote::{QuoteError, QuoteKey, digest_of, value_of};
use super::snapshot::Context;

/// Evidence whose quote, PCR values and statement are authentic. Its logs are not, yet.
///
/// Only [`authenticate`] makes one:
/// ```compile_fail
/// let authentic = countersign_verifier::appraise::Authentic { evidence: todo!() };
/// ```
#[derive(Debug)]
pub struct Authentic {
    pub(super) evidence: Evidence,
    pub(super) statement: Statement,
    pub(super) reading: Reading,
    pub(super) firmware_version: u64,
    pub(super) selection: PcrSelection,
    pub(super) continuity: Continuity,
}

impl Authentic {
    /// A quoted PCR value.
    #[must_use]
    pub fn pcr(&self, alg: HashAlg, index: u8) -> Option<Digest> {
        value_of(&self.evidence.pcrs, alg, index)
    }

    /// The quoted banks.
    pub(super) fn banks(&self) -> Vec<HashAlg> {
        self.selection.0.iter().filter_map(|bank| HashAlg::from_id(bank.alg)).collect()
    }
}

/// The first half of the appraisal; each check is a line here, in DESIGN.md's order.
pub(super) fn authenticate(evidence: Evidence, context: &Context, checks: &mut Checks) -> Result<Authentic, Stop> {
    checks.run("challenge", challenge(&evidence, context))?;
    checks.run("host-state", host_state(context))?;
    let key = checks.run("algorithm", algorithm(context))?;
    let quote = checks.run("quote-signature", signature(&key, &evidence))?;
    checks.run("qualifying-data", extra_data(&quote, &evidence))?;
    let statement = checks.run("statement", statement(&evidence, context))?;
    checks.run("qualified-signer", signer(&quote, context))?;
    checks.run("pcr-selection", selection(&quote, &evidence, context))?;
    checks.run("pcr-digest", pcrs(&key, &quote, &evidence))?;
    let reading = Reading {
        clock_ms: quote.clock.clock,
        reset_count: quote.clock.reset_count,
        restart_count: quote.clock.restart_count,
        safe: quote.clock.safe,
    };
    let continuity = checks.run("clock", continuity(context, reading))?;
    let (firmware_version, selection) = (quote.firmware_version, quote.selection.clone());
    Ok(Authentic { statement, reading, firmware_version, selection, continuity, evidence })
}

/// Known, issued to this host, fresh. (Unused, and still open, is for the transaction that stores the answer.)
fn challenge(evidence: &Evidence, context: &Context) -> Result<(), Failure> {
    let challenge = &context.challenge;
    if evidence.nonce != challenge.nonce {
        return Err(Failure::new(evidence.nonce.to_string(), challenge.nonce.to_string()).about("nonce"));
    }
    if evidence.host != challenge.host || challenge.host != context.host.host {
        return Err(Failure::new(evidence.host.to_string(), challenge.host.to_string()).about("host"));
    }
    if context.now_ms >= challenge.expires_ms || context.now_ms < challenge.issued_ms {
        let age = context.now_ms.saturating_sub(challenge.issued_ms);
        let limit = challenge.expires_ms.saturating_sub(challenge.issued_ms);
        return Err(Failure::new(format!("evidence {age} ms after the challenge"), format!("within {limit} ms"))
            .about("challenge")
            .hint("attest again"));
    }
    Ok(())
}

/// Revoked and pending hosts are not appraised; suspended ones are, and get nothing (the decision says so).
fn host_state(context: &Context) -> Result<(), Failure> {
    match context.host.state {
        HostState::Active | HostState::Suspended => Ok(()),
        HostState::Pending => Err(Failure::new("pending", "active")
            .about("host state")
            .hint(format!("verifier host admit {}", context.host.host))),
        HostState::Revoked => Err(Failure::new("revoked", "active").about("host state")),
    }
}

fn algorithm(context: &Context) -> Result<QuoteKey, Failure> {
    let public =
        Public::parse(&context.host.ak_public).map_err(|e| Failure::new(e.to_string(), "an AK").about("AK"))?;
    countersign_tpm::ak::check(&public)
        .map_err(|e| Failure::new(e.to_string(), "a restricted signing key").about("AK"))?;
    QuoteKey::new(&public).map_err(|e| match e {
        QuoteError::Algorithm { got, want } => Failure::new(got, want).about("AK"),
        QuoteError::Signature | QuoteError::Structure(_) => Failure::new(e.to_string(), "an AK").about("AK"),
    })
}

fn signature<'a>(key: &QuoteKey, evidence: &'a Evidence) -> Result<Quote<'a>, Failure> {
    key.verify(&evidence.quote, &evidence.signature).map_err(|e| match e {
        QuoteError::Algorithm { got, want } => Failure::new(got, want).about("signature"),
        QuoteError::Signature => {
            Failure::new("a signature that does not verify", "one by the enrolled AK over this quote")
                .about("signature")
        }
        QuoteError::Structure(reason) => Failure::new(reason, "a TPMS_ATTEST of type quote").about("quote"),
    })
}

fn extra_data(quote: &Quote<'_>, evidence: &Evidence) -> Result<(), Failure> {
    let want = qualifying_data(&evidence.nonce, &evidence.statement);
    if quote.extra_data == want {
        return Ok(());
    }
    Err(Failure::new(hex::encode(quote.extra_data), hex::encode(want)).about("extraData"))
}

fn statement(evidence: &Evidence, context: &Context) -> Result<Statement, Failure> {
    let statement: Statement =
        cbor::decode(&evidence.statement).map_err(|e| Failure::new(e.to_string(), "a statement").about("statement"))?;
    let purpose = context.challenge.purpose;
    if statement.purpose != purpose {
        return Err(Failure::new(format!("{:?}", statement.purpose), format!("{purpose:?}")).about("purpose"));
    }
    let asked = statement.release.as_ref().map(|release| release.workload);
    if asked != context.challenge.workload || asked.is_some() != (purpose == Purpose::Release) {
        let show = |id: Option<countersign_wire::id::WorkloadId>| id.map_or_else(|| "none".into(), |id| id.to_string());
        return Err(Failure::new(show(asked), show(context.challenge.workload)).about("workload"));
    }
    if let Some(release) = &statement.release {
        if release.nonce_tpm.len() != 32 {
            return Err(Failure::new(format!("{} bytes", release.nonce_tpm.len()), "32 bytes").about("nonceTPM"));
        }
        if release.object_name.len() != 34 || !release.object_name.starts_with(&[0x00, 0x0B]) {
            return Err(Failure::new(hex::encode(&release.object_name), "a SHA-256 Name").about("object Name"));
        }
    }
    Ok(statement)
}

/// H(QN(EK) || Name(AK)): the AK is a child of the enrolled EK, not a key of the owner or null hierarchy.
fn signer(quote: &Quote<'_>, context: &Context) -> Result<(), Failure> {
    let ak = Public::parse(&context.host.ak_public).map(|public| public.name());
    let ek = Name::parse(&context.host.ek_name);
    let want = ek.ok().zip(ak.ok()).and_then(|(ek, ak)| qualified_name(&ek, &ak));
    match want {
        Some(want) if want.as_bytes() == quote.qualified_signer => Ok(()),
        Some(want) => Err(Failure::new(hex::encode(quote.qualified_signer), want.to_string()).about("qualifiedSigner")),
        None => Err(Failure::new("an unusable Name in the enrolment", "EK and AK Names").about("qualifiedSigner")),
    }
}

/// The selection equals the one asked for, and each selected (bank, index) is given exactly once.
fn selection(quote: &Quote<'_>, evidence: &Evidence, context: &Context) -> Result<(), Failure> {
    let banks = context.challenge.selection.iter();
    let want: Option<Vec<BankSelection>> =
        banks.map(|bank| HashAlg::from_id(bank.alg).map(|alg| BankSelection::new(alg, &bank.pcrs))).collect();
    if want.as_deref() != Some(quote.selection.0.as_slice()) {
        return Err(
            Failure::new(format!("{:?}", quote.selection.0), format!("{want:?}")).about("quote's PCR selection")
        );
    }
    for bank in &quote.selection.0 {
        let given: Vec<&countersign_wire::evidence::BankValues> =
            evidence.pcrs.iter().filter(|given| given.alg == bank.alg).collect();
        let [given] = given.as_slice() else {
            return Err(
                Failure::new(format!("bank {:#06x} {} times", bank.alg, given.len()), "once").about("PCR values")
            );
        };
        let indices: Vec<u8> = given.pcrs.iter().map(|pcr| pcr.index).collect();
        let selected: Vec<u8> = bank.pcrs().collect();
        if indices != selected {
            return Err(Failure::new(format!("{indices:?}"), format!("{selected:?}")).about("indices of PCR values"));
        }
    }
    if evidence.pcrs.len() != quote.selection.0.len() {
        return Err(Failure::new("a bank that was not quoted", "the quoted banks").about("PCR values"));
    }
    Ok(())
}

fn pcrs(key: &QuoteKey, quote: &Quote<'_>, evidence: &Evidence) -> Result<(), Failure> {
    let got = digest_of(key.hash(), &quote.selection, |alg, pcr| value_of(&evidence.pcrs, alg, pcr))
        .map_err(|missing| Failure::new(format!("no value of {missing}"), "every quoted PCR").about("PCR values"))?;
    if got.as_bytes() == quote.pcr_digest {
        return Ok(());
    }
    Err(Failure::new(got.to_string(), hex::encode(quote.pcr_digest)).about("digest of the PCR values"))
}

fn continuity(context: &Context, reading: Reading) -> Result<Continuity, Failure> {
    clock::compare(context.host.baseline.as_ref(), reading)
        .map_err(|backwards| Failure::new(backwards.got, backwards.want).about("clock and counters").contradiction())
}
