//! Arguments of tools: one description gives both the schema and the parser.

use std::collections::BTreeMap;
use std::fmt::Display;

use pyro_api::{InvalidRequest, Operation};
use serde_json::{Map, Value, json};

/// Arguments by name.
pub(crate) type Object = Map<String, Value>;

/// One argument of a tool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Argument {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Description for the model.
    pub(crate) description: &'static str,
}

/// Type of an argument, and whether it is required.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// A required string.
    Text,
    /// An optional string.
    OptionalText,
    /// A required integer.
    Integer,
    /// An optional integer. Its default, if there is one, is only for the schema: the contract applies it.
    OptionalInteger(Option<i64>),
    /// A required integer that is not negative, such as the number of a command.
    Count,
    /// An optional integer that is not negative, with its default, which is applied here.
    OptionalCount(Option<u64>),
    /// One of these strings, required.
    Action(&'static [&'static str]),
    /// An optional number, with its default, which is applied here.
    OptionalNumber(f64),
    /// One of these strings; the default is the first.
    OneOf(&'static [&'static str]),
    /// A boolean; the default is false.
    Switch,
    /// Environment variables: an array of `NAME=VALUE`, an array of objects with `name` and `value`, or an object. The default is
    /// empty.
    Variables,
    /// An optional array of strings.
    List,
}

/// The schema of an object with these arguments, in their order. Other arguments are ignored, because clients add some.
pub(crate) fn schema(arguments: &[Argument]) -> Object {
    let properties = arguments.iter().map(|argument| (argument.name.to_owned(), argument.schema()));
    let required: Vec<_> = arguments
        .iter()
        .filter(|argument| {
            matches!(argument.kind, Kind::Text | Kind::Integer | Kind::Count | Kind::Action(_))
        })
        .map(|argument| argument.name)
        .collect();
    let mut schema = Object::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("properties".to_owned(), Value::Object(properties.collect()));
    // Draft 4 has no empty list.
    if !required.is_empty() {
        schema.insert("required".to_owned(), required.into());
    }
    schema
}

impl Argument {
    /// Its schema. The default is in the description, because models with strict schemas accept no `default`, and objects with
    /// arbitrary keys neither.
    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Text | Kind::OptionalText => json!({ "type": "string" }),
            Kind::Integer | Kind::OptionalInteger(_) | Kind::Count | Kind::OptionalCount(_) => {
                json!({ "type": "integer" })
            }
            Kind::OneOf(texts) | Kind::Action(texts) => json!({ "type": "string", "enum": texts }),
            Kind::OptionalNumber(_) => json!({ "type": "number" }),
            Kind::Switch => json!({ "type": "boolean" }),
            Kind::List | Kind::Variables => json!({ "type": "array", "items": { "type": "string" } }),
        };
        schema["description"] = match self.kind {
            Kind::OptionalInteger(Some(default)) => self.description_with(default),
            Kind::OptionalCount(Some(default)) => self.description_with(default),
            Kind::OptionalNumber(default) => self.description_with(default),
            Kind::OneOf([default, ..]) => self.description_with(default),
            _ => self.description.to_owned(),
        }
        .into();
        schema
    }

    /// The description with a default.
    pub(crate) fn description_with(&self, default: impl Display) -> String {
        format!("{}; default {default}", self.description)
    }
}

/// The arguments of one call, as the client wrote them.
#[derive(Debug)]
pub(crate) struct Arguments(pub(crate) Object);

impl Arguments {
    /// A required string.
    pub(crate) fn text(&self, name: &str) -> Result<String, ArgumentError> {
        self.optional_text(name)?.ok_or_else(|| missing(name))
    }

