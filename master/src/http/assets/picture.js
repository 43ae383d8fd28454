// The tree as a picture, root at the top. Positions are zoomed, and marks and letters are not: from far away nodes are
// dots, nearer they get names, and where there is room for boxes these say everything.
import { count, isFolded, isFresh, isHit, model, seconds, shownChildren } from "./model.js";

const BOX = 144, BOX_HEIGHT = 78, LETTER = 6.6, BOLD = 7.4, MARGIN = 14;
// Pixels between two siblings, between two levels, and between two nodes in one column: least and most.
const ACROSS = [7, 172], DOWN = [46, 124], ROW = [8, 18];
// From where on there are boxes.
const BOXED = [150, 98];
// Where siblings would be nearer than this, those without children stand in columns below their parents.
const CROWDED = 56;

const host = document.getElementById("picture");
const svg = make("svg", { role: "tree", "aria-label": "Tree of nodes" }, host);
const links = make("g", { "aria-hidden": "true" }, svg), nodes = make("g", { role: "presentation" }, svg);
const tip = make("text", { class: "tip", "aria-hidden": "true" }, svg);
const marks = new Map(); // what is drawn, by id, and stays while the node does
const view = { x: 0, y: 0, across: ACROSS[1], down: DOWN[1], row: ROW[1], isFitted: true };
let places = [], isCrowded = false, hovered = null;

function make(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}
// Names that begin or end alike are still told apart.
const short = (text, most) => (text.length > most ? `${text.slice(0, Math.ceil((most - 1) / 2))}…${text.slice(text.length - Math.floor((most - 1) / 2))}` : text);
const between = ([least, most], value) => Math.min(most, Math.max(least, value));

export function layOut() {
  const tree = d3.tree().nodeSize([1, 1]).separation((one, other) => (one.parent === other.parent ? 1 : 1.2));
  places = tree(d3.hierarchy(model.top, shownChildren)).descendants().slice(1).map((place) => placed(place, place.data));
  const [left, right] = sides();
  isCrowded = (host.clientWidth - 2 * MARGIN) / (right - left + 1) < CROWDED;
  if (isCrowded) {
    const leaves = places.filter((place) => !shownChildren(place.item).length).length;
    const rows = Math.max(6, Math.ceil(Math.sqrt(leaves)));
    const columns = d3.cluster().nodeSize([1, 1]).separation(() => 1)(d3.hierarchy(model.top, (item) => inColumns(item, rows)));
    places = columns.descendants().slice(1).flatMap((place) => (place.data.column ? place.data.column.map((item, row) => placed(place, item, row)) : [placed(place, place.data)]));
  }
  const byId = new Map(places.map((place) => [place.item.id, place]));
  for (const place of places) {
    place.above = byId.get(place.item.above?.id) ?? null;
    place.below = byId.get(shownChildren(place.item)[0]?.id) ?? null;
  }
  if (!byId.has(model.current)) model.current = places.length ? places[0].item.id : null;
  if (view.isFitted) fit(); else draw();
}

const placed = ({ x, depth }, item, row = null) => ({ x, depth, item, row });

// The children that have children, and the others by columns.
function inColumns(item, rows) {
  if (item.column) return [];
  const children = shownChildren(item), leaves = children.filter((child) => !shownChildren(child).length);
  const columns = Array.from({ length: Math.ceil(leaves.length / rows) }, (_, index) => ({ column: leaves.slice(index * rows, (index + 1) * rows) }));
  return [...children.filter((child) => shownChildren(child).length), ...columns];
}

// The loops are for ten thousand nodes, which are too many arguments.
const most = (values) => values.reduce((one, other) => Math.max(one, other), 0);
const sides = () => [-most(places.map((place) => -place.x)), most(places.map((place) => place.x))];

