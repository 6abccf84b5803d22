//! Arguments of tool calls: parses the forms in which models write them, and corrects clear mistakes.

use serde_json::{Map, Value};

use super::failure::Failure;

/// Arguments by name.
pub(super) type Object = Map<String, Value>;

/// Text that small models write instead of the id from an earlier result.
const PLACEHOLDER: &str = "vm_id_returned_by_vm_create";

/// Why arguments are malformed; continues "the arguments of X".
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("are not an object")]
    NoObject,
    #[error("are not JSON: {0}")]
    NotJson(serde_json::Error),
}

/// Parses the arguments of a tool call.
pub(super) fn decode(written: Option<&Value>) -> Result<Object, Malformed> {
    match written {
        None | Some(Value::Null) => Ok(Object::new()),
        Some(Value::Object(arguments)) => Ok(arguments.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Object::new()),
        Some(Value::String(text)) => match serde_json::from_str(text).map_err(Malformed::NotJson)? {
            Value::Object(arguments) => Ok(arguments),
            Value::Null => Ok(Object::new()),
            _ => Err(Malformed::NoObject),
        },
        Some(_) => Err(Malformed::NoObject),
    }
}

/// Renames the argument `profile` to `environment`.
pub(super) fn name_environment(arguments: &mut Object) {
    if arguments.get("environment").is_none_or(Value::is_null)
        && let Some(environment) = arguments.remove("profile")
    {
        arguments.insert("environment".to_owned(), environment);
    }
}

/// Returns whether `vm_id` is a placeholder.
pub(super) fn has_placeholder(arguments: &Object) -> bool {
    arguments.get("vm_id").and_then(Value::as_str).is_some_and(is_placeholder)
}

fn is_placeholder(text: &str) -> bool {
    let text = text.trim();
    let between = |open, close| text.strip_prefix(open)?.strip_suffix(close).map(str::trim);
    text == PLACEHOLDER
        || between('{', '}') == Some(PLACEHOLDER)
        || between('<', '>').is_some_and(|name| name.contains("vm_id"))
}

/// The arguments of one call. `null` counts as not given.
pub(super) struct Arguments<'a>(pub(super) &'a Object);

