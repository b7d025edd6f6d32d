//! The AsyncAPI 3 document of all topics, generated from what the program itself uses: topic names and
//! shapes, header names, event schemas, command and result schemas. `deploy/asyncapi.json` is its
//! output under default settings; a test holds the two together.

use serde_json::{Map, Value, json};

use super::{Hosted, Messages, install};
use crate::avro::Catalogue;
use crate::kafka::headers;
use crate::kafka::topics::{TopicNames, TopicSpec};
use crate::settings::Settings;

const BINDING: &str = "0.5.0";

/// The document of a context under these settings.
pub fn document(title: &str, context: &dyn Hosted, settings: &Settings) -> anyhow::Result<Value> {
    let names = context.names(&settings.topics);
    let told = context.messages();
    let stream = told.stream;
    let (channels, messages) = channels(context, &told, settings, &names)?;
    Ok(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": format!("{title}: {}", context.name()),
            "version": env!("CARGO_PKG_VERSION"),
            "description": format!("Commands in, versioned events and results out. Events of one {stream} are in one partition, in \
                order; the header `seq` counts 1, 2, 3 … without a hole in each partition. Delivery is at least once: \
                readers keep the last `seq` that they applied and drop what is not above it. Every version of an event \
                that was ever written stays readable; readers look a schema up by the id in the value."),
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations(&names),
        "components": {
            "messages": messages,
            "correlationIds": {
                "correlation": {"location": format!("$message.header#/{}", headers::CORRELATION_ID)},
            },
        },
    }))
}

/// Channels with references to their messages, and the messages.
fn channels(
    context: &dyn Hosted,
    told: &Messages,
    settings: &Settings,
    names: &TopicNames,
) -> anyhow::Result<(Value, Value)> {
    let stream = told.stream;
    let commands = commands(told);
    let events = events(stream, &context.catalogue(&settings.topics)?)?;
    let results = results(told, context.namespace());
    let specs = install::topic_specs(context, settings);
    let mut channels = Map::new();
    let [priority, normal, bulk] = names.lanes();
    let lane = |which: &str| {
        format!(
            "Commands, JSON. {which} A key that is not the {stream}'s id, as lower-case text with hyphens, is refused: the \
             partition follows from that text, by Java's default partitioner (murmur2)."
        )
    };
    for (id, topic, description, messages) in [
        ("commands", normal, lane("The lane of commands that name none."), &commands),
        ("commandsPriority", priority, lane("Taken before the others, in proportion to its weight."), &commands),
        ("commandsBulk", bulk, lane("Taken after the others, in proportion to its weight."), &commands),
        (
            "commandsOverflow",
            names.overflow(),
            "Accepted over HTTP while the queue was full; moved to their lane later. Not for others to write.".into(),
            &commands,
        ),
        ("events", names.events(), "What happened, Avro in the Confluent wire format, kept for ever.".into(), &events),
        (
            "commandResults",
            names.results(),
            format!("What became of each command; in the partition of its {stream}'s events."),
            &results,
        ),
    ] {
        let references: Map<_, _> = messages
            .keys()
            .map(|name| (name.clone(), json!({"$ref": format!("#/components/messages/{name}")})))
            .collect();
        let mut channel = json!({"address": topic, "description": description, "messages": references});
        if let Some(spec) = specs.iter().find(|spec| spec.name == topic) {
            channel["bindings"] = json!({"kafka": topic_binding(spec)});
        }
        channels.insert(id.to_owned(), channel);
    }
    let messages: Map<_, _> = commands.into_iter().chain(events).chain(results).collect();
    Ok((channels.into(), messages.into()))
}

fn topic_binding(spec: &TopicSpec) -> Value {
    let mut configuration = Map::new();
    for (key, value) in &spec.config {
        let value = match (*key, value.parse::<i64>()) {
            ("cleanup.policy", _) => json!([value]),
            // The specification's binding names only some of Kafka's options.
            ("min.insync.replicas", _) => continue,
            (_, Ok(number)) => json!(number),
            (_, Err(_)) => json!(value),
        };
        configuration.insert((*key).to_owned(), value);
    }
    json!({
        "topic": spec.name, "partitions": spec.partitions, "replicas": spec.replication,
        "topicConfiguration": configuration, "bindingVersion": BINDING,
    })
}

fn operations(names: &TopicNames) -> Value {
    let group =
        |name: String| json!({"kafka": {"groupId": {"type": "string", "enum": [name]}, "bindingVersion": BINDING}});
    let channel = |id: &str| json!({"$ref": format!("#/channels/{id}")});
    let receive = |id: &str, group_id: String, summary: &str| json!({"action": "receive", "channel": channel(id), "summary": summary, "bindings": group(group_id)});
    let send = |id: &str, summary: &str| json!({"action": "send", "channel": channel(id), "summary": summary});
    let decide = "Decide the command and record its events and outcome in one transaction";
    json!({
        "decideCommands": receive("commands", names.processor_group(1), decide),
        "decidePriorityCommands": receive("commandsPriority", names.processor_group(0), decide),
        "decideBulkCommands": receive("commandsBulk", names.processor_group(2), decide),
        "overflowCommands": send("commandsOverflow", "Keep a command that found the queue full"),
        "moveOverflowedCommands":
            receive("commandsOverflow", names.overflow_group(), "Move it to its lane when load has fallen"),
        "publishEvents": send("events", "Publish what was committed, in the order it was committed"),
        "publishResults": send("commandResults", "Publish what became of each command"),
    })
}

