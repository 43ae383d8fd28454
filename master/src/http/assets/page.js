"use strict";
// Whatever a node says of itself is shown by textContent only, never as markup.
const at = (id) => document.getElementById(id);
const WIDTH = 150, HEIGHT = 92, BOX = 136, BOX_HEIGHT = 62;
let state = null, chosen = null;

function svg(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}
const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

// Nodes whose parents are unknown stand at the top, and so does one of each circle.
function hierarchy(nodes) {
  const byId = new Map(nodes.map((node) => [node.id, { node, children: [] }]));
  const top = { node: null, children: [] };
  for (const item of byId.values()) {
    const seen = new Set([item.node.id]);
    let up = byId.get(item.node.parent);
    while (up && !seen.has(up.node.id)) { seen.add(up.node.id); up = byId.get(up.node.parent); }
    const parent = up ? null : byId.get(item.node.parent);
    (parent || top).children.push(item);
  }
  return d3.hierarchy(top);
}

function draw() {
  const focused = document.activeElement && document.activeElement.getAttribute("data-id");
  const root = d3.tree().nodeSize([WIDTH, HEIGHT])(hierarchy(state.nodes));
  const all = root.descendants().filter((place) => place.data.node);
  const left = Math.min(0, ...all.map((place) => place.x)) - WIDTH / 2;
  const right = Math.max(0, ...all.map((place) => place.x)) + WIDTH / 2;
  const bottom = Math.max(1, ...all.map((place) => place.depth)) * HEIGHT;
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", `${left} 8 ${right - left} ${bottom}`);
  picture.setAttribute("width", right - left);
  picture.setAttribute("height", bottom);
  const y = (place) => (place.depth - 1) * HEIGHT + 16;
  for (const place of all) {
    if (!place.parent.data.node) continue;
    const from = y(place.parent) + BOX_HEIGHT, to = y(place), middle = (from + to) / 2;
    const busy = place.data.node.rate > 0 ? " busy" : "";
    svg("path", { class: "link" + busy, d: `M${place.parent.x},${from}C${place.parent.x},${middle} ${place.x},${middle} ${place.x},${to}` }, picture);
  }
  for (const place of all) {
    const node = place.data.node;
    const group = svg("g", { class: `node ${node.state}${node.id === chosen ? " chosen" : ""}`, tabindex: 0, role: "button", transform: `translate(${place.x},${y(place)})` }, picture);
    group.setAttribute("data-id", node.id);
    group.setAttribute("aria-label", `${node.id}, ${node.state}`);
    svg("rect", { x: -BOX / 2, y: 0, width: BOX, height: BOX_HEIGHT, rx: 6 }, group);
    svg("text", { class: "id", y: 15 }, group).textContent = short(node.id, 18);
    svg("text", { y: 29 }, group).textContent = short(node.address, 22);
    svg("text", { y: 42 }, group).textContent = `load ${node.load} · depth ${node.depth} · ${node.rate.toFixed(0)}/s`;
    svg("text", { y: 55 }, group).textContent = `${node.state} · ${(node.age_ms / 1000).toFixed(1)} s ago`;
    const choose = () => { chosen = node.id; at("answer").textContent = ""; show(); };
    group.addEventListener("click", choose);
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); }
    });
  }
  at("tree").replaceChildren(picture);
  if (focused) for (const group of picture.querySelectorAll(".node")) if (group.getAttribute("data-id") === focused) group.focus({ preventScroll: true });
}

function details() {
  const node = state.nodes.find((node) => node.id === chosen);
  at("details").hidden = chosen === null;
  at("chosen").textContent = chosen === null ? "" : chosen;
  at("drain").hidden = !node;
  const facts = node ? { address: node.address, state: node.state, parent: node.parent || "none", load: node.load, depth: node.depth, "activities/s": node.rate.toFixed(1), heartbeat: `${node.age_ms} ms ago`, version: node.version || "unknown" } : { state: "gone" };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name; text.textContent = value;
    return [term, text];
  }));
}

function timeline() {
  const wanted = at("filter").value.toLowerCase();
  const found = state.events.filter((event) => `${event.kind} ${event.text}`.toLowerCase().includes(wanted)).reverse();
  at("events").replaceChildren(...found.map((event) => {
    const line = document.createElement("li");
    line.textContent = `${new Date(event.at).toLocaleTimeString()}  ${event.text}`;
    return line;
  }));
}

function show() {
  if (!state) return;
  at("summary").textContent = `master ${state.master}: ${state.nodes.length} nodes${state.warming ? ", may not know everybody yet" : ""}`;
  at("peers").replaceChildren(...state.peers.map((url) => {
    const link = document.createElement("a");
    link.href = url; link.textContent = url; link.rel = "noreferrer";
    return link;
  }));
  draw(); details(); timeline();
}

function say(text, broken) { at("stream").textContent = text; at("stream").className = broken ? "broken" : ""; }

function connect() {
  const source = new EventSource("events");
  source.onmessage = (event) => { state = JSON.parse(event.data); say("live", false); show(); };
  source.onerror = () => { source.close(); say("no connection to the master: trying again", true); setTimeout(connect, 1000); };
}

at("filter").addEventListener("input", () => state && timeline());
at("drain").addEventListener("submit", async (event) => {
  event.preventDefault();
  // Headers carry bytes: the letters of the secret are sent as UTF-8.
  const bytes = String.fromCharCode(...new TextEncoder().encode(at("secret").value));
  at("secret").value = "";
  try {
    const answer = await fetch(`drain/${encodeURIComponent(chosen)}`, { method: "POST", headers: { authorization: `Bearer ${bytes}`, "x-arborcast": "drain" } });
    at("answer").textContent = await answer.text();
  } catch (error) { at("answer").textContent = `not asked: ${error.message}`; }
});
connect();