export function fit() {
  const width = host.clientWidth - 2 * MARGIN, height = host.clientHeight - 2 * MARGIN;
  const [left, right] = sides(), levels = Math.max(1, most(places.map((place) => place.depth)));
  const rows = isCrowded ? most(places.map((place) => (place.row ?? 0) + 1)) : 0;
  view.across = between(ACROSS, width / (right - left + 1));
  view.down = isCrowded ? between(DOWN, (height - 14 * rows) / Math.max(1, levels - 1)) : between(DOWN, height / levels);
  view.row = between(ROW, (height - (levels - 1) * view.down) / Math.max(1, rows));
  view.x = host.clientWidth / 2 - (view.across * (left + right)) / 2;
  view.y = MARGIN;
  view.isFitted = true;
  draw();
}

export function zoom(factor, x = host.clientWidth / 2, y = host.clientHeight / 2) {
  const across = between(ACROSS, view.across * factor), down = between(DOWN, view.down * factor);
  view.x = x - ((x - view.x) * across) / view.across;
  view.y = y - ((y - view.y) * down) / view.down;
  Object.assign(view, { across, down, row: between(ROW, view.row * factor), isFitted: false });
  draw(true);
}

function pan(x, y) {
  view.x += x;
  view.y += y;
  view.isFitted = false;
  draw(true);
}

// Brings a node into sight, near enough that it has a name.
export function reveal(id, isNear) {
  const place = find(id);
  if (!place) return;
  const near = between([64, ACROSS[1]], id.length * LETTER + 28);
  const isFar = isNear && !isBoxed() && view.across < near;
  if (isFar) zoom(near / view.across);
  const [x, y] = at(place), width = host.clientWidth, height = host.clientHeight;
  const room = isFar ? width / 3 : isBoxed() ? BOX / 2 + 4 : 24;
  const right = Math.max(0, room - x) - Math.max(0, x - width + room);
  const down = Math.max(0, 24 - y) - Math.max(0, y - height + BOX_HEIGHT);
  if (right || down) pan(right, down);
}

export const focus = () => marks.get(model.current)?.group.focus({ preventScroll: true });

const find = (id) => places.find((place) => place.item.id === id);
const isBoxed = () => !isCrowded && view.across >= BOXED[0] && view.down >= BOXED[1];

// Where a node is drawn. One in a column has its name beside it, the others below.
function at({ x, depth, row }) {
  const [left, top] = [view.x + x * view.across, view.y + (depth - 1) * view.down];
  return row === null ? [left, top] : [left - view.across / 2 + dotSize(row) / 2 + 4, top + row * view.row];
}

// How much room there is for the name of each node, in pixels.
function rooms() {
  const levels = new Map();
  for (const place of places) {
    if (place.row) continue;
    if (!levels.has(place.depth)) levels.set(place.depth, []);
    levels.get(place.depth).push(place);
  }
  const found = new Map();
  for (const level of levels.values()) {
    level.sort((one, other) => one.x - other.x);
    level.forEach(({ x, item }, index) => {
      const before = index > 0 ? x - level[index - 1].x : 3;
      const after = index + 1 < level.length ? level[index + 1].x - x : 3;
      found.set(item.id, Math.min(before, after, 3) * view.across - 6);
    });
  }
  for (const { row, item } of places) if (row !== null) found.set(item.id, view.row < 11 ? 0 : view.across - dotSize(row) - 10);
  return found;
}

export function draw(isStill = false) {
  const boxed = isBoxed(), room = rooms();
  const drawn = new Set(places.map((place) => place.item.id));
  const hadFocus = nodes.contains(document.activeElement);
  for (const [id, mark] of marks) {
    if (drawn.has(id)) continue;
    mark.group.remove();
    mark.link.remove();
    marks.delete(id);
  }
  svg.setAttribute("class", `${boxed ? "boxed" : "dotted"}${isStill ? " still" : ""}`);
  for (const place of places) {
    const mark = marks.get(place.item.id) || create(place.item.id);
    drawNode(mark, place, boxed, room.get(place.item.id));
    drawLink(mark.link, place, boxed);
  }
  drawTip();
  if (hadFocus && !nodes.contains(document.activeElement)) focus();
}

