//! What is shared by many: nobody takes all of it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts what each holder has, of which none has more than its share. Clones are of the same.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    share: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// A holder has one more, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash> {
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
    pub(crate) fn of(share: usize) -> Self {
        Self { share, taken: Arc::default() }
    }

    /// `None` if the holder has as many as it may have.
    pub(crate) fn take(&self, holder: K) -> Option<Share<K>> {
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
