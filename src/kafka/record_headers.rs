//! The headers of a record: names and values of any bytes, in order, repeated ones and nulls too.
//!
//! The client's own accessor takes every name for UTF-8 and panics where it is not, so headers are read and
//! written here, through librdkafka itself. Nothing in here panics, whatever a record holds. Knows no name.

use std::ffi::{CStr, c_char, c_void};
use std::mem::offset_of;

use rdkafka::bindings as sys;
use rdkafka::message::{BorrowedMessage, OwnedHeaders};

/// The headers of one record, in one allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordHeaders {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

/// Where a header ends in the bytes; it begins where the one before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    name_end: usize,
    value_end: usize,
    is_null: bool,
}

/// The client could not take the headers apart: it takes 100,000 of them at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

impl RecordHeaders {
    /// Appends a header.
    pub fn push(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.bytes.extend_from_slice(name);
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.spans.push(Span { name_end, value_end: self.bytes.len(), is_null: value.is_none() });
    }

    /// Name and value of each header, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], Option<&[u8]>)> + ExactSizeIterator {
        self.spans.iter().enumerate().map(|(index, span)| {
            let start = index.checked_sub(1).map_or(0, |before| self.spans[before].value_end);
            let value = (!span.is_null).then(|| &self.bytes[span.name_end..span.value_end]);
            (&self.bytes[start..span.name_end], value)
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Memory held, bytes.
    pub fn weight(&self) -> usize {
        self.bytes.len() + self.spans.len() * size_of::<Span>()
    }

    /// Copies the headers of a message.
    ///
    /// # Errors
    /// The record has headers and the client cannot take them apart.
    pub(super) fn read(message: &BorrowedMessage<'_>) -> Result<Self, Unreadable> {
        let mut native = std::ptr::null_mut();
        // SAFETY: the message is live for as long as it is borrowed, and so is what it owns. Names are
        // terminated by NUL, values have the length that comes with them.
        unsafe {
            match sys::rd_kafka_message_headers(message.ptr(), &raw mut native) {
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {}
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__NOENT => return Ok(Self::default()),
                _ => return Err(Unreadable),
            }
            let count = sys::rd_kafka_header_cnt(native);
            let mut headers =
                Self { bytes: Vec::with_capacity(count * TYPICAL_BYTES), spans: Vec::with_capacity(count) };
            for index in 0..count {
                let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
                let answer = sys::rd_kafka_header_get_all(native, index, &raw mut name, &raw mut value, &raw mut size);
                if answer != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return Err(Unreadable);
                }
                let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
                headers.push(name_of(name), value);
            }
            Ok(headers)
        }
    }

    /// The same headers, for a producer.
    pub fn to_native(&self) -> OwnedHeaders {
        let native = OwnedHeaders::new_with_capacity(self.len());
        // The client hands its pointer out in no other way: a borrow of its headers is the pointer itself.
        let pointer = std::ptr::from_ref(native.as_borrowed()).cast_mut().cast::<sys::rd_kafka_headers_t>();
        for (name, value) in self.iter() {
            let (bytes, size) = value.map_or((std::ptr::null(), 0), |value| (value.as_ptr(), value.len()));
            // SAFETY: `native` owns the list and nothing else refers to it yet; names and values are copied.
            unsafe {
                sys::rd_kafka_header_add(
                    pointer,
                    name.as_ptr().cast::<c_char>(),
                    name.len().cast_signed(),
                    bytes.cast::<c_void>(),
                    size.cast_signed(),
                );
            }
        }
        native
    }
}

/// Bytes of a header of ours, about.
const TYPICAL_BYTES: usize = 40;

/// A header as this version of librdkafka keeps it.
#[repr(C)]
struct NativeHeader {
    serialized_size: usize,
    value_size: usize,
    name_size: usize,
    value: *mut c_char,
    name: [c_char; 1],
}

/// The version whose layout [`NativeHeader`] is.
const KNOWN_VERSION: i32 = 0x020c_01ff;

/// A name, with what stands behind a NUL in it: the client tells no length. Its own structure does, in
/// the version that we know; in another, the name ends at the first NUL.
///
/// # Safety
/// `name` came from `rd_kafka_header_get_all`, and what it points into outlives the answer.
unsafe fn name_of<'a>(name: *const c_char) -> &'a [u8] {
    // SAFETY: as the caller promises; in the known version the name is the last field of its header.
    unsafe {
        if sys::rd_kafka_version() != KNOWN_VERSION {
            return CStr::from_ptr(name).to_bytes();
        }
        let header = name.byte_sub(offset_of!(NativeHeader, name)).cast::<NativeHeader>();
        std::slice::from_raw_parts(name.cast::<u8>(), (&raw const (*header).name_size).read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a list back as [`RecordHeaders::read`] does.
    fn read_back(native: &OwnedHeaders) -> RecordHeaders {
        let pointer = std::ptr::from_ref(native.as_borrowed()).cast::<sys::rd_kafka_headers_t>();
        let mut headers = RecordHeaders::default();
        // SAFETY: the list is live and owned by `native`.
        unsafe {
            for index in 0..sys::rd_kafka_header_cnt(pointer) {
                let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
                sys::rd_kafka_header_get_all(pointer, index, &raw mut name, &raw mut value, &raw mut size);
                let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
                headers.push(name_of(name), value);
            }
        }
        headers
    }

    #[test]
    fn any_bytes_come_back_as_they_were() {
        let mut headers = RecordHeaders::default();
        headers.push(b"plain", Some(b"value"));
        headers.push(b"plain", None);
        headers.push(b"plain", Some(b""));
        headers.push(b"", Some(b"\0"));
        headers.push(b"", None);
        // A library of another layout fails here, and not in a record.
        headers.push(b"with\0nul", None);
        headers.push(b"\0", Some(b"\0\0"));
        headers.push(b"\xff\xfe\x80", Some(b"\xc3\x28"));
        headers.push(&vec![0xf0; 70_000], Some(&vec![0; 70_000]));
        let read = read_back(&headers.to_native());
        assert_eq!(read, headers);
        assert_eq!(read.iter().len(), 9);
        assert_eq!(read.iter().nth(5), Some((&b"with\0nul"[..], None)));
        assert_eq!(read.iter().next_back().map(|(name, _)| name.len()), Some(70_000));
    }
}
