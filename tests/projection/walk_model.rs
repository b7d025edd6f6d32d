//! What rows and letters should be after any sequence of operations: an independent fold, and the rules by
//! which an event is in it or not. Shares no code and no statement with the projections.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::walk_world::{Fact, Kind, MODULUS, PartitionLog};

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letter {
    Parked,
    Replayed,
    Discarded,
    Superseded,
}

impl Letter {
    pub fn name(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
            Self::Superseded => "superseded",
        }
    }
}

/// The rows of one partition: all events up to `seq`, but these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    pub seq: i64,
    pub parked: BTreeSet<i64>,
    pub skipped: BTreeSet<i64>,
}

#[derive(Debug, Clone)]
pub struct Generation {
    pub version: i32,
    pub parts: Vec<Part>,
}

/// What a claim finds: where it stood, and what the group wishes.
#[derive(Debug, Clone)]
pub struct Found {
    pub next_offset: i64,
    /// The topic is another one than the offset is of.
    pub is_anew: bool,
    pub wish: Option<i64>,
    pub published: i64,
}

/// It cannot go on: an event fails, and nothing may be parked.
#[derive(Debug)]
pub struct Stands;

#[derive(Debug, Clone)]
pub struct Model {
    pub facts: Vec<Vec<Fact>>,
    pub live: Generation,
    pub previous: Option<Generation>,
    pub letters: BTreeMap<(usize, i64), Letter>,
    pub broken: bool,
    pub old: bool,
    pub parks: bool,
}

impl Model {
    pub fn new(partitions: usize) -> Self {
        let live = Generation { version: 1, parts: vec![Part::default(); partitions] };
        let facts = vec![Vec::new(); partitions];
        Self { facts, live, previous: None, letters: BTreeMap::new(), broken: false, old: false, parks: true }
    }

    fn fact(&self, p: usize, seq: i64) -> &Fact {
        &self.facts[p][seq as usize - 1]
    }

    fn fails(&self, fact: &Fact) -> bool {
        (self.broken && fact.kind == Kind::Poison) || (self.old && fact.kind == Kind::Foreign)
    }

    fn is_behind(&self, p: usize, fact: &Fact) -> bool {
        self.letters.iter().any(|(&(q, seq), letter)| {
            q == p && *letter == Letter::Parked && seq < fact.seq && self.fact(p, seq).key == fact.key
        })
    }

    fn park(&mut self, p: usize, seq: i64) {
        self.letters.insert((p, seq), Letter::Parked);
        self.live.parts[p].parked.insert(seq);
    }

    /// The next event comes by the topic.
    pub fn take(&mut self, p: usize, seq: i64) -> Result<(), Stands> {
        let reached = self.live.parts[p].seq;
        if seq <= reached {
            return Ok(());
        }
        if seq > reached + 1 {
            return Err(Stands);
        }
        let fact = self.fact(p, seq).clone();
        if self.letters.get(&(p, seq)) == Some(&Letter::Discarded) {
            self.live.parts[p].parked.insert(seq);
        } else if self.old && fact.kind == Kind::Foreign && !self.parks {
            return Err(Stands);
        } else if self.is_behind(p, &fact) {
            self.park(p, seq);
        } else if self.fails(&fact) {
            if !self.parks {
                return Err(Stands);
            }
            self.park(p, seq);
        }
        self.live.parts[p].seq = seq;
        Ok(())
    }

    /// The live rows come from the store up to `upto`.
    fn fill(&mut self, p: usize, upto: i64) -> Result<(), Stands> {
        for seq in self.live.parts[p].seq + 1..=upto {
            let fact = self.fact(p, seq).clone();
            match self.letters.get(&(p, seq)) {
                Some(Letter::Discarded | Letter::Parked) => drop(self.live.parts[p].parked.insert(seq)),
                _ if self.is_behind(p, &fact) => self.park(p, seq),
                _ if self.fails(&fact) && !self.parks => return Err(Stands),
                _ if self.fails(&fact) => self.park(p, seq),
                _ => {}
            }
            self.live.parts[p].seq = seq;
        }
        Ok(())
    }

    /// The rows of a partition are made anew, up to `upto`; what comes after it comes again.
    fn remake(&mut self, p: usize, upto: i64) -> Result<(), Stands> {
        for (&(q, seq), letter) in &mut self.letters {
            if q == p && seq > upto && *letter == Letter::Parked {
                *letter = Letter::Superseded;
            }
        }
        self.live.parts[p] = Part::default();
        self.fill(p, upto)
    }

    /// A claim; nothing happens where it fails.
    pub fn claim(&mut self, p: usize, log: &PartitionLog, found: &Found) -> Result<(), Stands> {
        let mut next = self.clone();
        next.claimed(p, log, found)?;
        *self = next;
        Ok(())
    }

