pub mod avro;
pub mod engine;
pub mod orders;
pub mod settings;
