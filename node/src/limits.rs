//! Every bound of the system, with its unit and its reason, checked against each other when compiled.

/// Longest key a caller may use, in bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// Longest time to live of a record, in milliseconds: ten years.
pub const TTL_MS_MAX: u64 = 3_650 * 86_400_000;
/// Most operations in one atomic batch.
pub const BATCH_OPERATIONS_MAX: usize = 1_000;
/// Most key and value bytes in one atomic batch.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Longest keyspace name, in bytes.
pub const KEYSPACE_NAME_BYTES_MAX: usize = 128;
/// Largest scan page, in bytes of records.
pub const PAGE_BYTES_MAX: usize = 8 << 20;
/// Scan page when the caller names none, in bytes of records.
pub const PAGE_BYTES_DEFAULT: usize = 1 << 20;

/// The proposer closes an entry once its effects hold this many bytes (one request may be larger).
pub const ENTRY_BYTES_TARGET: usize = 1 << 20;
/// Largest encoded entry: one full batch and what surrounds it.
pub const ENTRY_BYTES_MAX: usize = BATCH_BYTES_MAX + (2 << 20);
/// Entries of one replica being replicated at a time, in bytes per message.
pub const APPEND_BYTES_TARGET: usize = 4 << 20;
/// Largest message between nodes or with clients.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// The log of a node, and its trees, are each read again from the device at this rate at most, in bytes
/// per second.
pub const SCRUB_BYTES_PER_S: u64 = 8 << 20;
/// Requests waiting for one shard's proposer, in bytes; beyond it callers get `Busy`.
pub const PROPOSER_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Entries proposed and not yet applied, per shard.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 64;
/// One piece of a bulk transfer, in bytes of records.
pub const CHUNK_BYTES_TARGET: usize = 1 << 20;

/// How long an open view may keep old versions alive, in milliseconds.
pub const VIEW_LIFE_MS_MAX: u64 = 10 * 60 * 1_000;
/// How long an unused writer's incarnation is remembered, in milliseconds of logged time.
pub const INCARNATION_REMEMBERED_MS: u64 = 15 * 60 * 1_000;
/// Executed sequences remembered per incarnation; a writer keeps fewer requests outstanding.
pub const INCARNATION_EXECUTED_MAX: usize = 65_536;
/// Incarnations remembered per shard; beyond it the least recently used expire early.
pub const INCARNATIONS_MAX: usize = 4_096;
/// A request without a timeout of its own is given this long, in milliseconds.
pub const REQUEST_TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// Expired records removed by one entry.
pub const EXPIRED_REMOVED_MAX: usize = 256;
/// Most shards a cluster may begin with, or a keyspace be cut into.
pub const INITIAL_SHARDS_MAX: u32 = 1_024;

const _: () = assert!(
    KEY_BYTES_MAX + VALUE_BYTES_MAX <= BATCH_BYTES_MAX,
    "a batch holds any one record"
);
const _: () = assert!(BATCH_BYTES_MAX < ENTRY_BYTES_MAX, "an entry holds any batch");
const _: () = assert!(
    ENTRY_BYTES_MAX + APPEND_BYTES_TARGET < MESSAGE_BYTES_MAX,
    "a message holds any entry"
);
const _: () = assert!(
    PAGE_BYTES_MAX + VALUE_BYTES_MAX < MESSAGE_BYTES_MAX,
    "a message holds any page"
);
