//! How much is asked of the database at a time: less after what could not finish in time, slowly more again.
//!
//! A batch that cannot finish within a limit is never tried unchanged for ever. Knows no loop.

/// A bound that gives way.
#[derive(Debug, Clone)]
pub struct Extent {
    most: usize,
    now: usize,
}

impl Extent {
    /// `most` by the settings, and to begin with.
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, now: most }
    }

    /// What to ask for, at most.
    pub fn now(&self) -> usize {
        self.now
    }

    /// `tried` at once was too much.
    pub fn shrink(&mut self, tried: usize) {
        self.now = (tried / 2).clamp(1, self.now);
    }

    /// `done` at once got through. Only what nearly fills the bound says that more may.
    pub fn grow(&mut self, done: usize) {
        if done.saturating_mul(2) > self.now {
            self.now = self.now.saturating_add(self.now / 8 + 1).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_down_to_one_and_grows_back_by_what_gets_through() {
        let mut extent = Extent::new(1_000);
        for _ in 0..20 {
            extent.shrink(extent.now());
        }
        assert_eq!(extent.now(), 1);
        let mut batches = 0;
        while extent.now() < 1_000 {
            extent.grow(extent.now());
            batches += 1;
        }
        assert!((20..100).contains(&batches), "{batches}");
        extent.shrink(500);
        extent.grow(10);
        assert_eq!(extent.now(), 250, "a small batch proves nothing");
        extent.shrink(5_000);
        assert_eq!(extent.now(), 250, "what is under way from before makes it no larger");
    }
}
