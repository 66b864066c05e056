//! Rows of a table, and which of them an entry has touched. A persistent map: a clone costs nothing, so a batch of mutations
//! works on a copy and becomes visible as a whole or not at all, and readers keep the table that they were given.

use std::ops::Deref;

use rpds::RedBlackTreeMapSync as Map;

/// Rows by their keys.
#[derive(Debug, Clone)]
pub(super) struct Rows<K: Ord, V> {
    rows: Map<K, V>,
    /// By the entry that is being applied.
    touched: Vec<K>,
}

impl<K: Ord + Clone, V> Rows<K, V> {
    pub(super) fn insert_mut(&mut self, key: K, row: V) {
        self.touched.push(key.clone());
        self.rows.insert_mut(key, row);
    }

    /// Whether there was such a row.
    pub(super) fn remove_mut(&mut self, key: &K) -> bool {
        let removed = self.rows.remove_mut(key);
        if removed {
            self.touched.push(key.clone());
        }
        removed
    }

    /// The rows that were touched so far.
    pub(super) fn touched(&self) -> &[K] {
        &self.touched
    }

    /// Begins anew; what was touched before.
    pub(super) fn take_touched(&mut self) -> Vec<K> {
        std::mem::take(&mut self.touched)
    }
}

impl<K: Ord, V> Default for Rows<K, V> {
    fn default() -> Self {
        Self { rows: Map::new_sync(), touched: Vec::new() }
    }
}

impl<K: Ord, V> Deref for Rows<K, V> {
    type Target = Map<K, V>;

    fn deref(&self) -> &Map<K, V> {
        &self.rows
    }
}

/// Two tables are equal if their rows are.
impl<K: Ord, V: PartialEq> PartialEq for Rows<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl<K: Ord, V: Eq> Eq for Rows<K, V> {}

impl<K: Ord + Clone, V> FromIterator<(K, V)> for Rows<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        let mut all = Self::default();
        for (key, row) in rows {
            all.rows.insert_mut(key, row);
        }
        all
    }
}
