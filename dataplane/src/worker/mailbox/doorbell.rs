//! Tells a worker that something was put in for it, so that a worker for whom there is nothing looks at one word, and
//! only the first of many who put something in wakes it.

use std::sync::atomic::{AtomicBool, Ordering};

/// A bit that several threads change.
pub(super) trait Bit {
    /// Changes it, ordered with everything before and after.
    fn swap(&self, value: bool) -> bool;
    /// A look that orders nothing.
    fn glance(&self) -> bool;
}

impl Bit for AtomicBool {
    fn swap(&self, value: bool) -> bool {
        Self::swap(self, value, Ordering::AcqRel)
    }

    fn glance(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(super) struct Doorbell<B = AtomicBool>(B);

impl<B: Bit> Doorbell<B> {
    /// Something was put in, before this. Whether the worker must be woken: whoever rang before has not been answered
    /// yet and has woken it.
    pub(super) fn ring(&self) -> bool {
        !self.0.swap(true)
    }

    /// Whether something was put in since the last answer; whoever puts something in from now on rings again. So the
    /// worker takes out what is there after this.
    pub(super) fn answer(&self) -> bool {
        self.0.glance() && self.0.swap(false)
    }
}

#[cfg(test)]
mod tests {
    use loom::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool as LoomBool, Ordering as LoomOrdering},
        },
        thread,
    };

    use super::*;

    impl Bit for LoomBool {
        fn swap(&self, value: bool) -> bool {
            Self::swap(self, value, LoomOrdering::AcqRel)
        }

        fn glance(&self) -> bool {
            self.load(LoomOrdering::Relaxed)
        }
    }

    struct Shared {
        bell: Doorbell<LoomBool>,
        mail: Mutex<u32>,
        /// The event descriptor, which the kernel keeps behind a lock: readable until it is read.
        woken: Mutex<bool>,
    }

    /// In every order of two senders and a worker that goes to sleep: nothing is left lying while the worker sleeps.
    #[test]
    fn nobody_sleeps_on_mail() {
        loom::model(|| {
            let it = Arc::new(Shared {
                bell: Doorbell(LoomBool::new(false)),
                mail: Mutex::new(0),
                woken: Mutex::new(false),
            });
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let it = it.clone();
                    thread::spawn(move || {
                        *it.mail.lock().unwrap() += 1;
                        if it.bell.ring() {
                            *it.woken.lock().unwrap() = true;
                        }
                    })
                })
                .collect();
            let mut taken = 0;
            let mut turn = || {
                // Reading the descriptor resets it; then comes the look at the bell.
                *it.woken.lock().unwrap() = false;
                if it.bell.answer() {
                    taken += std::mem::take(&mut *it.mail.lock().unwrap());
                }
            };
            turn();
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            // It would sleep unless it is woken: then one turn more finds all.
            let woken = *it.woken.lock().unwrap();
            if woken {
                turn();
            }
            assert_eq!((taken, *it.mail.lock().unwrap()), (2, 0));
        });
    }
}
