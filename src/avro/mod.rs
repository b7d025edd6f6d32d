//! Avro on the wire: the schemas of a context, their versions and ids, encoding, decoding, upcasting.
//!
//! Knows bytes, schemas and the table of schema ids; knows no context of ours. The schema files of a
//! context are the authority on shapes, `throughline.schemas` is the authority on ids.

pub mod catalogue;
pub mod codec;
pub mod external_registry;
pub mod fields;
pub mod ids;
pub mod limits;
pub mod lock;
pub mod registry;
mod registry_routes;
mod schemas;
pub mod upcast;

pub use catalogue::{Catalogue, CatalogueError, CataloguedSchema, Published};
pub use codec::{Codec, CodecError, WrittenEvent};
pub use external_registry::{ExternalRegistry, ExternalRegistryError};
pub use ids::{SchemaIds, SchemaIdsError};
pub use lock::SchemaProblem;
pub use registry_routes::registry_routes;
pub use schemas::Schemas;
pub use upcast::{Fields, Upcaster, Upcasters};
