//! **What**: the documents of the control plane as bytes.
//!
//! ```text
//! command = u8 kind | fields        reply = u8 kind | fields        text = u16 bytes, UTF-8
//! settings of a stream or tenant = u16 bytes | TLVs (an unknown optional one is skipped, a mandatory one refused),
//! so that a new setting needs no new version
//! ```
//!
//! **Invariants**: every decoder is bounded by its frame; a decoded name obeys the grammar.
//!
//! **Never**: rkyv here; these bytes cross versions (DECISIONS 18).
//!
//! **See**: `metadata.rs` for what the fields mean, PROTOCOL.md for the layouts.

use crate::codec::{DecodeError, Reader, Writer};
use crate::envelope::{TLV_MANDATORY, Tlvs};
use crate::ids::{CoreId, ShardId, ShardIndex, StreamId};
use crate::limits::{LIST_PAGE_MAX, NAME_BYTES_MAX, SETTINGS_BYTES_MAX, SHARDS_MAX};
use crate::metadata::*;
use crate::names::check_label;
use crate::position::{Epoch, Lineage, Offset};
use crate::time::Timestamp;

mod setting {
    pub const SHARDS: u16 = 1;
    pub const DURABILITY: u16 = 2;
    pub const RETENTION_BYTES: u16 = 3;
    pub const RETENTION_AGE_MS: u16 = 4;
    pub const BATCH_BYTES_MAX: u16 = 5;
    pub const RETENTION_AGE_NONE: u16 = 6;
    pub const INTERVAL_MS: u16 = 7;
    pub const COMPACT: u16 = 8;
    pub const TOMBSTONE_GRACE_MS: u16 = 9;
    pub const ENCRYPT: u16 = 10;
    pub const STREAMS_MAX: u16 = 16;
    pub const SHARDS_MAX: u16 = 17;
    pub const RETAINED_BYTES_MAX: u16 = 18;
}

fn put_setting(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Settings are mandatory: a peer that does not know one must not pretend to honour it.
    out.put_u16(kind | TLV_MANDATORY);
    out.put_bytes16(value);
}

fn put_settings(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u16(0);
    fill(out);
    let bytes = u16::try_from(out.len() - start - 2).expect("settings are few and small");
    out[start..start + 2].copy_from_slice(&bytes.to_le_bytes());
}

fn number(value: &[u8]) -> Result<u64, DecodeError> {
    match value.len() {
        1 => Ok(u64::from(value[0])),
        4 => Reader::new(value).u32().map(u64::from),
        8 => Reader::new(value).u64(),
        _ => Err(DecodeError::BadField("setting")),
    }
}

fn number32(value: &[u8]) -> Result<u32, DecodeError> {
    u32::try_from(number(value)?).map_err(|_| DecodeError::BadField("setting"))
}

fn flag(value: &[u8]) -> Result<bool, DecodeError> {
    match number(value)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::BadField("setting")),
    }
}

fn read_settings<'a>(
    reader: &mut Reader<'a>,
    mut take: impl FnMut(u16, &'a [u8]) -> Result<bool, DecodeError>,
) -> Result<(), DecodeError> {
    for item in Tlvs(reader.bytes16(SETTINGS_BYTES_MAX)?) {
        let (kind, value) = item?;
        if !take(kind & !TLV_MANDATORY, value)? && kind & TLV_MANDATORY != 0 {
            return Err(DecodeError::UnknownMandatoryTlv(kind));
        }
    }
    Ok(())
}