function create(id) {
  const link = make("path", {}, links);
  const group = make("g", { role: "treeitem" }, nodes);
  group.dataset.id = id;
  const mark = { link, group, shape: make("rect", {}, group), texts: [0, 1, 2, 3, 4].map((line) => make("text", line ? {} : { class: "id" }, group)) };
  marks.set(id, mark);
  return mark;
}

// With room between neighbours.
const dotSize = (row) => (row === null ? between([isCrowded ? 7 : 4, 13], view.across * 0.6) : between([4, 10], Math.min(view.row, view.across) - 3));

function drawNode({ group, shape, texts }, place, boxed, room) {
  const { item, row, depth } = place, [x, y] = at(place), size = dotSize(row);
  const classes = ["node", item.state, row !== null && "in-column", item.id === model.chosen && "chosen", isHit(item) && "hit", isFresh(item) && "fresh", isFolded(item) && "folded"];
  group.setAttribute("class", classes.filter(Boolean).join(" "));
  group.setAttribute("tabindex", item.id === model.current ? 0 : -1);
  group.setAttribute("aria-level", depth);
  group.setAttribute("aria-selected", item.id === model.chosen);
  if (item.children.length) group.setAttribute("aria-expanded", !isFolded(item)); else group.removeAttribute("aria-expanded");
  const above = item.parent ? `below ${item.parent}` : "root";
  group.setAttribute("aria-label", `${item.id}, ${item.state}, ${above}, ${count(item.load, "client")}, ${item.rate.toFixed(0)} activities a second`);
  group.style.transform = `translate(${x}px, ${y}px)`;
  const folded = isFolded(item) ? ` +${item.below}` : "", letters = Math.floor(room / (row === null ? BOLD : LETTER));
  if (boxed) {
    set(shape, { x: -BOX / 2, y: 0, width: BOX, height: BOX_HEIGHT });
    const lines = [
      `${short(item.id, 19 - folded.length)}${folded}`,
      short(item.address, 23),
      `${item.state} · ${count(item.load, "client")}`,
      `depth ${item.depth} · ${item.rate.toFixed(0)}/s`,
      `${seconds(item.age)} ago · ${short(item.version.split(" ").at(-1), 10)}`,
    ];
    lines.forEach((line, index) => write(texts[index], line, 0, 17 + 14 * index));
    return;
  }
  set(shape, { x: -size / 2, y: 8 - size / 2, width: size, height: size });
  const isNamed = letters >= Math.min(item.id.length, 6) + folded.length;
  const name = isNamed ? `${short(item.id, letters - folded.length)}${folded}` : letters >= folded.length ? folded.trim() : "";
  const more = `${count(item.load, "client")} · ${item.rate.toFixed(0)}/s`;
  if (row === null) {
    write(texts[0], name, 0, 8 + size / 2 + 13);
    write(texts[1], isNamed && letters > more.length && view.down >= 60 ? more : "", 0, 8 + size / 2 + 26);
  } else {
    const fits = isNamed && letters > name.length + more.length + 2;
    write(texts[0], fits ? `${name}  ${more}` : name, size / 2 + 4, 12);
    write(texts[1], "", 0, 0);
  }
  for (const text of texts.slice(2)) write(text, "", 0, 0);
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
}

function write(text, line, x, y) {
  if (text.textContent !== line) text.textContent = line;
  text.setAttribute("x", x);
  text.setAttribute("y", y);
}

function drawLink(link, place, boxed) {
  const { item, above, row } = place;
  link.setAttribute("class", `link${item.rate > 0 ? " busy" : ""}${isFresh(item) ? " fresh" : ""}`);
  link.style.display = above ? "" : "none";
  if (!above) return;
  const [x, to] = at(place), [upper, top] = at(above);
  const from = top + (boxed ? BOX_HEIGHT : 8);
  let d;
  if (row === null) {
    const end = boxed ? to : to + 8, middle = (from + end) / 2;
    d = `M${upper},${from}C${upper},${middle} ${x},${middle} ${x},${end}`;
  } else {
    // Down to the column, along it, and to the node.
    const side = x - dotSize(row) / 2 - 3, end = to - row * view.row, middle = (from + end) / 2;
    d = `M${upper},${from}C${upper},${middle} ${side},${middle} ${side},${end}L${side},${to + 8}L${x},${to + 8}`;
  }
  link.setAttribute("d", d);
  // As a property it moves along with the nodes, in browsers that can do so.
  link.style.d = `path("${d}")`;
}

