//! Relying side: appraise evidence, decide, release.
//!
//! | module | what it owns |
//! |---|---|
//! | [`appraise`] | the pure appraisal: evidence and context in, verdict out |
//! | [`ima`] | IMA lists against reference sets |
//! | [`check`] | the same checks for auditors, offline: logs, quotes, bundles |
//! | [`explain`] | why a verdict was a no, and what would make it a yes |
//! | [`release`] | the two signatures of a release, in their strict forms |
//! | [`service`] | enrolment, challenges, answers: the database transactions around the appraisal |
//! | [`policy`] | policies: signed bundles, loading, attacks on a good host, other engines |
//! | [`admin`] | what operators ask |
//! | [`server`], [`tls`] | HTTPS |
//! | [`store`], [`keys`], [`config`] | what lies in the state folder |

pub mod admin;
pub mod appraise;
pub mod check;
pub mod cli;
pub mod config;
pub mod endpoint;
pub mod error;
pub mod explain;
pub mod ima;
pub mod keys;
pub mod out;
pub mod policy;
pub mod release;
pub mod server;
pub mod service;
pub mod store;
pub mod tls;