    fn claimed(&mut self, p: usize, log: &PartitionLog, found: &Found) -> Result<(), Stands> {
        let (first, end) = log.kept();
        let before = |offset: i64| log.seq_before(offset).unwrap_or(found.published);
        let reached = self.live.parts[p].seq;
        if found.is_anew {
            assert!(found.wish.is_none(), "the walk wishes nothing of a topic that it does not know");
            self.fill(p, before(first))?;
        } else if let Some(wish) = found.wish {
            let target = wish.clamp(first, end);
            let seq = before(target);
            if target < found.next_offset || (target == found.next_offset && seq > reached) {
                self.remake(p, seq)?;
            } else if target > found.next_offset && seq > reached {
                self.live.parts[p].skipped.extend(reached + 1..=seq);
                self.live.parts[p].seq = seq;
            }
        } else if found.next_offset < first {
            self.fill(p, before(first))?;
        }
        let part = &self.live.parts[p];
        let holds_discarded = self.letters.iter().any(|(&(q, seq), letter)| {
            let left_out = part.parked.contains(&seq) || part.skipped.contains(&seq);
            q == p && *letter == Letter::Discarded && seq <= part.seq && !left_out
        });
        if holds_discarded {
            self.remake(p, part.seq)?;
        }
        Ok(())
    }

    /// The keys that have open letters, with the partition of each.
    pub fn open_keys(&self) -> BTreeSet<(usize, Uuid)> {
        let open = self.letters.iter().filter(|(_, letter)| **letter == Letter::Parked);
        open.map(|(&(p, seq), _)| (p, self.fact(p, seq).key)).collect()
    }

    fn open_of(&self, p: usize, key: Uuid) -> Vec<i64> {
        let open = self.letters.iter().filter(|(_, letter)| **letter == Letter::Parked);
        open.map(|(&place, _)| place)
            .filter(|&(q, seq)| q == p && self.fact(p, seq).key == key)
            .map(|(_, s)| s)
            .collect()
    }

    /// Whether a replay of the key succeeds.
    pub fn can_replay(&self, p: usize, key: Uuid) -> bool {
        self.open_of(p, key).iter().all(|&seq| !self.fails(self.fact(p, seq)))
    }

    pub fn replay(&mut self, p: usize, key: Uuid) {
        for seq in self.open_of(p, key) {
            self.letters.insert((p, seq), Letter::Replayed);
            self.live.parts[p].parked.remove(&seq);
        }
    }

    /// A new generation is filled and becomes live.
    pub fn rebuild(&mut self, version: i32) -> Result<(), Stands> {
        let mut next = Generation { version, parts: Vec::new() };
        for (p, live) in self.live.parts.iter().enumerate() {
            let mut part = Part { seq: live.seq, ..Part::default() };
            for fact in &self.facts[p][..live.seq as usize] {
                let letter = self.letters.get(&(p, fact.seq));
                if matches!(letter, Some(Letter::Parked | Letter::Discarded)) || self.is_behind(p, fact) {
                    part.parked.insert(fact.seq);
                } else if self.fails(fact) {
                    return Err(Stands);
                }
            }
            next.parts.push(part);
        }
        self.previous = Some(std::mem::replace(&mut self.live, next));
        self.agree();
        Ok(())
    }

    /// False where no generation is kept.
    pub fn rollback(&mut self) -> bool {
        let Some(previous) = self.previous.take() else { return false };
        self.previous = Some(std::mem::replace(&mut self.live, previous));
        self.agree();
        true
    }

    /// Open is what the live rows lack and nobody discarded, nothing else.
    fn agree(&mut self) {
        for (p, part) in self.live.parts.iter().enumerate() {
            for &seq in &part.parked {
                let letter = self.letters.entry((p, seq)).or_insert(Letter::Parked);
                if *letter != Letter::Discarded {
                    *letter = Letter::Parked;
                }
            }
        }
        for (&(p, seq), letter) in &mut self.letters {
            if *letter == Letter::Parked && !self.live.parts[p].parked.contains(&seq) {
                *letter = Letter::Superseded;
            }
        }
    }

    /// The rows of both tables.
    pub fn rows(&self, generation: &Generation) -> BTreeSet<String> {
        let mut rows = BTreeSet::new();
        for (p, part) in generation.parts.iter().enumerate() {
            let mut chains: BTreeMap<Uuid, (i64, i64, i64)> = BTreeMap::new();
            let mut sums: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
            for fact in &self.facts[p][..part.seq as usize] {
                if part.parked.contains(&fact.seq) || part.skipped.contains(&fact.seq) {
                    continue;
                }
                let weighed = fact.value * i64::from(generation.version);
                let (n, last, chain) = chains.entry(fact.key).or_default();
                (*n, *last, *chain) = (*n + 1, fact.seq, (*chain * 31 + weighed) % MODULUS);
                let (n, total) = sums.entry(fact.value % 3).or_default();
                (*n, *total) = (*n + 1, *total + weighed);
            }
            rows.extend(chains.iter().map(|(key, (n, last, chain))| format!("chain {p} {key} {n} {last} {chain}")));
            rows.extend(sums.iter().map(|(bucket, (n, total))| format!("sum {p} {bucket} {n} {total}")));
        }
        rows
    }
}
