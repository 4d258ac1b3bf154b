"""JSON schemas from simple to nasty, and whether each of them can be enforced.

A reply for a schema in `VALID` is valid if the model ends it. A schema in `REFUSED` gets a 400 that
names the part, before a token is generated.
"""

from typing import Any

Schema = Any

STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
BOOLEAN, NULL = {"type": "boolean"}, {"type": "null"}


def text(**more: Any) -> Schema:
    return {"type": "string", **more}


def pattern(expression: str, **more: Any) -> Schema:
    return {"type": "string", "pattern": expression, **more}


def obj(required: list[str] | None = None, more: Any = False, **properties: Any) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names,
            "additionalProperties": more}  # fmt: skip


def named(**properties: Any) -> Schema:
    """An object whose property names need not be Python identifiers."""
    return obj(list(properties), False, **properties)


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def nested(depth: int) -> Schema:
    schema: Schema = {"const": "core"}
    for _ in range(depth):
        schema = obj(a=schema)
    return schema


def optional(schema: Schema, **more: Any) -> Schema:
    """An optional value in pydantic's form."""
    return {"anyOf": [schema, NULL], "default": None, **more}


NODE = obj(["value"], value=INTEGER, next={"anyOf": [{"$ref": "#/$defs/node"}, NULL]})
LIST = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}
EXPRESSION = {
    "$defs": {
        "sum": obj(op={"const": "+"}, left={"$ref": "#"}, right={"$ref": "#"}),
        "sign": obj(op={"const": "-"}, of={"$ref": "#"}),
    },
    "anyOf": [{"$ref": "#/$defs/sum"}, {"$ref": "#/$defs/sign"}, {"enum": [1, 2, 3]}],
}
PYDANTIC = {
    "$defs": {
        "Address": {"properties": {"street": {"title": "Street", "type": "string"},
                                   "zip": pattern("^[0-9]{5}$", title="Zip")},
                    "required": ["street", "zip"], "title": "Address", "type": "object"},
        "Color": {"enum": ["red", "green"], "title": "Color", "type": "string"},
    },
    "properties": {
        "name": {"maxLength": 40, "minLength": 1, "title": "Name", "type": "string"},
        "age": optional({"exclusiveMinimum": 0, "type": "integer"}, title="Age"),
        "score": {"title": "Score", "type": "number"},
        "color": {"$ref": "#/$defs/Color", "description": "of the hair"},
        "address": {"allOf": [{"$ref": "#/$defs/Address"}], "description": "where"},
        "born": {"format": "date", "title": "Born", "type": "string"},
    },
    "required": ["name", "score", "color", "address", "born"],
    "title": "Person",
    "type": "object",
}  # fmt: skip
PETS = {
    "$defs": {
        "Cat": obj(kind={"const": "cat", "type": "string"}, lives=INTEGER),
        "Dog": obj(kind={"const": "dog", "type": "string"}, good=BOOLEAN),
    },
    "properties": {"pet": {
        "discriminator": {"mapping": {"cat": "#/$defs/Cat"}, "propertyName": "kind"},
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}},
    "required": ["pet"],
    "type": "object",
}  # fmt: skip
ZOD = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "steps": array(obj(explanation=STRING, output=STRING), maxItems=2),
        "final_answer": {"type": ["string", "null"]},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "pair": {"type": "array", "minItems": 2, "maxItems": 2, "items": [STRING, NUMBER]},
        "level": {"type": "integer", "exclusiveMinimum": 0, "maximum": 10},
    },
    "required": ["steps", "final_answer", "unit", "pair", "level"],
    "additionalProperties": False,
}

