//! The rental business the demo runs: films, customers, rentals, payments and counters.
//!
//! Every value follows from the seed, the row and a **revision**, so that whatever is read later can
//! be computed again instead of remembered. A value begins with its revision, `{"rev":7,…`, so that
//! a reader knows which one it claims to be. Some revisions of payments are deletions.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reelkv_client::key;
use serde_json::json;

/// A table of the demo; a keyspace of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Film,
    Customer,
    Rental,
    Payment,
}

impl Table {
    pub const ALL: [Self; 4] = [Self::Film, Self::Customer, Self::Rental, Self::Payment];

    /// Name of its keyspace.
    pub fn name(self) -> &'static str {
        match self {
            Self::Film => "demo.film",
            Self::Customer => "demo.customer",
            Self::Rental => "demo.rental",
            Self::Payment => "demo.payment",
        }
    }

    /// Its part of all rows, in hundredths.
    fn share(self) -> usize {
        match self {
            Self::Film => 2,
            Self::Customer => 8,
            Self::Rental => 45,
            Self::Payment => 45,
        }
    }

    /// Into how many shards its rows are cut.
    pub fn shards(self) -> usize {
        match self {
            Self::Film | Self::Customer => 1,
            Self::Rental | Self::Payment => 3,
        }
    }
}

/// Keyspace of the counters: rentals per store, added to by everybody.
pub(super) const COUNTERS: &str = "demo.rentals_per_store";
/// How many counters there are.
pub(super) const COUNTERS_LEN: usize = 16;

/// Where a row of the data set stands; counts through all tables.
pub(super) type RowIndex = usize;

/// The data set: which rows there are and what each revision of them is.
#[derive(Clone, Debug)]
pub(super) struct DataSet {
    seed: u64,
    /// The first row of each table, and the end of the last.
    starts: [RowIndex; 5],
}

impl DataSet {
    /// About `rows` rows, never fewer.
    pub fn new(seed: u64, rows: usize) -> Self {
        let mut starts = [0; 5];
        for (at, table) in Table::ALL.into_iter().enumerate() {
            starts[at + 1] = starts[at] + (rows * table.share()).div_ceil(100).max(table.shards());
        }
        Self { seed, starts }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.starts[4]
    }

    /// The rows of a table.
    pub fn rows_of(&self, table: Table) -> std::ops::Range<RowIndex> {
        self.starts[table as usize]..self.starts[table as usize + 1]
    }

    /// The table of a row and its number there, from 1.
    fn place(&self, row: RowIndex) -> (Table, u64) {
        let table = Table::ALL
            .into_iter()
            .find(|table| self.rows_of(*table).contains(&row));
        let table = table.expect("a row lies in one of the tables");
        (table, (row - self.rows_of(table).start) as u64 + 1)
    }

    /// The table of a row.
    pub fn table(&self, row: RowIndex) -> Table {
        self.place(row).0
    }

    /// The key of a row.
    pub fn key(&self, row: RowIndex) -> Bytes {
        key::pack(&(self.place(row).1,))
    }

    /// The keys that cut a table into shards of about equally many rows.
    pub fn split_keys(&self, table: Table) -> Vec<Bytes> {
        let rows = self.rows_of(table);
        let cut = |at| self.key(rows.start + rows.len() * at / table.shards());
        (1..table.shards()).map(cut).collect()
    }

    /// Whether a revision of a row deletes it: some of payments do.
    pub fn deletes(&self, row: RowIndex, revision: u32) -> bool {
        revision % 8 == 7 && self.table(row) == Table::Payment
    }

    /// What a revision of a row holds; `None` for one that deletes it.
    pub fn value(&self, row: RowIndex, revision: u32) -> Option<Bytes> {
        let (table, id) = self.place(row);
        if self.deletes(row, revision) {
            return None;
        }
        let mixed =
            self.seed ^ (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(revision) << 40);
        let mut rng = SmallRng::seed_from_u64(mixed);
        let fields = match table {
            Table::Film => film(id, &mut rng),
            Table::Customer => customer(id, &mut rng),
            Table::Rental => rental(id, self.rows_of(Table::Customer).len() as u64, &mut rng),
            Table::Payment => payment(id, self.rows_of(Table::Rental).len() as u64, &mut rng),
        };
        let fields = fields.to_string();
        // An object's text begins with a brace; the revision goes right behind it.
        Some(Bytes::from(format!("{{\"rev\":{revision},{}", &fields[1..])))
    }

    /// Which revision of `row` a value is, bit for bit; `None` if it is none.
    pub fn revision_of(&self, row: RowIndex, value: &[u8]) -> Option<u32> {
        let digits = value.strip_prefix(b"{\"rev\":")?;
        let end = digits.iter().position(|byte| *byte == b',')?;
        let revision = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        (self.value(row, revision)?[..] == *value).then_some(revision)
    }
}

const WORDS: [&str; 24] = [
    "Academy", "Bird", "Cyclone", "Desert", "Empire", "Forest", "Glass", "Harbor", "Island", "Jungle",
    "Kettle", "Lantern", "Meadow", "Night", "Orchid", "Pelican", "Quarry", "River", "Signal", "Tempest",
    "Umbrella", "Valley", "Window", "Zephyr",
];
const NAMES: [&str; 16] = [
    "Mary", "Patricia", "Linda", "Barbara", "Karl", "Ines", "Tomas", "Yuki", "Amara", "Piotr", "Leila",
    "Ngozi", "Hugo", "Freya", "Ravi", "Sofia",
];
const RATINGS: [&str; 5] = ["G", "PG", "PG-13", "R", "NC-17"];
const FEATURES: [&str; 4] = ["Trailers", "Commentaries", "Deleted Scenes", "Behind the Scenes"];

