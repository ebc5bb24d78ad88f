//! Findings for other systems: CloudEvents 1.0 (JSON, structured mode) by HTTP POST to an address of the host's configuration.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_attest::hook::Hook;
use countersign_wire::finding::Finding;
use countersign_wire::id::{HostId, RunId, WorkloadId};
use countersign_wire::time::rfc3339;
use serde_json::{Value, json};

use super::Notice;
use super::inbox::Outbox;

/// Events that wait at most; the newest are dropped, and that is said.
const WAITING: usize = 64;
/// Attempts for each.
const ATTEMPTS: u32 = 3;
/// How long after the end of the run events are still sent.
const LAST: Duration = Duration::from_secs(5);
/// Wait before the second attempt; it doubles.
const RETRY: Duration = Duration::from_millis(500);

/// The thread's handle; dropped, it ends with what it is about to send.
#[derive(Debug)]
pub(crate) struct Webhook {
    sender: Option<SyncSender<Value>>,
    thread: Option<JoinHandle<()>>,
    closed: Arc<OnceLock<Instant>>,
    run: RunId,
    workload: WorkloadId,
    host: HostId,
}

impl Webhook {
    pub(crate) fn start(hook: Hook, host: HostId, workload: WorkloadId, run: RunId, outbox: Outbox<Notice>) -> Self {
        let (sender, receiver) = sync_channel(WAITING);
        let closed = Arc::new(OnceLock::new());
        let since = Arc::clone(&closed);
        let thread = std::thread::spawn(move || deliver(&hook, &receiver, &outbox, &since));
        Self { sender: Some(sender), thread: Some(thread), closed, run, workload, host }
    }

    /// Never waits.
    pub(crate) fn send(&self, finding: &Finding, mut detail: Value) {
        if let Some(fields) = detail.as_object_mut() {
            fields.insert("workload".into(), json!(self.workload));
        }
        let event = json!({
            "specversion": "1.0",
            "id": hex::encode(countersign_attest::random::random::<16>()),
            "source": format!("urn:countersign:host:{}", self.host),
            "subject": format!("run/{}", self.run),
            "type": format!("countersign.finding.{}", finding.kind),
            "time": rfc3339(finding.time_ms),
            "datacontenttype": "application/json",
            "data": detail,
        });
        let sent = self.sender.as_ref().map(|sender| sender.try_send(event));
        if let Some(Err(TrySendError::Full(_))) = sent {
            // Not through the outbox, which the caller empties.
            crate::out::warn("the webhook is too slow: an event was dropped");
        }
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.sender = None;
        let _ = self.closed.set(Instant::now());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn deliver(hook: &Hook, events: &Receiver<Value>, outbox: &Outbox<Notice>, closed: &OnceLock<Instant>) {
    for event in events {
        let mut wait = RETRY;
        // The end of a run does not wait long for others.
        if closed.get().is_some_and(|closed| closed.elapsed() > LAST) {
            return;
        }
        for attempt in 1..=ATTEMPTS {
            match hook.post("application/cloudevents+json", &event.to_string()) {
                Ok(()) => break,
                Err(e) if attempt == ATTEMPTS => {
                    outbox.send(Notice::Warning(format!("webhook: {e}")));
                }
                Err(_) => {
                    std::thread::sleep(wait);
                    wait = wait.saturating_mul(2);
                }
            }
        }
    }
}
