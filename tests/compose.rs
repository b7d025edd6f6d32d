//! The compose file: what its published schema says, and what we promise of it.

use std::path::Path;

#[test]
fn the_compose_file_fits_its_published_schema_and_our_promises() {
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docker-compose.yml")).unwrap();
    let file: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
    let schema = std::fs::read(root.join("tests/compose-schema/compose-spec.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mistakes: Vec<String> = validator.iter_errors(&file).map(|error| error.to_string()).collect();
    assert_eq!(mistakes, Vec::<String>::new());

    // The check can fail.
    let mut wrong = file.clone();
    wrong["services"]["kafka"]["imagee"] = "x".into();
    assert!(!validator.is_valid(&wrong));

    for (name, service) in file["services"].as_object().unwrap() {
        let image = service["image"].as_str().unwrap();
        let tag = image.split_once(':').unwrap().1;
        assert!(tag.contains('.') && tag != "latest", "{name}: {image} is not pinned");
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        for port in service["ports"].as_array().unwrap() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
    }
}
