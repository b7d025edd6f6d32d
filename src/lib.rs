pub mod engine;
pub mod settings;