fn pick<'list>(list: &[&'list str], rng: &mut SmallRng) -> &'list str {
    list.choose(rng).copied().unwrap_or_default()
}

fn sentence(words: usize, rng: &mut SmallRng) -> String {
    let words: Vec<_> = (0..words).map(|_| pick(&WORDS, rng)).collect();
    words.join(" ")
}

fn day(rng: &mut SmallRng) -> String {
    let (month, day) = (rng.random_range(1..=8), rng.random_range(1..=28));
    let (hour, minute) = (rng.random_range(9..22), rng.random_range(0..60));
    format!("2008-{month:02}-{day:02}T{hour:02}:{minute:02}:00Z")
}

fn film(id: u64, rng: &mut SmallRng) -> serde_json::Value {
    json!({
        "film_id": id,
        "title": sentence(2, rng),
        "description": format!("A tale of {}", sentence(18, rng)),
        "release_year": rng.random_range(1960..=2008),
        "rental_duration": rng.random_range(3..=7),
        "rental_rate_cents": rng.random_range(99..=499),
        "length_minutes": rng.random_range(46..=185),
        "rating": pick(&RATINGS, rng),
        "special_features": [pick(&FEATURES, rng), pick(&FEATURES, rng)],
    })
}

fn customer(id: u64, rng: &mut SmallRng) -> serde_json::Value {
    let (first, last) = (pick(&NAMES, rng), pick(&WORDS, rng));
    json!({
        "customer_id": id,
        "store_id": rng.random_range(1..=COUNTERS_LEN),
        "first_name": first,
        "last_name": last,
        "email": format!("{first}.{last}.{id}@example.org"),
        "address": format!("{} {} Street", rng.random_range(1..2_000), sentence(2, rng)),
        "phone": format!("{:012}", rng.random_range(0..1_000_000_000_000u64)),
        "active": rng.random_bool(0.97),
        "note": sentence(12, rng),
    })
}

fn rental(id: u64, customers: u64, rng: &mut SmallRng) -> serde_json::Value {
    json!({
        "rental_id": id,
        "customer_id": rng.random_range(1..=customers),
        "inventory_id": rng.random_range(1..=9_999),
        "rental_date": day(rng),
        "return_date": day(rng),
        "staff_id": rng.random_range(1..=8),
        "note": sentence(14, rng),
    })
}

fn payment(id: u64, rentals: u64, rng: &mut SmallRng) -> serde_json::Value {
    json!({
        "payment_id": id,
        "rental_id": rng.random_range(1..=rentals),
        "amount_cents": rng.random_range(99..=1_199),
        "payment_date": day(rng),
        "staff_id": rng.random_range(1..=8),
        "reference": format!("{:016x}", rng.random::<u64>()),
        "note": sentence(12, rng),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_rows_and_another_seed_others() {
        let (first, again, other) = (
            DataSet::new(7, 1_000),
            DataSet::new(7, 1_000),
            DataSet::new(8, 1_000),
        );
        for row in (0..first.len()).step_by(13) {
            assert_eq!(first.value(row, 3), again.value(row, 3));
            assert_ne!(first.value(row, 3), other.value(row, 3));
        }
    }

    #[test]
    fn there_are_as_many_rows_as_asked_for_a_few_hundred_bytes_each() {
        let data = DataSet::new(1, 50_000);
        assert!(data.len() >= 50_000);
        for table in Table::ALL {
            let row = data.rows_of(table).start;
            assert_eq!(data.table(row), table);
            let len = data.value(row, 0).unwrap().len();
            assert!((150..700).contains(&len), "{table:?}: {len} bytes");
        }
    }

    #[test]
    fn a_value_names_its_revision_and_any_changed_byte_is_noticed() {
        let data = DataSet::new(5, 100);
        for row in 0..data.len() {
            let value = data.value(row, 12).unwrap();
            assert_eq!(data.revision_of(row, &value), Some(12));
            assert_eq!(
                data.revision_of((row + 1) % data.len(), &value),
                None,
                "another row's value"
            );
            for at in [0, 3, 8, value.len() / 2, value.len() - 1] {
                let mut changed = value.to_vec();
                changed[at] ^= 0x04;
                assert_eq!(data.revision_of(row, &changed), None, "row {row}, byte {at}");
            }
        }
    }

    #[test]
    fn keys_are_unique_in_their_table_and_split_keys_cut_it_evenly() {
        let data = DataSet::new(5, 1_000);
        let rows = data.rows_of(Table::Rental);
        let keys: HashSet<_> = rows.clone().map(|row| data.key(row)).collect();
        assert_eq!(keys.len(), rows.len());
        let splits = data.split_keys(Table::Rental);
        assert_eq!(splits.len() + 1, Table::Rental.shards());
        let first = rows.clone().filter(|row| data.key(*row) < splits[0]).count();
        assert_eq!(first, rows.len() / 3);
    }

    #[test]
    fn some_revisions_of_payments_delete_and_no_others_do() {
        let data = DataSet::new(5, 1_000);
        for table in Table::ALL {
            let row = data.rows_of(table).start;
            let deletes = (0..64).any(|revision| data.value(row, revision).is_none());
            assert_eq!(deletes, table == Table::Payment);
            assert!(
                data.value(row, 0).is_some(),
                "the first revision is what is loaded"
            );
        }
    }
}
