//! A P-256 EK beside the two that swtpm_setup makes: its certificate, by the same CA, goes where vendors put it.

use countersign_tpm::ek::Template;
use countersign_tpm::public::{Key, Public};
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::handles::NvIndexTpmHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{MaxNvBuffer, NvPublicBuilder};

use super::{Error, Oracle};
use crate::error::Error as SimError;
use crate::manufacture::tail;
use crate::sim::Sim;
use crate::tools;

/// Bytes written at a time: every TPM takes that many.
const PIECE: usize = 512;

impl Oracle {
    /// Makes the P-256 EK, has the sim's CA certify it, and writes the certificate (DER, returned) into NV.
    ///
    /// # Errors
    /// The TPM has no CA, a tool is missing or fails, or the TPM refuses.
    pub fn certify_p256_ek(&mut self, sim: &Sim) -> Result<Vec<u8>, Error> {
        let ek = self.create_ek(Template::P256)?;
        self.flush(&ek.key)?;
        let failed = |log: String| Error::from(SimError::Manufacture { status: "P-256 EK".into(), log });
        let public = Public::parse(&ek.key.public).map_err(|e| failed(e.to_string()))?;
        let Key::Ecc { x, y, .. } = &public.key else { return Err(failed("the EK is no point".into())) };
        let ca = sim.ca_dir().ok_or_else(|| failed("this TPM has no CA".into()))?;
        let out = sim.home().join("certs/ek-secp256r1.crt");
        let mut command = tools::command(&tools::find("swtpm_cert")?);
        command.args(["--type", "ek", "--tpm2", "--ecc-curveid", "secp256r1", "--ecc-x", &hex::encode(x)]);
        command.args(["--ecc-y", &hex::encode(y), "--days", "3650", "--serial", "256", "--subject", "CN=unknown"]);
        command.args(["--tpm-manufacturer", "id:00001014", "--tpm-model", "swtpm", "--tpm-version", "id:20191023"]);
        command.args(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"]);
        command.arg("--signkey").arg(ca.join("signkey.pem")).arg("--issuercert").arg(ca.join("issuercert.pem"));
        let output = command.arg("--out-cert").arg(&out).output().map_err(SimError::file("run", &out))?;
        if !output.status.success() {
            return Err(failed(tail(&[output.stdout, output.stderr].concat())));
        }
        let der = std::fs::read(&out).map_err(SimError::file("read", &out))?;
        self.write_nv(Template::P256.certificate_index(), &der)?;
        Ok(der)
    }

    /// Defines an NV index that everybody may read, and fills it.
    ///
    /// # Errors
    /// The TPM refuses.
    pub fn write_nv(&mut self, index: u32, contents: &[u8]) -> Result<(), Error> {
        let attributes = NvIndexAttributesBuilder::new()
            .with_owner_write(true)
            .with_owner_read(true)
            .with_auth_read(true)
            .with_no_da(true)
            .build()?;
        let public = NvPublicBuilder::new()
            .with_nv_index(NvIndexTpmHandle::new(index)?)
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(contents.len())
            .build()?;
        let written = self.context().execute_with_session(Some(AuthSession::Password), |ctx| {
            let index = ctx.nv_define_space(Provision::Owner, None, public)?;
            let mut offset = 0_u16;
            for piece in contents.chunks(PIECE) {
                ctx.nv_write(NvAuth::Owner, index, MaxNvBuffer::try_from(piece.to_vec())?, offset)?;
                offset = offset.saturating_add(u16::try_from(piece.len()).unwrap_or(u16::MAX));
            }
            Ok::<(), tss_esapi::Error>(())
        });
        Ok(written?)
    }
}