    /// An optional string.
    pub(crate) fn optional_text(&self, name: &str) -> Result<Option<String>, ArgumentError> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(wrong(name, "a string", other)),
        }
    }

    /// A required integer.
    pub(crate) fn integer(&self, name: &str) -> Result<i64, ArgumentError> {
        self.optional_integer(name)?.ok_or_else(|| missing(name))
    }

    /// An optional integer. Models often write integers as strings. A number outside the range of `i64` becomes the nearest
    /// value in it, which the check of the limit then rejects.
    pub(crate) fn optional_integer(&self, name: &str) -> Result<Option<i64>, ArgumentError> {
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

    /// A required integer that is not negative, such as the number of a command.
    pub(crate) fn count(&self, name: &str) -> Result<u64, ArgumentError> {
        self.optional_count(name)?.ok_or_else(|| missing(name))
    }

    /// An optional integer that is not negative.
    pub(crate) fn optional_count(&self, name: &str) -> Result<Option<u64>, ArgumentError> {
        let value = self.optional_integer(name)?;
        value.map(u64::try_from).transpose().map_err(|_| ArgumentError::Negative(name.to_owned()))
    }

    /// An optional number. Models often write numbers as strings.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, ArgumentError> {
        let number = |value: &Value| match value {
            Value::Number(number) => number.as_f64(),
            Value::String(digits) => digits.trim().parse().ok(),
            _ => None,
        };
        match self.given(name) {
            None => Ok(None),
            Some(value) => number(value).map(Some).ok_or_else(|| wrong(name, "a number", value)),
        }
    }

    /// Parses the arguments of a tool into the contract's types. Other arguments are left out.
    pub(crate) fn checked(&self, arguments: &[Argument]) -> Result<Given, ArgumentError> {
        let mut checked = Object::new();
        for argument in arguments {
            let name = argument.name;
            let value: Option<Value> = match argument.kind {
                Kind::Text => Some(self.text(name)?.into()),
                Kind::OptionalText => self.optional_text(name)?.map(Value::from),
                Kind::Integer => Some(self.integer(name)?.into()),
                Kind::OptionalInteger(_) => self.optional_integer(name)?.map(Value::from),
                Kind::Count => Some(self.count(name)?.into()),
                Kind::OptionalCount(default) => self.optional_count(name)?.or(default).map(Value::from),
                Kind::Action(known) => Some(self.one_of(name, known)?.ok_or_else(|| missing(name))?.into()),
                Kind::OptionalNumber(default) => Some(self.number(name)?.unwrap_or(default).into()),
                Kind::OneOf(known) => self.one_of(name, known)?.map(Value::from),
                Kind::Switch => Some(self.switch(name)?.into()),
                Kind::List => self.list(name)?.map(Value::from),
                Kind::Variables => {
                    let variables =
                        self.variables(name)?.into_iter().map(|(name, value)| (name, value.into()));
                    Some(Value::Object(variables.collect()))
                }
            };
            checked.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(Given(checked))
    }

    /// One of the known strings.
    fn one_of(&self, name: &str, known: &'static [&'static str]) -> Result<Option<String>, ArgumentError> {
        match self.optional_text(name)? {
            Some(text) if !known.contains(&text.as_str()) => {
                Err(ArgumentError::NotOneOf { name: name.to_owned(), known: known.join(" or ") })
            }
            text => Ok(text),
        }
    }

    /// Gives an argument a value.
    pub(crate) fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// A boolean; the default is false.
    pub(crate) fn switch(&self, name: &str) -> Result<bool, ArgumentError> {
        match self.given(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(Value::String(word)) if word == "true" => Ok(true),
            Some(Value::String(word)) if word == "false" => Ok(false),
            Some(other) => Err(wrong(name, "a boolean", other)),
        }
    }

    /// Environment variables in one of their forms. Of two values for a name, the last one counts.
    pub(crate) fn variables(&self, name: &str) -> Result<BTreeMap<String, String>, ArgumentError> {
        let text = |name: String, value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(wrong(&name, "a string", other)),
        };
        match self.given(name) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(object)) => {
                let variable = |(key, value): (&String, &Value)| {
                    Ok((key.clone(), text(format!("{name}.{key}"), value)?))
                };
                object.iter().map(variable).collect()
            }
            Some(Value::Array(items)) => {
                let variable = |(index, item): (usize, &Value)| match item {
                    Value::Object(variable) => {
                        let part = |key: &str| {
                            let name = format!("{name}[{index}].{key}");
                            let value = variable.get(key).ok_or_else(|| missing(&name))?;
                            text(name, value)
                        };
                        Ok((part("name")?, part("value")?))
                    }
                    item => {
                        let text = text(format!("{name}[{index}]"), item)?;
                        let (variable, value) = text.split_once('=').ok_or_else(|| {
                            ArgumentError::NotAVariable { name: format!("{name}[{index}]") }
                        })?;
                        Ok((variable.to_owned(), value.to_owned()))
                    }
                };
                items.iter().enumerate().map(variable).collect()
            }
            Some(other) => Err(wrong(name, "an array of strings", other)),
        }
    }

    /// An optional array of strings.
    pub(crate) fn list(&self, name: &str) -> Result<Option<Vec<String>>, ArgumentError> {
        let items = match self.given(name) {
            None => return Ok(None),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(wrong(name, "an array of strings", other)),
        };
        let text = |(index, value): (usize, &Value)| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(wrong(&format!("{name}[{index}]"), "a string", other)),
        };
        items.iter().enumerate().map(text).collect::<Result<_, _>>().map(Some)
    }

    /// The value, if it is given and not `null`.
    fn given(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }
}

/// The arguments of a call, in the contract's types.
#[derive(Debug, Clone)]
pub(crate) struct Given(pub(crate) Object);

impl Given {
    /// Removes and returns an argument that the contract does not have.
    pub(crate) fn take(&mut self, argument: &Argument) -> Option<Value> {
        self.0.remove(argument.name)
    }