impl Arguments<'_> {
    /// The value of an argument, converted to the type in the tool's schema; `None` if it is not given.
    pub(super) fn value(&self, name: &str, property: &Value) -> Result<Option<Value>, Failure> {
        let Some(given) = self.given(name) else { return Ok(None) };
        Ok(match property["type"].as_str() {
            Some("string") => Some(self.text(name)?.into()),
            Some("integer") => self.integer(name)?.map(Value::from),
            Some("boolean") => Some(self.switch(name)?.into()),
            _ => Some(given.clone()),
        })
    }

    /// A required string.
    pub(super) fn text(&self, name: &str) -> Result<String, Failure> {
        match self.given(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(Failure::arguments(format!("{name} must be a string"))),
            None => Err(Failure::arguments(format!("{name} is required"))),
        }
    }

    /// An integer, or a string of digits.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, Failure> {
        let Some(value) = self.given(name) else { return Ok(None) };
        let integer = match value {
            Value::Number(number) => number.as_i64(),
            Value::String(digits) => digits.trim().parse().ok(),
            _ => None,
        };
        integer.map(Some).ok_or_else(|| Failure::arguments(format!("{name} must be an integer")))
    }

    /// A boolean, or a common word for one; the default is false.
    pub(super) fn switch(&self, name: &str) -> Result<bool, Failure> {
        let word = match self.given(name) {
            None => return Ok(false),
            Some(Value::Bool(value)) => return Ok(*value),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::String(word)) => word.trim().to_ascii_lowercase(),
            Some(_) => String::new(),
        };
        match word.as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(Failure::arguments(format!("{name} must be a boolean"))
                .hint(format!("write {name} as true or false, without quotes"))),
        }
    }

    fn given(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn arguments_come_in_many_forms() {
        let given = object(json!({ "environment": "debian:12", "vcpu_count": 2 }));
        let text = Value::from(Value::Object(given.clone()).to_string());
        assert_eq!(decode(Some(&Value::Object(given.clone()))).unwrap(), given);
        assert_eq!(decode(Some(&text)).unwrap(), given);
        for none in [json!(null), json!(""), json!(" \n"), json!("null"), json!("{}"), json!({})] {
            assert_eq!(decode(Some(&none)).unwrap(), Object::new(), "{none}");
        }
        assert_eq!(decode(None).unwrap(), Object::new());
        for wrong in
            [json!("{"), json!("[]"), json!("\"{}\""), json!(5), json!([]), json!(true), json!("x: 1")]
        {
            decode(Some(&wrong)).unwrap_err();
        }
    }

    #[test]
    fn a_profile_is_an_environment_unless_there_is_one() {
        for (before, after) in [
            (
                json!({ "profile": "debian:12", "command": "id" }),
                json!({ "environment": "debian:12", "command": "id" }),
            ),
            (json!({ "profile": "a", "environment": "b" }), json!({ "profile": "a", "environment": "b" })),
            (json!({ "profile": "a", "environment": null }), json!({ "environment": "a" })),
            (json!({ "command": "id" }), json!({ "command": "id" })),
        ] {
            let mut arguments = object(before);
            name_environment(&mut arguments);
            assert_eq!(Value::Object(arguments), after);
        }
    }

    #[test]
    fn placeholders_are_distinguished_from_ids() {
        for (text, expected) in [
            ("vm_id_returned_by_vm_create", true),
            (" vm_id_returned_by_vm_create\n", true),
            ("<vm_id_returned_by_vm_create>", true),
            ("{vm_id_returned_by_vm_create}", true),
            ("<vm_id>", true),
            ("<the vm_id of the new VM>", true),
            ("9775b3af1eeb", false),
            ("vm_id", false),
            ("{vm_id}", false),
            ("<id>", false),
            ("<vm_id", false),
            ("", false),
        ] {
            assert_eq!(has_placeholder(&object(json!({ "vm_id": text }))), expected, "{text:?}");
        }
        assert!(!has_placeholder(&object(json!({ "vm_id": 5 }))));
        assert!(!has_placeholder(&object(json!({ "command": PLACEHOLDER }))));
    }

    #[test]
    fn words_for_switches_are_understood() {
        let words = [
            (true, vec![json!(true), json!(1), json!("1"), json!("true"), json!("YES"), json!(" on ")]),
            (
                false,
                vec![
                    json!(false),
                    json!(0),
                    json!("0"),
                    json!("False"),
                    json!("no"),
                    json!("off"),
                    json!(null),
                ],
            ),
        ];
        for (expected, words) in words {
            for word in words {
                let arguments = object(json!({ "network": word }));
                assert_eq!(Arguments(&arguments).switch("network").unwrap(), expected, "{arguments:?}");
            }
        }
        for word in [json!(2), json!(-1), json!(1.0), json!(""), json!("enabled"), json!([]), json!({})] {
            let arguments = object(json!({ "network": word }));
            let failure = Arguments(&arguments).switch("network").unwrap_err();
            assert_eq!(failure.error, "network must be a boolean", "{arguments:?}");
            assert_eq!(failure.hint.as_deref(), Some("write network as true or false, without quotes"));
        }
    }

    #[test]
    fn what_is_no_integer_or_no_text_is_refused() {
        for value in [json!("two"), json!(""), json!(1.5), json!(true), json!([]), json!("1.0")] {
            let arguments = object(json!({ "mem_mib": value }));
            assert_eq!(
                Arguments(&arguments).integer("mem_mib").unwrap_err().error,
                "mem_mib must be an integer"
            );
        }
        let arguments = object(json!({ "command": 5, "vm_id": null }));
        assert_eq!(Arguments(&arguments).text("command").unwrap_err().error, "command must be a string");
        assert_eq!(Arguments(&arguments).text("vm_id").unwrap_err().error, "vm_id is required");
    }

    proptest! {
        #[test]
        fn integers_and_their_digits_are_the_same(number in any::<i64>(), spaces in " {0,2}") {
            for value in [json!(number), json!(format!("{spaces}{number}{spaces}"))] {
                let arguments = object(json!({ "n": value }));
                prop_assert_eq!(Arguments(&arguments).integer("n").unwrap(), Some(number));
            }
        }

        #[test]
        fn any_text_is_decoded_or_refused(text in ".{0,80}") {
            let _ = decode(Some(&Value::from(text)));
        }

        #[test]
        fn an_object_survives_being_written_as_text(
            map in proptest::collection::btree_map(".{0,8}", any::<Option<i64>>(), 0..6),
        ) {
            let arguments: Object = map.into_iter().map(|(key, value)| (key, value.into())).collect();
            let text = Value::Object(arguments.clone()).to_string();
            prop_assert_eq!(decode(Some(&text.into())).unwrap(), arguments);
        }
    }
}