// The name of the node below the pointer or with the keyboard, where it is too far away to have one.
function drawTip() {
  const id = hovered ?? (nodes.contains(document.activeElement) ? model.current : model.chosen);
  const place = find(id);
  if (!place || isBoxed()) { tip.textContent = ""; return; }
  const [x, y] = at(place), item = place.item;
  tip.textContent = `${short(item.id, 40)} · ${item.state} · ${count(item.load, "client")}`;
  const half = (tip.textContent.length * BOLD) / 2;
  tip.setAttribute("x", between([Math.min(half, host.clientWidth / 2), Math.max(host.clientWidth - half, host.clientWidth / 2)], x));
  tip.setAttribute("y", y < 16 ? y + 36 : y - 6);
}

// Calls back with what the reader asks for: a node to be chosen, folded, or to get the keyboard.
export function listen({ choose, toggle, move }) {
  const idOf = (target) => target.closest?.(".node")?.dataset.id ?? null;
  const pointers = new Map();
  let wasDragged = false;
  svg.addEventListener("pointerdown", (event) => {
    if (!pointers.size) wasDragged = false;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, far: 0 });
  });
  svg.addEventListener("pointermove", (event) => {
    const pointer = pointers.get(event.pointerId);
    hovered = idOf(event.target);
    if (!pointer) { drawTip(); return; }
    const [x, y] = [event.clientX - pointer.x, event.clientY - pointer.y];
    pointer.far += Math.abs(x) + Math.abs(y);
    if (pointer.far < 5 && !wasDragged) return;
    if (!wasDragged) svg.setPointerCapture(event.pointerId);
    wasDragged = true;
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const before = Math.hypot(pointer.x - other.x, pointer.y - other.y);
      const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      const box = svg.getBoundingClientRect();
      if (before > 0) zoom(after / before, (event.clientX + other.x) / 2 - box.left, (event.clientY + other.y) / 2 - box.top);
    } else pan(x, y);
    Object.assign(pointer, { x: event.clientX, y: event.clientY });
  });
  for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, (event) => pointers.delete(event.pointerId));
  svg.addEventListener("pointerleave", () => { hovered = null; drawTip(); });
  svg.addEventListener("click", (event) => { const id = idOf(event.target); if (id !== null && !wasDragged) choose(id, false); });
  svg.addEventListener("dblclick", (event) => { const id = idOf(event.target); if (id !== null) toggle(id); });
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * 0.002), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  svg.addEventListener("focusin", (event) => { const id = idOf(event.target); if (id !== null) { model.current = id; drawTip(); } });
  svg.addEventListener("focusout", drawTip);
  svg.addEventListener("keydown", (event) => {
    const place = find(model.current);
    if (!place || event.ctrlKey || event.altKey || event.metaKey) return;
    const order = (one, other) => one.x - other.x || one.row - other.row;
    const level = places.filter((other) => other.depth === place.depth).sort(order), index = level.indexOf(place);
    const to = { ArrowUp: place.above, ArrowDown: place.below, ArrowLeft: level[index - 1], ArrowRight: level[index + 1], Home: places[0], End: places.at(-1) };
    const acts = { Enter: () => choose(model.current, true), " ": () => toggle(model.current), "+": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: fit };
    if (event.key in to) { const id = to[event.key]?.item.id; if (id) move(id); } else if (event.key in acts) acts[event.key](); else return;
    event.preventDefault();
  });
  new ResizeObserver(() => { if (host.clientWidth) { layOut(); } }).observe(host);
}
