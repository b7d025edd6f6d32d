//! From an old version to the newest: pure steps, each from one version to the next, chained.
//!
//! A step works on the generic value of the old version, so that no old shape needs a Rust type.
//! Nothing is guessed: a type and version without a chain to the newest is reported and refused.

use std::collections::BTreeMap;

use apache_avro::types::Value;

use super::catalogue::Catalogue;

/// One step: the fields of version n in, the fields of version n + 1 out. Pure and total for every
/// value that version n can hold; the error is for values outside of what the version allowed.
pub type Upcaster = fn(&mut Fields) -> Result<(), String>;

/// The steps of a context, by type and the version they start from.
#[derive(Debug, Clone, Default)]
pub struct Upcasters {
    steps: BTreeMap<(String, i16), Upcaster>,
}

impl Upcasters {
    /// Steps as (type, version they start from, step).
    pub fn new(steps: &[(&str, i16, Upcaster)]) -> Self {
        Self {
            steps: steps.iter().map(|(event_type, from, step)| (((*event_type).to_owned(), *from), *step)).collect(),
        }
    }

    /// These steps and one more.
    #[must_use]
    pub fn with(mut self, event_type: &str, from: i16, step: Upcaster) -> Self {
        self.steps.insert((event_type.to_owned(), from), step);
        self
    }

    /// Every (type, version) of the catalogue that has no path to its newest version.
    pub fn without_path(&self, catalogue: &Catalogue) -> Vec<(String, i16)> {
        let reaches = |event_type: &str, from: i16| {
            let newest = catalogue.newest(event_type).map_or(from, |schema| schema.version);
            (from..newest).all(|version| self.steps.contains_key(&(event_type.to_owned(), version)))
        };
        let lost = catalogue.schemas().iter().filter(|one| !reaches(&one.event_type, one.version));
        lost.map(|one| (one.event_type.clone(), one.version)).collect()
    }

    /// Steps that start from a version which is not there or is the newest: left-overs or typing errors.
    pub fn without_schema(&self, catalogue: &Catalogue) -> Vec<(String, i16)> {
        let known = |event_type: &str, from: i16| {
            catalogue.schema(event_type, from).is_some() && catalogue.schema(event_type, from + 1).is_some()
        };
        self.steps.keys().filter(|(event_type, from)| !known(event_type, *from)).cloned().collect()
    }

    /// Runs the chain from version `from` up to version `to`.
    pub fn upcast(&self, event_type: &str, from: i16, to: i16, value: Value) -> Result<Value, String> {
        let Value::Record(fields) = value else {
            return Err(format!("{event_type} is not a record"));
        };
        let mut fields = Fields(fields);
        for version in from..to {
            let step = self
                .steps
                .get(&(event_type.to_owned(), version))
                .ok_or_else(|| format!("no upcaster of {event_type} from version {version}"))?;
            step(&mut fields).map_err(|reason| format!("upcasting {event_type} from version {version}: {reason}"))?;
        }
        Ok(Value::Record(fields.0))
    }
}

/// The fields of a record while it is upcast. Order does not matter.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields(Vec<(String, Value)>);

impl Fields {
    /// No fields.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Result<&Value, String> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value).ok_or_else(|| missing(name))
    }

    /// The value of a field that holds an `int` or a `long`.
    pub fn long(&self, name: &str) -> Result<i64, String> {
        match self.get(name)? {
            Value::Int(number) => Ok(i64::from(*number)),
            Value::Long(number) => Ok(*number),
            other => Err(format!("field {name} holds {other:?}, not a number")),
        }
    }

    /// The value of a field that holds a string.
    pub fn string(&self, name: &str) -> Result<&str, String> {
        match self.get(name)? {
            Value::String(text) => Ok(text),
            other => Err(format!("field {name} holds {other:?}, not a string")),
        }
    }

    /// Takes a field out.
    pub fn remove(&mut self, name: &str) -> Result<Value, String> {
        let at = self.0.iter().position(|(field, _)| field == name).ok_or_else(|| missing(name))?;
        Ok(self.0.swap_remove(at).1)
    }

    /// Puts a field in, in place of one of that name.
    pub fn set(&mut self, name: &str, value: Value) {
        match self.0.iter_mut().find(|(field, _)| field == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Gives a field another name.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), String> {
        let value = self.remove(from)?;
        self.set(to, value);
        Ok(())
    }

    /// Changes each record of an array of records.
    pub fn each(
        &mut self,
        name: &str,
        mut change: impl FnMut(&mut Fields) -> Result<(), String>,
    ) -> Result<(), String> {
        let Value::Array(mut elements) = self.remove(name)? else {
            return Err(format!("field {name} is not an array"));
        };
        for (n, element) in elements.iter_mut().enumerate() {
            let Value::Record(fields) = std::mem::replace(element, Value::Null) else {
                return Err(format!("element {n} of field {name} is not a record"));
            };
            let mut fields = Fields(fields);
            change(&mut fields).map_err(|reason| format!("element {n} of field {name}: {reason}"))?;
            *element = Value::Record(fields.0);
        }
        self.set(name, Value::Array(elements));
        Ok(())
    }

    /// These fields as a record value.
    pub fn into_record(self) -> Value {
        Value::Record(self.0)
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self::new()
    }
}

fn missing(name: &str) -> String {
    format!("field {name} is missing")
}
