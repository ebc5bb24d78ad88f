//! swtpm under control, and a second TPM stack to check the first against.
//!
//! [`Sim`] is one simulated TPM in a folder of its own: manufactured with EK certificates from a CA that lives in the folder (or is
//! shared by a fleet), started, reset, suspended, cut from power, cleared, cloned, and filled with the PCRs of a recorded boot.
//! A TPM that a test starts ends with the test, even when the test panics or is killed.
//!
//! ```no_run
//! # fn main() -> Result<(), countersign_tpm_sim::Error> {
//! use countersign_tpm_sim::{Options, Sim};
//!
//! let mut sim = Sim::create("/tmp/node-1", &Options::named("node-1"))?;
//! sim.start()?;
//! println!("{}", sim.tpm_arg()); // swtpm:unix=/tmp/node-1/tpm.sock
//! # Ok(())
//! # }
//! ```
//!
//! [`oracle`] drives the same TPM through tpm2-tss (the crate tss-esapi), which shares no line with our own client: what both say
//! the same is not a bug of one of them.

mod control;
mod error;
mod manufacture;
mod options;
pub mod oracle;
mod places;
mod process;
mod raw;
mod replay;
mod sim;
mod tools;

pub use error::Error;
pub use options::{Authority, Options};
pub use raw::Clock;
pub use replay::{ImaBanks, Recording, Replayed};
pub use sim::{Lifetime, Sim};
