//! What elements hold, without numbers.

use std::collections::BTreeMap;

/// Memory that nobody has written: combining it makes nonsense.
pub(super) const NOTHING: usize = 0;

/// Symbols, by number: [`NOTHING`], then what each rank brought, atom by atom, then what was combined.
pub(super) struct Symbols {
    world_size: usize,
    atoms: usize,
    sums: BTreeMap<(usize, usize), usize>,
    /// What was divided, by how much.
    quotients: BTreeMap<(usize, usize), usize>,
    combined: Vec<Symbol>,
}

#[derive(Clone)]
struct Symbol {
    /// Whose contributions it holds, 64 ranks to a word.
    ranks: Vec<u64>,
    /// Of which atom.
    atom: usize,
    /// Whether it holds one of them twice.
    twice: bool,
    /// Whether it combines different atoms, or what nobody has written, or what was divided before.
    mixed: bool,
    /// By how much it was divided in all.
    divisor: usize,
}

impl Symbols {
    pub(super) fn new(world_size: usize, atoms: usize) -> Self {
        Self { world_size, atoms, sums: BTreeMap::new(), quotients: BTreeMap::new(), combined: Vec::new() }
    }

    /// What `rank` brought of `atom`.
    pub(super) fn brought(&self, rank: usize, atom: usize) -> usize {
        1 + rank * self.atoms + atom
    }

    /// The first number of what was combined.
    fn first_combined(&self) -> usize {
        1 + self.world_size * self.atoms
    }

    fn symbol(&self, number: usize) -> Symbol {
        if let Some(index) = number.checked_sub(self.first_combined()) {
            return self.combined[index].clone();
        }
        let mut ranks = vec![0; self.world_size.div_ceil(64)];
        if number == NOTHING {
            return Symbol { ranks, atom: 0, twice: false, mixed: true, divisor: 1 };
        }
        let (rank, atom) = ((number - 1) / self.atoms, (number - 1) % self.atoms);
        ranks[rank / 64] |= 1 << (rank % 64);
        Symbol { ranks, atom, twice: false, mixed: false, divisor: 1 }
    }

    /// Two of them combined, whichever comes first.
    pub(super) fn combined(&mut self, a: usize, b: usize) -> usize {
        let next = self.first_combined() + self.combined.len();
        let number = *self.sums.entry((a.min(b), a.max(b))).or_insert(next);
        if number == next {
            let (left, right) = (self.symbol(a), self.symbol(b));
            let again = left.ranks.iter().zip(&right.ranks).any(|(l, r)| l & r != 0);
            self.combined.push(Symbol {
                ranks: left.ranks.iter().zip(&right.ranks).map(|(l, r)| l | r).collect(),
                atom: left.atom,
                twice: left.twice || right.twice || again,
                mixed: left.mixed
                    || right.mixed
                    || left.atom != right.atom
                    || left.divisor * right.divisor != 1,
                divisor: 1,
            });
        }
        number
    }

    /// One of them divided.
    pub(super) fn divided(&mut self, a: usize, by: usize) -> usize {
        let next = self.first_combined() + self.combined.len();
        let number = *self.quotients.entry((a, by)).or_insert(next);
        if number == next {
            let whole = self.symbol(a);
            self.combined.push(Symbol { divisor: whole.divisor.saturating_mul(by), ..whole });
        }
        number
    }

    /// By how much a symbol was divided.
    pub(super) fn divisor(&self, number: usize) -> usize {
        self.symbol(number).divisor
    }

    /// Whether a symbol holds every rank's contribution to `atom` and nothing of others.
    pub(super) fn holds_all(&self, number: usize, atom: usize) -> bool {
        let Symbol { ranks, mixed, atom: held, .. } = self.symbol(number);
        let count: u32 = ranks.iter().map(|word| word.count_ones()).sum();
        count as usize == self.world_size && !mixed && held == atom
    }

    /// Whether it holds none of them twice.
    pub(super) fn holds_once(&self, number: usize) -> bool {
        !self.symbol(number).twice
    }
}