impl StreamSpec {
    /// Appends the settings.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_settings(out, |out| {
            put_setting(out, setting::SHARDS, &self.shards.to_le_bytes());
            put_setting(out, setting::DURABILITY, &[self.durability as u8]);
            put_setting(out, setting::RETENTION_BYTES, &self.retention_bytes.to_le_bytes());
            if let Some(age) = self.retention_age_ms {
                put_setting(out, setting::RETENTION_AGE_MS, &age.to_le_bytes());
            }
            put_setting(out, setting::BATCH_BYTES_MAX, &self.batch_bytes_max.to_le_bytes());
            // Later settings are written only where they say something, so that a build which does not know them still
            // reads every stream that does not use them.
            if self.interval_ms != StreamSpec::INTERVAL_MS_DEFAULT {
                put_setting(out, setting::INTERVAL_MS, &self.interval_ms.to_le_bytes());
            }
            if self.compact {
                put_setting(out, setting::COMPACT, &[1]);
            }
            if self.tombstone_grace_ms != StreamSpec::TOMBSTONE_GRACE_MS_DEFAULT {
                put_setting(out, setting::TOMBSTONE_GRACE_MS, &self.tombstone_grace_ms.to_le_bytes());
            }
            if self.encrypt {
                put_setting(out, setting::ENCRYPT, &[1]);
            }
        });
    }

    /// Reads settings; what is missing has its default.
    pub fn decode(reader: &mut Reader<'_>) -> Result<StreamSpec, DecodeError> {
        let mut spec = StreamSpec::default();
        read_settings(reader, |kind, value| {
            match kind {
                setting::SHARDS => spec.shards = number32(value)?,
                setting::DURABILITY => {
                    let byte = u8::try_from(number(value)?).map_err(|_| DecodeError::BadArgument("durability"))?;
                    spec.durability = Durability::from_number(byte).ok_or(DecodeError::BadArgument("durability"))?;
                }
                setting::RETENTION_BYTES => spec.retention_bytes = number(value)?,
                setting::RETENTION_AGE_MS => spec.retention_age_ms = Some(number(value)?),
                setting::BATCH_BYTES_MAX => spec.batch_bytes_max = number32(value)?,
                setting::INTERVAL_MS => spec.interval_ms = number32(value)?,
                setting::COMPACT => spec.compact = flag(value)?,
                setting::TOMBSTONE_GRACE_MS => spec.tombstone_grace_ms = number(value)?,
                setting::ENCRYPT => spec.encrypt = flag(value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if spec.shards == 0 || spec.shards > SHARDS_MAX {
            return Err(DecodeError::BadArgument("shards"));
        }
        Ok(spec)
    }
}

impl StreamChanges {
    /// Appends the settings that change.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_settings(out, |out| {
            if let Some(bytes) = self.retention_bytes {
                put_setting(out, setting::RETENTION_BYTES, &bytes.to_le_bytes());
            }
            match self.retention_age_ms {
                Some(Some(age)) => put_setting(out, setting::RETENTION_AGE_MS, &age.to_le_bytes()),
                Some(None) => put_setting(out, setting::RETENTION_AGE_NONE, &[]),
                None => {}
            }
            if let Some(bytes) = self.batch_bytes_max {
                put_setting(out, setting::BATCH_BYTES_MAX, &bytes.to_le_bytes());
            }
        });
    }

    /// Reads the settings that change.
    pub fn decode(reader: &mut Reader<'_>) -> Result<StreamChanges, DecodeError> {
        let mut changes = StreamChanges::default();
        read_settings(reader, |kind, value| {
            match kind {
                setting::RETENTION_BYTES => changes.retention_bytes = Some(number(value)?),
                setting::RETENTION_AGE_MS => changes.retention_age_ms = Some(Some(number(value)?)),
                setting::RETENTION_AGE_NONE => changes.retention_age_ms = Some(None),
                setting::BATCH_BYTES_MAX => changes.batch_bytes_max = Some(number32(value)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(changes)
    }
}

impl TenantLimits {
    /// Appends the limits.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_settings(out, |out| {
            put_setting(out, setting::STREAMS_MAX, &self.streams_max.to_le_bytes());
            put_setting(out, setting::SHARDS_MAX, &self.shards_max.to_le_bytes());
            put_setting(out, setting::RETAINED_BYTES_MAX, &self.retained_bytes_max.to_le_bytes());
        });
    }

    /// Reads limits; what is missing has its default.
    pub fn decode(reader: &mut Reader<'_>) -> Result<TenantLimits, DecodeError> {
        let mut limits = TenantLimits::default();
        read_settings(reader, |kind, value| {
            match kind {
                setting::STREAMS_MAX => limits.streams_max = number32(value)?,
                setting::SHARDS_MAX => limits.shards_max = number32(value)?,
                setting::RETAINED_BYTES_MAX => limits.retained_bytes_max = number(value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(limits)
    }
}

fn label(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let text = reader.text16(NAME_BYTES_MAX)?;
    check_label(text).map_err(DecodeError::BadName)?;
    Ok(text.to_string())
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        None => out.put_u8(0),
        Some(value) => {
            out.put_u8(1);
            put(out, value);
        }
    }
}

fn read_option<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match reader.u8()? {
        0 => Ok(None),
        1 => read(reader).map(Some),
        _ => Err(DecodeError::BadField("option")),
    }
}

pub(crate) fn read_bool(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::BadField("bool")),
    }
}

impl Command {
    /// Appends the command.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Command::CreateTenant { tenant, limits } => {
                out.put_u8(1);
                put_name(out, tenant);
                limits.encode(out);
            }
            Command::DeleteTenant { tenant } => {
                out.put_u8(2);
                put_name(out, tenant);
            }
            Command::ListTenants { after } => {
                out.put_u8(3);
                put_option(out, after.as_ref(), put_name);
            }
            Command::CreateNamespace { name } => {
                out.put_u8(10);
                put_name(out, name);
            }
            Command::DeleteNamespace { name } => {
                out.put_u8(11);
                put_name(out, name);
            }
            Command::ListNamespaces { tenant, after } => {
                out.put_u8(12);
                put_name(out, tenant);
                put_option(out, after.as_ref(), put_name);
            }
            Command::CreateStream { name, spec, create_parents } => {
                out.put_u8(20);
                put_name(out, name);
                spec.encode(out);
                out.put_u8(u8::from(*create_parents));
            }
            Command::AlterStream { name, changes, if_version } => {
                out.put_u8(21);
                put_name(out, name);
                changes.encode(out);
                put_option(out, *if_version, Vec::put_u64);
            }
            Command::DeleteStream { name } => {
                out.put_u8(22);
                put_name(out, name);
            }
            Command::DescribeStream { name } => {
                out.put_u8(23);
                put_name(out, name);
            }
            Command::ListStreams { tenant, namespace, after } => {
                out.put_u8(24);
                put_option(out, tenant.as_ref(), put_name);
                put_option(out, namespace.as_ref(), put_name);
                put_option(out, after.as_ref(), put_name);
            }
        }
    }

    /// Reads a command.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Command, DecodeError> {
        Ok(match reader.u8()? {
            1 => Command::CreateTenant { tenant: label(reader)?, limits: TenantLimits::decode(reader)? },
            2 => Command::DeleteTenant { tenant: label(reader)? },
            3 => Command::ListTenants { after: read_option(reader, label)? },
            10 => Command::CreateNamespace { name: read_namespace(reader)? },
            11 => Command::DeleteNamespace { name: read_namespace(reader)? },
            12 => Command::ListNamespaces { tenant: label(reader)?, after: read_option(reader, label)? },
            20 => Command::CreateStream {
                name: read_stream_name(reader)?,
                spec: StreamSpec::decode(reader)?,
                create_parents: read_bool(reader)?,
            },
            21 => Command::AlterStream {
                name: read_stream_name(reader)?,
                changes: StreamChanges::decode(reader)?,
                if_version: read_option(reader, Reader::u64)?,
            },
            22 => Command::DeleteStream { name: read_stream_name(reader)? },
            23 => Command::DescribeStream { name: read_stream_name(reader)? },
            24 => Command::ListStreams {
                tenant: read_option(reader, label)?,
                namespace: read_option(reader, label)?,
                after: read_option(reader, read_stream_name)?,
            },
            _ => return Err(DecodeError::BadField("command kind")),
        })
    }
}

