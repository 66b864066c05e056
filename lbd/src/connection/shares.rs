//! What is shared by many: nobody takes all of it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts what each holder has, of which none has more than its share. Clones are of the same.
#[derive(Debug)]
struct Shares<K> {
    share: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// A holder has one more, until this is dropped.
#[derive(Debug)]
struct Share<K: Eq + Hash> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    holder: K,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self { share: self.share, taken: self.taken.clone() }
    }
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// So many for each.
    fn of(share: usize) -> Self {
        Self { share, taken: Arc::default() }
    }

    /// `None` if the holder has as many as it may have.
    fn take(&self, holder: K) -> Option<Share<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(holder.clone()).or_default();
        if *count >= self.share {
            return None;
        }
        *count += 1;
        Some(Share { taken: self.taken.clone(), holder })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.holder);
            }
        }
    }
}

/// So much room for all, of which no holder has more than its share. Clones are of the same.
#[derive(Debug, Clone)]
pub(crate) struct SharedRoom<K: Eq + Hash> {
    whole: Arc<Semaphore>,
    shares: Shares<K>,
}

/// It has its place, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    _whole: OwnedSemaphorePermit,
    _share: Option<Share<K>>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The holder has as many as one gets.
    Share,
    /// There are as many as are taken.
    Whole,
}

impl<K: Eq + Hash + Clone> SharedRoom<K> {
    /// For so many, and so many of each holder.
    pub(crate) fn of(most: usize, share: usize) -> Self {
        Self { whole: Arc::new(Semaphore::new(most)), shares: Shares::of(share) }
    }

    /// A place for a holder; `None` where everybody is the same.
    pub(crate) fn take(&self, holder: Option<K>) -> Result<Place<K>, NoPlace> {
        let share = holder.map(|holder| self.shares.take(holder).ok_or(NoPlace::Share)).transpose()?;
        let whole = self.whole.clone().try_acquire_owned().map_err(|_| NoPlace::Whole)?;
        Ok(Place { _whole: whole, _share: share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_its_share_and_nothing_is_kept_of_who_has_none() {
        let shares = Shares::of(3);
        let mut begun: Vec<_> = (0..3).map_while(|_| shares.take("one")).collect();
        assert_eq!(begun.len(), 3);
        assert!(shares.take("one").is_none());
        assert!(shares.take("other").is_some());
        begun.pop();
        begun.extend(shares.take("one"));
        assert_eq!(begun.len(), 3);
        begun.clear();
        assert!(shares.taken.lock().unwrap().is_empty());
    }
}
