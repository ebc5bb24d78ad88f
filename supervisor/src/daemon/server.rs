//! The daemon itself: one thread that waits. It accepts, refuses, counts, gives users and turns, and reads nothing that a client writes:
//! that is for a session, a process for each client.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use countersign_wire::id::WorkloadId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use super::message::{Answer, Ask, Brief, HostPlace, Listed, Reply, State, Uids, cut};
use super::peer::Peer;
use super::rules::{Grant, Rules, getent};
use super::settings::{Daemon, Settings};
use super::socket::Listener;
use super::turns::Turns;
use super::uids::Pool;
use crate::channel::Channel;
use crate::ending::GRACE;
use crate::exit::{Failure, Stage};
use crate::out;
use crate::run::config;

/// How long a session may take from its connection to the daemon's admission: request and image are read then.
const ASKING: Duration = Duration::from_secs(30);
/// Connections of one user beside the runs that a rule allows, and of all users beside the runs that the daemon allows: those that ask, and lists.
const BESIDE: usize = 8;
const BESIDE_ALL: usize = 64;
/// How long runs may take to end when the daemon is told to.
const STOP: Duration = Duration::from_secs(15);
/// Descriptors that the daemon needs for itself, beside one for each session.
const DESCRIPTORS: u64 = 64;
const HANGUP: u8 = 1;

/// How the daemon was started.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `supervisor.toml`, if not at its usual place.
    pub(crate) settings: Option<PathBuf>,
    /// The socket, if not as the settings say.
    pub(crate) socket: Option<PathBuf>,
    /// The host's things.
    pub(crate) host: HostPlace,
}

/// A client and its process.
struct Session {
    child: Child,
    channel: Channel,
    peer: Peer,
    grant: Grant,
    uids: Option<Uids>,
    listed: Listed,
    /// When it must have been admitted.
    deadline: Option<Instant>,
}

struct Server {
    options: Options,
    rules: Rules,
    /// Most runs of all users.
    runs: usize,
    pool: Pool,
    turns: Turns,
    sessions: BTreeMap<u64, Session>,
    next: u64,
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Other, e.to_string(), "")
}

/// Runs the daemon until it is told to end; the exit code.
///
/// # Errors
/// [`Stage::Configuration`] says what is wrong before anybody is served.
pub(crate) fn serve(options: Options) -> Result<u8, Failure> {
    if !rustix::process::geteuid().is_root() {
        let hint = "systemctl enable --now countersign-supervisor.socket";
        return Err(Failure::new(Stage::Configuration, "the daemon gives each run another user: only root can", hint));
    }
    let signals = countersign_sys::signals(&crate::watch::ENDING).map_err(other)?;
    let settings = Settings::read_trusted(options.settings.as_deref())?.daemon;
    let rules = Rules::resolve(options.settings.as_deref(), &settings, &getent)?;
    if let Some(who) = settings.uids.taken_here().map_err(other)? {
        let what = format!("[daemon] uids = \"{}\": a part of it belongs to {who}", settings.uids);
        return Err(Failure::new(Stage::Configuration, what, "choose users that nobody has"));
    }
    config(options.host.config.as_deref(), options.host.tpm.as_deref(), options.host.state_dir.clone())?;
    let listener = match Listener::of_systemd()? {
        Some(listener) => listener,
        None => listener(&options, &settings)?,
    };
    countersign_sys::keep_descriptors().map_err(other)?;
    raise_descriptors(settings.runs);
    let left = settings.uids.evict();
    if left > 0 {
        out::note(&format!("ended {left} processes that an earlier daemon has left"));
    }
    let server = Server {
        options,
        rules,
        runs: settings.runs,
        pool: Pool::new(settings.uids),
        turns: Turns::default(),
        sessions: BTreeMap::new(),
        next: 0,
    };
    server.play(&signals, listener)
}

fn listener(options: &Options, settings: &Daemon) -> Result<Listener, Failure> {
    let group = Some(&settings.socket_group).filter(|name| !name.is_empty());
    let number = |name: &String| {
        let hint = "name a group that getent knows, or leave it empty";
        let known = name.parse().ok().or_else(|| getent("group", name));
        known.ok_or_else(|| {
            Failure::new(Stage::Configuration, format!("[daemon] socket_group: no group {name:?}"), hint)
        })
    };
    let path = options.socket.as_deref().unwrap_or(&settings.socket);
    let listener = Listener::at(path, group.map(number).transpose()?)?;
    out::note(&format!("listening on {}", path.display()));
    Ok(listener)
}