impl StreamInfo {
    /// Appends the document.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id.0);
        put_name(out, &self.name);
        self.spec.encode(out);
        out.put_u64(self.version);
        out.put_u64(self.created.0);
    }

    /// Reads a document.
    pub fn decode(reader: &mut Reader<'_>) -> Result<StreamInfo, DecodeError> {
        Ok(StreamInfo {
            id: StreamId(reader.u64()?),
            name: read_stream_name(reader)?,
            spec: StreamSpec::decode(reader)?,
            version: reader.u64()?,
            created: Timestamp(reader.u64()?),
        })
    }
}

impl ShardStatus {
    /// Appends the row.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.index.0);
        out.put_u64(self.shard.0);
        out.put_u8(self.core.0);
        out.put_u32(self.lineage.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.log_start.0);
        out.put_u64(self.high_watermark.0);
        out.put_u64(self.retained_bytes);
    }

    /// Reads a row.
    pub fn decode(reader: &mut Reader<'_>) -> Result<ShardStatus, DecodeError> {
        Ok(ShardStatus {
            index: ShardIndex(reader.u32()?),
            shard: ShardId(reader.u64()?),
            core: CoreId(reader.u8()?),
            lineage: Lineage(reader.u32()?),
            epoch: Epoch(reader.u64()?),
            log_start: Offset(reader.u64()?),
            high_watermark: Offset(reader.u64()?),
            retained_bytes: reader.u64()?,
        })
    }
}