fn the(stream: &str) -> String {
    format!("The {stream}")
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn uuid(description: &str) -> Value {
    json!({"type": "string", "format": "uuid", "description": description})
}

fn number(description: &str) -> Value {
    json!({"type": "string", "pattern": "^[0-9]+$", "description": description})
}

fn commands(told: &Messages) -> Map<String, Value> {
    let stream = told.stream;
    let headers = json!({
        "type": "object",
        "properties": {
            headers::COMMAND_ID: uuid(&format!("Idempotency key within its {stream}, for commands whose value has none; wins \
                where it has. One that cannot be read, or is there twice, is refused")),
            headers::CORRELATION_ID: text("Follows the request through every topic and log line; the command's id when absent"),
            headers::CAUSATION_ID: text("What caused the command; the command's id when absent"),
            headers::TRACEPARENT: text("W3C trace context; what is none is as good as absent"),
            headers::REPLY_TO: text("Kept with the result"),
            headers::PRINCIPAL: text("Who sent it; set by our HTTP server"),
        },
    });
    let key = the(stream);
    let message = |(name, payload): &(String, Value)| {
        let message = json!({
            "name": name, "contentType": "application/json", "headers": headers, "payload": payload,
            "correlationId": {"$ref": "#/components/correlationIds/correlation"},
            "bindings": {"kafka": {"key": uuid(&key), "bindingVersion": BINDING}},
        });
        (name.clone(), message)
    };
    told.commands.iter().map(message).collect()
}

/// The headers of everything that the relay publishes, from [`headers::Envelope`].
fn published(stream: &str, own: &[(&str, Value)]) -> Value {
    let mut properties = json!({
        headers::CE_SPECVERSION: {"type": "string", "const": "1.0", "description": "CloudEvents, binary mode"},
        headers::CE_ID: uuid("Distinct for every event, whatever command ids were used; the same in every copy of the record"),
        headers::CE_TYPE: text("With name space"),
        headers::CE_SOURCE: text("The context"),
        headers::CE_TIME: {"type": "string", "format": "date-time", "description": "When it was recorded, UTC"},
        headers::CE_SUBJECT: uuid(&the(stream)),
        headers::SEQ: number("1, 2, 3 … without a hole in each partition"),
        headers::COMMAND_ID: uuid("The command that caused it"),
        headers::CORRELATION_ID: text("As the command carried it"),
        headers::CAUSATION_ID: text("What caused it: as the command carried it, else the command's id. Absent for the \
            latter in records of earlier releases"),
        headers::TRACEPARENT: text("W3C trace context, as the command carried it"),
        headers::REPLY_TO: text("As the command carried it"),
    });
    let mut required = vec![
        headers::CE_SPECVERSION,
        headers::CE_ID,
        headers::CE_TYPE,
        headers::CE_SOURCE,
        headers::CE_TIME,
        headers::CE_SUBJECT,
        headers::SEQ,
        headers::COMMAND_ID,
        headers::CORRELATION_ID,
    ];
    for (name, schema) in own {
        properties[*name] = schema.clone();
        if !required.contains(name) {
            required.push(name);
        }
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn events(stream: &str, catalogue: &Catalogue) -> anyhow::Result<Map<String, Value>> {
    let mut messages = Map::new();
    for one in catalogue.schemas() {
        let full_name = format!("{}.{}", catalogue.namespace(), one.event_type);
        let is_newest = catalogue.newest(&one.event_type).is_some_and(|newest| newest.version == one.version);
        let summary = if is_newest { "Written now" } else { "In older history only" };
        let headers = published(
            stream,
            &[
                (headers::CE_TYPE, json!({"type": "string", "const": full_name})),
                (headers::CONTENT_TYPE, json!({"type": "string", "const": "application/avro"})),
                (headers::SCHEMA_VERSION, json!({"type": "string", "const": one.version.to_string()})),
                (headers::STREAM_VERSION, number(&format!("1, 2, 3 … within the {stream}"))),
            ],
        );
        let message = json!({
            "name": full_name, "title": format!("{} version {}", one.event_type, one.version), "summary": summary,
            "contentType": "application/avro", "headers": headers,
            "payload": {
                "schemaFormat": "application/vnd.apache.avro+json;version=1.9.0",
                "schema": serde_json::from_str::<Value>(&one.definition)?,
            },
            "correlationId": {"$ref": "#/components/correlationIds/correlation"},
            "bindings": {"kafka": {
                "key": uuid(&the(stream)), "schemaIdLocation": "payload", "schemaIdPayloadEncoding": "confluent",
                "schemaLookupStrategy": "TopicRecordNameStrategy", "bindingVersion": BINDING,
            }},
        });
        messages.insert(format!("{}.v{}", one.event_type, one.version), message);
    }
    Ok(messages)
}

fn results(told: &Messages, namespace: &str) -> Map<String, Value> {
    let name = format!("{namespace}.CommandResult");
    let headers = published(
        told.stream,
        &[
            (headers::CE_TYPE, json!({"type": "string", "const": name})),
            (headers::CONTENT_TYPE, json!({"type": "string", "const": "application/json"})),
        ],
    );
    let message = json!({
        "name": name, "contentType": "application/json", "headers": headers, "payload": told.result,
        "correlationId": {"$ref": "#/components/correlationIds/correlation"},
        "bindings": {"kafka": {"key": uuid("The command"), "bindingVersion": BINDING}},
    });
    Map::from_iter([("CommandResult".to_owned(), message)])
}
