//! One operation, said shortly.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::{
    ContentBuilder, Object, Ref, RefOr, Required, ResponseBuilder,
    example::ExampleBuilder,
    header::HeaderBuilder,
    path::{OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
    schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type},
};

use super::{PROBLEM, problem_example, security};
use crate::{
    domain::{AggregateId, Described},
    problem::{INTERNAL, Kind, UNAUTHENTICATED},
};

/// Text of so many characters.
pub fn text(least: usize, most: usize) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).min_length(Some(least)).max_length(Some(most))
}

/// Any text: what makes no sense is not looked at.
pub fn anything() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// A whole number within bounds.
pub fn number(least: u64, most: u64) -> ObjectBuilder {
    // JSON's own numbers end there for many clients.
    let most = most.min(i64::MAX.unsigned_abs()) as i64;
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least as i64)).maximum(Some(most))
}

/// A time by RFC 3339.
pub fn time() -> ObjectBuilder {
    let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
    ObjectBuilder::new().schema_type(Type::String).format(Some(format))
}

/// Yes or no.
pub fn boolean() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Boolean)
}

/// What can be asked of one path by one method.
pub struct Operation {
    builder: OperationBuilder,
    /// Headers of the answers that are no problems.
    headers: Vec<(&'static str, Object, &'static str)>,
    answers: BTreeMap<u16, ResponseBuilder>,
    problems: BTreeMap<u16, Vec<Kind>>,
}

impl Operation {
    /// Without parameters and answers.
    pub fn new(id: &str, tag: &str, summary: &str) -> Self {
        let builder = OperationBuilder::new().operation_id(Some(id)).tag(tag).summary(Some(summary));
        Self { builder, headers: Vec::new(), answers: BTreeMap::new(), problems: BTreeMap::new() }
            .problems(&[&INTERNAL])
    }

    /// Says more.
    pub fn about(mut self, text: &str) -> Self {
        self.builder = self.builder.description(Some(text));
        self
    }

    fn parameter(
        mut self,
        name: &str,
        of: ParameterIn,
        schema: impl Into<RefOr<Schema>>,
        about: &str,
        example: Value,
    ) -> Self {
        let required = if of == ParameterIn::Path { Required::True } else { Required::False };
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(of)
            .required(required)
            .description(Some(about))
            .schema(Some(schema))
            .example(Some(example));
        self.builder = self.builder.parameter(parameter);
        self
    }

    /// A part of the path.
    pub fn path(self, name: &str, schema: ObjectBuilder, about: &str, example: impl Into<Value>) -> Self {
        self.parameter(name, ParameterIn::Path, schema, about, example.into())
    }

    /// The aggregate's id in the path.
    pub fn id(self, noun: &str) -> Self {
        // Not `.`, `..`, `stats`, `changes`: they mean something else in a path.
        let schema = text(1, AggregateId::MAX_BYTES).pattern(Some(AggregateId::PATTERN));
        self.path("id", schema, &format!("The {noun}'s id."), "acc-42")
    }

    /// A parameter behind the `?`.
    pub fn query(self, name: &str, schema: impl Into<RefOr<Schema>>, about: &str, example: impl Into<Value>) -> Self {
        self.parameter(name, ParameterIn::Query, schema, about, example.into())
    }

    /// A header of the request.
    pub fn header(self, name: &str, schema: ObjectBuilder, about: &str, example: impl Into<Value>) -> Self {
        self.parameter(name, ParameterIn::Header, schema, about, example.into())
    }

    /// The request's body, in JSON.
    pub fn body(mut self, body: &Described) -> Self {
        let content = ContentBuilder::new().schema(Some(body.schema.clone())).example(Some(body.example.clone()));
        let body = RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True));
        self.builder = self.builder.request_body(Some(body.build()));
        self
    }

    /// A header of all answers that are no problems.
    pub fn answer_header(mut self, name: &'static str, schema: ObjectBuilder, about: &'static str) -> Self {
        self.headers.push((name, schema.build(), about));
        self
    }

    /// An answer in JSON.
    pub fn json(self, status: u16, about: &str, body: &Described) -> Self {
        self.content(status, about, "application/json", body.schema.clone(), body.example.clone())
    }

    /// An answer of another kind, or one more kind of the same answer.
    pub fn content(mut self, status: u16, about: &str, media: &str, schema: RefOr<Schema>, example: Value) -> Self {
        let content = ContentBuilder::new().schema(Some(schema)).example(Some(example));
        let answer = self.answers.remove(&status).unwrap_or_else(|| ResponseBuilder::new().description(about));
        self.answers.insert(status, answer.content(media, content));
        self
    }

    /// An answer without a body.
    pub fn empty(mut self, status: u16, about: &str) -> Self {
        self.answers.insert(status, ResponseBuilder::new().description(about));
        self
    }

    /// Problems that it may be answered with.
    pub fn problems(mut self, kinds: &[&Kind]) -> Self {
        for kind in kinds {
            self.problems.entry(kind.status).or_default().push((*kind).clone());
        }
        self
    }

    /// It must carry the token.
    pub(super) fn authenticated(mut self) -> Self {
        self.builder = self.builder.security(security());
        self.problems(&[&UNAUTHENTICATED])
    }

    pub(super) fn build(self) -> OperationBuilder {
        let Self { mut builder, headers, answers, problems } = self;
        for (status, mut answer) in answers {
            for (name, schema, about) in &headers {
                let header = HeaderBuilder::new().schema(Some(schema.clone())).description(Some(*about));
                answer = answer.header(*name, header.build());
            }
            builder = builder.response(status.to_string(), answer);
        }
        for (status, kinds) in problems {
            builder = builder.response(status.to_string(), problem(status, &kinds));
        }
        builder
    }
}

/// The problems of one status.
fn problem(status: u16, kinds: &[Kind]) -> ResponseBuilder {
    let titles: Vec<&str> = kinds.iter().map(|kind| kind.title).collect();
    let examples = kinds
        .iter()
        .map(|kind| (kind.name, ExampleBuilder::new().summary(kind.title).value(Some(problem_example(kind))).build()));
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(PROBLEM))).examples_from_iter(examples);
    let answer = ResponseBuilder::new()
        .description(format!("{}.", titles.join(", or: ")))
        .content("application/problem+json", content);
    let header =
        |schema: ObjectBuilder, about: &str| HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build();
    match status {
        401 => answer.header("WWW-Authenticate", header(text(1, 100), "`Bearer`.")),
        429 | 503 | 504 => answer.header("Retry-After", header(number(0, 3600), "Seconds.")),
        _ => answer,
    }
}
