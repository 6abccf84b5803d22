use proptest::collection::btree_map;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn entry() -> Entry {
    vec![
        ("command".to_owned(), json!("/p")),
        ("args".to_owned(), json!(["a"])),
        ("env".to_owned(), json!({"K": "v"})),
    ]
}

fn edited(format: Format, text: &str) -> String {
    format.edited(text, "servers", "pyro", &entry()).unwrap()
}

/// Values that both formats can hold.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            any_object(inner).prop_map(Value::from),
        ]
    })
}

fn any_object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = serde_json::Map<String, Value>> {
    btree_map(prop_oneof!["pyro|servers|x", any::<String>()], value, 0..5)
        .prop_map(|map| map.into_iter().collect())
}

proptest! {
    /// Whatever else a file says, it still says, and the entry is what was asked for.
    #[test]
    fn only_the_entry_changes(
        mut document in any_object(any_value()),
        servers in proptest::option::of(any_object(any_value())),
        pretty: bool,
    ) {
        match servers {
            Some(servers) => document.insert("servers".to_owned(), servers.into()),
            None => document.remove("servers"),
        };
        let mut expected = Value::from(document.clone());
        expected["servers"]["pyro"] = Value::Object(entry().into_iter().collect());
        let texts = if pretty {
            [
                (Format::Json, serde_json::to_string_pretty(&document).unwrap()),
                (Format::Toml, toml_edit::ser::to_string_pretty(&document).unwrap()),
            ]
        } else {
            [
                (Format::Json, serde_json::to_string(&document).unwrap()),
                (Format::Toml, toml_edit::ser::to_string(&document).unwrap()),
            ]
        };
        for (format, text) in texts {
            let after = edited(format, &text);
            prop_assert_eq!(&format.read(&after).unwrap(), &expected, "{}\n{}", text, after);
            prop_assert_eq!(&edited(format, &after), &after, "again");
        }
    }

    #[test]
    fn no_text_is_too_much(text: String) {
        for format in [Format::Json, Format::Toml] {
            let _ = format.read(&text);
            let _ = format.edited(&text, "servers", "pyro", &entry());
        }
    }
}

#[test]
fn toml_may_be_laid_out_in_many_ways() {
    let layouts = [
        "servers = { a = { command = \"x\" } } # c\n",
        "servers.a.command = \"x\"\nb = 1\n",
        "[servers]\npyro.command = \"x\"\nz.command = \"y\" # z\n[b]\nc=1\n",
        "# top\n[servers.pyro] # mine\ncommand = \"old\"\n[servers.pyro.tools.x]\nuse = true\n# before z\n[servers.z]\ncommand = 'y'\n",
        "servers = {pyro = {command = \"x\"}}\n",
        "[[servers.pyro]]\ncommand = \"x\"\n[last]\n",
        "a = 1 # no line end",
    ];
    let after = layouts.map(|text| {
        let after = edited(Format::Toml, text);
        assert_eq!(
            Format::Toml.read(&after).unwrap()["servers"]["pyro"],
            Value::Object(entry().into_iter().collect())
        );
        after
    });
    insta::assert_snapshot!(after.join("---\n"));
}

#[test]
fn json_keeps_the_files_own_ways() {
    let layouts = [
        "",
        "{}",
        "  // only a comment\n",
        "{\"a\":1,\"servers\":{\"b\":{}}}",
        "// c\r\n{\r\n\t\"a\": 1, // x\r\n\t\"servers\": {\r\n\t\t\"q\": {}, /* k */\r\n\t}\r\n}\r\n",
        "{\n    \"servers\": {\n        // mine\n        \"pyro\": {\n            // inside\n            \"command\": \"old\"\n        } // after\n    }\n}\n",
    ];
    let after = layouts.map(|text| edited(Format::Json, text));
    insta::assert_snapshot!(after.join("\n---\n").replace('\r', "\\r"));
}
