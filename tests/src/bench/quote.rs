//! Quote verification, bytes in to PCR digest compared, against ring's bare verification of the same signature.

use std::hint::black_box;

use anyhow::{Context as _, anyhow, bail, ensure};
use countersign_tpm::alg::HashAlg;
use countersign_tpm::attest::Quote;
use countersign_tpm::public::{Key, Public};
use countersign_tpm::signature::Signature;
use countersign_verifier::appraise::quote::{QuoteKey, digest_of, value_of};
use countersign_wire::eventlog::PcrBank;
use countersign_wire::evidence::{BankValues, PcrValue};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};

use super::measure::{Call, in_turn};
use super::report::{Goal, Row};
use super::{Bench, Topic};

pub(super) const TOPIC: Topic = Topic { rows: &["quote-p256", "quote-rsa2048"], measure };

const ROUNDS: usize = 501;
const PCRS: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/PCRS.json");

/// A recorded quote: AK, TPMS_ATTEST, TPMT_SIGNATURE, PCR values.
pub(super) struct Recorded {
    ak: Public,
    quote: &'static [u8],
    signature: &'static [u8],
    pub(super) values: Vec<BankValues>,
}

impl Recorded {
    fn new(ak: &[u8], quote: &'static [u8], signature: &'static [u8]) -> anyhow::Result<Self> {
        let ak = Public::parse_file(ak)?;
        let all: serde_json::Value = serde_json::from_slice(PCRS)?;
        let mut values = Vec::new();
        for bank in Quote::parse(quote)?.selection.0 {
            let alg = HashAlg::from_id(bank.alg).context("an unknown bank")?;
            let value = |index: u8| {
                let hex = all.get(alg.name()).and_then(|bank| bank.get(index.to_string())).and_then(|hex| hex.as_str());
                let value = hex::decode(hex.with_context(|| format!("no value of {alg}:{index}"))?)?;
                anyhow::Ok(PcrValue { index, value })
            };
            let pcrs: anyhow::Result<Vec<PcrValue>> = bank.pcrs().map(value).collect();
            values.push(BankValues { alg: bank.alg, pcrs: pcrs? });
        }
        Ok(Self { ak, quote, signature, values })
    }

    /// The P-256 one.
    pub(super) fn p256() -> anyhow::Result<Self> {
        Self::new(
            include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_ecc.tpmt"),
            include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_ecc.msg"),
            include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_ecc.sig"),
        )
    }

    /// Its AK, ready to verify.
    pub(super) fn key(&self) -> anyhow::Result<QuoteKey> {
        Ok(QuoteKey::new(&self.ak)?)
    }

    /// What the verifier does with it: signature, structure, selection, digest.
    pub(super) fn verify(&self, key: &QuoteKey) -> anyhow::Result<()> {
        let quote = key.verify(black_box(self.quote), black_box(self.signature))?;
        let value = |alg, index| value_of(black_box(&self.values), alg, index);
        let got = digest_of(key.hash(), &quote.selection, value).map_err(|missing| anyhow!("no {missing}"))?;
        ensure!(got.as_bytes() == quote.pcr_digest, "another PCR digest");
        Ok(())
    }

    /// That the firmware's PCRs hold what its log leads to.
    pub(super) fn agrees(&self, replayed: &PcrBank) -> anyhow::Result<()> {
        for pcr in 0..10u8 {
            let quoted = value_of(&self.values, replayed.alg(), pcr);
            ensure!(quoted == replayed.value(pcr), "PCR {pcr}: the log leads elsewhere");
        }
        Ok(())
    }

    fn row(&self, name: &str, floor: Call<'_>) -> anyhow::Result<Row> {
        let key = self.key()?;
        let medians = in_turn(ROUNDS, &mut [&mut || self.verify(&key), floor])?;
        let [value, floor] = medians.as_slice() else { bail!("two medians") };
        Ok(Row {
            name: name.to_owned(),
            value: 1.0 / value,
            unit: "per second",
            against: "ring's bare verification".to_owned(),
            against_value: 1.0 / floor,
            goal: Goal::AtLeast(0.9),
            samples: ROUNDS,
            note: String::new(),
        })
    }
}

fn measure(_bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let (p256, mut floor) = (Recorded::p256()?, bare_p256()?);
    let first = p256.row("quote-p256", &mut floor)?;

    let rsa = Recorded::new(
        include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_rsa.tpmt"),
        include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_rsa.msg"),
        include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_rsa.sig"),
    )?;
    let Key::Rsa { modulus, .. } = &rsa.ak.key else { bail!("no RSA key") };
    let Signature::Rsassa { signature, .. } = Signature::parse(rsa.signature)? else { bail!("no RSASSA signature") };
    let key = RsaPublicKeyComponents { n: modulus.as_slice(), e: [1, 0, 1].as_slice() };
    let mut floor = || {
        let verified = key.verify(&RSA_PKCS1_2048_8192_SHA256, black_box(rsa.quote), black_box(signature));
        verified.map_err(|_| anyhow!("the floor refuses"))
    };
    let second = rsa.row("quote-rsa2048", &mut floor)?;
    Ok(vec![first, second])
}

/// ring's bare verification of the P-256 quote.
pub(super) fn bare_p256() -> anyhow::Result<impl Fn() -> anyhow::Result<()>> {
    let recorded = Recorded::p256()?;
    let point = recorded.ak.ecc_point().context("no point")?;
    let fixed = Signature::parse(recorded.signature)?.to_fixed(32).context("no ECDSA signature")?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    Ok(move || key.verify(black_box(recorded.quote), black_box(&fixed)).map_err(|_| anyhow!("the floor refuses")))
}
