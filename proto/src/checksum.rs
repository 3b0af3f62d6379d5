//! The one checksum that travels from the writing client to the reading one.

/// CRC-32 (IEEE) of a record as its writer computed it: over the keyspace id (4 bytes, big
/// endian), the length of the key (4 bytes, big endian), the key and the value.
///
/// The length keeps `("a", "bc")` and `("ab", "c")` apart; the keyspace keeps a record from
/// being believed in another table.
pub fn client_crc(keyspace_id: u32, key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&keyspace_id.to_be_bytes());
    hasher.update(&(key.len() as u32).to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::client_crc;

    #[test]
    fn every_part_counts() {
        let crc = client_crc(7, b"ab", b"c");
        assert_ne!(crc, client_crc(8, b"ab", b"c"));
        assert_ne!(crc, client_crc(7, b"a", b"bc"));
        assert_ne!(crc, client_crc(7, b"ab", b"d"));
    }

    #[test]
    fn agrees_with_other_implementations() {
        // Python: zlib.crc32(b'\x00\x00\x00\x01' + b'\x00\x00\x00\x03' + b'key' + b'value')
        assert_eq!(client_crc(1, b"key", b"value"), 0xabd7_829a);
    }
}
