//! The schemas of one context: types, versions, definitions, fingerprints and subject names.
//!
//! Built from files embedded at build time. Knows no ids (the database gives them) and no Rust types.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::Name;
use sha2::{Digest, Sha256};

use super::limits;

/// One published schema file.
#[derive(Debug, Clone, Copy)]
pub struct Published<'a> {
    /// Event type without name space, such as `Opened`.
    pub event_type: &'a str,
    /// Version, from 1.
    pub version: i16,
    /// Avro schema, JSON.
    pub definition: &'a str,
}

/// All schemas of a context, each type's versions 1 to n without a gap.
#[derive(Debug, Clone)]
pub struct Catalogue {
    topic: String,
    namespace: String,
    schemas: Vec<CataloguedSchema>,
}

/// One schema of a [`Catalogue`].
#[derive(Debug, Clone)]
pub struct CataloguedSchema {
    /// Event type without name space.
    pub event_type: String,
    /// Version, from 1.
    pub version: i16,
    /// The file's text.
    pub definition: String,
    /// The parsed schema.
    pub schema: Schema,
    /// Lower-case hex, see [`fingerprint`].
    pub fingerprint: String,
}

/// The schema files of a context do not make a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// A definition is no Avro schema.
    #[error("schema {event_type} version {version} does not parse: {reason}")]
    Unparsable { event_type: String, version: i16, reason: String },
    /// A definition is of another type than its file says.
    #[error("schema {event_type} version {version} must be a record named {expected}, not {found}")]
    WrongName { event_type: String, version: i16, expected: String, found: String },
    /// The versions of a type are not 1, 2, 3 ….
    #[error(
        "schema {event_type}: version {missing} is missing; versions are 1, 2, 3 … in order, and none is ever removed"
    )]
    Gap { event_type: String, missing: i16 },
    /// Hostile bytes could nest a value of this schema without an end, or it is deeper than what is decoded.
    #[error(
        "schema {event_type} version {version} {reason}; at most {} records, arrays and unions are decoded within each other",
        limits::MAX_DEPTH
    )]
    TooDeep { event_type: String, version: i16, reason: String },
}

impl Catalogue {
    /// Parses and orders the schemas of a context whose events go to `topic`. Also puts the
    /// process-wide decoding limits in force.
    pub fn new(topic: &str, namespace: &str, published: &[Published<'_>]) -> Result<Self, CatalogueError> {
        limits::apply();
        let mut schemas = published.iter().map(|one| parse(namespace, one)).collect::<Result<Vec<_>, _>>()?;
        schemas.sort_by(|a, b| (&a.event_type, a.version).cmp(&(&b.event_type, b.version)));
        let mut expected = 0;
        for (n, schema) in schemas.iter().enumerate() {
            let same_type = n > 0 && schemas[n - 1].event_type == schema.event_type;
            expected = if same_type { expected + 1 } else { 1 };
            if schema.version != expected {
                return Err(CatalogueError::Gap { event_type: schema.event_type.clone(), missing: expected });
            }
        }
        Ok(Self { topic: topic.to_owned(), namespace: namespace.to_owned(), schemas })
    }

    /// The same schemas for a topic of another name, such as one with a prefix.
    pub fn of_topic(self, topic: String) -> Self {
        Self { topic, ..self }
    }

    /// The events topic that the subjects belong to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Avro name space of every type.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Every schema, by type, then version.
    pub fn schemas(&self) -> &[CataloguedSchema] {
        &self.schemas
    }

    /// The newest schema of every type, by type.
    pub fn newest_of_each(&self) -> impl Iterator<Item = &CataloguedSchema> {
        let next_type = |n: usize| self.schemas.get(n + 1).map(|next| &next.event_type);
        self.schemas
            .iter()
            .enumerate()
            .filter(move |(n, one)| next_type(*n) != Some(&one.event_type))
            .map(|(_, one)| one)
    }

    /// The newest schema of a type.
    pub fn newest(&self, event_type: &str) -> Option<&CataloguedSchema> {
        self.schemas.iter().rev().find(|one| one.event_type == event_type)
    }

    /// One version of a type.
    pub fn schema(&self, event_type: &str, version: i16) -> Option<&CataloguedSchema> {
        self.schemas.iter().find(|one| one.event_type == event_type && one.version == version)
    }

    /// Subject under topic-record name strategy: `bank-events-acme.bank.Opened`.
    pub fn subject(&self, event_type: &str) -> String {
        format!("{}{event_type}", self.subject_prefix())
    }

    /// What all subjects of this context begin with.
    pub fn subject_prefix(&self) -> String {
        format!("{}-{}.", self.topic, self.namespace)
    }
}

fn parse(namespace: &str, one: &Published<'_>) -> Result<CataloguedSchema, CatalogueError> {
    let (event_type, version) = (one.event_type.to_owned(), one.version);
    let unparsable =
        |reason: String| CatalogueError::Unparsable { event_type: one.event_type.to_owned(), version, reason };
    let schema = Schema::parse_str(one.definition).map_err(|error| unparsable(error.to_string()))?;
    let expected = format!("{namespace}.{event_type}");
    let found = match &schema {
        Schema::Record(record) => record.name.fullname(None),
        other => format!("{:?}", apache_avro::schema::SchemaKind::from(other)),
    };
    if found != expected {
        return Err(CatalogueError::WrongName { event_type, version, expected, found });
    }
    let depth = Nesting::default().depth(&schema);
    let too_deep = |reason: String| CatalogueError::TooDeep { event_type: event_type.clone(), version, reason };
    match depth.map_err(too_deep)? {
        depth if depth > limits::MAX_DEPTH => return Err(too_deep(format!("is {depth} deep"))),
        _ => {}
    }
    let fingerprint = fingerprint(one.definition).map_err(unparsable)?;
    Ok(CataloguedSchema { event_type, version, definition: one.definition.to_owned(), schema, fingerprint })
}

/// How deep the values of a schema can be. The reference decoder has no bound of its own: bytes of a
/// schema that contains itself could end the process by its stack.
#[derive(Default)]
struct Nesting<'a> {
    /// Named schemas that are being looked into.
    open: Vec<&'a Name>,
    /// Depths of those before.
    known: HashMap<&'a Name, usize>,
}

