//! Kafka's id of a topic: what tells a re-created topic from the old one of the same name.
//!
//! The safe client offers no such call, so librdkafka is asked directly.
//! Every pointer here is made, checked and freed within one function.

use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as sys;
use rdkafka::client::Client;

use super::KafkaError;

/// Frees what librdkafka made, on every way out.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that pairs with this destructor, and is
            // freed once, here.
            unsafe { (self.1)(self.0) }
        }
    }
}

/// The id of `topic` in Kafka's own text form; none when the broker gives none (before Kafka 2.8).
///
/// Blocks for at most `wait`.
///
/// # Errors
/// No answer in time, or the topic does not exist.
pub fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    wait: Duration,
) -> Result<Option<String>, KafkaError> {
    let failed = |reason: String| KafkaError::Topic(format!("cannot read the id of topic {topic}: {reason}"));
    let name = CString::new(topic).map_err(|error| failed(error.to_string()))?;
    let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    let handle = client.native_ptr();
    // SAFETY: `handle` is live for as long as `client` is borrowed. The collection copies the name.
    // The event owns everything read from the result, and outlives the reads.
    unsafe {
        let mut names = [name.as_ptr()];
        let topics = Owned(
            sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            sys::rd_kafka_TopicCollection_destroy,
        );
        let options = Owned(
            sys::rd_kafka_AdminOptions_new(handle, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS),
            sys::rd_kafka_AdminOptions_destroy,
        );
        let queue = Owned(sys::rd_kafka_queue_new(handle), sys::rd_kafka_queue_destroy);
        let mut reason = [0; 256];
        sys::rd_kafka_AdminOptions_set_request_timeout(options.0, wait_ms, reason.as_mut_ptr(), reason.len());
        sys::rd_kafka_DescribeTopics(handle, topics.0, options.0, queue.0);
        let event = Owned(sys::rd_kafka_queue_poll(queue.0, wait_ms), sys::rd_kafka_event_destroy);
        if event.0.is_null() {
            return Err(failed("no answer in time".into()));
        }
        if sys::rd_kafka_event_error(event.0) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed(text(sys::rd_kafka_event_error_string(event.0))));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(failed("an answer of another kind".into()));
        }
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if described.is_null() || count == 0 {
            return Err(failed("an empty answer".into()));
        }
        let description = *described;
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null() && sys::rd_kafka_error_code(error) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed(text(sys::rd_kafka_error_string(error))));
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        if id.is_null()
            || (sys::rd_kafka_Uuid_most_significant_bits(id) == 0 && sys::rd_kafka_Uuid_least_significant_bits(id) == 0)
        {
            return Ok(None);
        }
        Ok(Some(text(sys::rd_kafka_Uuid_base64str(id))))
    }
}

/// # Safety
/// `pointer` is null or a NUL-terminated string that outlives the call.
unsafe fn text(pointer: *const std::ffi::c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
