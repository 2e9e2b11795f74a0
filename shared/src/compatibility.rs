//! Whether two versions of a schema may stand side by side: FULL, as the registry means it. Each must be able to read
//! what was written with the other, since old events stay for ever and old releases run beside new ones for a while.

use apache_avro::{
    Schema,
    schema::RecordSchema,
    schema_compatibility::{Compatibility, SchemaCompatibility},
};

/// Holds two versions of a record against each other.
///
/// # Errors
/// Says which field is in the way, and why.
pub fn check(older: &Schema, newer: &Schema) -> Result<(), String> {
    let (Schema::Record(older), Schema::Record(newer)) = (older, newer) else {
        return Err("it is no record".to_owned());
    };
    if older.name != newer.name {
        return Err(format!("it was {}, and would be {}", older.name, newer.name));
    }
    for field in &newer.fields {
        let Some(before) = older.fields.iter().find(|before| before.name == field.name) else {
            if field.default.is_none() {
                return Err(format!(
                    "field {:?} was added without a default: what was written without it could not be read",
                    field.name
                ));
            }
            continue;
        };
        let reads = |written, read| SchemaCompatibility::can_read(written, read) == Ok(Compatibility::Full);
        let direction = match (reads(&before.schema, &field.schema), reads(&field.schema, &before.schema)) {
            (true, true) => continue,
            (false, _) => "what was written before could not be read",
            (true, false) => "the releases of before could not read it",
        };
        let (before, field_type) = (type_of(&before.schema), type_of(&field.schema));
        return Err(format!("field {:?} was changed from {before} to {field_type}: {direction}", field.name));
    }
    match gone(older, newer) {
        Some(name) => Err(format!(
            "field {name:?} was removed, and had no default: the releases of before could not do without it"
        )),
        None => Ok(()),
    }
}

/// A field that has to be there and is not any more.
fn gone<'a>(older: &'a RecordSchema, newer: &RecordSchema) -> Option<&'a str> {
    let is_gone = |name: &str| newer.fields.iter().all(|field| field.name != name);
    let field = older.fields.iter().find(|field| field.default.is_none() && is_gone(&field.name))?;
    Some(&field.name)
}

/// As an `.avsc` has it.
fn type_of(schema: &Schema) -> String {
    serde_json::to_string(schema).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(fields: serde_json::Value) -> Schema {
        let schema = json!({"type": "record", "name": "Paid", "namespace": "bank.events", "fields": fields});
        Schema::parse(&schema).unwrap()
    }

    #[test]
    fn g12_a_field_with_a_default_may_come_and_go() {
        let old = record(json!([{"name": "amount", "type": "long"}]));
        let channel = json!({"name": "channel", "type": ["null", "string"], "default": null});
        let new = record(json!([{"name": "amount", "type": "long"}, channel]));
        assert_eq!((check(&old, &new), check(&new, &old)), (Ok(()), Ok(())));
    }

    #[test]
    fn g12_what_breaks_is_told_by_field_and_reason() {
        let old = record(json!([
            {"name": "amount", "type": "long"},
            {"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["open", "closed"]}},
            {"name": "note", "type": ["null", "string"], "default": null},
        ]));
        let fields = |change: &dyn Fn(&mut Vec<serde_json::Value>)| {
            let mut fields = vec![
                json!({"name": "amount", "type": "long"}),
                json!({"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["open", "closed"]}}),
                json!({"name": "note", "type": ["null", "string"], "default": null}),
            ];
            change(&mut fields);
            check(&old, &record(fields.into())).unwrap_err()
        };
        let cases = [
            (
                fields(&|all| all.push(json!({"name": "fee", "type": "long"}))),
                r#"field "fee" was added without a default"#,
            ),
            (fields(&|all| drop(all.remove(0))), r#"field "amount" was removed, and had no default"#),
            (
                fields(&|all| all[0]["type"] = json!("string")),
                r#"field "amount" was changed from "long" to "string": what was written before could not be read"#,
            ),
            // Avro reads an int as a long, but not the other way round.
            (
                fields(&|all| all[0]["type"] = json!("double")),
                r#"field "amount" was changed from "long" to "double": the releases of before could not read it"#,
            ),
            (fields(&|all| all[0]["name"] = json!("amount_minor")), r#"field "amount_minor" was added without"#),
            (fields(&|all| all[1]["type"]["symbols"] = json!(["open"])), r#"field "status" was changed"#),
            (fields(&|all| all[1]["type"]["symbols"] = json!(["open", "closed", "lost"])), "releases of before"),
            (fields(&|all| all[2] = json!({"name": "note", "type": "string", "default": ""})), r#"field "note" was"#),
        ];
        for (found, expected) in cases {
            assert!(found.contains(expected), "{found}");
        }
    }
}
