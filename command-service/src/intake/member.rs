//! Whether a consumer is a member of its group.

#![allow(unsafe_code, reason = "the member's id exists in librdkafka's C interface only")]

use rdkafka::{
    bindings::{rd_kafka_mem_free, rd_kafka_memberid},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
};

/// Whether the consumer has a member id: from when the group gives it one until it asks to leave.
pub(super) fn is_member<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    let client = consumer.client().native_ptr();
    // SAFETY: the client outlives both calls; the string is ours, ends with 0, and is freed once.
    unsafe {
        let id = rd_kafka_memberid(client);
        if id.is_null() {
            return false;
        }
        let empty = *id == 0;
        rd_kafka_mem_free(client, id.cast());
        !empty
    }
}