impl<'a> Nesting<'a> {
    fn depth(&mut self, schema: &'a Schema) -> Result<usize, String> {
        match schema {
            Schema::Array(array) => Ok(1 + self.depth(&array.items)?),
            Schema::Map(map) => Ok(1 + self.depth(&map.types)?),
            Schema::Union(union) => Ok(1 + self.deepest(union.variants())?),
            Schema::Record(record) => {
                self.open.push(&record.name);
                let depth = 1 + self.deepest(record.fields.iter().map(|field| &field.schema))?;
                self.open.pop();
                self.known.insert(&record.name, depth);
                Ok(depth)
            }
            Schema::Ref { name } if self.open.contains(&name) => Err(format!("contains itself in {name}")),
            Schema::Ref { name } => Ok(self.known.get(name).copied().unwrap_or_default()),
            _ => Ok(0),
        }
    }

    fn deepest(&mut self, schemas: impl IntoIterator<Item = &'a Schema>) -> Result<usize, String> {
        schemas.into_iter().try_fold(0, |deepest, schema| Ok(self.depth(schema)?.max(deepest)))
    }
}

/// SHA-256, hex, of a schema's canonical text: its JSON with sorted keys and without `doc`.
///
/// Stricter than Avro's Parsing Canonical Form, which also drops defaults, aliases and logical
/// types: readers depend on those, so editing one is an edit. Documentation may be corrected.
pub fn fingerprint(definition: &str) -> Result<String, String> {
    let value: serde_json::Value = serde_json::from_str(definition).map_err(|error| error.to_string())?;
    let mut text = String::new();
    write_canonical(&value, &mut text);
    Ok(Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_canonical(value: &serde_json::Value, text: &mut String) {
    match value {
        serde_json::Value::Object(fields) => {
            // A field default may be an object with a key "doc" of its own; no schema of ours has one.
            let mut keys: Vec<_> = fields.keys().filter(|key| *key != "doc").collect();
            keys.sort();
            text.push('{');
            for key in keys {
                text.push_str(&serde_json::Value::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(&fields[key], text);
                text.push(',');
            }
            text.push('}');
        }
        serde_json::Value::Array(elements) => {
            text.push('[');
            for element in elements {
                write_canonical(element, text);
                text.push(',');
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(fields: &str) -> Result<Catalogue, CatalogueError> {
        let definition = format!(r#"{{"type": "record", "name": "Sent", "namespace": "a.b", "fields": [{fields}]}}"#);
        Catalogue::new("t", "a.b", &[Published { event_type: "Sent", version: 1, definition: &definition }])
    }

    fn arrays(depth: usize) -> String {
        let (open, close) = (r#"{"type": "array", "items": "#.repeat(depth), "}".repeat(depth));
        format!(r#"{{"name": "f", "type": {open}"int"{close}}}"#)
    }

    #[test]
    fn a_schema_whose_values_have_no_bound_of_depth_is_refused() {
        let itself = catalogue(r#"{"name": "next", "type": ["null", "Sent"]}"#).unwrap_err();
        assert!(itself.to_string().contains("contains itself in a.b.Sent"), "{itself}");
        assert!(catalogue(&arrays(limits::MAX_DEPTH - 1)).is_ok());
        assert!(matches!(catalogue(&arrays(limits::MAX_DEPTH)), Err(CatalogueError::TooDeep { .. })));
    }

    #[test]
    fn what_is_used_twice_counts_where_it_is_used() {
        let deep = format!(r#"{{"type": "record", "name": "Deep", "fields": [{}]}}"#, arrays(limits::MAX_DEPTH - 3));
        let twice = |second: &str| format!(r#"{{"name": "a", "type": {deep}}}, {{"name": "b", "type": {second}}}"#);
        assert!(catalogue(&twice(r#""Deep""#)).is_ok());
        let array = r#"{"type": "array", "items": {"type": "array", "items": "Deep"}}"#;
        assert!(matches!(catalogue(&twice(array)), Err(CatalogueError::TooDeep { .. })));
    }
}
