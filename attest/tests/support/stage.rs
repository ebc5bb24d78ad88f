//! A host with a recorded boot, and a real verifier that knows it.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_attest::host::Observer;
use countersign_attest::{Config, Host, HostError, Overrides, Step, token};
use countersign_tpm_sim::{Options, Sim};
use countersign_verifier::admin::{self, Request};
use countersign_verifier::service::Service;
use countersign_verifier::store::Store;
use countersign_verifier::{config, keys, server};
use countersign_wire::id::{PayloadRoot, PolicyDigest, WorkloadId};
use countersign_wire::trust::JoinToken;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const BOOT: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
pub(crate) const IMA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ima_binary");
pub(crate) const VOLUME_KEY: [u8; 64] = [0x5a; 64];

/// A verifier in a thread of this process.
pub(crate) struct Verifier {
    pub(crate) url: String,
    service: Service,
    runtime: tokio::runtime::Runtime,
}

impl Verifier {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::with_policy(dir, None)
    }

    /// With a host policy of its own (Rego).
    pub(crate) fn with_policy(dir: &Path, policy: Option<&str>) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        keys::create(dir).unwrap();
        let text = config::EXAMPLE
            .replace("https://127.0.0.1:7448", "https://127.0.0.1:0")
            .replace("dangerous_allow_simulated_hosts = false", "dangerous_allow_simulated_hosts = true");
        let host_policy = policy.map_or("", |policy| {
            let package = dir.join("policy/countersign/host");
            std::fs::create_dir_all(&package).unwrap();
            std::fs::write(package.join("host.rego"), policy).unwrap();
            "host_policy = \"policy\"\n"
        });
        std::fs::write(dir.join("verifier.toml"), format!("{host_policy}{text}")).unwrap();
        keys::write_secret(&dir.join("operator.token"), b"operator\n").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(Store::open(dir, true)).unwrap();
        let service = runtime.block_on(Service::open(dir)).unwrap();
        let (ready, announced) = mpsc::channel();
        let served = service.clone();
        runtime.spawn(async move {
            server::serve(served, |url| ready.send(url.to_owned()).unwrap()).await.unwrap();
        });
        let url = announced.recv_timeout(Duration::from_secs(120)).unwrap();
        Self { url, service, runtime }
    }

    /// What an operator asks.
    pub(crate) fn ask(&self, request: Request) -> Value {
        self.runtime.block_on(admin::perform(&self.service, request, "test")).unwrap()
    }

    /// What an operator asks and may not get.
    pub(crate) fn try_ask(&self, request: Request) -> Result<Value, countersign_verifier::error::Error> {
        self.runtime.block_on(admin::perform(&self.service, request, "test"))
    }

    pub(crate) fn token(&self, host: Option<String>) -> JoinToken {
        let answer = self.ask(Request::TokenNew { uses: 1, ttl_s: 600, host });
        token::parse(answer["token"].as_str().unwrap()).unwrap()
    }

    /// State of the only host.
    pub(crate) fn state(&self) -> String {
        self.ask(Request::HostList {})["hosts"][0]["state"].as_str().unwrap().to_lowercase()
    }
}

/// A TPM with a recorded boot, a verifier that accepts it, and the host's folder.
pub(crate) struct Stage {
    pub(crate) sim: Sim,
    pub(crate) verifier: Verifier,
    dir: TempDir,
}

impl Stage {
    /// `None`, said aloud, where swtpm is not installed.
    pub(crate) fn new() -> Option<Self> {
        Self::with_policy(None)
    }

    /// As [`Stage::new`], with a host policy of its own (Rego).
    pub(crate) fn with_policy(policy: Option<&str>) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let sim = super::sim_in(&dir.path().join("tpm"))?;
        Some(Self::of(dir, sim, policy))
    }

    /// As [`Stage::new`], with a TPM that has no EK certificates.
    pub(crate) fn without_certificates() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let options = Options::named("bare").without_certificates();
        let sim = super::sim_of(&dir.path().join("tpm"), &options)?;
        Some(Self::of(dir, sim, None))
    }

    fn of(dir: TempDir, mut sim: Sim, policy: Option<&str>) -> Self {
        sim.replay(BOOT, IMA).unwrap();
        std::fs::write(dir.path().join("boot"), BOOT).unwrap();
        std::fs::write(dir.path().join("ima"), IMA).unwrap();
        let verifier = Verifier::with_policy(&dir.path().join("verifier"), policy);
        if let Some(ca) = sim.ca_pem() {
            let root = std::fs::read_to_string(ca).unwrap();
            let certificates: Vec<String> = root
                .split("-----BEGIN CERTIFICATE-----")
                .skip(1)
                .map(|pem| pem.split("-----END").next().unwrap().split_whitespace().collect())
                .collect();
            verifier.ask(Request::EkRootAdd { certificates, development: true });
        }
        verifier.ask(Request::ReferenceAdd {
            name: "recorded".into(),
            eventlog: STANDARD.encode(BOOT),
            pcrs: Vec::new(),
        });
        Self { sim, verifier, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> Config {
        let config = Overrides { tpm: self.sim.tpm_arg().parse().ok(), state_dir: Some(self.path("host")) };
        let config = Config::resolve(Some(Path::new("/dev/null")), config, &|_| None).unwrap();
        Config {
            event_log: Some(self.path("boot")),
            ima_log: Some(self.path("ima")),
            systemd_log: None,
            deadline: Duration::from_secs(30),
            ..config
        }
    }

    pub(crate) fn host(&self) -> Host {
        Host::open(self.config()).unwrap()
    }

    /// A host that is "killed" after a step.
    pub(crate) fn host_dying_after(&self, last: Step) -> Host {
        let mut host = self.host();
        let observer: Observer =
            Box::new(move |step| if step == last { Err(HostError::Interrupted(step)) } else { Ok(()) });
        host.observe(observer);
        host
    }

    pub(crate) fn enrolled() -> Option<Self> {
        let stage = Self::new()?;
        let enrolled = stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
        assert_eq!(format!("{:?}", enrolled.state), "Active");
        Some(stage)
    }

    /// Registers a workload whose volume key is [`VOLUME_KEY`].
    pub(crate) fn register(&self) -> WorkloadId {
        let policy = countersign_policy::shipped_workload_policy();
        let payload_root = PayloadRoot([7; 32]);
        let workload = WorkloadId::of(&payload_root, &PolicyDigest::of(policy), &[9; 16]);
        self.verifier.ask(Request::WorkloadRegister {
            name: "app".into(),
            workload,
            payload_root,
            sif_uuid: hex::encode([9; 16]),
            policy: STANDARD.encode(policy),
            volume_key: STANDARD.encode(VOLUME_KEY).into(),
            least_selection: Vec::new(),
        });
        workload
    }

    /// A reboot into the same recorded system.
    pub(crate) fn reboot(&mut self) {
        self.sim.reset().unwrap();
        self.sim.replay(BOOT, IMA).unwrap();
    }
}

/// The reasons' ids of a denial.
pub(crate) fn denied(error: HostError) -> Vec<String> {
    let HostError::Denied(denial) = error else { panic!("{error}") };
    denial.reasons.into_iter().map(|reason| reason.id).collect()
}
