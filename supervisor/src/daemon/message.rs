//! What is said between a client, its session and the daemon: one JSON document a message, over sockets that keep message boundaries
//! (SOCK_SEQPACKET), so that there is no half message and no length to lie about.

use std::path::PathBuf;

use countersign_wire::id::{RunId, WorkloadId};
use serde::{Deserialize, Serialize};

use super::peer::Peer;
use super::rules::Grant;
use crate::exit::Failure;
use crate::run::Ended;
use crate::runtime::{Settings, Task};

/// Variables of the caller's environment that the workload gets.
pub(super) const ENVIRONMENT: [&str; 3] = ["TERM", "LANG", "TZ"];
/// Longest value of one of them, bytes.
pub(super) const VALUE: usize = 256;
/// Most signers that a client may bring.
pub(super) const SIGNERS: usize = 16;
/// Descriptors that come with [`Request::Run`]: image, standard input, output and error; those of the binds follow in their order, and the status
/// descriptor may be the last.
pub(super) const GIVEN: usize = 4;

/// What a client asks for, once, as the first thing.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Request {
    /// Run an image; its descriptors come along.
    Run(Box<Start>),
    /// Say what runs: the caller's own, everybody's for root.
    List,
}

/// A run as a client wants it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    /// What to run.
    pub(super) task: Task,
    /// What the flags of the built-in runtime ask for, as the client has read them.
    pub(super) settings: Settings,
    /// The client sits at a terminal: the run gets one of its own in its place.
    pub(super) terminal: bool,
    /// Trusted signers, PEM texts. Whether they count is for the rules to say.
    pub(super) signers: Vec<String>,
    /// Name and value; names that are not in [`ENVIRONMENT`] are refused.
    pub(super) environment: Vec<(String, String)>,
}

/// What a client says later.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// It got this signal.
    Signal(u8),
}

/// What a client is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The daemon listens. A client says nothing before it has heard this: what nobody reads would void the refusal.
    Ready,
    /// The run's terminal comes along, for the client to relay.
    Terminal,
    /// A key (Ctrl-Z) has stopped what has that terminal, and the run with it: the client is to stop too.
    Suspend,
    /// The run has ended.
    Ended(Ended),
    /// It failed, or was refused.
    Failed(Failure),
    /// What runs, and how many more do that a message has no room for.
    Runs(Vec<Listed>, usize),
}

/// A session, as `supervisor ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listed {
    /// The run, once it has an id.
    pub(super) run: Option<RunId>,
    /// The workload, once the image was read.
    pub(super) workload: Option<WorkloadId>,
    /// Who asked for it.
    pub(super) user: u32,
    /// Process that asked.
    pub(super) client: u32,
    /// The rule that admits it.
    pub(super) rule: String,
    /// Where it is.
    pub(super) state: State,
    /// When the client came, seconds since 1970.
    pub(super) since: u64,
    /// User that the container's processes run as.
    pub(super) uid: Option<u32>,
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// The request or the image is being read.
    Asking,
    /// The image was admitted.
    Admitted,
    /// It waits for its turn at the TPM.
    Waiting,
    /// The key is being released.
    Releasing,
    /// It runs.
    Running,
}

/// What the daemon tells a new session first; the connection comes along, and a handle on the client's process where there is one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Brief {
    pub(super) peer: Peer,
    pub(super) grant: Grant,
    pub(super) host: HostPlace,
}

/// Where the host's things are, as the daemon was told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct HostPlace {
    /// Configuration file.
    pub(crate) config: Option<PathBuf>,
    /// TPM, if not from the configuration.
    pub(crate) tpm: Option<String>,
    /// State folder, if not from the configuration.
    pub(crate) state_dir: Option<PathBuf>,
}

/// What a session asks the daemon for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// To run this workload.
    Admit(WorkloadId),
    /// For its turn at the TPM.
    Turn(RunId),
    /// Nothing any more: its turn is over.
    Released,
    /// What runs.
    List,
}

/// What the daemon answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It may run, under these users.
    Admitted(Uids),
    /// It may not.
    Refused(Failure),
    /// It is its turn.
    Turn,
    /// What runs, and how many more do that a message has no room for.
    Runs(Vec<Listed>, usize),
}

/// The users of one run: nobody else's, for as long as it lasts. Each has the group of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Uids {
    /// Of the container, squashfuse and bubblewrap.
    pub(super) container: u32,
    /// Of the decryptor, once the key is there.
    pub(super) decryptor: u32,
}

/// As much of a list as a message holds, and how many are left out.
pub(super) fn cut(all: impl Iterator<Item = Listed>) -> (Vec<Listed>, usize) {
    /// Bytes.
    const ROOM: usize = 96 * 1024;
    let (mut runs, mut more, mut length) = (Vec::new(), 0_usize, 0_usize);
    for run in all {
        length = length.saturating_add(serde_json::to_vec(&run).map_or(ROOM, |text| text.len().saturating_add(1)));
        if length <= ROOM {
            runs.push(run);
        } else {
            more = more.saturating_add(1);
        }
    }
    (runs, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let listed = |n: u32| Listed {
            run: Some(RunId([1; 16])),
            workload: Some(WorkloadId([2; 32])),
            user: n,
            client: n,
            rule: "lab".into(),
            state: State::Asking,
            since: 1,
            uid: Some(n),
        };
        let (runs, more) = cut((0..3).map(listed));
        assert_eq!((runs.len(), more), (3, 0));
        let (runs, more) = cut((0..5000).map(listed));
        assert!(runs.len() > 300 && runs.len() + more == 5000, "{}", runs.len());
        let (ours, theirs) = crate::channel::Channel::pair().unwrap();
        ours.send(&Reply::Runs(runs, more), &[]).unwrap();
        assert!(matches!(theirs.receive::<Reply>().unwrap(), Some((Reply::Runs(_, 1..), _))));
    }
}
