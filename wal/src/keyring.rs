//! **What**: the file keyring: region keys in clear, data keys of tenants wrapped with them. Pure: text in, text out.
//!
//! ```text
//! felix-keyring 1
//! region eu-west
//! kek 1 <64 hex digits>                                     a region key
//! dek acme 1 1 <24 hex digits nonce> <96 hex digits>        tenant, data key, its region key, wrapped key and tag
//! destroyed acme 2                                          this number is never given again
//! crc 1a2b3c4d                                              CRC32C of all lines before
//! ```
//!
//! **Invariants**: a wrapped key opens only under its region, tenant and numbers (AAD). Rotation adds a higher number; old
//! data stays readable with the old one. Destroying a data key forgets it for ever; its number stays taken. The key with
//! the highest number is the one to seal with. One form: what parses prints the same text.
//!
//! **Never**: a key in an error or a debug print. Randomness from here.
//!
//! **See**: `at_rest.rs`, which uses the data keys.

use crate::at_rest::{DATA_KEY_BYTES, DataKey};
use crate::format::header::Region;
use felix_protocol::names::check_label;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt::{self, Write};

/// Largest keyring file: some 50,000 keys.
pub const KEYRING_BYTES_MAX: usize = 8 << 20;
/// Bytes of a wrapped data key: itself and a tag.
pub const WRAPPED_BYTES: usize = DATA_KEY_BYTES + 16;
const FIRST_LINE: &str = "felix-keyring 1";

/// Why a keyring was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyringError {
    /// Larger than allowed.
    TooLarge(usize),
    /// Not a keyring, or of a later version.
    FirstLine,
    /// A line that is not understood; from 1.
    Line(usize),
    /// A number that was used before.
    Duplicate(usize),
    /// A data key of a region key that is not there.
    NoRegionKey {
        /// Line, from 1.
        line: usize,
        /// Number of the region key.
        kek: u32,
    },
    /// No region line.
    NoRegion,
    /// The last line is missing or does not fit.
    Checksum,
}

impl fmt::Display for KeyringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyringError::TooLarge(bytes) => write!(f, "{bytes} bytes, at most {KEYRING_BYTES_MAX} are allowed"),
            KeyringError::FirstLine => write!(f, "the first line is not `{FIRST_LINE}`"),
            KeyringError::Line(line) => write!(f, "line {line} is not understood"),
            KeyringError::Duplicate(line) => write!(f, "line {line} uses a number again"),
            KeyringError::NoRegionKey { line, kek } => write!(f, "line {line} needs region key {kek}"),
            KeyringError::NoRegion => f.write_str("no region"),
            KeyringError::Checksum => f.write_str("the checksum in the last line does not fit"),
        }
    }
}

impl std::error::Error for KeyringError {}

/// Why a key is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// No such key.
    Unknown,
    /// It was destroyed: what it sealed is gone for ever.
    Destroyed,
    /// The region key does not open it: another region, tenant or number, or damage.
    Refused,
    /// A tenant's name breaks the grammar.
    BadTenant,
    /// No number is left.
    NoNumber,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyError::Unknown => "no such key",
            KeyError::Destroyed => "the key was destroyed",
            KeyError::Refused => "the region key does not open it",
            KeyError::BadTenant => "not a tenant's name",
            KeyError::NoNumber => "no key number is left",
        })
    }
}

impl std::error::Error for KeyError {}

struct RegionKey {
    id: u32,
    bytes: [u8; DATA_KEY_BYTES],
}

impl Drop for RegionKey {
    fn drop(&mut self) {
        self.bytes.fill(0);
        std::hint::black_box(&mut self.bytes);
    }
}

enum Wrapped {
    Key { kek: u32, nonce: [u8; NONCE_LEN], bytes: [u8; WRAPPED_BYTES] },
    Destroyed,
}

struct TenantKey {
    tenant: String,
    id: u32,
    wrapped: Wrapped,
}

/// What a keyring says of a data key, without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyEntry<'a> {
    /// Whose it is.
    pub tenant: &'a str,
    /// Its number.
    pub id: u32,
    /// The region key that wraps it; None: it was destroyed.
    pub region_key: Option<u32>,
}

/// Keys of a region.
pub struct Keyring {
    region: Region,
    region_keys: Vec<RegionKey>,
    tenant_keys: Vec<TenantKey>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({}, {} keys)", self.region, self.tenant_keys.len())
    }
}

impl Keyring {
    /// A keyring with its first region key: 256 random bits.
    pub fn new(region: Region, first: [u8; DATA_KEY_BYTES]) -> Keyring {
        Keyring { region, region_keys: vec![RegionKey { id: 1, bytes: first }], tenant_keys: Vec::new() }
    }

