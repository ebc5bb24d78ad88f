//! Request bodies, read against one budget of memory: a stranger's may be as large as any.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use crate::error::Error;

/// What the budget is counted in, bytes.
const UNIT: usize = 64 * 1024;
/// Bytes of a body that every connection has room for: more than any message without logs, and most evidence when it is compressed.
const FREE: usize = 256 * 1024;
/// Units for what bodies have beyond that, together: 512 MiB, six pieces of evidence of the largest kind.
const UNITS: usize = 8192;

/// Memory for the large bodies of all connections.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self::of(UNITS)
    }
}

/// A body, and its part of the budget until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    /// The body; an operator's may hold a volume key.
    pub(super) bytes: Zeroizing<Vec<u8>>,
    _part: Option<OwnedSemaphorePermit>,
}

impl Budget {
    fn of(units: usize) -> Self {
        Self(Arc::new(Semaphore::new(units)))
    }

    /// Reads a body of at most `max` bytes. [`Error::Busy`] when others hold the memory that it would take.
    pub(super) async fn read(&self, mut body: Body, max: usize) -> Result<Held, Error> {
        let mut bytes = Zeroizing::new(Vec::new());
        let mut part: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|e| Error::request("malformed", format!("body: {e}"), None))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = bytes.len().saturating_add(data.len());
            if length > max {
                return Err(Error::request("too-large", format!("a body over {max} bytes"), None));
            }
            let held = part.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let missing = length.saturating_sub(FREE).div_ceil(UNIT).saturating_sub(held);
            if missing > 0 {
                let units = u32::try_from(missing).unwrap_or(u32::MAX);
                let more = Arc::clone(&self.0).try_acquire_many_owned(units).map_err(|_| Error::Busy(2))?;
                match &mut part {
                    Some(part) => part.merge(more),
                    None => part = Some(more),
                }
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Held { bytes, _part: part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_bodies_share_a_budget_and_give_it_back() {
        let budget = Budget::of(2);
        let body = |length: usize| Body::from(vec![7; length]);
        let first = budget.read(body(FREE + 2 * UNIT), usize::MAX).await.unwrap();
        assert_eq!(first.bytes.len(), FREE + 2 * UNIT);
        assert!(matches!(budget.read(body(FREE + 1), usize::MAX).await, Err(Error::Busy(2))));
        assert_eq!(budget.read(body(FREE), usize::MAX).await.unwrap().bytes.len(), FREE, "small ones need none");
        drop(first);
        assert!(budget.read(body(FREE + UNIT + 1), usize::MAX).await.is_ok());
        assert!(matches!(budget.read(body(FREE + 2 * UNIT + 1), usize::MAX).await, Err(Error::Busy(_))));
        assert!(budget.read(body(FREE + 2 * UNIT), usize::MAX).await.is_ok(), "a refused one gave its part back");
        assert!(matches!(budget.read(body(11), 10).await, Err(Error::Request(problem)) if problem.id == "too-large"));
        assert!(budget.read(body(10), 10).await.is_ok());
    }
}
