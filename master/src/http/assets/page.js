// Whatever a node says of itself is shown by textContent and attributes only, never as markup.
import { count, isFresh, isHit, model, seconds, takeRates, takeTree, toggleFold, unfoldTo } from "./model.js";
import * as list from "./list.js";
import * as picture from "./picture.js";
import * as timeline from "./timeline.js";

// From so many nodes on a narrow page begins with the list.
const MANY = 24, NARROW = 700;
// Milliseconds: the master says something every second, so after this long the connection is dead, whatever it looks like.
const SILENCE = 5000, AGAIN = 1000;

const at = (id) => document.getElementById(id);
let isList = false, isFormChosen = false, wasFresh = false;

function form() { return isList ? list : picture; }

function shape() { if (isList) list.draw(); else picture.layOut(); }

function look() { if (isList) list.draw(); else picture.draw(); details(); }

function showAs(asList) {
  isList = asList;
  at("list").hidden = !asList;
  at("picture").hidden = asList;
  at("zoom").hidden = asList;
  at("as-list").setAttribute("aria-pressed", asList);
  at("as-picture").setAttribute("aria-pressed", !asList);
  shape();
  if (isList) list.reveal(model.current);
}

function summary() {
  const items = [...model.items.values()], roots = model.top.children.length;
  const clients = items.reduce((sum, item) => sum + item.load, 0), depth = Math.max(0, ...items.map((item) => item.depth));
  at("summary").textContent = `${count(items.length, "node")} · ${count(clients, "client")} · depth ${depth} · master ${model.master}${model.isWarming ? ", which may not know everybody yet" : ""}`;
  const trees = roots > 1 ? `${roots} trees: not all nodes are connected` : "";
  if (at("trees").textContent !== trees) at("trees").textContent = trees;
}

function details() {
  const item = model.items.get(model.chosen);
  at("details").hidden = model.chosen === null;
  at("chosen").textContent = model.chosen ?? "";
  at("drain").hidden = !item;
  const facts = item ? { state: item.state, address: item.address, parent: item.parent ?? "none: a root", children: item.children.length, "nodes below": item.below, load: count(item.load, "client"), depth: item.depth, "activities/s": item.rate.toFixed(1), heartbeat: `${seconds(item.age)} ago`, version: item.version || "unknown" } : { state: "gone" };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}

function choose(id, takesFocus) {
  if (model.chosen !== id) at("answer").textContent = "";
  model.chosen = id;
  if (model.items.has(id)) model.current = id;
  look();
  if (takesFocus) at("chosen").focus();
}

function close() {
  if (model.chosen === null) return;
  const hadFocus = at("details").contains(document.activeElement);
  model.chosen = null;
  at("secret").value = "";
  look();
  if (hadFocus) form().focus();
}

function toggle(id) {
  toggleFold(id);
  shape();
}

function move(id) {
  model.current = id;
  if (isList) list.draw(); else picture.draw();
  form().focus();
  form().reveal(id);
}

function jump(id) {
  unfoldTo(id);
  model.current = id;
  shape();
  choose(id, false);
  form().reveal(id, true);
}

function find(isNext) {
  model.wanted = at("find").value.trim().toLowerCase();
  const hits = [...model.items.values()].filter(isHit);
  at("found").textContent = model.wanted ? `${hits.length} found` : "";
  if (isNext && hits.length) {
    const index = (hits.findIndex((item) => item.id === model.chosen) + 1) % hits.length;
    at("found").textContent = `${index + 1} of ${hits.length}`;
    jump(hits[index].id);
  } else look();
}

function peers(urls) {
  at("peers").hidden = !urls.length;
  at("peers").replaceChildren("Other masters: ", ...urls.map((url) => {
    const link = document.createElement("a");
    link.href = url;
    link.textContent = new URL(url).host;
    link.rel = "noreferrer";
    return link;
  }));
}

// The stream of events. A broken one is said, and what is shown then is dimmed, since it is old.
let source = null, heard = 0, brokenSince = null;

function say(text, isBroken) {
  if (at("stream").textContent !== text) at("stream").textContent = text;
  at("stream").className = isBroken ? "broken" : "";
  at("main").classList.toggle("old", isBroken);
}

function broken(why) {
  source.close();
  source = null;
  if (brokenSince === null) {
    brokenSince = Date.now();
    if (model.master !== null) timeline.add({ at: brokenSince, kind: "master", text: "this page lost its master" });
  }
  say(`${why} since ${new Date(brokenSince).toLocaleTimeString([], { hour12: false })}: trying again`, true);
}

function back(isSame) {
  if (brokenSince !== null && model.master !== null) {
    const text = `master back after ${seconds(Date.now() - brokenSince)}${isSame ? "" : ", started anew"}`;
    timeline.add({ at: Date.now(), kind: "master", text });
  }
  brokenSince = null;
}

function connect() {
  source = new EventSource("events");
  heard = Date.now();
  const on = (name, take) => source.addEventListener(name, (event) => { heard = Date.now(); take(JSON.parse(event.data)); });
  on("tree", (tree) => {
    const isSame = tree.master === model.master;
    if (!isSame) timeline.restart();
    back(isSame);
    const isFirst = model.master === null;
    takeTree(tree);
    if (isFirst && !isFormChosen) showAs(innerWidth < NARROW && model.items.size > MANY);
    peers(tree.peers);
    shape();
    details();
    say("live", false);
  });
  on("happened", (events) => timeline.take(events));
  on("rates", (rates) => {
    takeRates(rates);
    summary();
    look();
  });
  source.onerror = () => { broken("no connection to the master"); setTimeout(connect, AGAIN); };
}

setInterval(() => {
  if (source && Date.now() - heard > SILENCE) {
    broken("nothing heard from the master");
    connect();
  }
  const fresh = [...model.items.values()].some(isFresh);
  if (wasFresh && !fresh) look();
  wasFresh = fresh;
}, 1000);

const asked = { choose, toggle, move };
picture.listen(asked);
list.listen(asked);
timeline.listen(jump);
for (const [id, asList] of [["as-picture", false], ["as-list", true]]) at(id).addEventListener("click", () => { isFormChosen = true; showAs(asList); });
at("fit").addEventListener("click", picture.fit);
at("zoom-in").addEventListener("click", () => picture.zoom(1.4));
at("zoom-out").addEventListener("click", () => picture.zoom(1 / 1.4));
at("fold").addEventListener("click", () => {
  const isFolded = model.folded.size > 0;
  model.folded.clear();
  if (!isFolded) for (const item of model.items.values()) if (item.above && item.children.length) model.folded.add(item.id);
  shape();
  if (!isList) picture.fit();
});
at("find").addEventListener("input", () => find(false));
at("find").addEventListener("keydown", (event) => { if (event.key === "Enter") find(true); });
at("close").addEventListener("click", close);
addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
at("drain").addEventListener("submit", async (event) => {
  event.preventDefault();
  // Headers carry bytes: the letters of the secret are sent as UTF-8.
  const bytes = String.fromCharCode(...new TextEncoder().encode(at("secret").value));
  at("secret").value = "";
  try {
    const answer = await fetch(`drain/${encodeURIComponent(model.chosen)}`, { method: "POST", headers: { authorization: `Bearer ${bytes}`, "x-arborcast": "drain" } });
    at("answer").textContent = await answer.text();
  } catch (error) { at("answer").textContent = `not asked: ${error.message}`; }
});
connect();
