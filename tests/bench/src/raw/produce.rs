//! Handing records to librdkafka at the least cost: topics looked up once, headers copied from a list that is there.

#![allow(unsafe_code, reason = "topic handles and copies of header lists exist in librdkafka's C interface only")]

use std::{
    ffi::{CString, c_void},
    ptr,
};

use anyhow::{Result, bail, ensure};
use rdkafka::{
    bindings::{
        RD_KAFKA_MSG_F_COPY, rd_kafka_error_code, rd_kafka_error_destroy, rd_kafka_flush, rd_kafka_header_add,
        rd_kafka_headers_copy, rd_kafka_headers_destroy, rd_kafka_headers_new, rd_kafka_headers_t, rd_kafka_produceva,
        rd_kafka_resp_err_t, rd_kafka_topic_destroy, rd_kafka_topic_new, rd_kafka_topic_t, rd_kafka_vtype_t as Vtype,
        rd_kafka_vu_s as Vu, rd_kafka_vu_s__bindgen_ty_1 as Union, rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 as Memory,
    },
    producer::{Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};

/// A topic, and the headers of all records that go there.
pub struct Target {
    topic: *mut rd_kafka_topic_t,
    headers: *mut rd_kafka_headers_t,
}

// SAFETY: librdkafka's handles may be used from any thread, and the list is only read.
unsafe impl Send for Target {}

impl Target {
    /// A topic of a producer; to be dropped before it.
    pub fn new(
        producer: &ThreadedProducer<impl ProducerContext>,
        topic: &str,
        headers: &[(String, Vec<u8>)],
    ) -> Result<Self> {
        let name = CString::new(topic)?;
        // SAFETY: the client lives; names and values are copied, and their pointers and lengths belong together.
        unsafe {
            let topic = rd_kafka_topic_new(producer.client().native_ptr(), name.as_ptr(), ptr::null_mut());
            ensure!(!topic.is_null(), "a topic can't be looked up");
            let list = rd_kafka_headers_new(headers.len());
            for (name, value) in headers {
                let (size, length) = (name.len().cast_signed(), value.len().cast_signed());
                rd_kafka_header_add(list, name.as_ptr().cast(), size, value.as_ptr().cast(), length);
            }
            Ok(Self { topic, headers: list })
        }
    }

    /// Queues a record; false when the queue is full.
    pub fn send(
        &self,
        producer: &ThreadedProducer<impl ProducerContext>,
        partition: i32,
        key: &[u8],
        value: &[u8],
    ) -> Result<bool> {
        // SAFETY: each part's union holds what its type says. Key and value are copied; the copy of the headers goes
        // over to librdkafka on success only.
        let code = unsafe {
            let headers = rd_kafka_headers_copy(self.headers);
            let parts = [
                Vu { vtype: Vtype::RD_KAFKA_VTYPE_RKT, u: Union { rkt: self.topic } },
                Vu { vtype: Vtype::RD_KAFKA_VTYPE_PARTITION, u: Union { i32_: partition } },
                Vu { vtype: Vtype::RD_KAFKA_VTYPE_MSGFLAGS, u: Union { i: RD_KAFKA_MSG_F_COPY } },
                Vu { vtype: Vtype::RD_KAFKA_VTYPE_KEY, u: Union { mem: memory(key) } },
                Vu { vtype: Vtype::RD_KAFKA_VTYPE_VALUE, u: Union { mem: memory(value) } },
                Vu { vtype: Vtype::RD_KAFKA_VTYPE_HEADERS, u: Union { headers } },
            ];
            let error = rd_kafka_produceva(producer.client().native_ptr(), parts.as_ptr(), parts.len());
            if error.is_null() {
                return Ok(true);
            }
            let code: Code = rd_kafka_error_code(error).into();
            rd_kafka_error_destroy(error);
            rd_kafka_headers_destroy(headers);
            code
        };
        match code {
            Code::QueueFull => Ok(false),
            code => bail!("a record can't be sent: {code}"),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: both are ours, and destroyed once.
        unsafe {
            rd_kafka_headers_destroy(self.headers);
            rd_kafka_topic_destroy(self.topic);
        }
    }
}

/// Waits until everything is delivered. rust-rdkafka's own flush polls in steps of 100 ms.
pub fn flush(producer: &ThreadedProducer<impl ProducerContext>) -> Result<()> {
    // SAFETY: the client lives as long as the producer; the call only waits.
    let answer = unsafe { rd_kafka_flush(producer.client().native_ptr(), -1) };
    ensure!(answer == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR, "flush: {answer:?}");
    Ok(())
}

fn memory(bytes: &[u8]) -> Memory {
    // librdkafka only reads.
    Memory { ptr: bytes.as_ptr().cast_mut().cast::<c_void>(), size: bytes.len() }
}
