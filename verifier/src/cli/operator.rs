//! Operators' commands that are one request each (`crate::admin`).

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use countersign_wire::artefact;
use countersign_wire::enrol::{HostCard, HostState};
use countersign_wire::id::{RunId, VerdictId, WorkloadId};

use super::{read, reference};
use crate::admin::{Request, RunOrder};
use crate::out::Failure;
use crate::tls::{pem_certificates, public_key};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// A token that admits hosts never seen before, or with --host a new AK on a known host
    New {
        /// How many hosts it admits
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// Seconds until it expires
        #[arg(long, default_value_t = 86_400)]
        ttl: u32,
        /// A known host: id, its beginning, or name
        #[arg(long)]
        host: Option<String>,
    },
}

impl Token {
    pub(super) fn request(&self) -> Request {
        let Self::New { uses, ttl, host } = self;
        Request::TokenNew { uses: *uses, ttl_s: *ttl, host: host.clone() }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum EkRoot {
    /// Trust every certificate in a PEM file
    Add {
        /// PEM file
        file: PathBuf,
        /// Hosts under it are simulated
        #[arg(long)]
        development: bool,
    },
    /// Trusted CAs with their fingerprints
    List,
    /// No longer trust a CA
    Remove {
        /// Beginning of its fingerprint
        fingerprint: String,
    },
}

impl EkRoot {
    pub(super) fn request(&self) -> Result<Request, Failure> {
        Ok(match self {
            Self::Add { file, development } => {
                let certificates = pem_certificates(&read(file)?).into_iter().map(|der| STANDARD.encode(der)).collect();
                Request::EkRootAdd { certificates, development: *development }
            }
            Self::List => Request::EkRootList {},
            Self::Remove { fingerprint } => Request::EkRootRemove { fingerprint: fingerprint.clone() },
        })
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Ek {
    /// Trust one EK: only when you know that it is that host's, for it can be any key
    Allow {
        /// What `attest ek -o` or `attest show -o` wrote on the host; or the public key, PEM or as TPM tools write it
        file: PathBuf,
        /// A name for people (default: the file's)
        #[arg(long)]
        name: Option<String>,
        /// The host with it is simulated
        #[arg(long)]
        development: bool,
    },
    /// EKs that are trusted so
    List,
    /// No longer trust an EK; a host that is enrolled with it stays enrolled
    Remove {
        /// Beginning of its id
        ek: String,
    },
}

impl Ek {
    pub(super) fn request(&self) -> Result<Request, Failure> {
        Ok(match self {
            Self::Allow { file, name, development } => {
                let bytes = read(file)?;
                let card = artefact::from_file::<HostCard>(&bytes);
                let ek = card.map_or_else(|_| public_key(bytes), |card| card.ek_public);
                let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let name = name.clone().unwrap_or_else(stem);
                Request::EkAllow { ek: STANDARD.encode(ek), name, development: *development }
            }
            Self::List => Request::EkList {},
            Self::Remove { ek } => Request::EkRemove { ek: ek.clone() },
        })
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Host {
    /// All hosts
    List,
    /// One host
    Show {
        /// Id, its beginning, or name
        host: String,
    },
    /// Admit a pending or suspended host; it starts a new baseline
    Admit(Change),
    /// Suspend a host: it is appraised and gets nothing
    Suspend(Change),
    /// Revoke a host for ever
    Revoke(Change),
}

impl Host {
    pub(super) fn request(&self) -> Request {
        let change = |given: &Change, state| Request::HostState {
            host: given.host.clone(),
            state,
            reason: given.reason.clone(),
        };
        match self {
            Self::List => Request::HostList {},
            Self::Show { host } => Request::HostShow { host: host.clone() },
            Self::Admit(given) => change(given, HostState::Active),
            Self::Suspend(given) => change(given, HostState::Suspended),
            Self::Revoke(given) => change(given, HostState::Revoked),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Change {
    /// Id, its beginning, or name
    host: String,
    /// Why; kept with the host and in the audit
    #[arg(long, default_value = "by the operator")]
    reason: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Reference {
    /// Accept what a boot log measured, or the files of a reference set
    #[command(group(clap::ArgGroup::new("source").required(true).args(["eventlog", "verdict", "file"])))]
    Add {
        /// Name of the set
        name: String,
        /// The firmware's event log
        #[arg(long, value_name = "FILE")]
        eventlog: Option<PathBuf>,
        /// The boot log in the evidence of this verdict, which its quoted PCRs must vouch for
        #[arg(long, value_name = "ID")]
        verdict: Option<VerdictId>,
        /// PCRs to take (default: 0, 2, 3, 4, 7, 8, 9, 14)
        #[arg(long, conflicts_with = "file")]
        pcr: Vec<u8>,
        /// A reference set, as `attest learn` writes it or `attest reference sign` signs it
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Key (PEM) that must have signed the set
        #[arg(long, value_name = "FILE", requires = "file")]
        key: Vec<PathBuf>,
    },
    /// No longer accept a set
    Revoke {
        /// Its name
        name: String,
    },
    /// All sets
    List,
}

impl Reference {
    /// `None` where no source was given, which the command line does not allow.
    pub(super) fn request(&self) -> Result<Option<Request>, Failure> {
        Ok(Some(match self {
            Self::Add { name, verdict: Some(id), pcr, .. } => {
                Request::ReferenceAddVerdict { name: name.clone(), id: *id, pcrs: pcr.clone() }
            }
            Self::Add { name, eventlog: Some(log), pcr, .. } => {
                Request::ReferenceAdd { name: name.clone(), eventlog: STANDARD.encode(read(log)?), pcrs: pcr.clone() }
            }
            Self::Add { name, file: Some(file), key, .. } => reference::add(name, file, key)?,
            Self::Add { .. } => return Ok(None),
            Self::Revoke { name } => Request::ReferenceRevoke { name: name.clone() },
            Self::List => Request::ReferenceList {},
        }))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Verdict {
    /// Newest verdicts
    List {
        /// Of one host
        #[arg(long)]
        host: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// One verdict with every check
    Show {
        /// Verdict id
        id: VerdictId,
    },
    /// Write a verdict's evidence bundle into a file
    Bundle {
        /// Verdict id
        id: VerdictId,
        /// The file
        #[arg(short, long)]
        output: PathBuf,
    },
}

impl Verdict {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::List { host, limit } => Request::VerdictList { host: host.clone(), limit: *limit },
            Self::Show { id } => Request::VerdictShow { id: *id },
            Self::Bundle { id, .. } => Request::VerdictBundle { id: *id },
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Release {
    /// Newest releases, with their runs
    List {
        /// To one host
        #[arg(long)]
        host: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Give a release whose answer was lost back: it counts against the cap no longer (audited)
    Refund {
        /// Run id
        run: RunId,
        /// Host, when several have a release for such a run: id, a beginning of it, or name
        #[arg(long)]
        host: Option<String>,
    },
}

impl Release {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::List { host, limit } => Request::ReleaseList { host: host.clone(), limit: *limit },
            Self::Refund { run, host } => Request::ReleaseRefund { run: *run, host: host.clone() },
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Workload {
    /// All workloads
    List,
    /// One workload
    Show {
        /// Workload id
        workload: WorkloadId,
    },
    /// No longer release a workload's key
    Withdraw {
        /// Workload id
        workload: WorkloadId,
    },
}

impl Workload {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::List => Request::WorkloadList {},
            Self::Show { workload } => Request::WorkloadShow { workload: *workload },
            Self::Withdraw { workload } => Request::WorkloadWithdraw { workload: *workload },
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Grant {
    /// Take a grant that an owner made (supervisor grant)
    Add {
        /// The file
        file: PathBuf,
    },
    /// All grants
    List,
}

impl Grant {
    pub(super) fn request(&self) -> Result<Request, Failure> {
        Ok(match self {
            Self::Add { file } => Request::GrantAdd { grant: STANDARD.encode(read(file)?) },
            Self::List => Request::GrantList {},
        })
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Run {
    /// Newest runs, as the hosts' attested run logs tell
    List {
        /// Of one host: id, its beginning, or name
        #[arg(long)]
        host: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// One run, with findings
    Show {
        /// Run id, or its beginning
        run: String,
    },
    /// Tell the host to end a run
    Stop(Order),
    /// Tell the host to freeze a run
    Freeze(Order),
    /// Tell the host to let a frozen run go on
    Thaw(Order),
}

impl Run {
    pub(super) fn request(&self) -> Request {
        let order =
            |given: &Order, order| Request::RunOrder { run: given.run.clone(), order, reason: given.reason.clone() };
        match self {
            Self::List { host, limit } => Request::RunList { host: host.clone(), limit: *limit },
            Self::Show { run } => Request::RunShow { run: run.clone() },
            Self::Stop(given) => order(given, RunOrder::Stop),
            Self::Freeze(given) => order(given, RunOrder::Freeze),
            Self::Thaw(given) => order(given, RunOrder::Thaw),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Order {
    /// Run id, or its beginning
    run: String,
    /// Why; the host and the audit are told
    #[arg(long, default_value = "by the operator")]
    reason: String,
}
