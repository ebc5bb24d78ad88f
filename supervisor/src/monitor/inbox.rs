//! What threads tell the main one, which waits on descriptors: a channel with a bell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::{EventfdFlags, eventfd};

/// Messages that wait at most; whoever has more to say waits too.
const WAITING: usize = 64;

/// The threads' end.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    sender: SyncSender<T>,
    bell: Arc<OwnedFd>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// The main thread's end.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    receiver: Receiver<T>,
    bell: Arc<OwnedFd>,
}

/// Both ends of a new one.
///
/// # Errors
/// The system call fails.
pub(crate) fn channel<T>() -> io::Result<(Outbox<T>, Inbox<T>)> {
    let (sender, receiver) = sync_channel(WAITING);
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
    let bell = Arc::new(eventfd(0, flags)?);
    Ok((Outbox { sender, bell: Arc::clone(&bell) }, Inbox { receiver, bell }))
}

impl<T> Outbox<T> {
    /// False when nobody listens any more.
    pub(crate) fn send(&self, message: T) -> bool {
        self.sender.send(message).is_ok() && rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).is_ok()
    }
}

impl<T> Inbox<T> {
    /// Readable while a message waits.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The next message, if one waits.
    pub(crate) fn take(&self) -> Option<T> {
        let mut rung = [0; 8];
        rustix::io::read(&*self.bell, &mut rung).ok()?;
        self.receiver.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ring_a_message() {
        let (outbox, inbox) = channel().unwrap();
        assert_eq!(inbox.take(), None);
        let again = outbox.clone();
        assert!(outbox.send(1) && again.send(2));
        assert_eq!((inbox.take(), inbox.take(), inbox.take()), (Some(1), Some(2), None));
        drop(inbox);
        assert!(!outbox.send(3));
    }
}
