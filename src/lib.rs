pub mod avro;
pub mod crash;
pub mod engine;
pub mod kafka;
pub mod orders;
pub mod processor;
pub mod settings;
pub mod store;
