pub mod api;
pub mod avro;
pub mod engine;
pub mod kafka;
pub mod orders;
pub mod settings;
pub mod store;
