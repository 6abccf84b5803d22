//! The OpenRPC document, generated from the types and the table of operations.

use std::sync::LazyLock;

use pyro_api::{ErrorKind, Operation};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::failure::{ErrorData, Problem};
use crate::handshake::{self, Initialize, Initialized};
use crate::limits;
use crate::message::{Credit, EventParams};
use crate::notification::{Ack, Cancel, Input};

/// The only method that may be called before the handshake.
pub(crate) const DISCOVER: &str = "rpc.discover";
/// Its description.
const ABOUT_DISCOVER: &str =
    "Returns the OpenRPC document of this protocol. May be called before `initialize`.";

/// The protocol as an OpenRPC 1.3 document, with schemas of JSON Schema draft 7. Extensions:
/// `x-notifications`, the notifications in both directions; `x-errors`, the codes of errors; `x-limits`, the limits.
pub fn document() -> &'static Value {
    &DOCUMENT
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut schemas = Schemas::new();
    let mut methods = vec![Described {
        name: handshake::INITIALIZE,
        about: handshake::ABOUT.to_owned(),
        params: schemas.params::<Initialize>(),
        result: schemas.result::<Initialized>(),
    }];
    methods.extend(operations(&mut schemas));
    methods.push(Described {
        name: DISCOVER,
        about: ABOUT_DISCOVER.to_owned(),
        params: Vec::new(),
        result: schemas.result::<Value>(),
    });
    let notifications = json!([
        notification("cancel", "client", schemas.taken::<Cancel>()),
        notification("ack", "client", schemas.taken::<Ack>()),
        notification("input", "client", schemas.taken::<Input>()),
        notification("credit", "server", schemas.result::<Credit<'static>>()),
        notification("event", "server", schemas.result::<EventParams<'static>>()),
    ]);
    let (error, engine) = (schemas.result::<ErrorData>(), schemas.result::<ErrorKind>());
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "pyro rpc",
            "description": "pyro for one program, over two pipes: JSON-RPC 2.0, one message per line, parameters by name. The first \
                request is `initialize`.",
            "version": handshake::VERSION,
        },
        "methods": methods.iter().map(Described::entry).collect::<Vec<_>>(),
        "components": { "schemas": schemas.definitions() },
        "x-notifications": notifications,
        "x-errors": { "data": error, "engine": engine, "protocol": error_words() },
        "x-limits": limits::described(),
    })
});

macro_rules! describe_each {
    ($($Request:ident)+) => {
        /// The operations of the contract as methods.
        fn operations(schemas: &mut Schemas) -> Vec<Described> {
            vec![$(describe::<pyro_api::operations::$Request>(schemas)),+]
        }
    };
}

pyro_api::for_each_operation!(describe_each);

fn describe<O: Operation>(schemas: &mut Schemas) -> Described {
    Described {
        name: O::INFO.name,
        about: O::INFO.about(),
        params: schemas.operation::<O>(),
        result: schemas.result::<O::Result>(),
    }
}

fn notification(name: &str, from: &str, params: Schema) -> Value {
    json!({ "name": name, "from": from, "params": params })
}

/// The codes of the protocol's own errors, with their JSON-RPC numbers and descriptions.
fn error_words() -> Vec<Value> {
    Problem::OURS
        .into_iter()
        .map(|problem| {
            let (code, word, about) = problem.row();
            json!({ "word": word, "code": code, "description": about })
        })
        .collect()
}

/// One method for the document.
struct Described {
    name: &'static str,
    about: String,
    params: Vec<Param>,
    result: Schema,
}

/// One parameter.
#[derive(Clone)]
struct Param {
    entry: Value,
}

impl Described {
    fn entry(&self) -> Value {
        json!({
            "name": self.name,
            "description": self.about,
            "paramStructure": "by-name",
            "params": self.params.iter().map(|param| param.entry.clone()).collect::<Vec<_>>(),
            "result": { "name": "result", "schema": self.result },
        })
    }
}

/// Collects schemas. Parameters and results follow different rules about optional keys.
struct Schemas {
    taken: SchemaGenerator,
    given: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft07().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self { taken: settings().into_generator(), given: settings().for_serialize().into_generator() }
    }

    /// The parameters of an operation.
    fn operation<O: Operation>(&mut self) -> Vec<Param> {
        O::parts(&mut self.taken).iter().flat_map(params).collect()
    }

    /// The parameters that a type describes.
    fn params<T: JsonSchema>(&mut self) -> Vec<Param> {
        params(&T::json_schema(&mut self.taken))
    }

    /// The schema of a method's result.
    fn result<T: JsonSchema>(&mut self) -> Schema {
        self.given.subschema_for::<T>()
    }

    fn taken<T: JsonSchema>(&mut self) -> Schema {
        self.taken.subschema_for::<T>()
    }

    fn definitions(&mut self) -> Map<String, Value> {
        let mut all = self.given.take_definitions(true);
        all.extend(self.taken.take_definitions(true));
        all
    }
}

/// The properties of a schema as parameters.
fn params(schema: &Schema) -> Vec<Param> {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let param = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        Param {
            entry: json!({
                "name": name,
                "description": description,
                "required": required.contains(&name.as_str()),
                "schema": schema,
            }),
        }
    };
    properties.into_iter().flatten().map(param).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Renewed by `pyro rpc --schema > crates/pyro-rpc/openrpc.json`.
    #[test]
    fn the_checked_in_document_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openrpc.json");
        let checked_in: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(checked_in == *document(), "run `pyro rpc --schema > crates/pyro-rpc/openrpc.json`");
    }
}
