//! `GET /v1/events`: each host's stream of events. One task reads the database for all of them; a stream costs a queue.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use countersign_wire::event;
use countersign_wire::id::HostId;
use hyper::body::Frame;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Notify, watch};

use crate::error::Error;
use crate::service::Service;
use crate::service::events::{Beginning, Stored};

/// Streams at a time, of all hosts and of one. Of one host's the oldest gives way: the other end may be gone without a word.
pub(super) const STREAMS: usize = 4096;
const PER_HOST: usize = 16;
/// Events that a stream may lag behind before it is ended: the host comes again and names the last one it has.
const LAG: usize = 256;
/// How often the database is looked at: operators' commands may act on it from other processes.
const LOOK: Duration = Duration::from_millis(500);
/// How often an idle stream says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// All streams.
#[derive(Debug, Clone, Default)]
pub(super) struct Hub(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: Mutex<HashMap<HostId, VecDeque<Sender<Arc<Stored>>>>>,
    news: Notify,
}

/// A stream's place; given back when dropped.
struct Seat {
    hub: Hub,
    host: HostId,
    events: Receiver<Arc<Stored>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.events.close();
        let mut streams = self.hub.streams();
        if let Some(of_host) = streams.get_mut(&self.host) {
            of_host.retain(|stream| !stream.is_closed());
            if of_host.is_empty() {
                streams.remove(&self.host);
            }
        }
    }
}

impl Hub {
    fn streams(&self) -> MutexGuard<'_, HashMap<HostId, VecDeque<Sender<Arc<Stored>>>>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was stored: look now.
    pub(super) fn news(&self) {
        self.0.news.notify_one();
    }

    fn join(&self, host: HostId) -> Result<Seat, Error> {
        let mut streams = self.streams();
        if streams.values().map(VecDeque::len).sum::<usize>() >= STREAMS {
            return Err(Error::Busy(60));
        }
        let (sender, events) = channel(LAG);
        let of_host = streams.entry(host).or_default();
        if of_host.len() >= PER_HOST {
            of_host.pop_front();
        }
        of_host.push_back(sender);
        drop(streams);
        Ok(Seat { hub: self.clone(), host, events })
    }

    /// Opens a host's stream.
    pub(super) async fn open(
        &self,
        service: &Service,
        host: HostId,
        last: Option<u64>,
        stopped: watch::Receiver<bool>,
    ) -> Result<Response, Error> {
        // The seat first: what is stored from here on comes through it.
        let seat = self.join(host)?;
        let beginning = service.beginning(&host, last).await?;
        let (frames, body) = channel(16);
        tokio::spawn(async move {
            let _ = tell(seat, beginning, &frames, stopped).await;
        });
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
        Ok((headers, Body::new(Stream(body))).into_response())
    }

