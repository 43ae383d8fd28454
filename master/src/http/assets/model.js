// What the master has told, and what the reader of the page has chosen.
export const model = {
  master: null, // the id of this start of the master
  isWarming: false,
  items: new Map(), // all nodes by id
  top: { children: [] }, // stands above the roots
  folded: new Set(),
  chosen: null, // whose details are shown
  current: null, // who has, or would get, the keyboard
  wanted: "", // what is looked for
};

// For how long it is shown that a node is new or has another parent, in milliseconds.
const FRESH = 8000;

export function takeTree(tree) {
  const isFirst = model.master !== tree.master;
  const before = model.items, now = Date.now();
  model.master = tree.master;
  model.isWarming = tree.warming;
  model.items = new Map(tree.nodes.map((node) => {
    const old = before.get(node.id);
    const isSame = isFirst || (old && old.parent === node.parent);
    const since = isSame ? (old ? old.since : 0) : now;
    const { load, rate, age } = old || { load: 0, rate: 0, age: 0 };
    return [node.id, { ...node, load, rate, age, since, above: null, children: [], below: 0 }];
  }));
  model.top = { children: [] };
  for (const item of model.items.values()) {
    // Who reports a parent that nobody knows stands at the top, and so do all whose parents go round in a circle.
    const seen = new Set([item.id]);
    let up = model.items.get(item.parent);
    while (up && !seen.has(up.id)) { seen.add(up.id); up = model.items.get(up.parent); }
    item.above = up ? null : model.items.get(item.parent) || null;
    (item.above || model.top).children.push(item);
  }
  const byName = new Intl.Collator(undefined, { numeric: true }).compare;
  for (const { children } of [model.top, ...model.items.values()]) children.sort((one, other) => byName(one.id, other.id));
  for (const item of model.items.values()) for (const above of ancestors(item)) above.below += 1;
  for (const id of model.folded) if (!model.items.has(id)) model.folded.delete(id);
}

// In the order of the tree that came last.
export function takeRates(rates) {
  let at = 0;
  for (const item of model.items.values()) [item.load, item.rate, item.age] = rates[at++] || [0, 0, 0];
}

export function ancestors(item) {
  const found = [];
  for (let up = item.above; up; up = up.above) found.push(up);
  return found;
}

export const isFolded = (item) => model.folded.has(item.id) && item.children.length > 0;
export const shownChildren = (item) => (isFolded(item) ? [] : item.children);
export const isFresh = (item) => Date.now() - item.since < FRESH;
export const isHit = (item) => model.wanted !== "" && `${item.id} ${item.address}`.toLowerCase().includes(model.wanted);

export function toggleFold(id) {
  if (!model.folded.delete(id)) model.folded.add(id);
}

export function unfoldTo(id) {
  const item = model.items.get(id);
  if (item) for (const above of ancestors(item)) model.folded.delete(above.id);
}

export const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
export const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;
