//! The id that Kafka gives a topic when it is created: a recreated topic has the same name and offsets, but another
//! id, so everything that remembers an offset remembers the id with it.

#![allow(unsafe_code, reason = "rust-rdkafka has no DescribeTopics; librdkafka's C interface has")]

use std::{
    ffi::{CStr, CString},
    ptr,
    time::Duration,
};

use rdkafka::{
    bindings::{
        rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_DescribeTopics,
        rd_kafka_DescribeTopics_result_topics, rd_kafka_TopicCollection_destroy,
        rd_kafka_TopicCollection_of_topic_names, rd_kafka_TopicDescription_error, rd_kafka_TopicDescription_topic_id,
        rd_kafka_Uuid_base64str, rd_kafka_admin_op_t, rd_kafka_error_code, rd_kafka_event_DescribeTopics_result,
        rd_kafka_event_destroy, rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_resp_err_t,
    },
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::Logged;

/// The id of a topic in Kafka's own base64 spelling. Blocks.
pub fn topic_id(client: &BaseConsumer<Logged>, topic: &str, timeout: Duration) -> KafkaResult<String> {
    let failed = |code: RDKafkaErrorCode| KafkaError::MetadataFetch(code);
    let name = CString::new(topic).map_err(|_| failed(RDKafkaErrorCode::InvalidTopic))?;
    let native = client.client().native_ptr();
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: every object made here is destroyed here, in reverse order; `name` outlives the call that copies it; the
    // id's text belongs to the event and is copied before the event goes.
    unsafe {
        let mut names = [name.as_ptr()];
        let collection = rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let queue = rd_kafka_queue_new(native);
        let options = rd_kafka_AdminOptions_new(native, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        rd_kafka_DescribeTopics(native, collection, options, queue);
        let event = rd_kafka_queue_poll(queue, millis);
        let found = (|| {
            let result = if event.is_null() { ptr::null() } else { rd_kafka_event_DescribeTopics_result(event) };
            if result.is_null() {
                return Err(failed(RDKafkaErrorCode::OperationTimedOut));
            }
            let mut count = 0;
            let topics = rd_kafka_DescribeTopics_result_topics(result, &mut count);
            if topics.is_null() || count != 1 {
                return Err(failed(RDKafkaErrorCode::UnknownTopic));
            }
            let error = rd_kafka_TopicDescription_error(*topics);
            if !error.is_null() && rd_kafka_error_code(error) != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(failed(rd_kafka_error_code(error).into()));
            }
            let text = rd_kafka_Uuid_base64str(rd_kafka_TopicDescription_topic_id(*topics));
            if text.is_null() {
                return Err(failed(RDKafkaErrorCode::UnknownTopic));
            }
            // librdkafka spells base64 with + and /, Kafka and its tools with - and _.
            Ok(CStr::from_ptr(text).to_string_lossy().replace('+', "-").replace('/', "_"))
        })();
        if !event.is_null() {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_AdminOptions_destroy(options);
        rd_kafka_queue_destroy(queue);
        rd_kafka_TopicCollection_destroy(collection);
        found
    }
}
