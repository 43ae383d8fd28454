//! The live page of a master in a real browser (README, Live page, metrics and health of a master).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};

use arborcast_proto::registry::{NodeReport, Topology};
use arborcast_tests::browser::{Browser, keys};
use arborcast_tests::master::Master;
use arborcast_tests::node::{Node, NodeBuilder, SECRET};
use arborcast_tests::process::Signal;
use arborcast_tests::reporters::{Reporters, live};
use arborcast_tests::scrape::http_address;
use arborcast_tests::wait::{self, PATIENCE};
use serde_json::json;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn master() -> Master {
    Master::start_with(ANY, &["--http", "127.0.0.1:0"])
}

fn url(master: &Master) -> String {
    format!("http://{}/", http_address(&master.process))
}

/// Real servers with two children at most, which the page shows as one tree.
fn grow(master: &Master, browser: &Browser, ids: &[&str]) -> Vec<Node> {
    let builder = NodeBuilder::default().flag("--master", master.address()).flag("--max-children", 2);
    let nodes = ids.iter().map(|id| builder.clone().id(id).start()).collect();
    wait_for_one_tree(browser, ids.len());
    nodes
}

fn wait_for_one_tree(browser: &Browser, nodes: usize) {
    browser.wait_until(&format!(
        "document.querySelectorAll('#picture .node.live').length === {nodes} \
         && document.querySelectorAll('#picture .node').length === {nodes} \
         && document.querySelectorAll('#picture .node[aria-level=\"1\"]').length === 1 \
         && document.getElementById('trees').textContent === ''"
    ));
}

/// The mark of a node in the picture.
fn mark(id: &str) -> String {
    format!("[...document.querySelectorAll('#picture .node')].find((node) => node.dataset.id === {})", json!(id))
}

fn reports(topology: &Topology) -> Vec<&NodeReport> {
    topology.nodes.iter().filter_map(|node| node.report.as_ref()).collect()
}

/// A server with a parent and children, and the children.
fn an_inner_node(master: &Master) -> (String, Vec<String>) {
    wait::until(PATIENCE, || {
        let topology = master.topology()?;
        let reports = reports(&topology);
        let children = |id: &str| -> Vec<String> {
            reports.iter().filter(|report| report.parent_id == id).map(|report| report.node_id.clone()).collect()
        };
        let inner = reports.iter().find(|report| !report.parent_id.is_empty() && !children(&report.node_id).is_empty());
        let inner = inner.ok_or_else(|| format!("no inner node in {reports:?}"))?;
        Ok((inner.node_id.clone(), children(&inner.node_id)))
    })
}

#[test]
fn the_picture_and_the_time_line_show_who_died_and_what_moved_where() {
    let Some(browser) = Browser::start(1280, 800) else { return };
    let master = master();
    browser.open(&url(&master));
    let mut nodes = grow(&master, &browser, &["t0", "t1", "t2", "t3", "t4", "t5", "t6"]);
    let (victim, children) = an_inner_node(&master);
    let node = nodes.iter_mut().find(|node| node.id() == victim).unwrap();
    node.process.signal(Signal::SIGKILL);
    wait_for_one_tree(&browser, 6);
    browser.wait_until(&format!("!{}", mark(&victim)));
    browser.wait_for_text(&format!("{victim} lost"));
    for child in children {
        browser.wait_until(&format!(
            "/{child} re-attached from {victim} to t\\d in \\d+ ms/.test(document.getElementById('events').innerText)"
        ));
        browser.wait_until(&format!("!{}.getAttribute('aria-label').includes('below {victim}')", mark(&child)));
    }

    for kind in ["joined", "re-attached", "drained", "master"] {
        browser.click(&format!("#kinds .{kind}"));
    }
    let shown = "[...document.querySelectorAll('#events li')].filter((line) => line.offsetHeight)";
    browser.wait_until(&format!("{shown}.length > 0 && {shown}.every((line) => line.className === 'lost')"));
    browser.click("#kinds .joined");
    browser.type_into("#filter", "t0 joined");
    browser.wait_until(&format!("{shown}.length === 1"));
    assert_eq!(browser.complaints(), <[&str; 0]>::default());
}

