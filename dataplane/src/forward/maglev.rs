//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4): a table in which every backend has its share of entries, and in which few
//! entries change when a backend comes or goes.

use std::net::IpAddr;

use super::hash::HashKey;
use crate::io::sys::memory::prefetch;

/// A backend's place in the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its permutation starts here, below the table's size.
    pub offset: u32,
    /// And steps by this, from 1 to the table's size - 1.
    pub skip: u32,
    /// Its share, relative to the others.
    pub weight: u16,
}

impl Candidate {
    /// A backend's permutation, the same on every node.
    pub fn new(key: HashKey, address: IpAddr, weight: u16, size: u32) -> Self {
        let offset = (key.backend(address, 0) % u64::from(size)) as u32;
        let skip = (key.backend(address, 1) % u64::from(size - 1)) as u32 + 1;
        Self { offset, skip, weight }
    }
}

/// A built table: each entry is the position of a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maglev {
    entries: Box<[u16]>,
}

/// Marks an entry that nobody has taken yet. A service has fewer backends than this.
const FREE: u16 = u16::MAX;

impl Maglev {
    /// Builds a table of `size` entries, a prime. `None` without candidates.
    pub fn build(candidates: &[Candidate], size: u32) -> Option<Self> {
        let heaviest = candidates.iter().map(|candidate| u32::from(candidate.weight)).max()?;
        debug_assert!(candidates.len() < usize::from(FREE) && heaviest > 0);
        let mut entries = vec![FREE; size as usize].into_boxed_slice();
        let mut next: Vec<u32> = candidates.iter().map(|candidate| candidate.offset).collect();
        let mut credit = vec![0u32; candidates.len()];
        let mut filled = 0;
        loop {
            for (position, candidate) in candidates.iter().enumerate() {
                // The heaviest takes a turn each round, the others as often as their weight allows.
                credit[position] += u32::from(candidate.weight);
                if credit[position] < heaviest {
                    continue;
                }
                credit[position] -= heaviest;
                let cursor = &mut next[position];
                while entries[*cursor as usize] != FREE {
                    *cursor = step(*cursor, candidate.skip, size);
                }
                entries[*cursor as usize] = position as u16;
                *cursor = step(*cursor, candidate.skip, size);
                filled += 1;
                if filled == size {
                    return Some(Self { entries });
                }
            }
        }
    }

