//! Rego engine, policy bundles, input and verdict types; embeds the shipped policies.
//!
//! A policy is an OPA bundle ([`PolicyBundle`]): Rego v1 modules and base documents in a gzipped tar. [`Compiled`] is one that was
//! checked and compiled for regorus' virtual machine; [`Compiled::decide`] asks it for `data.countersign.host.verdict` or
//! `data.countersign.workload.verdict` and never fails: whatever goes wrong is a denial with a reason id of its own
//! ([`reason`]).
//!
//! ```
//! use countersign_policy::{Compiled, PolicyBundle, Role, shipped_host_policy};
//!
//! let bundle = PolicyBundle::parse(shipped_host_policy())?;
//! let policy = Compiled::new(&bundle, Role::Host)?;
//! assert_eq!(policy.role(), Role::Host);
//! # Ok::<(), countersign_policy::PolicyError>(())
//! ```

mod bundle;
mod compiled;
pub mod docs;
mod document;
mod error;
mod heads;
pub mod input;
mod inspect;
pub mod limits;
pub mod lint;
mod programs;
mod reference;
pub mod schema;
pub mod settings;
mod shipped;
mod tar;
pub mod testing;
pub mod verdict;

pub use bundle::{Manifest, PolicyBundle, Release, bundle_files};
pub use compiled::{Compiled, PolicyEngine, Ready, ReferenceData, Role, engine_version, malformed};
pub use document::{decision, deny};
pub use error::PolicyError;
pub use reference::reference_document;
pub use shipped::{library, shipped_host_policy, shipped_workload_policy};

/// Ids of the reasons that the engine itself gives; a policy's own ids come beside them.
pub mod reason {
    /// The input is not of the documented form.
    pub const INPUT: &str = "policy-input";
    /// `verdict` is undefined for this input.
    pub const UNDEFINED: &str = "policy-undefined";
    /// Evaluation failed, for example in a builtin.
    pub const ERROR: &str = "policy-error";
    /// The instruction or time limit was reached.
    pub const TIMEOUT: &str = "policy-timeout";
    /// `verdict` or a part of it has another type or form than documented.
    pub const TYPE: &str = "policy-type";
    /// The policy's bundle is valid no longer.
    pub const EXPIRED: &str = "policy-expired";
    /// An obligation that this version does not know.
    pub const OBLIGATION: &str = "obligation-unknown";
    /// `allow` is false and the policy said nothing more.
    pub const UNEXPLAINED: &str = "policy-denied";
}