#[test]
fn a_node_is_drained_by_the_button_with_the_secret_only() {
    let Some(browser) = Browser::start(1280, 800) else { return };
    let master = master();
    browser.open(&url(&master));
    let mut nodes = grow(&master, &browser, &["t0", "t1", "t2"]);
    let topology = master.topology().unwrap();
    let leaf = reports(&topology).into_iter().find(|report| !report.parent_id.is_empty()).unwrap().node_id.clone();
    browser.click(&format!("#picture .node[data-id={leaf}]"));
    browser.type_into("#secret", "wrong");
    browser.click("#drain button");
    browser.wait_until("document.getElementById('answer').textContent.includes('secret')");
    browser.type_into("#secret", SECRET);
    browser.click("#drain button");
    browser.wait_until("document.getElementById('answer').textContent.startsWith('asked')");
    let node = nodes.iter_mut().find(|node| node.id() == leaf).unwrap();
    assert!(node.process.wait_exit(PATIENCE).success());
    browser.wait_for_text(&format!("{leaf} drained"));
    wait_for_one_tree(&browser, 2);
    assert_eq!(browser.text("#facts"), "stategone");
    assert_eq!(browser.value("document.getElementById('secret').value"), "");
}

#[test]
fn hostile_names_are_text() {
    let Some(browser) = Browser::start(1280, 800) else { return };
    let master = master();
    browser.open(&url(&master));
    let id = "<img src=x onerror=document.title=1>";
    let _nodes = grow(&master, &browser, &[id, "other"]);
    let mut reporters = Reporters::new(master.address());
    let hostile = NodeReport {
        hostname: "<script>document.title=2</script>".into(),
        version: "\"'><svg onload=document.title=3>".into(),
        ..live(&["__proto__\u{202e}</text></svg><script>document.title=4</script>"])
    };
    reporters.report(hostile.clone());
    browser.wait_until(&mark(&hostile.node_id));
    browser.wait_until("document.getElementById('trees').textContent.startsWith('2 trees')");
    for id in [id, &hostile.node_id] {
        browser.wait_until(&format!("document.getElementById('events').innerText.includes({})", json!(id)));
        browser.run(&format!("{}.dispatchEvent(new MouseEvent('click', {{ bubbles: true }}))", mark(id)));
        assert_eq!(browser.text("#chosen"), id);
    }
    browser.click("#as-list");
    let facts = browser.text("#facts");
    let rows = browser.text("#rows");
    for text in [&hostile.hostname, &hostile.version] {
        assert!(facts.contains(text) && rows.contains(text), "{facts} {rows}");
    }
    assert!(rows.contains(id) && rows.contains(&hostile.node_id), "{rows}");
    browser.type_into("#find", "<img");
    browser.press(&[keys::ENTER]);
    assert_eq!(browser.text("#chosen"), id);
    assert_eq!(browser.value("document.querySelectorAll('img, svg svg, script:not([src])').length"), 0);
    assert_eq!(browser.value("document.title"), "arborcast");
    assert_eq!(browser.complaints(), <[&str; 0]>::default());
}

#[test]
fn a_broken_and_a_silent_stream_are_said_and_mended() {
    let Some(browser) = Browser::start(1280, 800) else { return };
    let mut master = master();
    let http = http_address(&master.process);
    browser.open(&url(&master));
    let _nodes = grow(&master, &browser, &["t0", "t1"]);
    let is_broken = "document.getElementById('stream').className === 'broken'";

    master.process.signal(Signal::SIGSTOP);
    browser.wait_for_text("nothing heard from the master since");
    browser.wait_until(is_broken);
    master.process.signal(Signal::SIGCONT);
    browser.wait_until("document.getElementById('stream').textContent === 'live'");
    browser.wait_for_text("master back after");
    wait_for_one_tree(&browser, 2);

    let address = master.address();
    drop(master);
    browser.wait_for_text("no connection to the master since");
    browser.wait_until(is_broken);
    assert_eq!(browser.value("document.querySelectorAll('#picture .node').length"), 2, "the last that was known");
    let _master = Master::start_with(address, &["--http", &http.to_string()]);
    browser.wait_for_text("started anew");
    browser.wait_until("document.getElementById('stream').textContent === 'live'");
    wait_for_one_tree(&browser, 2);
    browser.wait_for_text("t0 was there");
    browser.wait_for_text("t0 joined");
}

