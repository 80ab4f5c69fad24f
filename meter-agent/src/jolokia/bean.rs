//! What a bean is: its attributes and operations as tables, over one snapshot.

use std::{collections::BTreeMap, sync::OnceLock};

use serde_json::Value as Json;

use super::response::{Failure, Value};
use crate::{
    meter::{FlowStats, MeterKey},
    publish::SnapshotReader,
    snapshot::SharedSnapshot,
};

/// What beans read: one snapshot for all requests of a bulk, its meters made once.
#[derive(Debug)]
pub struct Totals {
    snapshot: SharedSnapshot,
    meters: OnceLock<BTreeMap<MeterKey, FlowStats>>,
}

impl Totals {
    /// Takes totals that are read after this call.
    pub async fn fresh(reader: &SnapshotReader) -> Self {
        Self { snapshot: reader.fresh().await, meters: OnceLock::new() }
    }

    /// Takes the totals that were published last, for requests that ask for none.
    #[must_use]
    pub fn latest(reader: &SnapshotReader) -> Self {
        Self { snapshot: reader.latest(), meters: OnceLock::new() }
    }

    /// Returns every meter.
    #[must_use]
    pub fn meters(&self) -> &BTreeMap<MeterKey, FlowStats> {
        self.meters.get_or_init(|| self.snapshot.meters())
    }
}

/// A bean.
#[derive(Debug)]
pub struct Bean {
    /// Its name, with the keys in order.
    pub name: &'static str,
    /// What can be read.
    pub attributes: &'static [Attribute],
    /// What can be called.
    pub operations: &'static [Operation],
}

/// Something of a bean that can be read.
#[derive(Debug)]
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// Its type, as Java names it.
    pub java_type: &'static str,
    /// Reads it.
    pub read: fn(&Totals) -> Value,
}

/// Something of a bean that can be called.
#[derive(Debug)]
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    /// The types of its parameters, as Java names them.
    pub parameters: &'static [&'static str],
    /// The type of its result.
    pub returns: &'static str,
    /// Calls it, with as many arguments as it has parameters.
    pub call: fn(&Totals, &[Json]) -> Result<Value, Failure>,
}

impl Bean {
    /// Returns the attribute of a name.
    ///
    /// # Errors
    ///
    /// That there is none.
    pub fn attribute(&self, name: &str) -> Result<&'static Attribute, Failure> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name == name)
            .ok_or_else(|| Failure::no_attribute(format!("No such attribute: {name}")))
    }

    /// Calls an operation, named alone or with its signature: `getMeter(java.lang.String)`.
    ///
    /// # Errors
    ///
    /// That there is no such operation, that it has another signature or number of parameters, that the name alone
    /// doesn't tell which one is meant, or what the operation says.
    pub fn call(&self, operation: &str, arguments: &[Json], totals: &Totals) -> Result<Value, Failure> {
        let found = self.operation(operation)?;
        if found.parameters.len() != arguments.len() {
            return Err(Failure::bad_request(format!(
                "Invalid number of operation arguments. Operation {operation} on {} requires {} parameters, \
                 not {} as given",
                self.name,
                found.parameters.len(),
                arguments.len()
            )));
        }
        (found.call)(totals, arguments)
    }

    fn operation(&self, operation: &str) -> Result<&'static Operation, Failure> {
        let (name, signature) = match operation.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')')),
            None => (operation, None),
        };
        let named: Vec<_> = self.operations.iter().filter(|known| known.name == name).collect();
        let signatures = || {
            named
                .iter()
                .map(|known| format!("({})", known.parameters.join(",")))
                .collect::<Vec<_>>()
                .join(",")
        };
        match (named.as_slice(), signature) {
            ([], _) => Err(Failure::no_operation(operation)),
            ([only], None) if !operation.contains('(') => Ok(only),
            (_, None) if !operation.contains('(') => Err(Failure::bad_request(format!(
                "Operation {operation} on MBean {} is overloaded. Signatures found: {}. Use a signature when \
                 specifying the operation.",
                self.name,
                signatures()
            ))),
            (several, signature) => several
                .iter()
                .find(|known| signature.is_some_and(|text| text == known.parameters.join(",")))
                .copied()
                .ok_or_else(|| {
                    Failure::bad_request(format!(
                        "No operation {operation} on MBean {} exists. Known signatures: {}",
                        self.name,
                        signatures()
                    ))
                }),
        }
    }
}
