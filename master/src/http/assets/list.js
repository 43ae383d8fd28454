// The tree as a table, one row a node, each below its parent.
import { isFolded, isFresh, isHit, model, seconds, shownChildren } from "./model.js";

const rows = document.getElementById("rows");
const known = new Map();
let shown = [];

function create(id) {
  const row = document.createElement("tr");
  row.dataset.id = id;
  row.setAttribute("role", "row");
  const cells = ["", "", "number", "number", "number", "number", "", ""].map((name) => {
    const cell = document.createElement("td");
    cell.setAttribute("role", "gridcell");
    cell.className = name;
    row.append(cell);
    return cell;
  });
  const fold = document.createElement("span"), dot = document.createElement("span"), name = document.createElement("span");
  fold.className = "fold";
  dot.className = "dot";
  cells[0].append(fold, dot, name);
  known.set(id, { row, cells, fold, name });
  return known.get(id);
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function draw() {
  shown = [];
  const waiting = [...model.top.children].reverse().map((item) => [item, 1]);
  while (waiting.length) {
    const [item, level] = waiting.pop();
    shown.push({ item, level });
    for (const child of [...shownChildren(item)].reverse()) waiting.push([child, level + 1]);
  }
  if (!shown.some(({ item }) => item.id === model.current)) model.current = shown.length ? shown[0].item.id : null;
  const hadFocus = rows.contains(document.activeElement);
  const ids = new Set(shown.map(({ item }) => item.id));
  for (const [id, { row }] of known) if (!ids.has(id)) { row.remove(); known.delete(id); }
  let after = null;
  for (const { item, level } of shown) {
    const { row, cells, fold, name } = known.get(item.id) || create(item.id);
    const expected = after ? after.nextSibling : rows.firstChild;
    if (row !== expected) rows.insertBefore(row, expected);
    after = row;
    row.className = [item.state, item.id === model.chosen && "chosen", isHit(item) && "hit", isFresh(item) && "fresh"].filter(Boolean).join(" ");
    row.tabIndex = item.id === model.current ? 0 : -1;
    row.setAttribute("aria-level", level);
    row.setAttribute("aria-selected", item.id === model.chosen);
    if (item.children.length) row.setAttribute("aria-expanded", !isFolded(item)); else row.removeAttribute("aria-expanded");
    cells[0].style.paddingLeft = `${6 + 14 * Math.min(level - 1, 20)}px`;
    write(fold, item.children.length ? (isFolded(item) ? "▸" : "▾") : "");
    write(name, isFolded(item) ? `${item.id} (+${item.below})` : item.id);
    const texts = [item.state, item.load, item.rate.toFixed(0), item.depth, seconds(item.age), item.version, item.address];
    texts.forEach((text, index) => write(cells[index + 1], String(text)));
  }
  if (hadFocus && !rows.contains(document.activeElement)) focus();
}

export const focus = () => known.get(model.current)?.row.focus();
export const reveal = (id) => known.get(id)?.row.scrollIntoView({ block: "nearest" });

// Calls back with what the reader asks for, as the picture does.
export function listen({ choose, toggle, move }) {
  const idOf = (target) => target.closest("tr")?.dataset.id ?? null;
  rows.addEventListener("click", (event) => {
    const id = idOf(event.target);
    if (id === null) return;
    if (event.target.className === "fold") toggle(id); else choose(id, false);
  });
  rows.addEventListener("focusin", (event) => { const id = idOf(event.target); if (id !== null) model.current = id; });
  rows.addEventListener("keydown", (event) => {
    const index = shown.findIndex(({ item }) => item.id === model.current);
    if (index < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const { item } = shown[index];
    const to = { ArrowUp: shown[index - 1], ArrowDown: shown[index + 1], Home: shown[0], End: shown.at(-1), PageUp: shown[Math.max(0, index - 15)], PageDown: shown[Math.min(shown.length - 1, index + 15)] };
    if (event.key in to) { if (to[event.key]) move(to[event.key].item.id); }
    else if (event.key === "Enter") choose(item.id, true);
    else if (event.key === " ") toggle(item.id);
    else if (event.key === "ArrowLeft") { if (item.children.length && !isFolded(item)) toggle(item.id); else if (item.above) move(item.above.id); }
    else if (event.key === "ArrowRight") { if (isFolded(item)) toggle(item.id); else if (item.children.length) move(item.children[0].id); }
    else return;
    event.preventDefault();
  });
}
