//! Handing records to librdkafka.
//!
//! rust-rdkafka's `send` allocates twice for the name of each header and looks the topic up by its name each time: an
//! event has nine headers, its outcome two, so that was a third of what a writer's thread did. Here topics are looked up
//! once, and names and values go as they are.

#![allow(unsafe_code, reason = "topic handles and headers by pointer exist in librdkafka's C interface only")]

use std::{
    ffi::{CString, c_void},
    ptr,
};

use rdkafka::{
    bindings::{
        RD_KAFKA_MSG_F_COPY, rd_kafka_error_code, rd_kafka_error_destroy, rd_kafka_header_add,
        rd_kafka_headers_destroy, rd_kafka_headers_new, rd_kafka_produceva, rd_kafka_t, rd_kafka_topic_destroy,
        rd_kafka_topic_new, rd_kafka_topic_t, rd_kafka_vtype_t as Vtype, rd_kafka_vu_s as Vu,
        rd_kafka_vu_s__bindgen_ty_1 as Union, rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 as Memory,
    },
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};

use crate::record::OutRecord;

/// A topic that a client has looked up. To be dropped before its client.
#[derive(Debug)]
pub(super) struct Handle(*mut rd_kafka_topic_t);

// SAFETY: librdkafka's handles may be used from any thread.
unsafe impl Send for Handle {}

impl Handle {
    /// # Safety
    /// `client` is a live producer, and outlives the handle.
    pub(super) unsafe fn new(client: *mut rd_kafka_t, topic: &str) -> Result<Self, KafkaError> {
        let name = CString::new(topic)?;
        // SAFETY: by the caller's word; no settings are given, so there are none to hand over.
        let handle = unsafe { rd_kafka_topic_new(client, name.as_ptr(), ptr::null_mut()) };
        if handle.is_null() {
            return Err(KafkaError::ClientCreation(format!("topic {topic} can't be looked up")));
        }
        Ok(Self(handle))
    }

    /// Queues a record for this topic.
    ///
    /// # Safety
    /// `client` is the one of the handle, and lives.
    pub(super) unsafe fn produce(&self, client: *mut rd_kafka_t, record: &OutRecord<'_>) -> Result<(), Code> {
        let all = record.headers.iter();
        // SAFETY: the list takes copies of names and values, whose pointers and lengths belong together.
        let headers = unsafe {
            let headers = rd_kafka_headers_new(all.len());
            for (name, value) in all {
                let (at, size) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
                rd_kafka_header_add(headers, name.as_ptr().cast(), name.len() as isize, at.cast(), size as isize);
            }
            headers
        };
        let parts = [
            Vu { vtype: Vtype::RD_KAFKA_VTYPE_RKT, u: Union { rkt: self.0 } },
            Vu { vtype: Vtype::RD_KAFKA_VTYPE_PARTITION, u: Union { i32_: record.partition } },
            Vu { vtype: Vtype::RD_KAFKA_VTYPE_MSGFLAGS, u: Union { i: RD_KAFKA_MSG_F_COPY } },
            Vu { vtype: Vtype::RD_KAFKA_VTYPE_KEY, u: Union { mem: memory(record.key) } },
            Vu { vtype: Vtype::RD_KAFKA_VTYPE_VALUE, u: Union { mem: memory(record.value) } },
            Vu { vtype: Vtype::RD_KAFKA_VTYPE_TIMESTAMP, u: Union { i64_: record.timestamp_ms } },
            Vu { vtype: Vtype::RD_KAFKA_VTYPE_HEADERS, u: Union { headers } },
        ];
        // SAFETY: each part's union holds what its type says. The headers go over to librdkafka on success only, and so
        // does nothing else: key and value are copied.
        unsafe {
            let error = rd_kafka_produceva(client, parts.as_ptr(), parts.len());
            if error.is_null() {
                return Ok(());
            }
            let code = rd_kafka_error_code(error);
            rd_kafka_error_destroy(error);
            rd_kafka_headers_destroy(headers);
            Err(code.into())
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_topic_new, destroyed once.
        unsafe { rd_kafka_topic_destroy(self.0) };
    }
}

fn memory(bytes: Option<&[u8]>) -> Memory {
    // librdkafka takes a null pointer for no key or no value, and only reads.
    bytes.map_or(Memory { ptr: ptr::null_mut(), size: 0 }, |bytes| Memory {
        ptr: bytes.as_ptr().cast_mut().cast::<c_void>(),
        size: bytes.len(),
    })
}
