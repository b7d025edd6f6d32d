//! The door by itself: limits, policies, and the order that overflow keeps. No Kafka.

use super::*;

fn measured(policy: AdmissionPolicy, commands_max: u64) -> Arc<Admission> {
    let mut settings = Settings::default();
    settings.http.admission.policy = policy;
    settings.http.admission.queue_commands_max = commands_max;
    settings.http.admission.wait_ms = 50;
    settings.http.admission.in_flight_bytes_max = 1_000;
    Admission::measured(&settings)
}

impl Admission {
    /// An admission that has measured its queues, and found them empty.
    pub(in crate::api) fn measured(settings: &Settings) -> Arc<Self> {
        let admission = Self::new(settings);
        admission.lock().sampled = true;
        admission
    }
}

/// As [`measured`], with somebody who looks at overflow, and finds nothing.
fn admission(policy: AdmissionPolicy, commands_max: u64) -> Arc<Admission> {
    let admission = measured(policy, commands_max);
    let looked = admission.clone();
    tokio::spawn(async move {
        loop {
            let ticket = looked.looks.wanted().await;
            looked.lock().spills.iter_mut().for_each(|spill| spill.is_known = true);
            looked.looks.serve(ticket);
        }
    });
    admission
}

async fn admit(admission: &Arc<Admission>, stream: u128) -> Result<Permit, Problem> {
    admission.admit(Lane::Normal, Uuid::from_u128(stream), 10).await
}

#[tokio::test]
async fn reject_answers_from_the_limit_on() {
    let admission = admission(AdmissionPolicy::Reject, 3);
    let mut permits = Vec::new();
    for _ in 0..3 {
        permits.push(admit(&admission, 1).await.unwrap());
    }
    let refused = admit(&admission, 1).await.unwrap_err();
    assert_eq!((refused.code(), refused.status().as_u16()), ("QUEUE_FULL", 503));
    // Accepted commands go on to count until a sample says that they were decided.
    permits.drain(..).for_each(|permit| permit.accepted(0));
    assert_eq!(admission.depths().lanes[1], 3);
    assert!(admit(&admission, 1).await.is_err());
    // Other lanes have their own room.
    assert!(admission.admit(Lane::Bulk, Uuid::from_u128(1), 10).await.is_ok());
}

#[tokio::test]
async fn an_abandoned_command_gives_its_room_back() {
    let admission = admission(AdmissionPolicy::Reject, 1);
    drop(admit(&admission, 1).await.unwrap());
    assert_eq!(admission.depths().in_flight_bytes, 0);
    assert!(admit(&admission, 1).await.is_ok());
}

#[tokio::test]
async fn wait_goes_on_as_soon_as_there_is_room() {
    let admission = admission(AdmissionPolicy::Wait, 1);
    let permit = admit(&admission, 1).await.unwrap();
    assert!(admit(&admission, 1).await.is_err(), "no room within the wait");
    let waiting = tokio::spawn({
        let admission = admission.clone();
        async move { admit(&admission, 1).await.is_ok() }
    });
    tokio::task::yield_now().await;
    drop(permit);
    admission.room.notify_waiters();
    assert!(waiting.await.unwrap());
}

#[tokio::test]
async fn a_stream_in_overflow_stays_there_until_it_is_drained() {
    let admission = admission(AdmissionPolicy::Overflow, 1);
    let first = admit(&admission, 1).await.unwrap();
    assert!(matches!(first.way(), Way::Lane { lane: Lane::Normal, .. }));
    let spilled = admit(&admission, 1).await.unwrap();
    let Way::Overflow { partition, .. } = spilled.way() else { panic!("{:?}", spilled.way()) };
    drop(first);
    // Room again, but the stream has a command in overflow: on its way, then acknowledged.
    assert!(matches!(admit(&admission, 1).await.unwrap().way(), Way::Overflow { .. }));
    spilled.accepted(41);
    assert!(matches!(admit(&admission, 1).await.unwrap().way(), Way::Overflow { .. }));
    admission.drained(&[(partition, 42)].into());
    assert!(matches!(admit(&admission, 1).await.unwrap().way(), Way::Lane { lane: Lane::Normal, .. }));
}

#[tokio::test]
async fn a_backlog_of_another_configuration_is_respected() {
    let admission = admission(AdmissionPolicy::Reject, 10);
    admission.lock().spills.iter_mut().for_each(|spill| spill.end = 1);
    assert!(matches!(admit(&admission, 1).await.unwrap().way(), Way::Overflow { .. }));
}