    /// Of those that are active, each with its position among them. As long as others are only not active, their entries alone
    /// go elsewhere: a node that takes a VIP over meanwhile, and knows no flow, sends those of the active ones where
    /// they were.
    pub fn of_active(candidates: &[(Candidate, bool)], size: u32) -> Option<Self> {
        let of = |wanted: &dyn Fn(bool) -> bool| -> Vec<Candidate> {
            candidates.iter().filter(|(_, is_active)| wanted(*is_active)).map(|(candidate, _)| *candidate).collect()
        };
        let active = Self::build(&of(&|is_active| is_active), size)?;
        if candidates.iter().all(|(_, is_active)| *is_active) {
            return Some(active);
        }
        let all = Self::build(&of(&|_| true), size)?;
        let mut next = 0;
        let positions: Vec<Option<u16>> = candidates
            .iter()
            .map(|(_, is_active)| {
                is_active.then(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        let entries = all.entries.iter().zip(&active.entries);
        Some(Self { entries: entries.map(|(all, active)| positions[usize::from(*all)].unwrap_or(*active)).collect() })
    }

    /// The position of the candidate at an entry below [`Self::size`].
    pub fn lookup(&self, entry: u32) -> usize {
        usize::from(self.entries[entry as usize])
    }

    /// Has the processor fetch an entry.
    #[inline]
    pub(crate) fn prefetch(&self, entry: u32) {
        prefetch(&self.entries[entry as usize]);
    }

    /// The number of entries.
    pub fn size(&self) -> u32 {
        self.entries.len() as u32
    }
}

fn step(cursor: u32, skip: u32, size: u32) -> u32 {
    let next = cursor + skip;
    if next >= size { next - size } else { next }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(candidates: &[Candidate], size: u32) -> Vec<usize> {
        let maglev = Maglev::build(candidates, size).unwrap();
        (0..size).map(|entry| maglev.lookup(entry)).collect()
    }

    fn candidates(count: u8, weight: impl Fn(u8) -> u16, size: u32) -> Vec<Candidate> {
        let address = |i: u8| IpAddr::from([10, 0, 0, i]);
        (1..=count).map(|i| Candidate::new(HashKey(42), address(i), weight(i), size)).collect()
    }

    #[test]
    fn the_example_of_the_paper() {
        let candidate = |offset, skip| Candidate { offset, skip, weight: 1 };
        let [b0, b1, b2] = [candidate(3, 4), candidate(0, 2), candidate(3, 1)];
        assert_eq!(table(&[b0, b1, b2], 7), [1, 0, 1, 0, 2, 2, 0], "table 1, before");
        assert_eq!(table(&[b0, b2], 7), [0, 0, 0, 0, 1, 1, 1], "table 1, after B1 is gone");
    }

    #[test]
    fn the_entries_of_the_active_stay_while_others_are_away() {
        let size = 16_381;
        let all = candidates(5, |i| u16::from(i % 3) + 1, size);
        let before = table(&all, size);
        for away in 1..31u8 {
            let is_active = |at: usize| away & (1 << at) == 0;
            let with: Vec<_> = all.iter().enumerate().map(|(at, of)| (*of, is_active(at))).collect();
            let active: Vec<usize> = (0..5).filter(|at| is_active(*at)).collect();
            let maglev = Maglev::of_active(&with, size).unwrap();
            let now: Vec<usize> = (0..size).map(|entry| active[maglev.lookup(entry)]).collect();
            let kept = before.iter().zip(&now).filter(|(before, _)| is_active(**before));
            assert!(kept.clone().count() > 0 && kept.clone().all(|(before, now)| before == now), "{away:05b}");
            let total: u16 = active.iter().map(|at| all[*at].weight).sum();
            for at in active {
                let share = now.iter().filter(|&&of| of == at).count() as f64 / f64::from(size);
                let wanted = f64::from(all[at].weight) / f64::from(total);
                assert!((share - wanted).abs() < 0.03, "{away:05b}: {share} and {wanted}");
            }
        }
        assert_eq!(Maglev::of_active(&[(all[0], false)], size), None);
    }

    #[test]
    fn shares_follow_the_weights() {
        for weights in [[1, 1, 1, 1], [1, 2, 3, 4], [1000, 1, 500, 7]] {
            let size = 65537;
            let entries = table(&candidates(4, |i| weights[usize::from(i) - 1], size), size);
            let total: u16 = weights.iter().sum();
            for (position, weight) in weights.iter().enumerate() {
                let share = entries.iter().filter(|&&p| p == position).count() as f64 / f64::from(size);
                let expected = f64::from(*weight) / f64::from(total);
                assert!((share - expected).abs() < 0.0005, "{weights:?}: {share} for {weight}");
            }
        }
    }

    #[test]
    fn a_hundred_entries_a_backend_balance_within_one_percent() {
        let size = 16381;
        let entries = table(&candidates(160, |_| 1, size), size);
        let counts: Vec<usize> = (0..160).map(|p| entries.iter().filter(|&&q| p == q).count()).collect();
        let mean = size as f64 / 160.0;
        for count in counts {
            assert!((count as f64 - mean).abs() <= mean * 0.01 + 1.0, "{count} of {mean}");
        }
    }

    #[test]
    fn a_removed_backend_disturbs_few_others() {
        let size = 65537;
        let all = candidates(100, |_| 1, size);
        let before = table(&all, size);
        let without = |gone: usize| [&all[..gone], &all[gone + 1..]].concat();
        for gone in [0, 50, 99] {
            let after = table(&without(gone), size);
            let renamed = |position: usize| if position > gone { position - 1 } else { position };
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && renamed(**b) != **a).count();
            assert!(moved as f64 <= 0.02 * f64::from(size), "{moved} entries of other backends moved");
        }
    }

    proptest! {
        #[test]
        fn every_entry_has_a_member(weights in proptest::collection::vec(1u16..=1000, 1..50), key: u128) {
            let size = 4093;
            let candidates: Vec<Candidate> = weights.iter().enumerate()
                .map(|(i, w)| Candidate::new(HashKey(key), IpAddr::from([10, 0, 1, i as u8]), *w, size)).collect();
            let maglev = Maglev::build(&candidates, size).unwrap();
            for entry in 0..size {
                prop_assert!(maglev.lookup(entry) < candidates.len());
            }
        }
    }

    /// Two versions in one cluster place every flow alike, or a move of a VIP breaks connections: these numbers never change.
    #[test]
    fn every_version_builds_the_same_table() {
        let golden = |addresses: &[&str]| -> (Vec<(u32, u32)>, u64) {
            let candidates: Vec<Candidate> = addresses
                .iter()
                .zip([1, 2, 5])
                .map(|(address, weight)| Candidate::new(HashKey(42), address.parse().unwrap(), weight, 4093))
                .collect();
            let maglev = Maglev::build(&candidates, 4093).unwrap();
            let sum = (0..4093).fold(0u64, |sum, entry| sum.wrapping_mul(31).wrapping_add(maglev.lookup(entry) as u64));
            (candidates.iter().map(|candidate| (candidate.offset, candidate.skip)).collect(), sum)
        };
        assert_eq!(
            golden(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
            (vec![(1676, 464), (1123, 1825), (338, 3133)], 10474362089524448577)
        );
        assert_eq!(
            golden(&["2001:db8::1", "2001:db8::2", "10.0.0.1"]),
            (vec![(2020, 1993), (926, 2944), (1676, 464)], 14327100873341815433)
        );
    }
}
