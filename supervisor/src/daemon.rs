//! `supervisor daemon`: runs for the users of a host who get no access to its TPM, its state folder and its run log.
//!
//! The daemon is root's and waits at a Unix socket. Who connects is what the kernel says, what they may do is what the [rules](mod@rules)
//! say. For each client it starts a [session](mod@session), which reads the request and supervises the run as `supervisor run` does, but
//! with the container under a user that nobody else is: the caller's other processes then have no way in through /proc.

mod binds;
mod caller;
mod client;
mod message;
mod peer;
mod rules;
mod server;
mod session;
mod settings;
mod socket;
mod terminal;
mod turns;
mod uids;

pub(crate) use binds::BINDS;
pub(crate) use caller::Caller;
pub(crate) use client::{list, run, table, wanted};
pub(crate) use message::HostPlace;
pub(crate) use server::{Options, serve};
pub(crate) use session::main as session;
pub(crate) use settings::{EXAMPLE, SOCKET};