#[tokio::test]
async fn bytes_in_flight_are_bounded_whatever_the_policy() {
    let admission = admission(AdmissionPolicy::Overflow, 1_000);
    let stream = Uuid::from_u128(1);
    let most = admission.admit(Lane::Normal, stream, 1_000).await.unwrap();
    assert!(admission.admit(Lane::Normal, stream, 1).await.is_err());
    drop(most);
    assert!(admission.admit(Lane::Normal, stream, 1).await.is_ok());
}

/// Streams of different partitions.
fn streams(admission: &Arc<Admission>) -> Vec<u128> {
    let partitions = admission.lock().spills.len();
    let of = |partition: usize| (1..).find(|id| place(Uuid::from_u128(*id), partitions) == partition);
    (0..partitions).filter_map(of).collect()
}

#[tokio::test]
async fn a_partition_that_acknowledges_nothing_leaves_bytes_to_others() {
    let admission = admission(AdmissionPolicy::Reject, 1_000);
    let [stuck, other, ..] = streams(&admission)[..] else { panic!("several partitions") };
    let mut held = Vec::new();
    while let Ok(permit) = admit(&admission, stuck).await {
        held.push(permit);
    }
    assert!((10..70).contains(&held.len()), "{}", held.len());
    for _ in 0..3 {
        held.push(admit(&admission, other).await.unwrap());
    }
    let refused = admit(&admission, stuck).await.unwrap_err();
    assert_eq!(refused.code(), "QUEUE_FULL");
}

#[tokio::test]
async fn who_has_no_leader_is_refused_at_once_and_nobody_else() {
    let admission = admission(AdmissionPolicy::Wait, 1_000);
    let [stuck, other, ..] = streams(&admission)[..] else { panic!("several partitions") };
    let partition = place(Uuid::from_u128(stuck), 6);
    admission.lock().lanes[Lane::Normal.index()].parts[partition].is_leaderless = true;
    assert_eq!(admit(&admission, stuck).await.unwrap_err().code(), "KAFKA_UNAVAILABLE");
    assert!(admit(&admission, other).await.is_ok());
}

#[tokio::test]
async fn what_is_on_its_way_stays_counted_when_topics_grow() {
    let admission = admission(AdmissionPolicy::Reject, 1_000);
    let permits = [admit(&admission, 1).await.unwrap(), admit(&admission, 2).await.unwrap()];
    {
        let mut state = admission.lock();
        let found = vec![Some((0, 0)); 9];
        for queue in &mut state.lanes {
            queue.sample(&found, &(vec![0; 9], 0), 1.0);
        }
        state.divide(admission.in_flight_max);
    }
    assert_eq!(admission.depths().in_flight_bytes, 20);
    assert!(admit(&admission, 3).await.is_ok());
    drop(permits);
    assert_eq!(admission.depths().in_flight_bytes, 0);
}

#[tokio::test]
async fn where_nobody_can_tell_of_overflow_nothing_overtakes() {
    let admission = measured(AdmissionPolicy::Overflow, 10);
    // Nobody looks; then somebody looks in vain.
    assert_eq!(admit(&admission, 1).await.unwrap_err().code(), "KAFKA_UNAVAILABLE");
    let looked = admission.clone();
    tokio::spawn(async move { looked.looks.serve(looked.looks.wanted().await + 1) });
    assert_eq!(admit(&admission, 1).await.unwrap_err().code(), "KAFKA_UNAVAILABLE");
    // What waits already is followed without a look.
    admission.lock().spills.iter_mut().for_each(|spill| spill.end = 1);
    assert!(matches!(admit(&admission, 1).await.unwrap().way(), Way::Overflow { .. }));
}

#[tokio::test]
async fn nothing_is_accepted_before_the_first_sample() {
    let admission = admission(AdmissionPolicy::Reject, 10);
    admission.lock().sampled = false;
    assert_eq!(admit(&admission, 1).await.unwrap_err().code(), "STARTING");
}

#[tokio::test]
async fn the_drainer_leaves_half_of_the_lane_to_others() {
    let admission = admission(AdmissionPolicy::Overflow, 10);
    assert_eq!(admission.reserve_drained(Lane::Normal, 100), 5);
    assert_eq!(admission.reserve_drained(Lane::Normal, 100), 0);
    admission.release_drained(Lane::Normal, 5, 5);
    assert_eq!(admission.depths().lanes[1], 5);
}