VALID: dict[str, Schema] = {
    # ---- simple ----
    "a string": STRING,
    "an integer": INTEGER,
    "a number": NUMBER,
    "a boolean": BOOLEAN,
    "null": NULL,
    "any value": {},
    "any value, with annotations": {"title": "A", "description": "b", "default": 1,
                                       "examples": [2], "$comment": "c"},
    "any object": {"type": "object"},
    "any array": {"type": "array"},
    "an object without properties": obj(),
    "a person": obj(name=STRING, age=INTEGER),
    "two types": {"type": ["string", "null"]},
    "two kinds of numbers": {"type": ["integer", "number"]},
    "every type": {"type": ["null", "boolean", "integer", "number", "string", "array", "object"]},
    "types with keywords of each": {"type": ["string", "integer"], "maxLength": 4, "minimum": 5,
                                    "maximum": 99},
    "a keyword of another type": {"type": "boolean", "minLength": 4},
    "an unknown keyword": {"type": "boolean", "x-order": 1, "markdownDescription": "a"},
    # ---- values ----
    "an enum": {"enum": ["red", "green", "blue"]},
    "an enum of all types": {"enum": [1, 1.5, "a", None, True, [1, 2], {"a": 1}]},
    "an enum with common beginnings": {"enum": ["a", "ab", "abc", "abd", "b", ""]},
    "an enum with quotes and slashes": {"enum": ['"', "\\", '\\"', "\n", "/", "\u0000", "é", "🎲"]},
    "an enum narrowed by its type": {"type": "integer", "enum": ["a", 1, 2.5, 3]},
    "an enum with null": {"type": ["string", "null"], "enum": ["a", None]},
    "an enum of one": {"enum": [[]]},
    "a large enum": {"enum": [f"value {i:04}" for i in range(1500)]},
    "a large enum with common beginnings": {"enum": ["n", "no", *(f"no {n}" for n in range(40))]},
    "an enum that repeats itself": {"enum": ["a", "a", "a"]},
    "a constant": {"const": "x"},
    "a constant object": {"const": {"a": [1, {"b": None}]}},
    "a constant with its type": {"const": 5, "type": "integer"},
    "a constant false": {"const": False},
    "numbers that begin alike": {"enum": [1, 12, 123, -1, 1e30]},
    # ---- strings ----
    "a short string": text(maxLength=5),
    "a long string": text(minLength=30, maxLength=60),
    "exactly three characters": text(minLength=3, maxLength=3),
    "no characters": text(maxLength=0),
    "a date": text(format="date"),
    "a time": text(format="time"),
    "a date and a time": text(format="date-time"),
    "a date or a time": {"anyOf": [text(format="date-time"), text(format="date"), NULL]},
    "a uuid": text(format="uuid"),
    "an email address": text(format="email"),
    "a pattern": pattern("^[a-z]+$"),
    "a pattern of digits": pattern(r"^\d{3}-\d{4}$"),
    "a pattern of words": pattern(r"^\w+( \w+){0,3}$"),
    "a pattern with alternatives": pattern("^(cat|dog|bird)s?$"),
    "a pattern that forbids characters": pattern("^[^a-z]{2,5}$"),
    "a pattern of dots": pattern("^.{3,6}$"),
    "a pattern with everything escaped": pattern(r"^\.\*\+\?\(\)\[\]\{\}\^\$\|\\\/$"),
    "a pattern with quotes": pattern(r'^"a"$'),
    "a pattern with a backslash in a class": pattern(r'^[\\"]{2}$'),
    "a pattern with line breaks": pattern(r"^a\nb\tc$"),
    "a pattern with a repeated escape": pattern(r"^a\.*b$"),
    "a pattern of Unicode": pattern("^[äöü]{2}é*ß$"),
    "a pattern beyond the first plane": pattern(r"^[\u{1F600}-\u{1F603}🎲]{1,2}$"),
    "a pattern with character numbers": pattern(r"^\x41\u0042[\u0043-\u0045]$"),
    "a lazy pattern": pattern("^a+?b{0,3}?$"),
    "a pattern with named groups": pattern("^(?<year>[0-9]{4})(?:-[0-9]{2})?$"),
    "a pattern with classes in a class": pattern(r"^[\d\-x ]{4}$"),
    "an empty text by its pattern": pattern("^$"),
    "a pattern with groups that repeat": pattern("^(ab{1,2}){2,3}$"),
    "a semantic version": pattern(r"^(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})$"),
    "an exponential pattern": pattern("^(a+)+(b*c)*$"),
    "a pattern with many ways": pattern(r"^(\w{1,5} ?){0,11}$"),
    "a pattern of optional ones": pattern("^(a?){40}a{2}$"),
    "a pattern without a type": {"pattern": "^x$"},
    "a pattern without anchors": pattern("abc"),
    "a pattern with one anchor": pattern(r"^\+\d{6}"),
    "alternatives with anchors of their own": pattern("^a$|^b$"),
    "a character that is not a space": pattern(r"\S"),
    "an IPv4 address": text(format="ipv4"),
    "an IPv6 address": text(format="ipv6"),
    "a hostname": text(format="hostname"),
    "a link": text(format="uri"),
    "a duration": text(format="duration"),
    "a length of many thousands": text(maxLength=100_000),
    "lengths with a decimal point": text(minLength=1.0, maxLength=3.0),
    # ---- numbers ----
    "a positive integer": {"type": "integer", "minimum": 1},
    "a negative integer": {"type": "integer", "exclusiveMaximum": 0},
    "an integer between": {"type": "integer", "minimum": -17, "maximum": 1234},
    "an integer between strict bounds": {"type": "integer", "exclusiveMinimum": 6,
                                         "exclusiveMaximum": 9},
    "an integer between fractions": {"type": "integer", "minimum": 1.5, "maximum": 3.5},
    "a share": {"type": "number", "minimum": 0, "maximum": 1},
    "a number above 0": {"type": "number", "exclusiveMinimum": 0},
    "a number between fractions": {"type": "number", "minimum": -0.25, "exclusiveMaximum": 0.125},
    "a number without a type": {"minimum": 10, "maximum": 11},
    "a multiple": {"type": "integer", "multipleOf": 5},
    "a multiple between bounds": {"type": "number", "minimum": 0, "maximum": 5, "multipleOf": 0.5},
    "a multiple of a fraction": obj(price={"type": "number", "multipleOf": 0.01, "minimum": 0}),
    "both bounds of one end": {"type": "integer", "minimum": 5, "exclusiveMinimum": 7,
                               "maximum": 9},
    # ---- arrays ----
    "an array of integers": array(INTEGER),
    "an array of two to four": array(INTEGER, minItems=2, maxItems=4),
    "an empty array": array(STRING, maxItems=0),
    "a hundred booleans": array(BOOLEAN, minItems=100, maxItems=100),
    "any items, three": {"type": "array", "minItems": 3, "maxItems": 3},
    "arrays in arrays": array(array(INTEGER, maxItems=2), maxItems=3, minItems=1),
    "a pair": {"type": "array", "prefixItems": [STRING, INTEGER], "items": False},
    "a pair, as drafts before wrote it": {"type": "array", "items": [BOOLEAN, NULL],
                                          "additionalItems": False},
    "not unique": array(BOOLEAN, uniqueItems=False, maxItems=3),
    "an array without a type": {"items": BOOLEAN, "maxItems": 2},
    # ---- objects ----
    "optional properties": obj([], a=INTEGER, b=BOOLEAN, c=NULL),
    "required after optional": obj(["b"], a=INTEGER, b=BOOLEAN),
    "required before optional": obj(["a"], a=INTEGER, b=BOOLEAN),
    "open, with a property": obj(["a"], more=True, a=INTEGER),
    "open, and all of one type": {"type": "object", "additionalProperties": INTEGER},
    "open, with names that begin alike": obj([], more=BOOLEAN, ab=INTEGER, abc=STRING, b=NULL),
    "an empty name": {"type": "object", "properties": {"": INTEGER}, "required": [""]},
    "names with quotes": named(**{'a"b': INTEGER, "c\\d": BOOLEAN, "e\nf": NULL}),
    "names in other scripts": named(**{"имя": BOOLEAN, "名前": BOOLEAN, "🎲": BOOLEAN}),
    "names like a grammar": named(**{"root ::= x": BOOLEAN, "[a-z]*": BOOLEAN, "#": NULL}),
    "names of llama.cpp's rules": obj(root=BOOLEAN, value=INTEGER, string=NULL, char=BOOLEAN,
                                      space=BOOLEAN, decimal_part=BOOLEAN, number=NUMBER),
    "names that differ in a sign": named(**{"a_b": INTEGER, "a-b": BOOLEAN, "a b": NULL}),
    "names like JSON's": named(**{"__proto__": NULL, "$ref ": NULL, "constructor": NULL}),
    "a required name without a property": {"type": "object", "required": ["a"]},
    "a required name of the additional kind": {"type": "object", "required": ["a"],
                                               "additionalProperties": BOOLEAN},
    "a wide object": named(**{f"p{i}": BOOLEAN for i in range(60)}),
    "a wide object of optional ones": obj([], **{f"p{i}": BOOLEAN for i in range(40)}),
    "a deep object": nested(12),
    "an object without a type": {"properties": {"a": BOOLEAN}, "required": ["a"]},
    "a property that takes everything": obj(a=True),
    # ---- composition ----
    "any of two": {"anyOf": [BOOLEAN, NULL]},
    "any of two objects": {"anyOf": [obj(a=BOOLEAN), obj(b=BOOLEAN)]},
    "any of overlapping ones": {"anyOf": [text(maxLength=5), text(maxLength=9), STRING | {
        "maxLength": 3}]},
    "one of two types": {"oneOf": [BOOLEAN, {"type": "string", "maxLength": 5}]},
    "one of two constants": {"oneOf": [{"const": "a"}, {"const": "b", "title": "B"}]},
    "one of two, told apart by a property": PETS,
    "one of two, told apart by what is required": {"oneOf": [obj(a=NULL), obj(b=NULL)]},
    "a reference": {"$defs": {"a": BOOLEAN}, "$ref": "#/$defs/a"},
    "a reference in the old place": {"definitions": {"a": obj(b=NULL)},
                                     "$ref": "#/definitions/a"},
    "a reference with escapes": {"$defs": {"a/b~c d": BOOLEAN}, "$ref": "#/$defs/a~1b~0c%20d"},
    "references that differ in a sign": {
        "$defs": {"a-b": {"const": 1}, "a_b": {"const": "x"}},
        **obj(p={"$ref": "#/$defs/a-b"}, q={"$ref": "#/$defs/a_b"})},
    "a reference into a list": {"anyOf": [NULL, {"$ref": "#/anyOf/0"}]},
    "a chain of references": {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(50)}
                              | {"d50": BOOLEAN}, "$ref": "#/$defs/d0"},
    "a linked list": LIST,
    "a tree": {"type": "object", "properties": {"children": array({"$ref": "#"}, maxItems=2)},
               "required": ["children"], "additionalProperties": False},
    "two that contain each other": {
        "$defs": {"a": obj(["n"], n=BOOLEAN, b={"$ref": "#/$defs/b"}),
                  "b": obj(["m"], m=BOOLEAN, a={"$ref": "#/$defs/a"})},
        "$ref": "#/$defs/a"},
    "an expression": EXPRESSION,
    "pydantic's": PYDANTIC,
    "zod's": ZOD,
}  # fmt: skip