    /// Its region.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Adds a region key (256 random bits): data keys made from now on are wrapped with it. Returns its number.
    pub fn rotate_region(&mut self, bytes: [u8; DATA_KEY_BYTES]) -> Result<u32, KeyError> {
        let id = self.region_keys.last().map_or(0, |key| key.id).checked_add(1).ok_or(KeyError::NoNumber)?;
        self.region_keys.push(RegionKey { id, bytes });
        Ok(id)
    }

    /// Wraps a data key of a tenant anew with the last region key. `nonce`: 96 random bits.
    pub fn rewrap(&mut self, tenant: &str, id: u32, nonce: [u8; NONCE_LEN]) -> Result<(), KeyError> {
        let key = self.data_key(tenant, id)?;
        let wrapped = self.wrap(tenant, id, key.bytes(), nonce)?;
        let entry = self.tenant_keys.iter_mut().find(|it| it.tenant == tenant && it.id == id);
        entry.ok_or(KeyError::Unknown)?.wrapped = wrapped;
        Ok(())
    }

    /// Makes a data key for a tenant, from 256 and 96 random bits. Sealing uses it from now on. Returns its number.
    pub fn add_data_key(
        &mut self,
        tenant: &str,
        bytes: [u8; DATA_KEY_BYTES],
        nonce: [u8; NONCE_LEN],
    ) -> Result<u32, KeyError> {
        check_label(tenant).map_err(|_| KeyError::BadTenant)?;
        let last = self.tenant_keys.iter().filter(|it| it.tenant == tenant).map(|it| it.id).max();
        let id = last.unwrap_or(0).checked_add(1).ok_or(KeyError::NoNumber)?;
        let wrapped = self.wrap(tenant, id, &bytes, nonce)?;
        self.tenant_keys.push(TenantKey { tenant: tenant.to_string(), id, wrapped });
        Ok(id)
    }

    /// Forgets a data key: what it sealed can never be read again, once every copy of this keyring is replaced.
    pub fn destroy(&mut self, tenant: &str, id: u32) -> Result<(), KeyError> {
        let entry = self.tenant_keys.iter_mut().find(|it| it.tenant == tenant && it.id == id);
        entry.ok_or(KeyError::Unknown)?.wrapped = Wrapped::Destroyed;
        Ok(())
    }

