//! A live row that says something else than the events do, without a reason: a rebuild tells it and does not
//! switch.

use std::sync::Arc;

use throughline::projection::{RebuildMode, rebuild};

use super::walk_steps::{PARTITIONS, Walk};

impl Walk {
    /// Spoils a row where the generations leave out the same events, has a rebuild look, and mends it.
    pub async fn spoil(&mut self) {
        let mut next = self.model.clone();
        if self.model.live.version != self.program || next.rebuild(self.program).is_err() {
            return;
        }
        let same: Vec<i32> = (0..PARTITIONS)
            .filter(|&p| self.model.live.parts[p] == next.live.parts[p])
            .map(|p| i32::try_from(p).expect("few partitions"))
            .collect();
        let change = "update read.walk_sum set total = total + $2 where (partition, bucket) in
                      (select partition, bucket from read.walk_sum where partition = any($1) order by 1, 2 limit 1)";
        if self.owner.execute(change, &[&same, &1_i64]).await.expect("spoils") == 0 {
            return;
        }
        self.took("spoil", String::new());
        let report = rebuild(&self.projector(), &Arc::default(), RebuildMode::Checked).await.expect("it looks");
        assert_eq!((report.switched, report.compared, report.unexplained), (false, true, 1), "{report:?}");
        self.owner.execute(change, &[&same, &-1_i64]).await.expect("mends");
    }
}