impl TenantInfo {
    fn encode(&self, out: &mut Vec<u8>) {
        put_name(out, &self.name);
        self.limits.encode(out);
        out.put_u32(self.streams);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<TenantInfo, DecodeError> {
        Ok(TenantInfo { name: label(reader)?, limits: TenantLimits::decode(reader)?, streams: reader.u32()? })
    }
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.put_u32(items.len() as u32);
    for item in items {
        put(out, item);
    }
}

fn read_list<'a, T>(
    reader: &mut Reader<'a>,
    max: u32,
    read: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.u32()?;
    if count > max {
        return Err(DecodeError::TooLarge { bytes: u64::from(count), max: u64::from(max) });
    }
    // No reserve by an announced count: each item must be paid for with bytes.
    (0..count).map(|_| read(reader)).collect()
}

impl Reply {
    /// Appends the reply.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Reply::Done { version } => {
                out.put_u8(1);
                out.put_u64(*version);
            }
            Reply::StreamDone { version, stream } => {
                out.put_u8(2);
                out.put_u64(*version);
                stream.encode(out);
            }
            Reply::Stream { stream, shards } => {
                out.put_u8(3);
                stream.encode(out);
                put_list(out, shards, |out, it| it.encode(out));
            }
            Reply::Streams { streams, more } => {
                out.put_u8(4);
                put_list(out, streams, |out, it| it.encode(out));
                out.put_u8(u8::from(*more));
            }
            Reply::Namespaces { names, more } => {
                out.put_u8(5);
                put_list(out, names, put_name);
                out.put_u8(u8::from(*more));
            }
            Reply::Tenants { tenants, more } => {
                out.put_u8(6);
                put_list(out, tenants, |out, it| it.encode(out));
                out.put_u8(u8::from(*more));
            }
        }
    }

    /// Reads a reply.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Reply, DecodeError> {
        Ok(match reader.u8()? {
            1 => Reply::Done { version: reader.u64()? },
            2 => Reply::StreamDone { version: reader.u64()?, stream: StreamInfo::decode(reader)? },
            3 => Reply::Stream {
                stream: StreamInfo::decode(reader)?,
                shards: read_list(reader, SHARDS_MAX, ShardStatus::decode)?,
            },
            4 => Reply::Streams {
                streams: read_list(reader, LIST_PAGE_MAX, StreamInfo::decode)?,
                more: read_bool(reader)?,
            },
            5 => {
                Reply::Namespaces { names: read_list(reader, LIST_PAGE_MAX, read_namespace)?, more: read_bool(reader)? }
            }
            6 => Reply::Tenants {
                tenants: read_list(reader, LIST_PAGE_MAX, TenantInfo::decode)?,
                more: read_bool(reader)?,
            },
            _ => return Err(DecodeError::BadField("reply kind")),
        })
    }
}