    /// A data key.
    pub fn data_key(&self, tenant: &str, id: u32) -> Result<DataKey, KeyError> {
        let entry = self.tenant_keys.iter().find(|it| it.tenant == tenant && it.id == id);
        let Wrapped::Key { kek, nonce, mut bytes } = entry.ok_or(KeyError::Unknown)?.wrapped else {
            return Err(KeyError::Destroyed);
        };
        let key = self.region_cipher(kek)?;
        let aad = Aad::from(wrap_context(&self.region, tenant, id, kek));
        let clear =
            key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut bytes).map_err(|_| KeyError::Refused)?;
        let clear: [u8; DATA_KEY_BYTES] = (&*clear).try_into().map_err(|_| KeyError::Refused)?;
        bytes.fill(0);
        Ok(DataKey::new(id, clear))
    }

    /// All data keys of a tenant that exist, the one to seal with last.
    pub fn data_keys(&self, tenant: &str) -> Result<Vec<DataKey>, KeyError> {
        let mut keys = Vec::new();
        for entry in self.tenant_keys.iter().filter(|it| it.tenant == tenant) {
            match self.data_key(tenant, entry.id) {
                Ok(key) => keys.push(key),
                Err(KeyError::Destroyed) => {}
                Err(error) => return Err(error),
            }
        }
        keys.sort_by_key(|key| key.id);
        Ok(keys)
    }

    fn region_cipher(&self, kek: u32) -> Result<LessSafeKey, KeyError> {
        let key = self.region_keys.iter().find(|key| key.id == kek).ok_or(KeyError::Unknown)?;
        let unbound = UnboundKey::new(&AES_256_GCM, &key.bytes).map_err(|_| KeyError::Refused)?;
        Ok(LessSafeKey::new(unbound))
    }

    fn wrap(
        &self,
        tenant: &str,
        id: u32,
        key: &[u8; DATA_KEY_BYTES],
        nonce: [u8; NONCE_LEN],
    ) -> Result<Wrapped, KeyError> {
        let kek = self.region_keys.last().ok_or(KeyError::Unknown)?.id;
        let mut bytes = [0; WRAPPED_BYTES];
        let (text, tag) = bytes.split_at_mut(DATA_KEY_BYTES);
        text.copy_from_slice(key);
        let aad = Aad::from(wrap_context(&self.region, tenant, id, kek));
        let sealed =
            self.region_cipher(kek)?.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, text);
        tag.copy_from_slice(sealed.map_err(|_| KeyError::Refused)?.as_ref());
        Ok(Wrapped::Key { kek, nonce, bytes })
    }

    /// Numbers of the region keys; data keys are wrapped with the last.
    pub fn region_key_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.region_keys.iter().map(|key| key.id)
    }

    /// All data keys, also those that were destroyed.
    pub fn entries(&self) -> impl Iterator<Item = KeyEntry<'_>> {
        self.tenant_keys.iter().map(|it| KeyEntry {
            tenant: &it.tenant,
            id: it.id,
            region_key: match it.wrapped {
                Wrapped::Key { kek, .. } => Some(kek),
                Wrapped::Destroyed => None,
            },
        })
    }

    /// The text of a keyring file.
    pub fn print(&self) -> String {
        let mut text = format!("{FIRST_LINE}\nregion {}\n", self.region);
        for key in &self.region_keys {
            let _ = writeln!(text, "kek {} {}", key.id, Hex(&key.bytes));
        }
        for key in &self.tenant_keys {
            let _ = match &key.wrapped {
                Wrapped::Key { kek, nonce, bytes } => {
                    writeln!(text, "dek {} {} {kek} {} {}", key.tenant, key.id, Hex(nonce), Hex(bytes))
                }
                Wrapped::Destroyed => writeln!(text, "destroyed {} {}", key.tenant, key.id),
            };
        }
        let crc = crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "crc {crc:08x}");
        text
    }

    /// Reads the text of a keyring file.
    pub fn parse(text: &str) -> Result<Keyring, KeyringError> {
        if text.len() > KEYRING_BYTES_MAX {
            return Err(KeyringError::TooLarge(text.len()));
        }
        let body_bytes = text.len().checked_sub("crc 00000000\n".len()).ok_or(KeyringError::FirstLine)?;
        if !text.starts_with(FIRST_LINE) {
            return Err(KeyringError::FirstLine);
        }
        let (body, last) = text.split_at_checked(body_bytes).ok_or(KeyringError::Checksum)?;
        if !body.ends_with('\n') || last != format!("crc {:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return Err(KeyringError::Checksum);
        }
        let mut region = None;
        let mut ring = Keyring {
            region: Region::new("none").ok_or(KeyringError::NoRegion)?,
            region_keys: Vec::new(),
            tenant_keys: Vec::new(),
        };
        let mut taken = std::collections::BTreeSet::new();
        for (at, line) in body.lines().enumerate() {
            let number = at + 1;
            let bad = KeyringError::Line(number);
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                _ if at == 0 => {
                    if line != FIRST_LINE {
                        return Err(KeyringError::FirstLine);
                    }
                }
                ["region", name] if region.is_none() => region = Some(Region::new(name).ok_or(bad)?),
                ["kek", id, key] => {
                    let id = decimal(id).ok_or(bad.clone())?;
                    if ring.region_keys.last().is_some_and(|last| last.id >= id) {
                        return Err(KeyringError::Duplicate(number));
                    }
                    ring.region_keys.push(RegionKey { id, bytes: unhex(key).ok_or(bad)? });
                }
                ["dek", tenant, id, kek, nonce, key] => {
                    let (id, kek) = (decimal(id).ok_or(bad.clone())?, decimal(kek).ok_or(bad.clone())?);
                    check_label(tenant).map_err(|_| bad.clone())?;
                    if !ring.region_keys.iter().any(|key| key.id == kek) {
                        return Err(KeyringError::NoRegionKey { line: number, kek });
                    }
                    let wrapped =
                        Wrapped::Key { kek, nonce: unhex(nonce).ok_or(bad.clone())?, bytes: unhex(key).ok_or(bad)? };
                    if !taken.insert((tenant.to_string(), id)) {
                        return Err(KeyringError::Duplicate(number));
                    }
                    ring.tenant_keys.push(TenantKey { tenant: tenant.to_string(), id, wrapped });
                }
                ["destroyed", tenant, id] => {
                    let id = decimal(id).ok_or(bad.clone())?;
                    check_label(tenant).map_err(|_| bad)?;
                    if !taken.insert((tenant.to_string(), id)) {
                        return Err(KeyringError::Duplicate(number));
                    }
                    ring.tenant_keys.push(TenantKey { tenant: tenant.to_string(), id, wrapped: Wrapped::Destroyed });
                }
                _ => return Err(bad),
            }
        }
        ring.region = region.ok_or(KeyringError::NoRegion)?;
        Ok(ring)
    }
}

fn wrap_context(region: &Region, tenant: &str, id: u32, kek: u32) -> Vec<u8> {
    let mut context = Vec::with_capacity(160);
    context.extend_from_slice(b"felix keyring 1");
    for part in [region.as_str(), tenant] {
        context.extend_from_slice(&(part.len() as u32).to_le_bytes());
        context.extend_from_slice(part.as_bytes());
    }
    context.extend_from_slice(&id.to_le_bytes());
    context.extend_from_slice(&kek.to_le_bytes());
    context
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || digits.iter().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// A number from 1 in its one form.
fn decimal(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| *number > 0 && number.to_string() == text)
}

#[cfg(test)]
mod tests;
