//! Fingerprints of the table at round indexes, by which nodes find out whether theirs are the same: each applies the same
//! entries, so they must be. They are only computed when somebody asks.

use std::{
    collections::VecDeque,
    hash::Hasher as _,
    sync::{Arc, Mutex, PoisonError},
};

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::table::{Table, encode_table};

/// The table is kept at every index that this divides: often enough that nodes that keep up have one in common.
const EVERY: u64 = 256;
/// Tables that are kept. A clone costs nothing but what has changed since.
const KEPT: usize = 8;

/// The last tables at round indexes. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fingerprints(Arc<Mutex<VecDeque<(u64, Table)>>>);

impl Fingerprints {
    /// The table after the entry at `index`.
    pub(crate) fn note(&self, index: u64, table: &Table) {
        if index.is_multiple_of(EVERY) {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back((index, table.clone()));
        }
    }

    /// The indexes whose tables are kept, in order.
    pub(crate) fn indexes(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(index, _)| *index).collect()
    }

    /// The fingerprint of the table at an index, if it is kept. It takes a while for a large table.
    pub(crate) fn at(&self, index: u64) -> Option<Vec<u8>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let table = kept.iter().find(|(of, _)| *of == index).map(|(_, table)| table.clone());
        drop(kept);
        table.map(|table| {
            let mut hasher = SipHasher13::new();
            hasher.write(&encode_table(&table));
            hasher.finish128().as_bytes().to_vec()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_indexes_are_kept_and_equal_tables_have_equal_fingerprints() {
        let (one, other) = (Fingerprints::default(), Fingerprints::default());
        let mut table = Table::default();
        for index in 1..=EVERY * 10 {
            one.note(index, &table);
            if index == EVERY * 10 {
                table.configure(index, vec![[1].into()]);
            }
            other.note(index, &table);
        }
        assert_eq!(one.indexes().len(), KEPT);
        assert_eq!(one.at(EVERY), None, "long gone");
        assert_eq!(one.at(EVERY * 9), other.at(EVERY * 9));
        assert!(one.at(EVERY * 9).is_some() && one.at(EVERY * 10) != other.at(EVERY * 10));
    }
}