#[test]
fn everything_can_be_done_with_the_keyboard() {
    let Some(browser) = Browser::start(1280, 800) else { return };
    let master = master();
    let mut reporters = Reporters::new(master.address());
    for path in [&["r"][..], &["r", "a"], &["r", "b"], &["r", "b", "c"]] {
        reporters.report(live(path));
    }
    browser.open(&url(&master));
    wait_for_one_tree(&browser, 4);
    let has_keyboard = |id: &str| browser.wait_until(&format!("document.activeElement.dataset?.id === {}", json!(id)));
    for (button, row) in [("#as-picture", "#picture .node"), ("#as-list", "#rows tr")] {
        browser.click(button);
        browser.run(&format!("document.querySelector('{row}[tabindex=\"0\"]').focus()"));
        browser.press(&[keys::HOME]);
        has_keyboard("r");
        browser.press(&[keys::DOWN]);
        has_keyboard("a");
        browser.press(&[if button == "#as-list" { keys::DOWN } else { keys::RIGHT }]);
        has_keyboard("b");
        browser.press(&[" "]);
        browser.wait_until(&format!("document.querySelectorAll('{row}').length === 3"));
        has_keyboard("b");
        browser.press(&[" ", keys::ENTER]);
        browser.wait_until("document.activeElement.id === 'chosen' && document.activeElement.textContent === 'b'");
        browser.press(&[keys::ESCAPE]);
        browser.wait_until("document.getElementById('details').hidden");
        has_keyboard("b");
        browser.press(&[keys::UP]);
        if button == "#as-list" {
            has_keyboard("a");
            browser.press(&[keys::LEFT]);
        }
        has_keyboard("r");
    }
    browser.type_into("#find", "c");
    browser.press(&[keys::ENTER]);
    assert_eq!(browser.text("#chosen"), "c");
}

#[test]
fn two_hundred_nodes_are_seen_at_once() {
    let Some(browser) = Browser::start(1280, 800) else { return };
    let master = master();
    let mut reporters = Reporters::new(master.address());
    for number in 0..200_usize {
        let above = std::iter::successors(Some(number), |number| number.checked_sub(1).map(|number| number / 8));
        let mut path: Vec<String> = above.map(|number| format!("node-{number}")).collect();
        path.reverse();
        reporters.report(live(&path.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    browser.open(&url(&master));
    for (width, height) in [(1280, 800), (390, 844)] {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        browser.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        browser.click("#as-picture");
        browser.click("#fit");
        wait_for_one_tree(&browser, 200);
        // Nodes glide to their places.
        browser.wait_until(
            "(() => {
                const boxes = [...document.querySelectorAll('#picture .node rect')].map((mark) => mark.getBoundingClientRect());
                const picture = document.getElementById('picture').getBoundingClientRect();
                const isIn = (box) => box.left >= picture.left && box.right <= picture.right && box.top >= picture.top
                    && box.bottom <= picture.bottom;
                const meet = (one, other) => one.left < other.right - 1 && other.left < one.right - 1
                    && one.top < other.bottom - 1 && other.top < one.bottom - 1;
                return boxes.every(isIn) && boxes.every((one, index) => boxes.slice(index + 1).every((other) => !meet(one, other)));
            })()",
        );
        browser.wait_until("document.documentElement.scrollWidth <= innerWidth");
        browser.click("#fold");
        browser.wait_until("document.querySelectorAll('#picture .node').length === 9");
        browser.wait_for_text("+72");
        browser.run("document.getElementById('find').value = ''");
        browser.type_into("#find", "node-150");
        browser.press(&[keys::ENTER]);
        assert_eq!(browser.text("#chosen"), "node-150");
        browser.wait_until(&format!("{}?.classList.contains('chosen')", mark("node-150")));
        browser.wait_until(&format!("{}.textContent === 'node-150'", mark("node-150")));
        browser.click("#as-list");
        browser.click("#fold");
        browser.wait_until("[9, 200].includes(document.querySelectorAll('#rows tr').length)");
        browser.click("#close");
        browser.run("document.getElementById('find').value = ''");
        browser.run("if (document.querySelectorAll('#rows tr').length < 200) document.getElementById('fold').click()");
        browser.wait_until("document.querySelectorAll('#rows tr').length === 200");
    }
    assert_eq!(browser.complaints(), <[&str; 0]>::default());
}

#[test]
fn a_page_links_to_the_page_of_another_master() {
    let Some(browser) = Browser::start(1280, 800) else { return };
    let other = master();
    let one = Master::start_with(ANY, &["--http", "127.0.0.1:0", "--peer-page", &url(&other)]);
    browser.open(&url(&one));
    browser.wait_until("document.querySelector('#peers a')");
    browser.click("#peers a");
    browser.wait_until(&format!("location.href === {}", json!(url(&other))));
    browser.wait_until("document.getElementById('stream')?.textContent === 'live'");
}
