//! Dependencies point down only: from a floor to a lower one, dev- and build-dependencies included. Rooms on one floor do
//! not know each other.

use cargo_metadata::MetadataCommand;
use std::path::Path;

/// The floors, lowest first: the ground below floor 0, then floors 0 to 4.
const FLOORS: [&[&str]; 6] = [
    &["gradus-error", "gradus-testbed"],
    &["gradus-host", "gradus-memory"],
    &["gradus-compute", "gradus-fabric"],
    &["gradus-model", "gradus-collective", "gradus-store"],
    &["gradus-train", "gradus-gateway", "gradus-ingest"],
    &["gradus", "gradus-py"],
];

/// Outside the house: depends on no room, and no room on it.
const OUTSIDE: &str = "xtask";

/// Edges that lead down and are forbidden all the same.
const FORBIDDEN: [(&str, &str, &str); 3] = [
    ("gradus-train", "gradus-fabric", "training calls no transport: it is handed a communicator"),
    (
        "gradus-model",
        "gradus-fabric",
        "the model knows no communicator: where ranks exchange it names a seam",
    ),
    ("gradus-store", "gradus-compute", "storing data computes nothing"),
];

type Edge = (String, String);

fn floor(name: &str) -> Result<usize, String> {
    let found = FLOORS.iter().position(|rooms| rooms.contains(&name));
    found.ok_or_else(|| {
        format!("{name} has no floor: give it one in this test, and in the drawing of the house")
    })
}

/// Why `from` may not depend on `to`.
fn objection(from: &str, to: &str) -> Option<String> {
    if from == OUTSIDE || to == OUTSIDE {
        return Some(format!("{from} -> {to}: the task runner stands outside the house"));
    }
    if let Some((_, _, why)) = FORBIDDEN.iter().find(|edge| (edge.0, edge.1) == (from, to)) {
        return Some(format!("{from} -> {to}: {why}"));
    }
    match (floor(from), floor(to)) {
        (Err(unknown), _) | (_, Err(unknown)) => Some(unknown),
        (Ok(upper), Ok(lower)) if upper > lower => None,
        (Ok(upper), Ok(lower)) => {
            let direction = if upper == lower { "sideways" } else { "up" };
            Some(format!("{from} -> {to} runs {direction}"))
        }
    }
}

fn objections(packages: &[String], edges: &[Edge]) -> Vec<String> {
    let homeless = packages.iter().filter(|name| *name != OUTSIDE).filter_map(|name| floor(name).err());
    homeless.chain(edges.iter().filter_map(|(from, to)| objection(from, to))).collect()
}

/// The workspace's packages and every edge between two of them, of whatever kind, target or feature.
fn read_workspace() -> (Vec<String>, Vec<Edge>) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let metadata =
        MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo metadata runs");
    let packages: Vec<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let mut edges = Vec::new();
    for package in &metadata.packages {
        let inside = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        edges.extend(inside.map(|dependency| (package.name.to_string(), dependency.name.clone())));
    }
    (packages, edges)
}

#[test]
fn dependencies_point_down_only() {
    let (packages, edges) = read_workspace();
    assert!(
        edges.contains(&("gradus-memory".to_owned(), "gradus-error".to_owned())),
        "edges are not seen: {edges:?}"
    );
    let objections = objections(&packages, &edges);
    assert!(objections.is_empty(), "the house leans:\n{}", objections.join("\n"));
}

#[test]
fn planted_edges_are_rejected() {
    let planted = [
        ("gradus-memory", "gradus-host", "sideways"),
        ("gradus-collective", "gradus-model", "sideways"),
        ("gradus-error", "gradus-host", "up"),
        ("gradus-compute", "gradus-train", "up"),
        ("gradus-train", "gradus-fabric", "no transport"),
        ("gradus", "gradus-common", "no floor"),
        ("gradus-common", "gradus-error", "no floor"),
        ("xtask", "gradus-error", "outside"),
        ("gradus", "xtask", "outside"),
    ];
    for (from, to, reason) in planted {
        let found = objections(&[], &[(from.to_owned(), to.to_owned())]);
        assert!(found.len() == 1 && found[0].contains(reason), "{from} -> {to}: {found:?}");
    }
    assert_eq!(objection("gradus", "gradus-fabric"), None);
}

#[test]
fn a_crate_without_a_floor_is_rejected_even_alone() {
    let found = objections(&["gradus-util".to_owned(), "xtask".to_owned(), "gradus".to_owned()], &[]);
    assert!(found.len() == 1 && found[0].starts_with("gradus-util has no floor"), "{found:?}");
}
