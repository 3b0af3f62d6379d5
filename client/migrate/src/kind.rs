//! Which PostgreSQL types exist for us, and how each is asked for. Both the importer and the verifier work from this
//! table; how the bytes of a kind are read is each one's own business.

use std::collections::HashMap;

/// How a column's values are represented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    /// `char(n)`: blank padded, equal without the blanks.
    Char,
    Bytea,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    Json,
    Jsonb,
    Enum,
    /// Rendered by the server, `value::text`.
    AsText,
    Array(Box<Kind>),
}

impl Kind {
    /// The expression that reads the column: itself, or its text.
    pub(crate) fn select_expression(&self, column: &str) -> String {
        match self {
            Kind::AsText => format!("{column}::text"),
            Kind::Array(element) if **element == Kind::AsText => format!("{column}::text[]"),
            _ => column.to_owned(),
        }
    }

    /// For a kind that can be part of a key: an expression that sorts as the encoded key does, and its type.
    /// `None`: not possible as a key.
    ///
    /// Text sorts by its UTF-8 bytes whatever the database's encoding and collation.
    pub(crate) fn order_expression(&self, column: &str) -> Option<(String, &'static str)> {
        let type_name = match self {
            Kind::Text | Kind::Char | Kind::Enum => {
                return Some((format!("convert_to({column}::text, 'UTF8')"), "bytea"));
            }
            Kind::Bool => "boolean",
            Kind::Int2 | Kind::Int4 | Kind::Int8 => "bigint",
            Kind::Oid => "oid",
            Kind::Float4 => "real",
            Kind::Float8 => "double precision",
            Kind::Numeric => "numeric",
            Kind::Bytea => "bytea",
            Kind::Date => "date",
            Kind::Time => "time",
            Kind::Timestamp => "timestamp",
            Kind::TimestampTz => "timestamptz",
            Kind::Uuid => "uuid",
            Kind::TimeTz | Kind::Interval | Kind::Json | Kind::Jsonb | Kind::AsText | Kind::Array(_) => {
                return None;
            }
        };
        Some((column.to_owned(), type_name))
    }

    /// Whether an index on the column gives the order of [`Kind::order_expression`], so that a range of it is cheap.
    pub(crate) fn order_is_native(&self) -> bool {
        !matches!(self, Kind::Text | Kind::Char | Kind::Enum)
    }
}

/// A row of `pg_type`.
#[derive(Clone, Debug)]
pub(crate) struct PgType {
    pub(crate) name: String,
    pub(crate) schema: String,
    /// `typtype`: b(ase), c(omposite), d(omain), e(num), p(seudo), r(ange), m(ultirange).
    pub(crate) class: u8,
    /// Of a domain: the type below it.
    pub(crate) base: u32,
    /// Of a true array type: the type of its elements.
    pub(crate) element: Option<u32>,
}

/// All types of a database by oid.
pub(crate) type Types = HashMap<u32, PgType>;

/// The kind of a type; the error names a type we do not support.
pub(crate) fn classify(types: &Types, oid: u32) -> Result<Kind, String> {
    let Some(ty) = types.get(&oid) else {
        return Err(format!("type {oid} is unknown"));
    };
    if let Some(element) = ty.element {
        return match classify(types, element)? {
            Kind::Array(_) => Err("arrays of a domain over an array are not supported".to_owned()),
            kind => Ok(Kind::Array(Box::new(kind))),
        };
    }
    let unsupported = || Err(format!("type {}.{} is not supported", ty.schema, ty.name));
    match ty.class {
        b'd' => classify(types, ty.base),
        b'e' => Ok(Kind::Enum),
        b'c' | b'r' | b'm' => Ok(Kind::AsText),
        b'b' if ty.schema == "pg_catalog" => builtin(&ty.name).map_or_else(unsupported, Ok),
        _ => unsupported(),
    }
}

fn builtin(name: &str) -> Option<Kind> {
    Some(match name {
        "bool" => Kind::Bool,
        "int2" => Kind::Int2,
        "int4" => Kind::Int4,
        "int8" => Kind::Int8,
        "oid" => Kind::Oid,
        "float4" => Kind::Float4,
        "float8" => Kind::Float8,
        "numeric" => Kind::Numeric,
        "text" | "varchar" | "name" => Kind::Text,
        "bpchar" => Kind::Char,
        "bytea" => Kind::Bytea,
        "date" => Kind::Date,
        "time" => Kind::Time,
        "timetz" => Kind::TimeTz,
        "timestamp" => Kind::Timestamp,
        "timestamptz" => Kind::TimestampTz,
        "interval" => Kind::Interval,
        "uuid" => Kind::Uuid,
        "json" => Kind::Json,
        "jsonb" => Kind::Jsonb,
        "char" | "xml" | "bit" | "varbit" | "money" | "inet" | "cidr" | "macaddr" | "macaddr8"
        | "tsvector" | "tsquery" | "point" | "line" | "lseg" | "box" | "path" | "polygon" | "circle"
        | "pg_lsn" | "jsonpath" | "tid" | "xid" | "xid8" | "cid" | "pg_snapshot" | "txid_snapshot"
        | "regclass" | "regtype" | "regproc" | "regprocedure" | "regrole" | "regnamespace" => Kind::AsText,
        _ => return None,
    })
}

/// CBOR tags of the value format (see the crate's page).
pub(crate) mod tag {
    /// Registered: a UUID as 16 bytes.
    pub(crate) const UUID: u64 = 37;
    pub(crate) const NUMERIC: u64 = 60160;
    pub(crate) const DATE: u64 = 60161;
    pub(crate) const TIMESTAMP: u64 = 60162;
    pub(crate) const TIMESTAMPTZ: u64 = 60163;
    pub(crate) const TIME: u64 = 60164;
    pub(crate) const TIMETZ: u64 = 60165;
    pub(crate) const INTERVAL: u64 = 60166;
    pub(crate) const JSON: u64 = 60167;
    pub(crate) const JSONB: u64 = 60168;
    pub(crate) const ARRAY: u64 = 60169;
    pub(crate) const AS_TEXT: u64 = 60170;
}
