//! Reading ahead (decision 0030): around places that are read here and there, the rest is decrypted before anybody asks for it.
//!
//! The kernel itself reads ahead of a reader that goes forward. One that jumps pays for each block when it comes to it, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use countersign_sif::View;

use crate::permit::Permit;
use crate::served::Kernel;

/// Bytes that are decrypted at once.
const PIECE: u64 = 128 << 10;
/// Pieces of a region: as many as a word has bits.
const PIECES: u64 = 64;
/// In so many separate places a region has to be read before the rest of it follows.
const PLACES: u32 = 3;
/// Regions that wait for their turn; what comes when there are so many is left alone.
const WAITING: usize = 64;

/// Which pieces of each region were read, or read ahead.
#[derive(Debug)]
struct Regions(Vec<AtomicU64>);

impl Regions {
    fn of(length: u64) -> Self {
        let count = length.div_ceil(PIECE).div_ceil(PIECES);
        Self((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// Notes a piece; what was known of its region before, and its number.
    fn note(&self, piece: u64) -> Option<(usize, u64)> {
        let region = usize::try_from(piece / PIECES).ok()?;
        let before = self.0.get(region)?.fetch_or(1 << (piece % PIECES), Ordering::Relaxed);
        Some((region, before))
    }

    /// Notes what is read; the region that has now been read in enough places.
    fn read(&self, offset: u64, size: u64) -> Option<usize> {
        let mut grown = None;
        for piece in offset / PIECE..offset.saturating_add(size).div_ceil(PIECE) {
            let (region, before) = self.note(piece)?;
            let after = before | 1 << (piece % PIECES);
            if places(before) < PLACES && places(after) >= PLACES {
                grown = Some(region);
            }
        }
        grown
    }
}

/// How many runs of bits there are: a reader that goes forward is one, however far it went.
const fn places(pieces: u64) -> u32 {
    (pieces & !(pieces << 1)).count_ones()
}

/// What the readers' threads tell.
#[derive(Debug)]
pub(crate) struct Ahead {
    regions: Arc<Regions>,
    wanted: SyncSender<usize>,
}

/// What the thread that reads ahead is told.
#[derive(Debug)]
pub(crate) struct Wanted {
    regions: Arc<Regions>,
    wanted: Receiver<usize>,
}

/// Both ends, for a file system of so many bytes.
pub(crate) fn ahead(length: u64) -> (Ahead, Wanted) {
    let (sender, receiver) = sync_channel(WAITING);
    let regions = Arc::new(Regions::of(length));
    (Ahead { regions: Arc::clone(&regions), wanted: sender }, Wanted { regions, wanted: receiver })
}

impl Ahead {
    /// This is being read.
    pub(crate) fn read(&self, offset: u64, size: u32) {
        if let Some(region) = self.regions.read(offset, size.into()) {
            let _ = self.wanted.try_send(region);
        }
    }
}

impl Wanted {
    /// Gives the kernel what nobody has read yet of each region that is wanted, until nobody reads any more. It needs a permit as readers do, and
    /// says nothing of what it cannot read: whoever needs it is told.
    pub(crate) fn serve(&self, view: &View, permit: &Permit, kernel: &Kernel) {
        while let Ok(region) = self.wanted.recv() {
            let first = u64::try_from(region).unwrap_or(u64::MAX).saturating_mul(PIECES);
            // Backwards: whoever goes forward here has the next piece before this thread gets there.
            let end = first.saturating_add(PIECES).min(view.length().div_ceil(PIECE));
            for piece in (first..end).rev() {
                if self.regions.note(piece).is_none_or(|(_, before)| before & 1 << (piece % PIECES) != 0) {
                    continue;
                }
                if !permit.wait() {
                    return;
                }
                let offset = piece.saturating_mul(PIECE);
                let size = usize::try_from(PIECE).unwrap_or(0);
                let stored = view.read_with(offset, size, |data| kernel.store(offset, data));
                if matches!(stored, Ok(Err(_))) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_forward_is_one_place() {
        let regions = Regions::of(PIECE * PIECES * 2 + 1);
        assert_eq!(regions.0.len(), 3);
        for offset in (0..PIECE * PIECES * 2).step_by(4096) {
            assert_eq!(regions.read(offset, 4096), None, "{offset}");
        }
        assert_eq!(places(regions.0[0].load(Ordering::Relaxed)), 1);
        assert_eq!(regions.0[2].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_that_jumps_is_many() {
        let regions = Regions::of(PIECE * PIECES * 3);
        let jumps = |region: u64| (0..u64::from(PLACES)).map(move |jump| region * PIECES * PIECE + jump * 5 * PIECE);
        for region in [2, 0] {
            let told: Vec<_> = jumps(region).map(|offset| regions.read(offset + 100, 4096)).collect();
            let (last, before) = told.split_last().unwrap();
            assert!(before.iter().all(Option::is_none), "{told:?}");
            assert_eq!(*last, usize::try_from(region).ok());
            assert!(jumps(region).all(|offset| regions.read(offset, 4096).is_none()), "once");
        }
        assert_eq!(regions.read(PIECE * PIECES * 3, 4096), None, "behind the end");
        assert_eq!(regions.read(u64::MAX, u64::MAX), None);
    }
}
