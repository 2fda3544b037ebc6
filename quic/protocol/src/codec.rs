//! **What**: bounded little-endian reading and writing, the base of every codec here.
//!
//! **Invariants**: a `Reader` never reads past its slice and never allocates; a length is checked against what is
//! left before it is used.
//!
//! **Never**: a panic on input, an unchecked cast of a length.
//!
//! **See**: `envelope.rs`, `frame.rs`, `batch_view.rs`.

use crate::error_code::ErrorCode;
use crate::names::NameError;

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the format needs here.
    Truncated,
    /// Bytes left over after the last field.
    TrailingBytes,
    /// A field with a value outside its range; the text names the field.
    BadField(&'static str),
    /// Text that is not UTF-8.
    NotUtf8,
    /// A mandatory TLV this build does not know.
    UnknownMandatoryTlv(u16),
    /// A mandatory flag this build does not know.
    UnknownMandatoryFlag(u16),
    /// A frame type this build does not know.
    UnknownFrameType(u8),
    /// A version this build does not speak.
    UnknownVersion(u8),
    /// A name that breaks the grammar of `names.rs`.
    BadName(NameError),
    /// A well-formed value that means nothing here; the text names the field.
    BadArgument(&'static str),
    /// More bytes than the limit allows.
    TooLarge {
        /// Bytes found or announced.
        bytes: u64,
        /// Bytes allowed.
        max: u64,
    },
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Truncated => f.write_str("the bytes end before the format does"),
            DecodeError::TrailingBytes => f.write_str("bytes are left over after the last field"),
            DecodeError::BadField(field) => write!(f, "field {field} is out of range"),
            DecodeError::NotUtf8 => f.write_str("a text field is not UTF-8"),
            DecodeError::UnknownMandatoryTlv(kind) => write!(f, "mandatory TLV {kind:#06x} is not known"),
            DecodeError::UnknownMandatoryFlag(flags) => write!(f, "mandatory flag in {flags:#06x} is not known"),
            DecodeError::UnknownFrameType(kind) => write!(f, "frame type {kind} is not known"),
            DecodeError::UnknownVersion(version) => write!(f, "version {version} is not spoken here"),
            DecodeError::BadName(error) => error.fmt(f),
            DecodeError::BadArgument(field) => write!(f, "argument {field} is out of range"),
            DecodeError::TooLarge { bytes, max } => write!(f, "{bytes} bytes, at most {max} are allowed"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl DecodeError {
    /// What a peer is told. Class Reject: the frame was whole, so the request is answered and the connection goes on.
    pub fn code(self) -> ErrorCode {
        match self {
            DecodeError::Truncated | DecodeError::TrailingBytes | DecodeError::BadField(_) | DecodeError::NotUtf8 => {
                ErrorCode::MalformedFrame
            }
            DecodeError::UnknownMandatoryTlv(_) | DecodeError::UnknownMandatoryFlag(_) => {
                ErrorCode::UnknownMandatoryField
            }
            DecodeError::UnknownFrameType(_) => ErrorCode::UnexpectedFrame,
            DecodeError::UnknownVersion(_) => ErrorCode::UnsupportedVersion,
            DecodeError::BadName(_) => ErrorCode::InvalidName,
            DecodeError::BadArgument(_) => ErrorCode::InvalidArgument,
            DecodeError::TooLarge { .. } => ErrorCode::FrameTooLarge,
        }
    }
}

/// Reads little-endian fields from a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What is not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    /// Next u8.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Next u16.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Next u32.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Next u64.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Next u128.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    /// Next LEB128 varint of at most 64 bits. Overlong encodings are refused, so that every value has one form.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        // Nearly every varint of an index section is one byte.
        if let Some((&first, tail)) = self.rest.split_first()
            && first < 0x80
        {
            self.rest = tail;
            return Ok(u64::from(first));
        }
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::BadField("varint"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift != 0 {
                    return Err(DecodeError::BadField("varint"));
                }
                return Ok(value);
            }
        }
        Err(DecodeError::BadField("varint"))
    }

    /// Next bytes with a u16 length in front, at most `max`.
    pub fn bytes16(&mut self, max: usize) -> Result<&'a [u8], DecodeError> {
        let count = usize::from(self.u16()?);
        if count > max {
            return Err(DecodeError::TooLarge { bytes: count as u64, max: max as u64 });
        }
        self.bytes(count)
    }

    /// Next UTF-8 text with a u16 length in front, at most `max` bytes.
    pub fn text16(&mut self, max: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes16(max)?).map_err(|_| DecodeError::NotUtf8)
    }

    /// Ends the reading: nothing may be left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }
}

/// Appends little-endian fields to a vector.
pub trait Writer {
    /// Appends bytes as they are.
    fn put(&mut self, bytes: &[u8]);

    /// Appends a u8.
    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// Appends a u16.
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a u32.
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a u64.
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a u128.
    fn put_u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a LEB128 varint.
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.put_u8(value as u8);
    }

    /// Appends bytes with a u16 length in front. Longer input is a programming error of the caller, who owns the limit.
    fn put_bytes16(&mut self, bytes: &[u8]) {
        let count = u16::try_from(bytes.len()).expect("field limits are below 64 KiB");
        self.put_u16(count);
        self.put(bytes);
    }
}

impl Writer for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bad_names_and_arguments_leave_the_connection_alive() {
        use crate::error_code::Class;
        for (error, code) in [
            (DecodeError::Truncated, ErrorCode::MalformedFrame),
            (DecodeError::TrailingBytes, ErrorCode::MalformedFrame),
            (DecodeError::BadField("x"), ErrorCode::MalformedFrame),
            (DecodeError::NotUtf8, ErrorCode::MalformedFrame),
            (DecodeError::UnknownMandatoryTlv(0x8001), ErrorCode::UnknownMandatoryField),
            (DecodeError::UnknownMandatoryFlag(2), ErrorCode::UnknownMandatoryField),
            (DecodeError::UnknownFrameType(99), ErrorCode::UnexpectedFrame),
            (DecodeError::UnknownVersion(2), ErrorCode::UnsupportedVersion),
            (DecodeError::TooLarge { bytes: 2, max: 1 }, ErrorCode::FrameTooLarge),
            (DecodeError::BadName(NameError::Empty), ErrorCode::InvalidName),
            (DecodeError::BadArgument("x"), ErrorCode::InvalidArgument),
        ] {
            assert_eq!(error.code(), code, "{error}");
            let answered = matches!(error, DecodeError::BadName(_) | DecodeError::BadArgument(_));
            assert_eq!(code.class() == Class::Reject, answered, "{error}");
            assert!(answered || code.class() == Class::Fatal, "{error}");
        }
    }

    #[test]
    fn varint_has_one_form() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.finish(), Ok(()));
        }
        for (bad, error) in [
            (&[0x80, 0x00][..], DecodeError::BadField("varint")),
            (&[0x80][..], DecodeError::Truncated),
            (&[0xff; 11][..], DecodeError::BadField("varint")),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..], DecodeError::BadField("varint")),
        ] {
            assert_eq!(Reader::new(bad).varint(), Err(error), "{bad:x?}");
        }
    }
}
