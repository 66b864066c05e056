//! Whose turn each slot of a ring is. A slot belongs to the kernel or to us, as its status word says: it is ours from
//! the moment we read that it is filled (acquire) until we write that it is the kernel's (release). Slots are taken in
//! order and given back in order.

use std::sync::atomic::{AtomicU32, Ordering};

/// linux/if_packet.h
const TP_STATUS_KERNEL: u32 = 0;
const TP_STATUS_USER: u32 = 1;

/// A status word that is shared with the kernel.
pub(super) trait Status {
    /// What is read after it is at least as new as it.
    fn acquire(&self) -> u32;
    /// What was read and written before it stays before it.
    fn release(&self, status: u32);
}

impl Status for AtomicU32 {
    fn acquire(&self) -> u32 {
        self.load(Ordering::Acquire)
    }

    fn release(&self, status: u32) {
        self.store(status, Ordering::Release);
    }
}

/// Our place in a ring of so many slots.
pub(super) struct Turn {
    slots: usize,
    /// The next slot that the kernel will fill.
    next: usize,
    /// Slots taken and not given back, the oldest `next - taken`.
    taken: usize,
}

impl Turn {
    pub(super) fn new(slots: usize) -> Self {
        debug_assert!(slots > 0);
        Self { slots, next: 0, taken: 0 }
    }

    /// The slot that is so many behind another one; a round at most.
    fn ahead(&self, slot: usize, by: usize) -> usize {
        let at = slot + by;
        if at < self.slots { at } else { at - self.slots }
    }

    /// The next slot and its status, if the kernel has filled it. It is ours as soon as [`Self::take`] follows.
    pub(super) fn filled<'a, S: Status + 'a>(&self, status: impl Fn(usize) -> &'a S) -> Option<(usize, u32)> {
        if self.taken == self.slots {
            return None;
        }
        let found = status(self.next).acquire();
        (found & TP_STATUS_USER != 0).then_some((self.next, found))
    }

    /// How many slots the kernel has filled that are not taken. It fills them in order, so that a few looks find where they end.
    pub(super) fn waiting<'a, S: Status + 'a>(&self, status: impl Fn(usize) -> &'a S) -> usize {
        let is_filled = |ahead: usize| status(self.ahead(self.next, ahead)).acquire() & TP_STATUS_USER != 0;
        let (mut filled, mut beyond) = (0, self.slots - self.taken);
        while filled < beyond {
            let middle = filled.midpoint(beyond);
            if is_filled(middle) { filled = middle + 1 } else { beyond = middle }
        }
        filled
    }

    /// Takes the slot that is filled.
    pub(super) fn take(&mut self) {
        self.next = self.ahead(self.next, 1);
        self.taken += 1;
    }

    /// Gives all slots that were taken back to the kernel. Nobody may read them any more.
    pub(super) fn give_back<'a, S: Status + 'a>(&mut self, status: impl Fn(usize) -> &'a S) {
        let oldest = self.ahead(self.next, self.slots - self.taken);
        for offset in 0..self.taken {
            status(self.ahead(oldest, offset)).release(TP_STATUS_KERNEL);
        }
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use loom::{
        cell::UnsafeCell,
        sync::{
            Arc,
            atomic::{AtomicU32 as LoomU32, Ordering as LoomOrdering},
        },
        thread,
    };

    use super::*;

    impl Status for LoomU32 {
        fn acquire(&self) -> u32 {
            self.load(LoomOrdering::Acquire)
        }

        fn release(&self, status: u32) {
            self.store(status, LoomOrdering::Release);
        }
    }

    #[test]
    fn slots_that_wait_are_counted() {
        for (next, filled) in [(0, 0), (0, 1), (6, 5), (3, 6), (5, 7)] {
            let ring: [AtomicU32; 7] = std::array::from_fn(|_| AtomicU32::new(TP_STATUS_KERNEL));
            (0..filled).for_each(|ahead| ring[(next + ahead) % 7].release(TP_STATUS_USER));
            let mut turn = Turn { slots: 7, next, taken: 0 };
            assert_eq!(turn.waiting(|at| &ring[at]), filled, "{next}");
            if filled > 0 {
                turn.take();
                assert_eq!(turn.waiting(|at| &ring[at]), filled - 1, "{next}, with one taken");
            }
        }
    }

    #[test]
    fn what_was_taken_is_given_back_across_the_end() {
        for (next, taken) in [(0, 0), (5, 4), (2, 7), (6, 1), (0, 7)] {
            let ring: [AtomicU32; 7] = std::array::from_fn(|_| AtomicU32::new(TP_STATUS_USER));
            let mut turn = Turn { slots: 7, next, taken: 0 };
            (0..taken).for_each(|_| turn.take());
            turn.give_back(|at| &ring[at]);
            let given: Vec<usize> = (0..7).filter(|at| ring[*at].acquire() == TP_STATUS_KERNEL).collect();
            let mut expected: Vec<usize> = (0..taken).map(|ahead| (next + ahead) % 7).collect();
            expected.sort_unstable();
            assert_eq!(given, expected, "{next}, {taken}");
            assert_eq!((turn.next, turn.taken), ((next + taken) % 7, 0));
        }
    }

    struct Slot {
        status: LoomU32,
        frame: UnsafeCell<u32>,
    }

    /// In every order in which two processors can see it, frames come once, in order, and nobody writes what the
    /// other one reads: loom fails on an access that is not ordered after the last one.
    #[test]
    fn slots_change_hands_without_a_race() {
        const FRAMES: u32 = 3;
        loom::model(|| {
            let slot = || Slot { status: LoomU32::new(TP_STATUS_KERNEL), frame: UnsafeCell::new(0) };
            let ring = Arc::new([slot(), slot()]);
            let kernel = {
                let ring = ring.clone();
                thread::spawn(move || {
                    for number in 0..FRAMES {
                        let slot = &ring[number as usize % ring.len()];
                        while slot.status.load(LoomOrdering::Acquire) != TP_STATUS_KERNEL {
                            thread::yield_now();
                        }
                        // SAFETY: loom fails the test if anybody else has it.
                        slot.frame.with_mut(|frame| unsafe { *frame = number });
                        slot.status.store(TP_STATUS_USER, LoomOrdering::Release);
                    }
                })
            };
            let mut turn = Turn::new(ring.len());
            let mut expected = 0;
            while expected < FRAMES {
                match turn.filled(|at| &ring[at].status) {
                    Some((at, _)) => {
                        // Rewritten in place, as a worker does.
                        // SAFETY: as above.
                        let frame =
                            ring[at].frame.with_mut(|frame| unsafe { std::mem::replace(&mut *frame, u32::MAX) });
                        assert_eq!(frame, expected);
                        expected += 1;
                        turn.take();
                    }
                    None => {
                        turn.give_back(|at| &ring[at].status);
                        thread::yield_now();
                    }
                }
            }
            kernel.join().unwrap();
        });
    }
}
