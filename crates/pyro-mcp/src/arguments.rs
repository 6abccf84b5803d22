//! What a tool takes: one description from which both its schema and its reader come.

use serde_json::{Map, Value, json};

/// Arguments by name.
pub(crate) type Object = Map<String, Value>;

/// One argument of a tool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Argument {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// For the model.
    pub(crate) description: &'static str,
}

/// What an argument is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A text that must be given.
    Text,
    /// A text that may be left out.
    OptionalText,
    /// A whole number that must be given.
    Integer,
    /// A whole number with a default; `None`: it may be left out.
    OptionalInteger(Option<i64>),
    /// One of these texts; the first unless it is given.
    OneOf(&'static [&'static str]),
    /// A switch that is off unless it is given.
    Switch,
    /// Texts by name, none unless they are given.
    Texts,
}

/// The schema of an object with these arguments, in their order. Others are ignored, as clients add some.
pub(crate) fn schema(arguments: &[Argument]) -> Object {
    let properties = arguments.iter().map(|argument| (argument.name.to_owned(), argument.schema()));
    let required: Vec<_> = arguments
        .iter()
        .filter(|argument| matches!(argument.kind, Kind::Text | Kind::Integer))
        .map(|argument| argument.name)
        .collect();
    let mut schema = Object::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("properties".to_owned(), Value::Object(properties.collect()));
    schema.insert("required".to_owned(), required.into());
    schema
}

impl Argument {
    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Text | Kind::OptionalText => json!({ "type": "string" }),
            Kind::Integer | Kind::OptionalInteger(None) => json!({ "type": "integer" }),
            Kind::OptionalInteger(Some(default)) => json!({ "type": "integer", "default": default }),
            Kind::OneOf(texts) => json!({ "type": "string", "enum": texts, "default": texts.first() }),
            Kind::Switch => json!({ "type": "boolean", "default": false }),
            Kind::Texts => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        };
        schema["description"] = self.description.into();
        schema
    }
}

/// The arguments of one call. Every fault is told in one sentence.
#[derive(Debug)]
pub(crate) struct Arguments(pub(crate) Object);

impl Arguments {
    /// A text that must be given.
    pub(crate) fn text(&self, name: &str) -> Result<String, String> {
        self.optional_text(name)?.ok_or_else(|| missing(name))
    }

    /// A text that may be left out.
    pub(crate) fn optional_text(&self, name: &str) -> Result<Option<String>, String> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(wrong(name, "a string", other)),
        }
    }

    /// A whole number that must be given.
    pub(crate) fn integer(&self, name: &str) -> Result<i64, String> {
        self.optional_integer(name)?.ok_or_else(|| missing(name))
    }

    /// A whole number that may be left out. Models like to write them as texts. One that does not fit becomes the nearest
    /// that does, which is outside every limit and refused with the text of that limit.
    pub(crate) fn optional_integer(&self, name: &str) -> Result<Option<i64>, String> {
        let integer = |value: &Value| match value {
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Some(integer),
                (None, Some(float)) if float.fract() == 0.0 => Some(float as i64),
                _ => None,
            },
            Value::String(digits) => digits.trim().parse().ok(),
            _ => None,
        };
        match self.given(name) {
            None => Ok(None),
            Some(value) => integer(value).map(Some).ok_or_else(|| wrong(name, "an integer", value)),
        }
    }

    /// A number that counts something, such as the number of a command.
    pub(crate) fn count(&self, name: &str) -> Result<u64, String> {
        self.optional_count(name)?.ok_or_else(|| missing(name))
    }

    /// A number that counts something and may be left out.
    pub(crate) fn optional_count(&self, name: &str) -> Result<Option<u64>, String> {
        let value = self.optional_integer(name)?;
        value.map(u64::try_from).transpose().map_err(|_| format!("`{name}` must not be negative"))
    }

    /// The same for an argument with a default.
    pub(crate) fn count_or_default(&self, argument: &Argument) -> Result<u64, String> {
        let default = match argument.kind {
            Kind::OptionalInteger(Some(default)) => u64::try_from(default).unwrap_or(0),
            _ => 0,
        };
        Ok(self.optional_count(argument.name)?.unwrap_or(default))
    }

    /// Gives an argument a value.
    pub(crate) fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// A switch, off unless it is given.
    pub(crate) fn switch(&self, name: &str) -> Result<bool, String> {
        match self.given(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(Value::String(word)) if word == "true" => Ok(true),
            Some(Value::String(word)) if word == "false" => Ok(false),
            Some(other) => Err(wrong(name, "a boolean", other)),
        }
    }

    /// Texts by name.
    pub(crate) fn texts(&self, name: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
        let object = match self.given(name) {
            None => return Ok(Default::default()),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(wrong(name, "an object of strings", other)),
        };
        let text = |(key, value): (&String, &Value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            other => Err(wrong(&format!("{name}.{key}"), "a string", other)),
        };
        object.iter().map(text).collect()
    }

    /// The value, if there is one: `null` is none.
    fn given(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }
}

fn missing(name: &str) -> String {
    format!("`{name}` is required")
}

fn wrong(name: &str, expected: &str, value: &Value) -> String {
    let given = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    format!("`{name}` must be {expected}, not {given}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(value: Value) -> Arguments {
        match value {
            Value::Object(object) => Arguments(object),
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn what_models_write_is_understood() {
        let given = arguments(json!({
            "a": 2, "b": "2", "c": 2.0, "d": " 2 ", "e": null, "on": true, "word": "true", "text": "x",
            "env": {"A": "1"},
        }));
        for name in ["a", "b", "c", "d"] {
            assert_eq!(given.integer(name), Ok(2), "{name}");
        }
        assert_eq!(given.optional_integer("e"), Ok(None));
        assert_eq!(
            (given.switch("on"), given.switch("word"), given.switch("none")),
            (Ok(true), Ok(true), Ok(false))
        );
        assert_eq!(given.text("text"), Ok("x".to_owned()));
        assert_eq!(given.texts("env").unwrap()["A"], "1");
        assert_eq!(arguments(json!({ "n": 1e300 })).integer("n"), Ok(i64::MAX));
    }

    #[test]
    fn each_fault_is_one_sentence() {
        let given = arguments(json!({ "n": "two", "f": 1.5, "t": 5, "s": [], "env": {"A": 1}, "low": -1 }));
        let faults = [
            given.text("absent").unwrap_err(),
            given.integer("n").unwrap_err(),
            given.integer("f").unwrap_err(),
            given.text("t").unwrap_err(),
            given.switch("s").unwrap_err(),
            given.texts("env").unwrap_err(),
            given.count("low").unwrap_err(),
        ];
        insta::assert_snapshot!(faults.join("\n"), @r"
        `absent` is required
        `n` must be an integer, not a string
        `f` must be an integer, not a fraction
        `t` must be a string, not a number
        `s` must be a boolean, not an array
        `env.A` must be a string, not a number
        `low` must not be negative
        ");
    }
}
