//! Runs encrypted SIF images under a grant, and makes them.
//!
//! One run has four processes: the supervisor, the [decryptor](mod@run) that alone holds the key, the stage in its own namespaces, and the
//! workload: under bubblewrap alone, or under Apptainer or SingularityCE, over squashfuse.

mod channel;
pub mod cli;
mod confine;
mod daemon;
mod decryptor;
pub mod doctor;
mod ending;
pub mod exit;
pub mod grant;
mod group;
pub mod inspect;
pub mod instance;
mod monitor;
pub mod out;
pub mod owner;
mod permit;
mod play;
mod prompt;
pub mod run;
mod runtime;
mod served;
mod stage;
mod stat;
mod status;
pub mod unprotect;
mod watch;
mod workshop;
