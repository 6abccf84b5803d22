#!/usr/bin/env python3
"""Generates parts of the package.

    generate.py [--check]

Generates `types.py` and `_version.py` from the OpenRPC document of `pyro rpc`, and `_sync/` from `_async/`. With --check, writes
nothing and fails if a file would change. Needs the package `unasync`.
"""

import argparse
import json
import pathlib
import re
import sys
import tempfile
import textwrap

import unasync

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE / "pyro_mcp"
DOCUMENT = HERE.parent / "crates/pyro-rpc/openrpc.json"
WIDTH = 124

# Names in `_async` and their counterparts in `_sync`.
NAMES = {
    name: name[len("Async"):]
    for name in ("AsyncCall", "AsyncCaller", "AsyncCommandStream", "AsyncPyro", "AsyncTask", "AsyncTaskContext")
}
SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}


class Types:
    """Python type definitions for the schemas of the document."""

    def __init__(self, document):
        self.schemas = document["components"]["schemas"]
        self.written = {}
        for method in document["methods"]:
            if method["name"] != "initialize":
                self.of(method["result"]["schema"])
        self.definition("CallEvent")

    def definition(self, name):
        """Adds the definition of a schema, after the definitions that it depends on."""
        if name in self.written:
            return
        schema = self.schemas[name]
        variants = schema.get("oneOf", [])
        if variants and all(variant.get("type") == "object" for variant in variants):
            names = []
            for variant in variants:
                kind = variant["properties"]["type"]["const"]
                names.append("".join(word.title() for word in kind.split("_")) + last_word(name))
                self.written[names[-1]] = self.record(names[-1], variant)
            self.written[name] = alias(name, f"Union[{', '.join(names)}]", schema)
            progress = [kind for kind in names if not kind.startswith("Output")]
            if len(progress) < len(names):
                self.written["Progress"] = alias(
                    "Progress", f"Union[{', '.join(progress)}]", {"description": "A progress event of a call."})
        elif schema.get("type") == "object" and "properties" in schema:
            self.written[name] = self.record(name, schema)
        else:
            self.written[name] = alias(name, self.of(schema), schema)

    def record(self, name, schema):
        """Returns a `TypedDict` with required and optional keys."""
        required = set(schema.get("required", ()))
        properties = schema["properties"]
        always = {key: value for key, value in properties.items() if key in required}
        sometimes = {key: value for key, value in properties.items() if key not in required}
        base, classes = "TypedDict", []
        if sometimes and always:
            classes.append(self.record_class(f"_{name}Always", base, None, always))
            base = f"_{name}Always"
        total = ", total=False" if sometimes else ""
        classes.append(self.record_class(name, base + total, schema, sometimes or always))
        return "\n\n\n".join(classes)

    def record_class(self, name, bases, schema, properties):
        lines = [f"class {name}({bases}):"]
        if schema:
            lines += doc(schema.get("description") or f"Kind `{schema['properties']['type']['const']}`.")
            lines.append("")
        for key, value in properties.items():
            lines.append(f"    {key}: {self.of(value)}")
            lines += doc(value.get("description", ""))
        return "\n".join(lines)

    def of(self, schema):
        """Returns the Python type for a schema."""
        if schema is True:
            return "Any"
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            self.definition(name)
            return name
        if "const" in schema:
            return f"Literal[{json.dumps(schema['const'])}]"
        if "enum" in schema:
            return f"Literal[{', '.join(map(json.dumps, schema['enum']))}]"
        choices = schema.get("oneOf") or schema.get("anyOf") or schema.get("allOf")
        if choices:
            return self.choice([self.of(choice) for choice in choices])
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return self.choice([self.of_kind(kind, schema) for kind in kinds])

    def of_kind(self, kind, schema):
        if kind == "array":
            return f"List[{self.of(schema['items'])}]"
        if kind == "object":
            return f"Dict[str, {self.of(schema.get('additionalProperties', True))}]"
        return "None" if kind == "null" else SCALARS[kind]

    @staticmethod
    def choice(types):
        if types == ["None"]:
            return "None"
        is_optional = "None" in types
        types = [kind for kind in types if kind != "None"]
        if all(kind.startswith("Literal[") for kind in types):
            types = [f"Literal[{', '.join(kind[len('Literal['):-1] for kind in types)}]"]
        whole = types[0] if len(types) == 1 else f"Union[{', '.join(types)}]"
        return f"Optional[{whole}]" if is_optional else whole


def last_word(name):
    """Returns the last word of a name in camel case: `Event` for `CallEvent`."""
    return re.findall("[A-Z][a-z]*", name)[-1]


def alias(name, kind, schema):
    return "\n".join([f"{name} = {kind}", *(line[4:] for line in doc(schema.get("description", "")))])


def doc(text):
    """Formats a text as a docstring, indented once."""
    text = " ".join(text.split("\n\n")[0].split()).replace("\\", "\\\\")
    # Intra-doc links of Rust documentation.
    text = re.sub(r"\[(`[^`]+`)\](\([^)]*\))?", r"\1", text)
    # JSON's word for it.
    text = re.sub(r"\bnull\b", "`None`", text)
    if not text:
        return []
    lines = textwrap.wrap(f'"""{text}"""', WIDTH - 4)
    return [f"    {line}" for line in lines]


def types_of(document):
    definitions = "\n\n\n".join(Types(document).written.values())
    names = [name for name in ("Any", "Dict", "List", "Literal", "Optional", "TypedDict", "Union")
             if f"{name}[" in definitions or f"({name}" in definitions or f" {name}" in definitions]
    return (
        '"""The types of results. Generated by generate.py from the OpenRPC document of `pyro rpc`."""\n\n'
        f"from typing import {', '.join(names)}\n\n\n{definitions}\n")


def version_of(document):
    return (
        '"""The version of the package and of the matching executable. Generated by generate.py."""\n\n'
        f'__version__ = "{document["info"]["version"]}"\n')


def synchronous():
    """Yields the paths and contents of the files in `_sync`."""
    with tempfile.TemporaryDirectory() as directory:
        rule = unasync.Rule(str(PACKAGE / "_async"), directory, additional_replacements=NAMES)
        sources = sorted((PACKAGE / "_async").glob("*.py"))
        unasync.unasync_files([str(source) for source in sources], [rule])
        for source in sources:
            text = (pathlib.Path(directory) / source.name).read_text()
            # Also replace the names in comments and docstrings.
            for name, replacement in NAMES.items():
                text = text.replace(name, replacement)
            yield PACKAGE / "_sync" / source.name, text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file would change")
    options = parser.parse_args()
    document = json.loads(DOCUMENT.read_text())
    made = {
        PACKAGE / "types.py": types_of(document),
        PACKAGE / "_version.py": version_of(document),
        **dict(synchronous()),
    }
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in (PACKAGE / "_sync").glob("*.py") if path not in made]
    for path in [] if options.check else stale:
        if path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path])
        else:
            path.unlink()
    if options.check and stale:
        names = ", ".join(str(path.relative_to(HERE)) for path in stale)
        sys.exit(f"out of date: {names}; run python/generate.py")


if __name__ == "__main__":
    main()