    /// Whether an argument is given.
    pub(crate) fn has(&self, argument: &Argument) -> bool {
        self.0.contains_key(argument.name)
    }

    /// The request that the arguments make.
    pub(crate) fn request<O: Operation>(&self) -> Result<O, ArgumentError> {
        Ok(O::read(&self.0)?)
    }
}

/// What is wrong with the arguments of a call, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// An argument is missing.
    #[error("`{0}` is required")]
    Missing(String),
    /// An argument has the wrong JSON type.
    #[error("`{name}` must be {expected}, not {given}")]
    WrongKind {
        /// Name of the argument.
        name: String,
        /// The expected type, with its article.
        expected: &'static str,
        /// The type that was given, with its article.
        given: &'static str,
    },
    /// An argument that counts something is negative.
    #[error("`{0}` must not be negative")]
    Negative(String),
    /// A number is outside its limits.
    #[error("`{name}` must be between {least} and {most}")]
    OutOfRange {
        /// Name of the argument.
        name: &'static str,
        /// The minimum.
        least: u64,
        /// The maximum.
        most: u64,
    },
    /// An argument is not one of its possible values.
    #[error("`{name}` must be {known}")]
    NotOneOf {
        /// Name of the argument.
        name: String,
        /// The possible values, joined with "or".
        known: String,
    },
    /// An item of a list of environment variables has no value.
    #[error("`{name}` must be NAME=VALUE")]
    NotAVariable {
        /// Name of the argument, with the index.
        name: String,
    },
    /// An argument is given without another one that it needs; one sentence.
    #[error("{0}")]
    Needs(&'static str),
    /// The task has no command with this number.
    #[error("task {task} has no command {sequence}")]
    NoCommand {
        /// Id of the task.
        task: String,
        /// The number.
        sequence: u64,
    },
    /// The contract rejects the parameters.
    #[error("{0}")]
    Request(String),
}

impl From<InvalidRequest> for ArgumentError {
    fn from(error: InvalidRequest) -> Self {
        Self::Request(error.to_string())
    }
}

fn missing(name: &str) -> ArgumentError {
    ArgumentError::Missing(name.to_owned())
}

fn wrong(name: &str, expected: &'static str, value: &Value) -> ArgumentError {
    let given = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ArgumentError::WrongKind { name: name.to_owned(), expected, given }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(value: Value) -> Arguments {
        match value {
            Value::Object(object) => Arguments(object),
            other => panic!("{other} is not an object"),
        }
    }

    #[test]
    fn what_models_write_is_understood() {
        let given = arguments(json!({
            "a": 2, "b": "2", "c": 2.0, "d": " 2 ", "e": null, "on": true, "word": "true", "text": "x",
            "env": {"A": "1=2"}, "words": ["A=0", "A=1=2"], "pairs": [{"name": "A", "value": "1=2"}], "list": ["x"],
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
        for name in ["env", "words", "pairs"] {
            assert_eq!(
                given.variables(name).unwrap(),
                BTreeMap::from([("A".into(), "1=2".into())]),
                "{name}"
            );
        }
        assert_eq!(given.variables("absent"), Ok(BTreeMap::new()));
        assert_eq!(given.list("list"), Ok(Some(vec!["x".to_owned()])));
        assert_eq!(given.list("absent"), Ok(None));
        assert_eq!(arguments(json!({ "n": 1e300 })).integer("n"), Ok(i64::MAX));
    }

    #[test]
    fn each_error_is_one_sentence() {
        let given =
            arguments(json!({ "n": "two", "f": 1.5, "t": 5, "s": [], "env": {"A": 1}, "words": ["A=1", "B"],
                "pairs": [{"name": "A"}], "low": -1, "list": ["a", 1] }));
        let errors = [
            given.text("absent").unwrap_err(),
            given.integer("n").unwrap_err(),
            given.integer("f").unwrap_err(),
            given.text("t").unwrap_err(),
            given.switch("s").unwrap_err(),
            given.variables("env").unwrap_err(),
            given.variables("words").unwrap_err(),
            given.variables("pairs").unwrap_err(),
            given.variables("t").unwrap_err(),
            given.count("low").unwrap_err(),
            given.list("list").unwrap_err(),
            given.list("t").unwrap_err(),
        ];
        let errors = errors.map(|error| error.to_string());
        insta::assert_snapshot!(errors.join("\n"), @r"
        `absent` is required
        `n` must be an integer, not a string
        `f` must be an integer, not a fraction
        `t` must be a string, not a number
        `s` must be a boolean, not an array
        `env.A` must be a string, not a number
        `words[1]` must be NAME=VALUE
        `pairs[0].value` is required
        `t` must be an array of strings, not a number
        `low` must not be negative
        `list[1]` must be a string, not a number
        `t` must be an array of strings, not a number
        ");
    }
}