    /// Reads new events for all streams until the end.
    pub(super) async fn run(self, service: Service, mut stopped: watch::Receiver<bool>) {
        let mut last = service.newest_event().await.unwrap_or(0);
        let mut policy = changed(&service.dir);
        loop {
            tokio::select! {
                _ = stopped.changed() => return,
                () = self.0.news.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = changed(&service.dir);
            if now != policy {
                policy = now;
                if let Err(e) = service.ask_to_attest("the host policy changed").await {
                    tracing::error!(error = %e, "events");
                }
            }
            if self.streams().is_empty() {
                continue;
            }
            match service.events_after(last).await {
                Ok(events) => {
                    for event in events {
                        last = event.id;
                        self.pass_on(&Arc::new(event));
                    }
                }
                Err(e) => tracing::error!(error = %e, "events"),
            }
        }
    }

    fn pass_on(&self, event: &Arc<Stored>) {
        let mut streams = self.streams();
        // A stream that lags too far is ended: its sender is dropped here.
        let keep = |stream: &Sender<Arc<Stored>>| stream.try_send(Arc::clone(event)).is_ok();
        match &event.host {
            Some(host) => {
                if let Some(of_host) = streams.get_mut(host) {
                    of_host.retain(keep);
                }
            }
            None => streams.values_mut().for_each(|of_host| of_host.retain(keep)),
        }
    }
}

/// When the host policy in force was put in place.
fn changed(dir: &Path) -> Option<SystemTime> {
    std::fs::metadata(dir.join("policy/current")).and_then(|file| file.modified()).ok()
}

/// The other end is gone.
struct Gone;

async fn tell(
    mut seat: Seat,
    beginning: Beginning,
    frames: &Sender<Bytes>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Gone> {
    let say = async |text: String| frames.send(text.into()).await.map_err(|_| Gone);
    let mut last = beginning.position;
    let end = beginning.events.iter().any(is_final);
    for stored in beginning.events {
        say(event::write(stored.id, &stored.data)).await?;
    }
    say(event::write_position(last)).await?;
    if end {
        return Ok(());
    }
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        let stored = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            () = frames.closed() => return Err(Gone),
            stored = seat.events.recv() => stored,
            _ = heartbeat.tick() => {
                say(event::HEARTBEAT.to_owned()).await?;
                continue;
            }
        };
        let Some(stored) = stored else { return Ok(()) };
        if stored.id <= last {
            continue;
        }
        last = stored.id;
        say(event::write(stored.id, &stored.data)).await?;
        if is_final(&stored) {
            return Ok(());
        }
    }
}

/// Nothing comes after a revocation.
fn is_final(stored: &Stored) -> bool {
    serde_json::from_str(&stored.data).is_ok_and(|event| matches!(event, event::HostEvent::Revoked { .. }))
}

/// Frames as a response's body.
struct Stream(Receiver<Bytes>);

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: u64, host: Option<HostId>) -> Arc<Stored> {
        Arc::new(Stored { id, host, data: "{}".into() })
    }

    fn host(n: u16) -> HostId {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        HostId(id)
    }

    #[test]
    fn each_hears_what_is_for_it() {
        let hub = Hub::default();
        let (mut one, mut two) = (hub.join(host(1)).unwrap(), hub.join(host(2)).unwrap());
        hub.pass_on(&stored(1, Some(host(1))));
        hub.pass_on(&stored(2, None));
        let heard =
            |seat: &mut Seat| std::iter::from_fn(|| seat.events.try_recv().ok().map(|e| e.id)).collect::<Vec<_>>();
        assert_eq!((heard(&mut one), heard(&mut two)), (vec![1, 2], vec![2]));
        drop((one, two));
        assert!(hub.streams().is_empty());
    }

    #[test]
    fn the_oldest_of_a_host_gives_way_and_the_rest_is_refused() {
        let hub = Hub::default();
        let mut seats: Vec<Seat> = (0..=PER_HOST).map(|_| hub.join(host(0)).unwrap()).collect();
        assert!(matches!(seats[0].events.try_recv(), Err(tokio::sync::mpsc::error::TryRecvError::Disconnected)));
        assert!(matches!(seats[1].events.try_recv(), Err(tokio::sync::mpsc::error::TryRecvError::Empty)));
        let hosts = u16::try_from(STREAMS - PER_HOST).unwrap();
        seats.extend((1..=hosts).map(|n| hub.join(host(n)).unwrap()));
        assert!(matches!(hub.join(host(hosts + 1)), Err(Error::Busy(_))));
        drop(seats.pop());
        hub.join(host(hosts + 1)).unwrap();
    }

    #[test]
    fn a_stream_that_lags_is_ended_and_no_other() {
        let hub = Hub::default();
        let (mut slow, mut quick) = (hub.join(host(1)).unwrap(), hub.join(host(1)).unwrap());
        for id in 0..=u64::try_from(LAG).unwrap() {
            hub.pass_on(&stored(id, None));
            assert_eq!(quick.events.try_recv().unwrap().id, id);
        }
        let heard = std::iter::from_fn(|| slow.events.try_recv().ok()).count();
        assert_eq!(heard, LAG);
        assert!(slow.events.is_closed());
    }
}