# name -> (schema, the part that the message names)
REFUSED: dict[str, tuple[Schema, str]] = {
    # ---- keywords that a grammar cannot enforce ----
    "unique items": (array(STRING, uniqueItems=True), "uniqueItems"),
    "a multiple of 7": ({"type": "integer", "multipleOf": 7}, "multipleOf"),
    "not": ({"not": STRING}, ".not"),
    "if": ({"if": STRING, "then": {"minLength": 2}}, ".if"),
    "dependent names": (obj(a=NULL) | {"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "contains": (array(INTEGER) | {"contains": {"const": 1}}, "contains"),
    "patterns of names": ({"type": "object", "patternProperties": {"^a": NULL}},
                          "patternProperties"),
    "names of a form": ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames"),
    "more properties than are named": ({"type": "object", "minProperties": 2}, "minProperties"),
    "a part deep inside": (obj(a=array(obj(b={"not": {}}))),
                           "properties.a.items.properties.b.not"),
    "one of two, one without a type": ({"oneOf": [{"minLength": 2}, INTEGER]}, "oneOf"),
    "one of overlapping ones": ({"oneOf": [INTEGER, NUMBER]}, "oneOf"),
    "one of two that may have each other's property": (
        {"oneOf": [obj(more=NULL, a=NULL), obj(more=NULL, b=NULL)]}, "oneOf"),
    "a pattern and a format": (pattern("^a$", format="date"), "format"),
    "a list of values with a length": ({"enum": ["a", "bb"], "minLength": 2}, "minLength"),
    "looking ahead": (pattern("^(?=a)b$"), "pattern"),
    "going back": (pattern(r"^(a)\1$"), "pattern"),
    "borders of words": (pattern(r"\bword\b"), "pattern"),
    "letters by property": (pattern(r"^\p{L}+$"), "pattern"),
    "a format with a length that follows": (text(format="date", minLength=10, maxLength=10),
                                            "minLength"),
    "a length in the hundred thousands": (text(maxLength=250_000), "maxLength"),
    "a pattern narrowed by a length": (pattern("^[A-Z]*$", minLength=2, maxLength=4), "minLength"),
    "a pattern with a length that cuts it": (pattern("^(ab|c)*d+$", minLength=3, maxLength=5),
                                             "minLength"),
    "a large bound": ({"type": "integer", "maximum": 10**30, "minimum": 9_007_199_254_740_993},
                      "maximum"),
    "a pair and more": ({"type": "array", "prefixItems": [BOOLEAN, NULL], "items": INTEGER,
                        "maxItems": 4}, "items"),
    "a pair that may end early": ({"type": "array", "prefixItems": [BOOLEAN, NULL], "maxItems": 1},
                                  "maxItems"),
    "a property that takes nothing": (obj(["a"], a=BOOLEAN, b=False), "properties.b"),
    "a count that follows": (obj(a=NULL, b=NULL) | {"minProperties": 2, "maxProperties": 2},
                             "minProperties"),
    "any of, beside a type": ({"type": "object", "properties": {"a": NULL, "b": NULL},
                              "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "beside anyOf"),
    "all of bounds": ({"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 5}]}, "allOf"),
    "all of lists": ({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}, "allOf"),
    "a reference with neighbours": ({"$defs": {"n": {"type": "integer", "minimum": 2}},
                                    "$ref": "#/$defs/n", "maximum": 4}, "maximum"),
    # ---- invalid schemas, and schemas without a valid value ----
    "an open group": (pattern("^(a$"), "pattern"),
    "an open class": (pattern("^[a$"), "pattern"),
    "nothing to repeat": (pattern("^*a$"), "pattern"),
    "an unknown type": ({"type": "text"}, "type"),
    "a list of schemas": (array([1]), "items"),
    "a property that is a text": (obj(a="string"), "properties.a"),
    "an empty enum": ({"enum": []}, "enum"),
    "an enum without a value of its type": ({"type": "integer", "enum": ["a"]}, "its type"),
    "an empty anyOf": ({"anyOf": []}, "anyOf"),
    "parts that contradict": ({"allOf": [STRING, INTEGER]}, "allOf"),
    "a required name that is not allowed": (obj(["b"], a=NULL), "required names 'b'"),
    "no number": ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
    "a bound that is a text": ({"type": "integer", "minimum": "5"}, "minimum"),
    "a count below 0": (array(NULL, minItems=-1), "minItems"),
    "a length of a half": (text(maxLength=1.5), "maxLength"),
    # ---- hostile ----
    "a million items": (array(NULL, minItems=10**6), "minItems"),
    "a string of a billion": (text(maxLength=10**9), "maxLength"),
    "a pattern that repeats too often": (pattern("^a{0,100000}$"), "pattern"),
    "a pattern of products": (pattern("^((((a{1,99}){1,99}){1,99}){1,99})$"), "pattern"),
    "a pattern with too many places": (pattern("^(a{0,50}b?){0,50}$"), "pattern"),
    "a reference to itself": ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "$ref"),
    "a reference around": ({"anyOf": [{"$ref": "#"}, NULL]}, "$ref"),
    "a reference to nothing": ({"$ref": "#/$defs/none"}, "$ref"),
    "a reference to another place": ({"$ref": "http://127.0.0.1:9/schema.json"}, "$ref"),
    "a reference to a file": ({"$ref": "file:///etc/passwd"}, "$ref"),
    "ways that double": ({"anyOf": [array({"$ref": "#"}, minItems=1, maxItems=1),
                                    array({"$ref": "#"}, maxItems=2), {"const": 1}]},
                         "contains itself"),
    "too many alternatives": ({"anyOf": [obj(a=text(maxLength=i)) for i in range(1, 200)]},
                              "alternatives"),
    "too many optional properties": (obj([], **{f"{i:09}": NULL for i in range(1500)}),
                                     "ways"),
    "too deep": (nested(20), "nests deeper"),
    "too many values": ({"enum": list(range(5000))}, "values"),
    "too many bytes": ({"const": "x" * 70_000}, "KiB"),
    "too much in all": (named(**{f"p{i}": array(BOOLEAN, maxItems=999) for i in range(60)}),
                        "all in all"),
    "names that are too long": (named(**{"_" * 30_000: NULL}), "names"),
    "products of allOf": (
        {"$defs": {f"d{i}": {"properties": {"a": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"},
                                                            {"$ref": f"#/$defs/d{i + 1}"}]}}}
                   for i in range(30)} | {"d30": {"not": {}}}, "$ref": "#/$defs/d0"}, "a.allOf"),
}  # fmt: skip