/// Each session takes a descriptor; where the limit cannot be raised, accepting fails and says so.
fn raise_descriptors(runs: usize) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(runs.saturating_add(BESIDE_ALL)).unwrap_or(u64::MAX).saturating_add(DESCRIPTORS);
    let current = limit.current.map(|current| current.max(limit.maximum.map_or(wanted, |most| most.min(wanted))));
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum });
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Server {
    fn play(mut self, signals: &OwnedFd, listener: Listener) -> Result<u8, Failure> {
        let mut listener = Some(listener);
        let mut stopping: Option<Instant> = None;
        // When those that still run then are told once more: that kills them.
        let mut again: Option<Instant> = None;
        loop {
            let (signal, connection, ready) = self.wait(signals, listener.as_ref(), again.or(stopping))?;
            if signal {
                let mut number = [0];
                match rustix::io::read(signals, &mut number) {
                    Ok(1..) if number == [HANGUP] && stopping.is_none() => self.reload(),
                    Ok(1..) if stopping.is_some() => return Ok(0),
                    Ok(1..) => {
                        // No new ones; those that run are told to end.
                        listener = None;
                        stopping = Instant::now().checked_add(STOP);
                        again = Instant::now().checked_add(GRACE);
                        self.tell_all_to_end();
                    }
                    _ => {}
                }
            }
            for id in ready {
                self.hear(id);
            }
            self.end_late_ones();
            if again.is_some_and(|at| at <= Instant::now()) {
                again = None;
                self.tell_all_to_end();
            }
            self.give_turns();
            if let Some(listener) = listener.as_ref().filter(|_| connection) {
                self.accept(listener);
            }
            if stopping.is_some_and(|until| self.sessions.is_empty() || Instant::now() >= until) {
                return Ok(0);
            }
        }
    }

    /// Waits for signals, connections and sessions, or the next deadline.
    fn wait(
        &self,
        signals: &OwnedFd,
        listener: Option<&Listener>,
        stopping: Option<Instant>,
    ) -> Result<(bool, bool, Vec<u64>), Failure> {
        let deadlines = self.sessions.values().filter_map(|session| session.deadline);
        let deadline = deadlines.chain(self.turns.deadline()).chain(stopping).min();
        let patience = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = patience.map(Timespec::try_from).transpose().map_err(other)?;
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        fds.extend(
            self.sessions.values().map(|session| PollFd::from_borrowed_fd(session.channel.as_fd(), PollFlags::IN)),
        );
        fds.extend(listener.map(|listener| PollFd::new(listener.socket(), PollFlags::IN)));
        match poll(&mut fds, patience.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok((false, false, Vec::new())),
            polled => polled.map_err(other)?,
        };
        let mut is_ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let signal = is_ready.next().unwrap_or(false);
        let ready =
            self.sessions.keys().zip(is_ready.by_ref()).filter(|(_, ready)| *ready).map(|(id, _)| *id).collect();
        Ok((signal, is_ready.next().unwrap_or(false), ready))
    }

    fn accept(&mut self, listener: &Listener) {
        let connection = match listener.accept() {
            Ok(connection) => connection,
            Err(e) => {
                out::note(&format!("a connection was not accepted: {e}"));
                // The next attempt would fail as well, at once.
                std::thread::sleep(Duration::from_millis(10));
                return;
            }
        };
        let Ok(peer) = Peer::of(&connection) else { return };
        let process = Peer::process(&connection);
        let client = Channel::from(connection);
        let (uid, pid) = (peer.uid, peer.pid);
        if let Err(failure) = self.admit(peer, &client, process.as_ref()) {
            out::note(&format!("user {uid}, process {pid}: {}", failure.error));
            // It has sent nothing yet, so there is room for this.
            let _ = client.send(&Answer::Failed(failure), &[]);
        }
    }

    /// Starts a session for a client that a rule admits.
    fn admit(&mut self, peer: Peer, client: &Channel, process: Option<&OwnedFd>) -> Result<(), Failure> {
        // In a container that has a bind it may reach the socket, in its caller's groups; whose run it would be nobody could say.
        if self.pool.has(peer.uid) {
            let hint = "run it outside of the container";
            return Err(Failure::new(Stage::Refused, "the daemon refuses: a run starts no runs", hint));
        }
        let grant = self.rules.grant(&peer)?.clone();
        let own = self.sessions.values().filter(|session| session.peer.uid == peer.uid).count();
        let busy = |what: &str| {
            let hint = "wait until others have ended, and run the command again";
            Failure::new(Stage::Refused, format!("the daemon refuses: too many connections{what}"), hint)
        };
        if !peer.is_root() && own >= grant.runs.saturating_add(BESIDE) {
            return Err(busy(&format!(" of user {}", peer.uid)));
        }
        if self.sessions.len() >= self.runs.saturating_add(BESIDE_ALL) {
            return Err(busy(""));
        }
        let (channel, theirs) = Channel::pair().map_err(other)?;
        let mut command = Command::new("/proc/self/exe");
        countersign_sys::end_with_parent(&mut command);
        command.arg("session-process").current_dir("/");
        command.stdin(Stdio::from(theirs.into_fd())).stdout(Stdio::null());
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(other)?;
        let brief = Brief { peer: peer.clone(), grant: grant.clone(), host: self.options.host.clone() };
        let mut fds = vec![client.as_fd()];
        fds.extend(process.map(OwnedFd::as_fd));
        let sent = channel.send(&brief, &fds);
        let listed = Listed {
            run: None,
            workload: None,
            user: peer.uid,
            client: peer.pid,
            rule: grant.rule.clone(),
            state: State::Asking,
            since: now(),
            uid: None,
        };
        let deadline = Instant::now().checked_add(ASKING);
        let session = Session { child, channel, peer, grant, uids: None, listed, deadline };
        self.sessions.insert(self.next, session);
        self.next = self.next.saturating_add(1);
        sent.map_err(other)
    }

    /// Hears what a session asks for, or that it has ended.
    fn hear(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let reply = match session.channel.receive::<Ask>() {
            Ok(Some((Ask::Admit(workload), _))) => Some(match self.admit_workload(id, workload) {
                Ok(uids) => Reply::Admitted(uids),
                Err(failure) => Reply::Refused(failure),
            }),
            Ok(Some((Ask::Turn(run), _))) => {
                (session.listed.run, session.listed.state) = (Some(run), State::Waiting);
                self.turns.ask(session.peer.uid, id);
                None
            }
            Ok(Some((Ask::Released, _))) => {
                session.listed.state = State::Running;
                self.turns.leave(id);
                None
            }
            Ok(Some((Ask::List, _))) => {
                let user = (!session.peer.is_root()).then_some(session.peer.uid);
                let runs = self.sessions.iter().filter(|(other, _)| **other != id).map(|(_, session)| &session.listed);
                let (runs, more) = cut(runs.filter(|run| user.is_none_or(|user| user == run.user)).cloned());
                Some(Reply::Runs(runs, more))
            }
            Ok(None) | Err(_) => {
                self.end(id);
                None
            }
        };
        if let (Some(reply), Some(session)) = (reply, self.sessions.get(&id)) {
            let _ = session.channel.send(&reply, &[]);
        }
    }

    /// A session's image was read and checked.
    fn admit_workload(&mut self, id: u64, workload: WorkloadId) -> Result<Uids, Failure> {
        let session = self.sessions.get(&id).filter(|session| session.uids.is_none());
        let session = session.ok_or_else(|| other("the session was admitted before"))?;
        session.grant.admit(workload)?;
        let running = |session: &&Session| session.uids.is_some();
        let own = self.sessions.values().filter(running).filter(|there| there.peer.uid == session.peer.uid).count();
        session.grant.room(own)?;
        let all = self.sessions.values().filter(running).count();
        let full = |what: &str, hint: &str| Failure::new(Stage::Refused, format!("the daemon refuses: {what}"), hint);
        if all >= self.runs {
            return Err(full("the host has as many runs as it may", "wait, or the administrator raises [daemon] runs"));
        }
        let uids = self.pool.take();
        let uids = uids.ok_or_else(|| full("no user is left for the run", "the administrator widens [daemon] uids"))?;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.uids = Some(uids);
            session.deadline = None;
            session.listed.workload = Some(workload);
            session.listed.uid = Some(uids.container);
            session.listed.state = State::Admitted;
            let (user, rule) = (session.peer.uid, &session.grant.rule);
            out::note(&format!("user {user}, rule {rule}: workload {workload} admitted, as user {}", uids.container));
        }
        Ok(uids)
    }

    fn give_turns(&mut self) {
        while let Some(id) = self.turns.next(Instant::now()) {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.listed.state = State::Releasing;
                let _ = session.channel.send(&Reply::Turn, &[]);
            }
        }
    }

    /// A session has closed its end: it ends, and its run has ended with it.
    fn end(&mut self, id: u64) {
        self.turns.leave(id);
        let Some(mut session) = self.sessions.remove(&id) else { return };
        let _ = session.child.kill();
        let _ = session.child.wait();
        if let Some(uids) = session.uids {
            self.pool.give_back(uids);
            let run = session.listed.run.map_or_else(|| "its run".to_owned(), |run| format!("run {run}"));
            out::note(&format!("user {}: {run} has ended", session.peer.uid));
        }
    }

    /// Kills the sessions that have not been admitted in time. That they have ended is heard later: one that hangs in a client's file
    /// system may take its time, and nobody waits for it.
    fn end_late_ones(&mut self) {
        let now = Instant::now();
        for session in self.sessions.values_mut().filter(|session| session.deadline.is_some_and(|until| until <= now)) {
            session.deadline = None;
            out::note(&format!("user {}: too slow, ended", session.peer.uid));
            let _ = session.child.kill();
        }
    }

    fn tell_all_to_end(&self) {
        for session in self.sessions.values() {
            if let Some(pid) = i32::try_from(session.child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    }

    /// Reads the rules again; the old ones stay when the new ones are wrong. Socket and users stay as they are.
    fn reload(&mut self) {
        let file = self.options.settings.as_deref();
        let read = Settings::read_trusted(file)
            .and_then(|settings| Ok((settings.daemon.runs, Rules::resolve(file, &settings.daemon, &getent)?)));
        match read {
            Ok((runs, rules)) => {
                (self.runs, self.rules) = (runs, rules);
                out::note("rules read again");
            }
            Err(failure) => out::note(&format!("the old rules stay: {}", failure.error)),
        }
    }
}
