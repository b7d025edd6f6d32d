//! Pages of the store's history, bounded by events and by bytes, leave nothing out and repeat nothing.

use throughline::store::destinations;
use throughline::store::events::{History, Span};

use super::bed::{Bed, PARTITIONS, Stored};
use super::scenario::lives;

#[tokio::test(flavor = "multi_thread")]
async fn history_is_whole_whatever_a_page_may_hold() {
    let mut bed = Bed::new().await;
    bed.append(&lives(31, 200)).await;
    // Small ones first, by which the pages behind them are reckoned.
    bed.owner
        .batch_execute(
            "alter table throughline.events disable trigger events_are_immutable;
             update throughline.events set payload = payload || convert_to(repeat(' ', 10000), 'UTF8') where seq > 100;
             alter table throughline.events enable trigger events_are_immutable",
        )
        .await
        .expect("larger payloads");
    let stored = bed.stored().await;
    let largest = stored.iter().map(|event| event.payload.len()).max().expect("events");
    let destination = destinations::find(&bed.owner, &bed.names.events()).await.expect("a registered topic");
    let spans: Vec<Span> = (0..PARTITIONS)
        .map(|partition| {
            let upto = stored.iter().filter(|event| event.partition == partition).count() as i64;
            Span { partition, after: 0, upto }
        })
        .collect();
    for (events, bytes) in [(1_000, 1 << 20), (7, 1 << 20), (1_000, 1), (1_000, largest)] {
        let mut history = History::new(&destination, &spans, events, bytes);
        let mut read = Vec::new();
        loop {
            let page = history.next(&bed.owner).await.expect("a page");
            if page.is_empty() {
                break;
            }
            for one in &spans {
                let payloads = page.iter().filter(|event| event.partition == one.partition).map(|e| e.payload.len());
                let (count, held) = payloads.fold((0, 0), |(count, sum), size| (count + 1, sum + size));
                assert!(count <= events && held < bytes + largest, "{count} events of {held} bytes");
            }
            read.extend(page);
        }
        read.sort_by_key(|event| event.partition);
        let place = |event: &Stored| (event.partition, event.seq, event.payload.clone());
        let read: Vec<_> = read.into_iter().map(|event| (event.partition, event.seq, event.payload)).collect();
        assert_eq!(read, stored.iter().map(place).collect::<Vec<_>>(), "{events} events, {bytes} bytes");
    }
}
